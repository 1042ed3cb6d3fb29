package run

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/carme-hpc/carme/internal/wire"
)

// Times of the health check.
const (
	askAgain   = 200 * time.Millisecond
	askTimeout = 5 * time.Second
)

// watch asks the app until it answers, and says when it takes longer than its
// description allows.
func (r *Runner) watch(ctx context.Context, a *running) {
	client := &http.Client{
		Timeout: askTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", a.socket)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	start := time.Now()
	slow := time.Duration(a.app.HealthSeconds) * time.Second
	said := false
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		if ask(ctx, client, a.app) {
			r.status(wire.AppReady, a.app.Title+" is ready")
			return
		}
		if !said && slow > 0 && time.Since(start) > slow {
			said = true
			r.status(wire.AppStarting, fmt.Sprintf("%s has not answered for %d s; its messages are in the job's output", a.app.Title, a.app.HealthSeconds))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func ask(ctx context.Context, client *http.Client, app *wire.App) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+app.HealthPath, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false // not listening yet
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	discard(resp.Body)
	return slices.Contains(app.HealthStatus, resp.StatusCode)
}
