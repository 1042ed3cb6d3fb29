package reconcile

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// Leftovers removes the directories of jobs whose extern step has ended: the
// plugin does so itself, unless it was killed.
type Leftovers struct {
	// Clean removes them and returns their names (doctor.Doctor.Clean).
	Clean func(ctx context.Context) ([]string, error)
	Every time.Duration
	Log   *slog.Logger

	last string // what was logged last
}

// Run cleans regularly until ctx ends.
func (l *Leftovers) Run(ctx context.Context) {
	tick := time.NewTicker(l.Every)
	defer tick.Stop()
	for {
		l.once(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (l *Leftovers) once(ctx context.Context) {
	removed, err := l.Clean(ctx)
	if len(removed) > 0 {
		l.Log.Info("removed what ended jobs had left", "jobs", strings.Join(removed, " "))
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != l.last && err != nil {
		l.Log.Warn("what ended jobs have left cannot be removed", "error", err)
	}
	l.last = text
}
