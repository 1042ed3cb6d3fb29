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

// sweep removes sessions that have expired, with their revocation, and counters
// that nobody needs.
func (s *Service) sweep(ctx context.Context) error {
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
