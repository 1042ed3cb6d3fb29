package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/store"
)

// recheckEvery is how often the directory is asked for live users: sessions die
// within 70 s of somebody leaving the login filter.
const recheckEvery = time.Minute

// slack is what a clock that is corrected bit by bit may go back unnoticed.
const slack = time.Minute

// Watch asks the directory again for everybody who is logged in, until ctx ends.
func (s *Service) Watch(ctx context.Context) {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		if err := s.Recheck(ctx); err != nil && ctx.Err() == nil {
			s.Audit.Out.WarnContext(ctx, "live users could not be looked up", "err", err.Error())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Recheck ends the sessions of everybody whom the directory no longer lets in,
// who has become another uid, or whose password changed, and removes what has
// expired. A directory that does not answer ends nobody's session.
func (s *Service) Recheck(ctx context.Context) error {
	if err := s.sweep(ctx); err != nil {
		return err
	}
	var live []string
	if err := store.One(ctx, s.DB.Read(), &live, "SELECT DISTINCT user_name FROM login_sessions"); err != nil {
		return fmt.Errorf("read live users: %w", err)
	}
	var errs []error
	for _, name := range live {
		p, err := s.Dir.Find(ctx, name)
		switch {
		case errors.Is(err, ErrUnknown), err == nil && p.Name != name:
			errs = append(errs, s.disable(ctx, name))
		case err != nil:
			errs = append(errs, err)
		default:
			errs = append(errs, s.refresh(ctx, p))
		}
	}
	return errors.Join(errs...)
}

// refresh stores a person as the directory has them now. What is stored is read
// again: a login meanwhile may have ended those from before a change, and is not
// one of them.
func (s *Service) refresh(ctx context.Context, p Person) error {
	changed := false
	err := s.DB.Write(ctx, func(tx store.Tx) (err error) {
		if changed, err = s.changed(ctx, tx, p); err != nil {
			return err
		}
		return savePerson(ctx, tx, p)
	})
	if err == nil && changed {
		s.Revoke.Wake()
	}
	return err
}

func (s *Service) disable(ctx context.Context, user string) error {
	err := s.DB.Write(ctx, func(tx store.Tx) error { return s.over(ctx, tx, user) })
	if err == nil {
		s.Revoke.Wake()
	}
	return err
}

// over ends everything of a user who is out, or whose account has changed.
func (s *Service) over(ctx context.Context, tx store.Tx, user string) error {
	if err := s.endAll(ctx, tx, user, ""); err != nil {
		return err
	}
	if err := s.Revoke.Add(ctx, tx, api.RevokeUser, user); err != nil {
		return err
	}
	return s.Audit.Write(ctx, tx, "backend", "sessions ended", user, map[string]string{"reason": "the directory no longer lets the user in, or changed the account"})
}

// rewind shortens what would live longer than it may, because the clock was put
// back after it began: a session that is good for 12 hours would otherwise be good
// for as much longer, and one that nobody uses would not look idle.
func (s *Service) rewind(ctx context.Context) error {
	now := s.Now()
	most := now.Add(slack).UnixMicro() // of what has happened already
	until := func(life time.Duration) int64 { return now.Add(life + slack).UnixMicro() }
	full, step, device := until(s.Rules.SessionLife), until(pendingLife), until(deviceLife)
	var ahead int
	if err := store.One(ctx, s.DB.Read(), &ahead, `SELECT (SELECT COUNT(*) FROM login_sessions WHERE seen > ? OR expires > CASE WHEN state = ? THEN ? ELSE ? END)
		+ (SELECT COUNT(*) FROM devices WHERE factor_at > ? OR expires > ?)`, most, api.SessionFull, full, step, most, device); err != nil {
		return fmt.Errorf("look for times to come: %w", err)
	}
	if ahead == 0 {
		return nil
	}
	s.Audit.Out.WarnContext(ctx, "logins or browsers that end later than they may, since the clock was put back or sessions.hours was made less: they end as if they began now", "rows", ahead)
	return s.DB.Write(ctx, func(tx store.Tx) error {
		for _, change := range []struct {
			query string
			args  []any
		}{
			{"UPDATE login_sessions SET seen = ? WHERE seen > ?", []any{now.UnixMicro(), most}},
			{"UPDATE login_sessions SET expires = ? WHERE state = ? AND expires > ?", []any{now.Add(s.Rules.SessionLife).UnixMicro(), api.SessionFull, full}},
			{"UPDATE login_sessions SET expires = ? WHERE state <> ? AND expires > ?", []any{now.Add(pendingLife).UnixMicro(), api.SessionFull, step}},
			// When the factor was shown is not known any more: it is asked for.
			{"UPDATE devices SET factor_at = 0 WHERE factor_at > ?", []any{most}},
			{"UPDATE devices SET expires = ? WHERE expires > ?", []any{now.Add(deviceLife).UnixMicro(), device}},
		} {
			if _, err := store.Exec(ctx, tx, change.query, change.args...); err != nil {
				return fmt.Errorf("move times to come: %w", err)
			}
		}
		return nil
	})
}

// sweep removes sessions that have expired, with their revocation, and counters
// that nobody needs.
func (s *Service) sweep(ctx context.Context) error {
	if err := s.rewind(ctx); err != nil {
		return err
	}
	now := s.Now()
	var gone []string
	idle := now.Add(-s.Rules.IdleLife).UnixMicro()
	if err := store.One(ctx, s.DB.Read(), &gone, "SELECT id FROM login_sessions WHERE expires <= ? OR state = ? AND seen <= ?", now.UnixMicro(), api.SessionFull, idle); err != nil {
		return fmt.Errorf("read sessions: %w", err)
	}
	var counters []string
	if err := store.One(ctx, s.DB.Read(), &counters, "SELECT subject FROM attempts WHERE updated < ? LIMIT 1000", now.Add(-forget).UnixMicro()); err != nil {
		return fmt.Errorf("read attempts: %w", err)
	}
	if len(gone)+len(counters) == 0 {
		return nil
	}
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		for _, id := range gone {
			if _, err := store.Exec(ctx, tx, "DELETE FROM login_sessions WHERE id = ?", id); err != nil {
				return err
			}
			if err := s.Revoke.Add(ctx, tx, api.RevokeSession, id); err != nil {
				return err
			}
		}
		for part := range slices.Chunk(counters, 100) {
			for _, sub := range part {
				if _, err := store.Exec(ctx, tx, "DELETE FROM attempts WHERE subject = ?", sub); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err == nil && len(gone) > 0 {
		s.Revoke.Wake()
	}
	return err
}
