package auth

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	// freeUser and freeSource are how many attempts in a row cost no time. Many
	// people may share a source.
	freeUser   = 3
	freeSource = 30
	delayMax   = 15 * time.Minute
	// forget is after how long without an attempt counting begins anew.
	forget = 24 * time.Hour
)

// subject is who or what attempts are counted for.
type subject struct {
	key  string
	free int64
}

// brief is the subject for a log: of a hash, which may be of a password in the
// wrong field, the beginning.
func (s subject) brief() string {
	kind, value, _ := strings.Cut(s.key, ":")
	if len(value) == sha256.Size*2 {
		value = value[:8]
	}
	return kind + ":" + value
}

func userSubject(name string) subject { return subject{"user:" + name, freeUser} }

// unknownSubject counts for a name that does not exist: it must look the same.
func unknownSubject(typed string) subject { return subject{"name:" + hash(typed), freeUser} }

func deviceSubject(device string) subject { return subject{"device:" + device, freeUser} }

// factorSubject counts codes: on a browser the owner knows, by that browser, so
// that somebody with a stolen password cannot lock the owner out.
func factorSubject(user, device string) subject {
	if device != "" {
		return subject{"factor-device:" + device, freeUser}
	}
	return subject{"factor:" + user, freeUser}
}

// sourceSubject is an address, or the network that one household has in IPv6.
func sourceSubject(source string) subject {
	addr, err := netip.ParseAddr(source)
	if err != nil {
		return subject{"source:?", freeSource}
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return subject{"source:" + p.String(), freeSource}
		}
	}
	return subject{"source:" + addr.String(), freeSource}
}

// delay is how long to wait after that many failures in a row.
func delay(failures, free int64) time.Duration {
	over := failures - free
	if over < 0 {
		return 0
	}
	if over >= 10 {
		return delayMax
	}
	return min(delayMax, time.Second<<(over+1))
}

type attemptRow struct {
	Failures int64
	NextAt   int64
	Updated  int64
}

// rewind moves a row that comes from a time to come, because the clock was put
// back: what was left to wait then, is left now. Else whoever has failed once would
// be refused until the clock is there again.
func (r *attemptRow) rewind(ctx context.Context, tx store.Tx, sub subject, now time.Time) error {
	ahead := r.Updated - now.UnixMicro()
	if ahead <= 0 {
		return nil
	}
	r.NextAt, r.Updated = r.NextAt-ahead, now.UnixMicro()
	if _, err := store.Exec(ctx, tx, "UPDATE attempts SET next_at = ?, updated = ? WHERE subject = ?", r.NextAt, r.Updated, sub.key); err != nil {
		return fmt.Errorf("move attempts: %w", err)
	}
	return nil
}

// reserve counts an attempt for every subject, or for none and says how long to
// wait. It commits before the attempt is looked at.
func (s *Service) reserve(ctx context.Context, subjects ...subject) error {
	var wait time.Duration
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		now := s.Now()
		rows := make([]attemptRow, len(subjects))
		for i, sub := range subjects {
			err := store.One(ctx, tx, &rows[i], "SELECT failures, next_at, updated FROM attempts WHERE subject = ?", sub.key)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return fmt.Errorf("read attempts: %w", err)
			}
			if now.Sub(time.UnixMicro(rows[i].Updated)) > forget {
				rows[i] = attemptRow{}
			}
			if err := rows[i].rewind(ctx, tx, sub, now); err != nil {
				return err
			}
			left := min(time.UnixMicro(rows[i].NextAt).Sub(now), delayMax)
			wait = max(wait, left)
		}
		if wait > 0 {
			return nil
		}
		for i, sub := range subjects {
			n := rows[i].Failures + 1
			_, err := store.Exec(ctx, tx, `INSERT INTO attempts (subject, failures, next_at, updated) VALUES (?, ?, ?, ?)
				ON CONFLICT (subject) DO UPDATE SET failures = excluded.failures, next_at = excluded.next_at, updated = excluded.updated`,
				sub.key, n, now.Add(delay(n, sub.free)).UnixMicro(), now.UnixMicro())
			if err != nil {
				return fmt.Errorf("count attempt: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if wait > 0 {
		s.tooEarly(ctx, wait, subjects)
		return problem.SlowDown(wait)
	}
	return nil
}

// tooEarly notes that somebody guesses on although it is of no use.
func (s *Service) tooEarly(ctx context.Context, wait time.Duration, subjects []subject) {
	left, ok := s.guesses.Turn(s.Now())
	if !ok {
		return
	}
	keys := make([]string, 0, len(subjects))
	for _, sub := range subjects {
		keys = append(keys, sub.brief())
	}
	s.Audit.Out.LogAttrs(ctx, slog.LevelInfo, "attempt too early", slog.Any("of", keys), slog.Duration("wait", wait), slog.Int("left_out", left))
}

// giveBack takes back what reserve counted: nothing was learnt by the attempt.
func (s *Service) giveBack(ctx context.Context, subjects ...subject) error {
	return s.DB.Write(ctx, func(tx store.Tx) error {
		for _, sub := range subjects {
			if _, err := store.Exec(ctx, tx, "UPDATE attempts SET failures = failures - 1, next_at = 0 WHERE subject = ? AND failures > 0", sub.key); err != nil {
				return fmt.Errorf("take back attempt: %w", err)
			}
		}
		return nil
	})
}

// cleared forgets the failures of a subject after a success. A source loses the
// one attempt only: its other failures are somebody else's.
func cleared(ctx context.Context, tx store.Tx, subjects ...subject) error {
	for _, sub := range subjects {
		query := "DELETE FROM attempts WHERE subject = ?"
		if sub.free == freeSource {
			query = "UPDATE attempts SET failures = failures - 1, next_at = 0 WHERE subject = ? AND failures > 0"
		}
		if _, err := store.Exec(ctx, tx, query, sub.key); err != nil {
			return fmt.Errorf("clear attempts: %w", err)
		}
	}
	return nil
}
