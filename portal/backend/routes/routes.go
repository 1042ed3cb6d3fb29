package routes

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/carme-hpc/carme/internal/token"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	codeLife  = 30 * time.Second
	grantLife = 110 * time.Second
	// clockSkew is what hosts' clocks may differ by; with grantLife it is the
	// longest life of a token.
	clockSkew = 10 * time.Second
	secret    = 32
	labelSize = 16

	// ModeFull may do everything in the app.
	ModeFull = "full"
)

// label is how a host is called; nonce a SHA-256 in hex.
var (
	label = regexp.MustCompile(`^s-[a-z2-7]{26}$`)
	nonce = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Sessions tells whether a login session is still there.
type Sessions interface {
	Alive(ctx context.Context, id string) (*auth.Session, error)
	// Used says that the session is in use: work in an app is no idleness.
	Used(ctx context.Context, sess *auth.Session)
}

// Jobs tells where a job is now.
type Jobs interface {
	// Place returns the node that has this instance of the job and serves its
	// app, its agent's address, and until when the job may run at the latest.
	// ok is false when it has ended or is not known.
	Place(ctx context.Context, job uint32, instance string) (node, addr string, end time.Time, ok bool)
}

// Service is the routes.
type Service struct {
	DB       *store.DB
	Audit    *audit.Log
	Feed     *Feed
	Sessions Sessions
	Jobs     Jobs
	Now      func() time.Time
	Cluster  string
	KeyID    string
	Key      ed25519.PrivateKey
}

// Host is an origin.
type Host struct {
	Label    string
	Job      int64
	Instance string
	UID      int64
	Viewer   string
	Mode     string
	App      string
	Node     string
	Ended    int64
}

const hostColumns = "label, job, instance, uid, viewer, mode, app, node, ended"

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func random(n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("read randomness: %w", err)
	}
	return b, nil
}

// Begin makes sure that the owner of a job's instance has an origin for it.
// Other instances of the job are over: it was requeued.
func (s *Service) Begin(ctx context.Context, node string, job api.NodeJob, owner string) error {
	raw, err := random(labelSize)
	if err != nil {
		return err
	}
	name := "s-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw))
	now := s.Now().UnixMicro()
	var changed bool
	err = s.DB.Write(ctx, func(tx store.Tx) error {
		var old []Host
		if err := store.One(ctx, tx, &old, "SELECT "+hostColumns+" FROM hosts WHERE job = ? AND instance <> ? AND node = ? AND ended = 0", int64(job.Job), job.Instance, node); err != nil {
			return fmt.Errorf("read hosts: %w", err)
		}
		if changed, err = s.end(ctx, tx, old); err != nil {
			return err
		}
		n, err := store.Exec(ctx, tx, `INSERT INTO hosts (label, job, instance, uid, viewer, mode, app, node, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (instance, viewer, mode) DO NOTHING`, name, int64(job.Job), job.Instance, int64(job.UID), owner, ModeFull, job.App, node, now)
		if err != nil {
			return fmt.Errorf("store host: %w", err)
		}
		if n == 0 {
			return nil
		}
		return s.Audit.Write(ctx, tx, "node/"+node, "session begun", strconv.FormatUint(uint64(job.Job), 10),
			map[string]string{"host": name, "app": job.App, "owner": owner})
	})
	if err == nil && changed {
		s.Feed.Wake()
	}
	return err
}

func (s *Service) end(ctx context.Context, tx store.Tx, hosts []Host) (bool, error) {
	for _, h := range hosts {
		if _, err := store.Exec(ctx, tx, "UPDATE hosts SET ended = ? WHERE label = ?", s.Now().UnixMicro(), h.Label); err != nil {
			return false, fmt.Errorf("end host: %w", err)
		}
		if _, err := store.Exec(ctx, tx, "DELETE FROM app_tokens WHERE label = ?", h.Label); err != nil {
			return false, fmt.Errorf("end host: %w", err)
		}
		if err := s.Feed.Add(ctx, tx, api.RevokeHost, h.Label); err != nil {
			return false, err
		}
	}
	return len(hosts) > 0, nil
}

// End closes what a job has open.
func (s *Service) End(ctx context.Context, job uint32) error {
	return s.endSome(ctx, job, "job = ?", int64(job))
}

// EndInstance closes what one instance of a job has open on a node: no node ends
// what another one runs.
func (s *Service) EndInstance(ctx context.Context, node string, job uint32, instance string) error {
	return s.endSome(ctx, job, "job = ? AND node = ? AND instance = ?", int64(job), node, instance)
}

// endSome closes the hosts for which the condition holds.
func (s *Service) endSome(ctx context.Context, job uint32, which string, args ...any) error {
	changed := false
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		var open []Host
		if err := store.One(ctx, tx, &open, "SELECT "+hostColumns+" FROM hosts WHERE ended = 0 AND "+which, args...); err != nil {
			return fmt.Errorf("read hosts: %w", err)
		}
		var err error
		if changed, err = s.end(ctx, tx, open); err != nil || !changed {
			return err
		}
		return s.Audit.Write(ctx, tx, "backend", "session ended", strconv.FormatUint(uint64(job), 10), nil)
	})
	if err == nil && changed {
		s.Feed.Wake()
	}
	return err
}

// Hosts returns the live origins of a viewer, by job.
func (s *Service) Hosts(ctx context.Context, viewer string) (map[uint32]string, error) {
	var rows []Host
	if err := store.One(ctx, s.DB.Read(), &rows, "SELECT "+hostColumns+" FROM hosts WHERE viewer = ? AND ended = 0", viewer); err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	out := map[uint32]string{}
	for _, h := range rows {
		out[uint32(h.Job)] = h.Label //nolint:gosec // it came from a uint32
	}
	return out, nil
}

func (s *Service) host(ctx context.Context, tx store.Tx, name string) (Host, error) {
	var h Host
	if !label.MatchString(name) {
		return h, problem.NotFound()
	}
	err := store.One(ctx, tx, &h, "SELECT "+hostColumns+" FROM hosts WHERE label = ? AND ended = 0", name)
	if errors.Is(err, sql.ErrNoRows) {
		return h, problem.NotFound()
	}
	if err != nil {
		return h, fmt.Errorf("read host: %w", err)
	}
	return h, nil
}

// Open gives a session a code with which its browser enters an origin.
func (s *Service) Open(ctx context.Context, sess *auth.Session, in api.Open) (api.Opened, error) {
	if !nonce.MatchString(in.Nonce) {
		return api.Opened{}, problem.Invalid("The nonce is missing.", map[string]string{"nonce": "is no SHA-256 in hex"})
	}
	raw, err := random(secret)
	if err != nil {
		return api.Opened{}, err
	}
	code := base64.RawURLEncoding.EncodeToString(raw)
	err = s.DB.Write(ctx, func(tx store.Tx) error {
		h, err := s.host(ctx, tx, in.Host)
		if err != nil {
			return err
		}
		if h.Viewer != sess.UserName {
			return problem.NotFound()
		}
		if _, err := store.Exec(ctx, tx, "DELETE FROM open_codes WHERE expires <= ?", s.Now().UnixMicro()); err != nil {
			return fmt.Errorf("forget codes: %w", err)
		}
		_, err = store.Exec(ctx, tx, "INSERT INTO open_codes (hash, label, session_id, nonce, expires) VALUES (?, ?, ?, ?, ?)",
			digest(code), h.Label, sess.ID, in.Nonce, s.Now().Add(codeLife).UnixMicro())
		if err != nil {
			return fmt.Errorf("store code: %w", err)
		}
		return nil
	})
	if err != nil {
		return api.Opened{}, err
	}
	return api.Opened{Code: code}, nil
}

// Redeem spends a code, whatever comes of it.
func (s *Service) Redeem(ctx context.Context, portal string, in api.Redeem) (api.Redeemed, error) {
	var row struct {
		Label     string
		SessionID string
		Nonce     string
		Expires   int64
	}
	// Anybody can bring made-up codes: they must not queue for the one writer.
	var known int
	if err := store.One(ctx, s.DB.Read(), &known, "SELECT COUNT(*) FROM open_codes WHERE hash = ?", digest(in.Code)); err != nil {
		return api.Redeemed{}, fmt.Errorf("look for code: %w", err)
	}
	if known == 0 {
		return api.Redeemed{}, problem.NoSession()
	}
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		return store.One(ctx, tx, &row, "DELETE FROM open_codes WHERE hash = ? RETURNING label, session_id, nonce, expires", digest(in.Code))
	})
	if errors.Is(err, sql.ErrNoRows) {
		return api.Redeemed{}, problem.NoSession()
	}
	if err != nil {
		return api.Redeemed{}, fmt.Errorf("spend code: %w", err)
	}
	same := subtle.ConstantTimeCompare([]byte(digest(in.Nonce)), []byte(row.Nonce)) == 1
	left := time.UnixMicro(row.Expires).Sub(s.Now())
	if !same || row.Label != in.Host || left <= 0 || left > 2*codeLife { // the clock was put back
		return api.Redeemed{}, problem.NoSession()
	}
	sess, err := s.Sessions.Alive(ctx, row.SessionID)
	if err != nil {
		return api.Redeemed{}, err
	}
	raw, err := random(secret)
	if err != nil {
		return api.Redeemed{}, err
	}
	expires := time.UnixMicro(sess.Expires).UTC()
	out := api.Redeemed{Token: base64.RawURLEncoding.EncodeToString(raw), Expires: expires, ExpiresIn: int(expires.Sub(s.Now()).Seconds())}
	err = s.DB.Write(ctx, func(tx store.Tx) error {
		h, err := s.host(ctx, tx, in.Host)
		if err != nil {
			return err
		}
		if h.Viewer != sess.UserName {
			return problem.NotFound()
		}
		// The session may have ended since: the foreign key would miss it.
		n, err := store.Exec(ctx, tx, "INSERT INTO app_tokens (hash, label, session_id, expires) SELECT ?, ?, id, expires FROM login_sessions WHERE id = ? AND state = ?",
			digest(out.Token), h.Label, sess.ID, api.SessionFull)
		if err != nil {
			return fmt.Errorf("store app token: %w", err)
		}
		if n != 1 {
			return problem.NoSession()
		}
		return s.Audit.Write(ctx, tx, sess.UserName, "session entered", strconv.FormatInt(h.Job, 10),
			map[string]string{"host": h.Label, "app": h.App, "login": sess.ID, "portal": portal})
	})
	return out, err
}

// Grant is the way to an app for the holder of an app token, on one portal.
func (s *Service) Grant(ctx context.Context, portalKey [32]byte, in api.GrantRequest) (api.Grant, error) {
	var row struct {
		SessionID string
		Expires   int64
	}
	err := store.One(ctx, s.DB.Read(), &row, "SELECT session_id, expires FROM app_tokens WHERE hash = ? AND label = ?", digest(in.Token), in.Host)
	if errors.Is(err, sql.ErrNoRows) || err == nil && !time.UnixMicro(row.Expires).After(s.Now()) {
		if s.over(ctx, in.Host) {
			return api.Grant{}, problem.NotFound() // a login would lead nowhere
		}
		return api.Grant{}, problem.NoSession()
	}
	if err != nil {
		return api.Grant{}, fmt.Errorf("read app token: %w", err)
	}
	sess, err := s.Sessions.Alive(ctx, row.SessionID)
	if err != nil {
		return api.Grant{}, err
	}
	h, err := s.host(ctx, s.DB.Read(), in.Host)
	if err != nil {
		return api.Grant{}, err
	}
	if h.Viewer != sess.UserName {
		return api.Grant{}, problem.NotFound()
	}
	s.Sessions.Used(ctx, sess)
	return s.sign(ctx, portalKey, h, sess)
}

// over says whether there was an origin of that name that has ended. Who knows
// its 128 bits may know that.
func (s *Service) over(ctx context.Context, name string) bool {
	var ended int64
	err := store.One(ctx, s.DB.Read(), &ended, "SELECT ended FROM hosts WHERE label = ?", name)
	return err == nil && ended > 0
}

func (s *Service) sign(ctx context.Context, portalKey [32]byte, h Host, sess *auth.Session) (api.Grant, error) {
	job := uint32(h.Job) //nolint:gosec // it came from a uint32
	node, addr, end, ok := s.Jobs.Place(ctx, job, h.Instance)
	if !ok {
		return api.Grant{}, problem.Unavailable("The session's node has not been heard of for a while; try again in a minute.")
	}
	id, err := uuid.NewV7()
	if err != nil {
		return api.Grant{}, fmt.Errorf("make grant: %w", err)
	}
	now := s.Now()
	last := time.UnixMicro(sess.Expires)
	if !end.IsZero() && end.Before(last) {
		last = end
	}
	expires := now.Add(grantLife)
	if last.Before(expires) {
		expires = last
	}
	tok, err := token.Sign(s.Key, token.Claims{
		KeyID: s.KeyID, Cluster: s.Cluster, Node: node, Job: job, Instance: h.Instance, UID: uint32(h.UID), //nolint:gosec // it came from a uint32
		App: h.App, Viewer: h.Viewer, Mode: h.Mode, ID: id.String(), PortalKey: portalKey, NotBefore: now.Add(-clockSkew), Expires: expires,
	})
	if err != nil {
		return api.Grant{}, err
	}
	return api.Grant{
		ID: id.String(), Session: sess.ID, User: sess.UserName, Viewer: h.Viewer, Mode: h.Mode, Job: strconv.FormatInt(h.Job, 10), App: h.App,
		Addr: addr, Node: node, Token: tok, Expires: expires.UTC(), End: last.UTC(),
	}, nil
}

// LiveJobs are the jobs that have an origin.
func (s *Service) LiveJobs(ctx context.Context) ([]uint32, error) {
	var ids []int64
	if err := store.One(ctx, s.DB.Read(), &ids, "SELECT DISTINCT job FROM hosts WHERE ended = 0"); err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	out := make([]uint32, 0, len(ids))
	for _, id := range ids {
		out = append(out, uint32(id)) //nolint:gosec // it came from a uint32
	}
	return out, nil
}
