package routes

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/store"
)

// feedKept is how long a revocation is kept: portals close all after 60 s
// without the stream.
const feedKept = time.Hour

// Feed is the revocations: rows in order, and a bell for whoever waits.
type Feed struct {
	DB  *store.DB
	Now func() time.Time

	mu   sync.Mutex
	bell chan struct{}
}

// Add writes a revocation in the transaction of its cause.
func (f *Feed) Add(ctx context.Context, tx store.Tx, kind, value string) error {
	now := f.Now()
	if _, err := store.Exec(ctx, tx, "INSERT INTO revocations (seq, kind, value, at) SELECT COALESCE(MAX(seq), 0) + 1, ?, ?, ? FROM revocations",
		kind, value, now.UnixMicro()); err != nil {
		return fmt.Errorf("store revocation: %w", err)
	}
	// The newest stays, so that numbers only grow.
	if _, err := store.Exec(ctx, tx, "DELETE FROM revocations WHERE at < ? AND seq < (SELECT MAX(seq) FROM revocations)", now.Add(-feedKept).UnixMicro()); err != nil {
		return fmt.Errorf("forget revocations: %w", err)
	}
	return nil
}

// Wake rings the bell.
func (f *Feed) Wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bell != nil {
		close(f.bell)
		f.bell = nil
	}
}

// Bell is closed at the next Wake.
func (f *Feed) Bell() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bell == nil {
		f.bell = make(chan struct{})
	}
	return f.bell
}

// Last is the number of the newest revocation.
func (f *Feed) Last(ctx context.Context) (int64, error) {
	var seq int64
	if err := store.One(ctx, f.DB.Read(), &seq, "SELECT COALESCE(MAX(seq), 0) FROM revocations"); err != nil {
		return 0, fmt.Errorf("read revocations: %w", err)
	}
	return seq, nil
}

// After returns the revocations after a number, in order.
func (f *Feed) After(ctx context.Context, seq int64) ([]api.Revocation, error) {
	var rows []api.Revocation
	if err := store.One(ctx, f.DB.Read(), &rows, "SELECT seq, kind, value FROM revocations WHERE seq > ? ORDER BY seq LIMIT 10000", seq); err != nil {
		return nil, fmt.Errorf("read revocations: %w", err)
	}
	return rows, nil
}
