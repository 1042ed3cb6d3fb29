package auth

import (
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/auth/totp"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	recoveryCodes = 10
	recoverySize  = 16
	enrolLife     = 15 * time.Minute
	codeDigits    = 6

	// What a sealed secret is for.
	purposeUse = "totp"
)

// purposeNext is for a secret that waits for its first code: that of one session.
// Somebody else who has the password must not be shown what its owner is about to
// take into use, and keep a copy.
func purposeNext(sess *Session) string { return "totp-next|" + sess.ID }

// Factor is the second step of a login: a code, or a recovery code.
func (s *Service) Factor(ctx context.Context, sess *Session, in api.Factor) (api.LoginAnswer, error) {
	who := []subject{factorSubject(sess.UserName, sess.Device), sourceSubject(in.Source)}
	if sess.Device != "" {
		who = who[:1]
	}
	if err := s.reserve(ctx, who...); err != nil {
		return api.LoginAnswer{}, err
	}
	kind := "code"
	spend := func(tx store.Tx) error { return s.spendCode(ctx, tx, sess.UserName, in.Code) }
	if in.Recovery != "" {
		kind = "recovery code"
		spend = func(tx store.Tx) error { return s.spendRecovery(ctx, tx, sess.UserName, in.Recovery) }
	}
	answer, err := s.promote(ctx, sess, who, spend, map[string]string{"factor": kind, "source": in.Source})
	return answer, s.refusedFactor(ctx, sess, err, in.Source)
}

// refusedFactor records a refusal, which is no part of the transaction that it
// undid.
func (s *Service) refusedFactor(ctx context.Context, sess *Session, err error, source string) error {
	var p *problem.Error
	if !errors.As(err, &p) || p.Body.Code != "factor_refused" {
		return err
	}
	return errors.Join(err, s.DB.Write(ctx, func(tx store.Tx) error {
		return s.Audit.Write(ctx, tx, sess.UserName, "factor refused", sess.ID, map[string]string{"source": source})
	}))
}

// promote makes a session a full one with a new token, if spend agrees.
func (s *Service) promote(ctx context.Context, sess *Session, who []subject, spend func(store.Tx) error, detail map[string]string) (api.LoginAnswer, error) {
	tok, err := s.token()
	if err != nil {
		return api.LoginAnswer{}, err
	}
	device, err := s.token()
	if err != nil {
		return api.LoginAnswer{}, err
	}
	now := s.Now()
	answer := api.LoginAnswer{
		Token: tok, State: api.SessionFull, User: sess.User(), Device: device,
		Expires: now.Add(s.Rules.SessionLife).UTC(), ExpiresIn: seconds(s.Rules.SessionLife),
	}
	err = s.DB.Write(ctx, func(tx store.Tx) error {
		if err := spend(tx); err != nil {
			return err
		}
		n, err := store.Exec(ctx, tx, "UPDATE login_sessions SET hash = ?, state = ?, expires = ?, seen = ?, device = ? WHERE id = ? AND hash = ? AND state = ?",
			hash(tok), api.SessionFull, answer.Expires.UnixMicro(), now.UnixMicro(), hash(device), sess.ID, sess.Hash, sess.State)
		if err != nil {
			return fmt.Errorf("store session: %w", err)
		}
		if n != 1 {
			return problem.NoSession()
		}
		if err := s.renewDevice(ctx, tx, sess, device, now); err != nil {
			return err
		}
		if err := cleared(ctx, tx, who...); err != nil {
			return err
		}
		return s.Audit.Write(ctx, tx, sess.UserName, "logged in", sess.ID, detail)
	})
	if err != nil {
		return api.LoginAnswer{}, err
	}
	return answer, nil
}

func (s *Service) renewDevice(ctx context.Context, tx store.Tx, sess *Session, device string, now time.Time) error {
	if _, err := store.Exec(ctx, tx, "DELETE FROM devices WHERE hash = ? OR expires <= ?", sess.Device, now.UnixMicro()); err != nil {
		return fmt.Errorf("forget browser: %w", err)
	}
	if _, err := store.Exec(ctx, tx, "INSERT INTO devices (hash, user_name, factor_at, expires) VALUES (?, ?, ?, ?)",
		hash(device), sess.UserName, now.UnixMicro(), now.Add(deviceLife).UnixMicro()); err != nil {
		return fmt.Errorf("remember browser: %w", err)
	}
	return nil
}

// spendCode takes a code once: whoever moves the step on has it.
func (s *Service) spendCode(ctx context.Context, tx store.Tx, user, code string) error {
	var sealed []byte
	if err := store.One(ctx, tx, &sealed, "SELECT totp_secret FROM users WHERE name = ?", user); err != nil {
		return fmt.Errorf("read factor: %w", err)
	}
	if len(sealed) == 0 {
		return problem.FactorRefused()
	}
	secret, err := s.Sealer.Open(user, purposeUse, sealed)
	if err != nil {
		return err
	}
	step, ok := totp.Match(secret, strings.ReplaceAll(code, " ", ""), s.Now())
	if !ok {
		return problem.FactorRefused()
	}
	n, err := store.Exec(ctx, tx, "UPDATE users SET totp_step = ? WHERE name = ? AND totp_step < ?", step, user, step)
	if err != nil {
		return fmt.Errorf("spend code: %w", err)
	}
	if n != 1 {
		return problem.FactorRefused()
	}
	return nil
}

func (s *Service) spendRecovery(ctx context.Context, tx store.Tx, user, code string) error {
	n, err := store.Exec(ctx, tx, "DELETE FROM recovery_codes WHERE user_name = ? AND hash = ?", user, hash(bare(code)))
	if err != nil {
		return fmt.Errorf("spend recovery code: %w", err)
	}
	if n != 1 {
		return problem.FactorRefused()
	}
	return nil
}

// spendEither takes what a person types where only one field is.
func (s *Service) spendEither(ctx context.Context, tx store.Tx, user, code string) error {
	if len(strings.ReplaceAll(code, " ", "")) == codeDigits {
		return s.spendCode(ctx, tx, user, code)
	}
	return s.spendRecovery(ctx, tx, user, code)
}

// bare is a recovery code without what makes it readable.
func bare(code string) string {
	return strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(code))
}

// Enrol gives a new secret to somebody who has none. The same page loaded twice
// shows the same one; another login makes another, and undoes the first.
func (s *Service) Enrol(ctx context.Context, sess *Session) (api.Enrolment, error) {
	var out api.Enrolment
	err := s.DB.Write(ctx, func(tx store.Tx) (err error) {
		out, err = s.nextSecret(ctx, tx, sess)
		return err
	})
	return out, err
}

func (s *Service) nextSecret(ctx context.Context, tx store.Tx, sess *Session) (api.Enrolment, error) {
	user, now := sess.UserName, s.Now()
	var row struct {
		NextSecret []byte
		NextUntil  int64
	}
	if err := store.One(ctx, tx, &row, "SELECT next_secret, next_until FROM users WHERE name = ?", user); err != nil {
		return api.Enrolment{}, fmt.Errorf("read factor: %w", err)
	}
	secret, err := "", errors.New("there is none")
	if len(row.NextSecret) > 0 && at(row.NextUntil).After(now) && sess.State == api.SessionEnrol {
		secret, err = s.Sealer.Open(user, purposeNext(sess), row.NextSecret)
	}
	if err != nil { // none, or another session's
		if secret, err = s.storeNext(ctx, tx, sess, now); err != nil {
			return api.Enrolment{}, err
		}
	}
	uri, qr, err := totp.Show(secret, s.Issuer, user)
	return api.Enrolment{Secret: secret, URI: uri, QR: qr}, err
}

func (s *Service) storeNext(ctx context.Context, tx store.Tx, sess *Session, now time.Time) (string, error) {
	secret, err := totp.New(s.Random)
	if err != nil {
		return "", err
	}
	sealed, err := s.Sealer.Seal(sess.UserName, purposeNext(sess), secret)
	if err != nil {
		return "", err
	}
	if _, err := store.Exec(ctx, tx, "UPDATE users SET next_secret = ?, next_until = ? WHERE name = ?", sealed, now.Add(enrolLife).UnixMicro(), sess.UserName); err != nil {
		return "", fmt.Errorf("store factor: %w", err)
	}
	return secret, nil
}

func errNextGone() error {
	e := problem.Conflict("The set-up took too long or was begun or finished elsewhere; begin again.")
	e.Body.Words = &api.Words{Code: "conflict.setup"}
	return e
}

// takeNext makes the secret that waits the one in use, if the code is of it.
func (s *Service) takeNext(ctx context.Context, tx store.Tx, sess *Session, code string, first bool) error {
	user := sess.UserName
	var row struct {
		NextSecret []byte
		NextUntil  int64
		Have       int64
	}
	if err := store.One(ctx, tx, &row, "SELECT next_secret, next_until, CASE WHEN totp_secret IS NULL THEN 0 ELSE 1 END AS have FROM users WHERE name = ?", user); err != nil {
		return fmt.Errorf("read factor: %w", err)
	}
	if len(row.NextSecret) == 0 || !at(row.NextUntil).After(s.Now()) || first && row.Have == 1 {
		return errNextGone()
	}
	secret, err := s.Sealer.Open(user, purposeNext(sess), row.NextSecret)
	if err != nil {
		return errNextGone() // another session has begun since
	}
	step, ok := totp.Match(secret, strings.ReplaceAll(code, " ", ""), s.Now())
	if !ok {
		return problem.FactorRefused()
	}
	sealed, err := s.Sealer.Seal(user, purposeUse, secret)
	if err != nil {
		return err
	}
	if _, err := store.Exec(ctx, tx, `UPDATE users SET totp_secret = ?, totp_step = ?, totp_since = ?, next_secret = NULL, next_until = 0 WHERE name = ?`,
		sealed, step, s.Now().UnixMicro(), user); err != nil {
		return fmt.Errorf("store factor: %w", err)
	}
	return nil
}

// ConfirmEnrol is the second step of a first login.
func (s *Service) ConfirmEnrol(ctx context.Context, sess *Session, in api.Confirm) (api.LoginAnswer, error) {
	who := []subject{factorSubject(sess.UserName, sess.Device), sourceSubject(in.Source)}
	if err := s.reserve(ctx, who...); err != nil {
		return api.LoginAnswer{}, err
	}
	var codes []string
	answer, err := s.promote(ctx, sess, who, func(tx store.Tx) (err error) {
		if err := s.takeNext(ctx, tx, sess, in.Code, true); err != nil {
			return err
		}
		codes, err = s.newRecovery(ctx, tx, sess.UserName)
		return err
	}, map[string]string{"factor": "enrolled", "source": in.Source})
	answer.RecoveryCodes = codes
	if err != nil {
		answer = api.LoginAnswer{}
	}
	return answer, s.refusedFactor(ctx, sess, err, in.Source)
}

// newRecovery replaces the recovery codes and returns the new ones.
func (s *Service) newRecovery(ctx context.Context, tx store.Tx, user string) ([]string, error) {
	if _, err := store.Exec(ctx, tx, "DELETE FROM recovery_codes WHERE user_name = ?", user); err != nil {
		return nil, fmt.Errorf("remove recovery codes: %w", err)
	}
	codes := make([]string, 0, recoveryCodes)
	for range recoveryCodes {
		b := make([]byte, recoverySize)
		if _, err := io.ReadFull(s.Random, b); err != nil {
			return nil, fmt.Errorf("make recovery codes: %w", err)
		}
		code := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
		if _, err := store.Exec(ctx, tx, "INSERT INTO recovery_codes (user_name, hash) VALUES (?, ?)", user, hash(code)); err != nil {
			return nil, fmt.Errorf("store recovery codes: %w", err)
		}
		codes = append(codes, grouped(code))
	}
	return codes, nil
}

func grouped(code string) string {
	var b strings.Builder
	for i, c := range code {
		if i > 0 && i%5 == 0 {
			b.WriteByte('-')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// Recovery makes new recovery codes for somebody who shows a code.
func (s *Service) Recovery(ctx context.Context, sess *Session, token string, in api.Confirm) (api.LoginAnswer, error) {
	who := factorSubject(sess.UserName, sess.Device)
	if err := s.reserve(ctx, who); err != nil {
		return api.LoginAnswer{}, err
	}
	expires := at(sess.Expires)
	answer := api.LoginAnswer{Token: token, State: sess.State, User: sess.User(), Expires: expires, ExpiresIn: seconds(expires.Sub(s.Now()))}
	err := s.DB.Write(ctx, func(tx store.Tx) (err error) {
		if err := s.spendCode(ctx, tx, sess.UserName, in.Code); err != nil {
			return err
		}
		if answer.RecoveryCodes, err = s.newRecovery(ctx, tx, sess.UserName); err != nil {
			return err
		}
		if err := cleared(ctx, tx, who); err != nil {
			return err
		}
		return s.Audit.Write(ctx, tx, sess.UserName, "recovery codes renewed", sess.UserName, nil)
	})
	if err != nil {
		return api.LoginAnswer{}, s.refusedFactor(ctx, sess, err, in.Source)
	}
	return answer, nil
}

// Replace begins the change to another secret, for a code of the present one or
// a recovery code.
func (s *Service) Replace(ctx context.Context, sess *Session, in api.Confirm) (api.Enrolment, error) {
	who := factorSubject(sess.UserName, sess.Device)
	if err := s.reserve(ctx, who); err != nil {
		return api.Enrolment{}, err
	}
	var out api.Enrolment
	err := s.DB.Write(ctx, func(tx store.Tx) (err error) {
		if err := s.spendEither(ctx, tx, sess.UserName, in.Code); err != nil {
			return err
		}
		if out, err = s.nextSecret(ctx, tx, sess); err != nil {
			return err
		}
		return cleared(ctx, tx, who)
	})
	return out, s.refusedFactor(ctx, sess, err, in.Source)
}

// ConfirmReplace ends the change, and every other session of the user.
func (s *Service) ConfirmReplace(ctx context.Context, sess *Session, in api.Confirm) error {
	who := factorSubject(sess.UserName, sess.Device)
	if err := s.reserve(ctx, who); err != nil {
		return err
	}
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		if err := s.takeNext(ctx, tx, sess, in.Code, false); err != nil {
			return err
		}
		if err := s.endAll(ctx, tx, sess.UserName, sess.ID); err != nil {
			return err
		}
		if _, err := store.Exec(ctx, tx, "DELETE FROM devices WHERE user_name = ? AND hash <> ?", sess.UserName, sess.Device); err != nil {
			return fmt.Errorf("forget browsers: %w", err)
		}
		if err := cleared(ctx, tx, who); err != nil {
			return err
		}
		return s.Audit.Write(ctx, tx, sess.UserName, "factor replaced", sess.UserName, nil)
	})
	if err == nil {
		s.Revoke.Wake()
	}
	return s.refusedFactor(ctx, sess, err, in.Source)
}

// ResetFactors takes a user's factors and sessions away, by an admin.
func (s *Service) ResetFactors(ctx context.Context, actor, user string) error {
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		n, err := store.Exec(ctx, tx, "UPDATE users SET totp_secret = NULL, totp_since = 0, next_secret = NULL WHERE name = ?", user)
		if err != nil {
			return fmt.Errorf("remove factors: %w", err)
		}
		if n == 0 {
			return problem.NotFound()
		}
		for _, query := range []string{"DELETE FROM recovery_codes WHERE user_name = ?", "DELETE FROM devices WHERE user_name = ?"} {
			if _, err := store.Exec(ctx, tx, query, user); err != nil {
				return fmt.Errorf("remove factors: %w", err)
			}
		}
		if err := s.endAll(ctx, tx, user, ""); err != nil {
			return err
		}
		return s.Audit.Write(ctx, tx, actor, "factors removed", user, nil)
	})
	if err == nil {
		s.Revoke.Wake()
	}
	return err
}

// EndLogins ends all sessions of a user, by an admin. The factors stay.
func (s *Service) EndLogins(ctx context.Context, actor, user string) error {
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		var known int
		if err := store.One(ctx, tx, &known, "SELECT COUNT(*) FROM users WHERE name = ?", user); err != nil {
			return fmt.Errorf("read user: %w", err)
		}
		if known == 0 {
			return problem.NotFound()
		}
		if err := s.endAll(ctx, tx, user, ""); err != nil {
			return err
		}
		return s.Audit.Write(ctx, tx, actor, "logins ended", user, nil)
	})
	if err == nil {
		s.Revoke.Wake()
	}
	return err
}

// RecoveryLeft is how many recovery codes are unused.
func (s *Service) RecoveryLeft(ctx context.Context, user string) (int, error) {
	var n int
	if err := store.One(ctx, s.DB.Read(), &n, "SELECT COUNT(*) FROM recovery_codes WHERE user_name = ?", user); err != nil {
		return 0, fmt.Errorf("count recovery codes: %w", err)
	}
	return n, nil
}
