package auth

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/auth/totp"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	// pendingLife is how long a login may take between two steps.
	pendingLife = 10 * time.Minute
	deviceLife  = 90 * 24 * time.Hour
	tokenSize   = 32
	// seenEvery is how exact the time of the last use is kept.
	seenEvery = time.Minute
	// A request waits so long for that to be stored, the storing goes on for so
	// long, for so many at once.
	noteWait   = 500 * time.Millisecond
	noteWithin = 10 * time.Second
	notingMax  = 16
	textMax    = 256
)

// Revoker tells portals what is over. Add belongs to the transaction, Wake comes
// after its commit.
type Revoker interface {
	Add(ctx context.Context, tx store.Tx, kind, value string) error
	Wake()
}

// Rules are the site's.
type Rules struct {
	// SessionLife is the longest time, IdleLife the longest without a request.
	SessionLife, IdleLife time.Duration
	// FactorEvery: on a browser where a second factor was shown this short ago,
	// the password is enough. 0: always both.
	FactorEvery time.Duration
	// Floor is how long an answer to a password takes at least.
	Floor time.Duration
}

// Service is login and sessions.
type Service struct {
	DB     *store.DB
	Dir    Directory
	Sealer *totp.Sealer
	Audit  *audit.Log
	Revoke Revoker
	Rules  Rules
	// Issuer is what an app for codes shows.
	Issuer string
	Now    func() time.Time
	Random io.Reader

	guesses logx.Seldom
	unnoted logx.Seldom
	noting  atomic.Int32
}

// Session is a login session with its user.
type Session struct {
	ID       string
	Hash     string
	UserName string
	State    string
	Created  int64
	Seen     int64
	Expires  int64
	Source   string
	Agent    string
	Device   string
	Portal   string

	UID       int64
	GID       int64
	Home      string
	FullName  string
	Mail      string
	Roles     string
	GroupsOf  string
	TotpSince int64
}

const sessionQuery = `SELECT s.id, s.hash, s.user_name, s.state, s.created, s.seen, s.expires, s.source, s.agent, s.device, s.portal,
	u.uid, u.gid, u.home, u.full_name, u.mail, u.roles, u.groups_of, u.totp_since
	FROM login_sessions s JOIN users u ON u.name = s.user_name `

// User is the session's user as the API shows them.
func (s *Session) User() api.User {
	return api.User{Name: s.UserName, Full: s.FullName, Mail: s.Mail, UID: uint32(s.UID), Roles: list(s.Roles)} //nolint:gosec // it came from a uint32
}

// Groups are the names of the user's groups.
func (s *Session) Groups() []string { return list(s.GroupsOf) }

// Admin says whether the user is an admin.
func (s *Session) Admin() bool { return slices.Contains(list(s.Roles), api.RoleAdmin) }

// API is the session as its owner sees it.
func (s *Session) API(current string) api.LoginSession {
	return api.LoginSession{
		ID: s.ID, State: s.State, Created: at(s.Created), Seen: at(s.Seen), Expires: at(s.Expires),
		Source: s.Source, Agent: s.Agent, Current: s.ID == current,
	}
}

func at(micro int64) time.Time { return time.UnixMicro(micro).UTC() }

func seconds(d time.Duration) int { return int(d.Seconds()) }

func list(text string) []string {
	out := []string{}
	_ = json.Unmarshal([]byte(text), &out) // written by text
	return out
}

func text(list []string) string {
	if list == nil {
		list = []string{}
	}
	b, _ := json.Marshal(list) //nolint:errchkjson // strings always can be
	return string(b)
}

func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

func (s *Service) token() (string, error) {
	b := make([]byte, tokenSize)
	if _, err := io.ReadFull(s.Random, b); err != nil {
		return "", fmt.Errorf("make token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

func clip(s string) string {
	if len(s) > textMax {
		s = s[:textMax]
	}
	return strings.ToValidUTF8(s, "")
}

// Login is the first step: name and password. It answers after the same time
// whatever happened, as far as the directory allows.
func (s *Service) Login(ctx context.Context, portal string, in api.Login) (api.LoginAnswer, error) {
	start := s.Now()
	answer, err := s.login(ctx, portal, in)
	s.wait(ctx, start)
	return answer, err
}

// wait returns at the floor, or with ctx.
func (s *Service) wait(ctx context.Context, start time.Time) {
	if s.Rules.Floor <= 0 {
		return
	}
	var b [1]byte
	_, _ = io.ReadFull(s.Random, b[:]) // without jitter it is still the floor
	left := s.Rules.Floor - s.Now().Sub(start) + time.Duration(b[0])*s.Rules.Floor/2048
	timer := time.NewTimer(max(0, left))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (s *Service) login(ctx context.Context, portal string, in api.Login) (api.LoginAnswer, error) {
	source := sourceSubject(in.Source)
	device, owner, factorAt := s.device(ctx, in.Device)
	var subjects []subject
	if owner == "" {
		if err := s.reserve(ctx, source); err != nil {
			return api.LoginAnswer{}, err
		}
		subjects = append(subjects, source)
	}
	person, err := s.Dir.Find(ctx, in.Username)
	unknown := errors.Is(err, ErrUnknown)
	if err != nil && !unknown {
		return api.LoginAnswer{}, s.unavailable(ctx, err, subjects)
	}
	who := userSubject(person.Name)
	switch {
	case unknown:
		who = unknownSubject(strings.ToLower(strings.TrimSpace(in.Username)))
	case owner == person.Name:
		who = deviceSubject(device)
	}
	if owner != "" && owner != person.Name { // somebody else's browser counts as any
		device = ""
		if err := s.reserve(ctx, source, who); err != nil {
			return api.LoginAnswer{}, err
		}
		subjects = append(subjects, source, who)
	} else {
		if err := s.reserve(ctx, who); err != nil {
			return api.LoginAnswer{}, errors.Join(err, s.giveBack(ctx, subjects...))
		}
		subjects = append(subjects, who)
	}
	err = s.Dir.Check(ctx, person.DN, in.Password)
	switch {
	case unknown, errors.Is(err, ErrPassword):
		return api.LoginAnswer{}, s.refuse(ctx, person.Name, in)
	case err != nil:
		return api.LoginAnswer{}, s.unavailable(ctx, err, subjects)
	}
	fresh := device != "" && s.Rules.FactorEvery > 0 && s.Now().Sub(at(factorAt)) < s.Rules.FactorEvery && !at(factorAt).After(s.Now())
	return s.begin(ctx, portal, person, in, device, fresh, subjects)
}

// unavailable is for a directory that could not be asked.
func (s *Service) unavailable(ctx context.Context, cause error, subjects []subject) error {
	s.Audit.Out.WarnContext(ctx, "directory does not answer", "err", cause.Error())
	if err := s.giveBack(ctx, subjects...); err != nil {
		return err
	}
	return problem.Unavailable("Logging in is not possible now: the directory does not answer. Try again in a minute.")
}

// refuse records a failure by a name that exists, or by the hash of what was
// typed: it may be a password.
func (s *Service) refuse(ctx context.Context, name string, in api.Login) error {
	if name == "" {
		name = "unknown:" + hash(in.Username)[:16]
	}
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		return s.Audit.Write(ctx, tx, name, "login refused", "", map[string]string{"source": in.Source})
	})
	if err != nil {
		return err
	}
	return problem.LoginRefused()
}

// device looks a browser up; owner is empty if it is not known.
func (s *Service) device(ctx context.Context, token string) (device, owner string, factorAt int64) {
	if token == "" {
		return "", "", 0
	}
	var row struct {
		UserName string
		FactorAt int64
	}
	device = hash(token)
	if err := store.One(ctx, s.DB.Read(), &row, "SELECT user_name, factor_at FROM devices WHERE hash = ? AND expires > ?", device, s.Now().UnixMicro()); err != nil {
		return "", "", 0
	}
	return device, row.UserName, row.FactorAt
}

// begin stores the person as the directory has them now, and a session.
func (s *Service) begin(ctx context.Context, portal string, p Person, in api.Login, device string, fresh bool, subjects []subject) (api.LoginAnswer, error) {
	tok, err := s.token()
	if err != nil {
		return api.LoginAnswer{}, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return api.LoginAnswer{}, fmt.Errorf("make session: %w", err)
	}
	now := s.Now()
	answer := api.LoginAnswer{Token: tok, User: api.User{Name: p.Name, Full: p.Full, Mail: p.Mail, UID: p.UID, Roles: p.Roles}}
	changed := false
	err = s.DB.Write(ctx, func(tx store.Tx) (err error) {
		if changed, err = s.changed(ctx, tx, p); err != nil {
			return err
		}
		if err := savePerson(ctx, tx, p); err != nil {
			return err
		}
		var enrolled int
		if err := store.One(ctx, tx, &enrolled, "SELECT COUNT(*) FROM users WHERE name = ? AND totp_secret IS NOT NULL", p.Name); err != nil {
			return fmt.Errorf("read user: %w", err)
		}
		life := pendingLife
		switch {
		case enrolled == 0:
			answer.State = api.SessionEnrol
		case fresh:
			answer.State, life = api.SessionFull, s.Rules.SessionLife
		default:
			answer.State = api.SessionPending
		}
		answer.Expires, answer.ExpiresIn = now.Add(life).UTC(), seconds(life)
		if _, err := store.Exec(ctx, tx, `INSERT INTO login_sessions (id, hash, user_name, state, created, seen, expires, source, agent, device, portal)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, id.String(), hash(tok), p.Name, answer.State, now.UnixMicro(), now.UnixMicro(),
			answer.Expires.UnixMicro(), clip(in.Source), clip(in.Agent), device, portal); err != nil {
			return fmt.Errorf("store session: %w", err)
		}
		if err := cleared(ctx, tx, subjects...); err != nil {
			return err
		}
		return s.Audit.Write(ctx, tx, p.Name, "password accepted", id.String(),
			map[string]string{"source": in.Source, "state": answer.State, "portal": portal})
	})
	if err == nil && changed {
		s.Revoke.Wake()
	}
	return answer, err
}

// changed ends what was logged in before the account's uid or password changed.
// Recheck would do so within a minute, but compares with what savePerson is about
// to store: a login right after the change would hide it from there.
func (s *Service) changed(ctx context.Context, tx store.Tx, p Person) (bool, error) {
	var before struct {
		UID   int64
		Stamp string
	}
	err := store.One(ctx, tx, &before, "SELECT uid, stamp FROM users WHERE name = ?", p.Name)
	if errors.Is(err, sql.ErrNoRows) || err == nil && before.UID == int64(p.UID) && before.Stamp == p.Stamp {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read user: %w", err)
	}
	return true, s.over(ctx, tx, p.Name)
}

func savePerson(ctx context.Context, tx store.Tx, p Person) error {
	_, err := store.Exec(ctx, tx, `INSERT INTO users (name, uid, gid, home, full_name, mail, roles, groups_of, stamp) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET uid = excluded.uid, gid = excluded.gid, home = excluded.home, full_name = excluded.full_name,
		mail = excluded.mail, roles = excluded.roles, groups_of = excluded.groups_of, stamp = excluded.stamp`,
		p.Name, int64(p.UID), int64(p.GID), p.Home, clip(p.Full), clip(p.Mail), text(p.Roles), text(p.Groups), p.Stamp)
	if err != nil {
		return fmt.Errorf("store user: %w", err)
	}
	return nil
}

// Authenticate returns the session of a token if it is in one of the states. That
// is no use of it yet (Used).
func (s *Service) Authenticate(ctx context.Context, token string, states ...string) (*Session, error) {
	if len(token) != base64.RawURLEncoding.EncodedLen(tokenSize) {
		return nil, problem.NoSession()
	}
	sess, err := s.byHash(ctx, hash(token))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem.NoSession()
	}
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	now := s.Now()
	idle := sess.State == api.SessionFull && now.Sub(at(sess.Seen)) > s.Rules.IdleLife
	switch {
	case !now.Before(at(sess.Expires)) || idle:
		return nil, problem.NoSession()
	case slices.Contains(states, sess.State):
	case sess.State == api.SessionFull:
		return nil, problem.NoSession()
	default:
		return nil, problem.NotComplete(sess.State)
	}
	return sess, nil
}

// byHash is Authenticate's query. Every request makes it, and that the database says
// so each time is what makes the end of a session the end at once.
func (s *Service) byHash(ctx context.Context, hash string) (*Session, error) {
	row, err := s.DB.Row(ctx, sessionQuery+"WHERE s.hash = ?", hash)
	if err != nil {
		return nil, err
	}
	var o Session
	return &o, row.Scan(&o.ID, &o.Hash, &o.UserName, &o.State, &o.Created, &o.Seen, &o.Expires, &o.Source, &o.Agent, &o.Device, &o.Portal,
		&o.UID, &o.GID, &o.Home, &o.FullName, &o.Mail, &o.Roles, &o.GroupsOf, &o.TotpSince)
}

// Used stores that the session is in use, once a minute. It denies nobody anything:
// a database that takes no writes, on a full disk or while another program holds it,
// makes the session look unused, so that it ends early rather than late.
func (s *Service) Used(ctx context.Context, sess *Session) {
	now := s.Now()
	if now.Sub(at(sess.Seen)) <= seenEvery {
		return
	}
	if s.noting.Add(1) > notingMax {
		s.noting.Add(-1)
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.noting.Add(-1)
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteWithin)
		defer cancel()
		err := s.DB.Note(limit, func(tx store.Tx) error {
			_, err := store.Exec(limit, tx, "UPDATE login_sessions SET seen = ? WHERE id = ? AND seen < ?", now.UnixMicro(), sess.ID, now.UnixMicro())
			return err
		})
		if err == nil {
			return
		}
		if left, ok := s.unnoted.Turn(s.Now()); ok {
			s.Audit.Out.WarnContext(limit, "use of a session could not be stored", "err", err.Error(), "left_out", left)
		}
	}()
	wait := time.NewTimer(noteWait)
	defer wait.Stop()
	select {
	case <-done:
	case <-wait.C:
	}
}

// Alive returns a full session by its id.
func (s *Service) Alive(ctx context.Context, id string) (*Session, error) {
	var sess Session
	err := store.One(ctx, s.DB.Read(), &sess, sessionQuery+"WHERE s.id = ? AND s.state = ? AND s.expires > ?", id, api.SessionFull, s.Now().UnixMicro())
	if errors.Is(err, sql.ErrNoRows) {
		return nil, problem.NoSession()
	}
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	return &sess, nil
}

// Sessions are all of a user.
func (s *Service) Sessions(ctx context.Context, user string) ([]Session, error) {
	var all []Session
	err := store.One(ctx, s.DB.Read(), &all, sessionQuery+"WHERE s.user_name = ? AND s.expires > ? ORDER BY s.created DESC", user, s.Now().UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	return all, nil
}

// End ends a session of the user; actor is who does it.
func (s *Service) End(ctx context.Context, actor, user, id, act string) error {
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		n, err := store.Exec(ctx, tx, "DELETE FROM login_sessions WHERE id = ? AND user_name = ?", id, user)
		if err != nil {
			return fmt.Errorf("end session: %w", err)
		}
		if n == 0 {
			return problem.NotFound()
		}
		if err := s.Revoke.Add(ctx, tx, api.RevokeSession, id); err != nil {
			return err
		}
		return s.Audit.Write(ctx, tx, actor, act, id, map[string]string{"user": user})
	})
	if err == nil {
		s.Revoke.Wake()
	}
	return err
}

// EndOthers ends all of the user's sessions but this one, those that still owe a second
// factor included.
func (s *Service) EndOthers(ctx context.Context, sess *Session) error {
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		if err := s.endAll(ctx, tx, sess.UserName, sess.ID); err != nil {
			return err
		}
		return s.Audit.Write(ctx, tx, sess.UserName, "other sessions ended by their user", sess.ID, map[string]string{"user": sess.UserName})
	})
	if err == nil {
		s.Revoke.Wake()
	}
	return err
}

// endAll ends every session of a user except one.
func (s *Service) endAll(ctx context.Context, tx store.Tx, user, except string) error {
	var ids []string
	if err := store.One(ctx, tx, &ids, "SELECT id FROM login_sessions WHERE user_name = ? AND id <> ?", user, except); err != nil {
		return fmt.Errorf("read sessions: %w", err)
	}
	for _, id := range ids {
		if err := s.Revoke.Add(ctx, tx, api.RevokeSession, id); err != nil {
			return err
		}
	}
	if _, err := store.Exec(ctx, tx, "DELETE FROM login_sessions WHERE user_name = ? AND id <> ?", user, except); err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	return nil
}
