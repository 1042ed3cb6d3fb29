package proxy

import (
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/logx"
)

// written counts the lines of a log.
type written struct{ atomic.Int64 }

func (n *written) Write(line []byte) (int, error) {
	n.Add(1)
	return len(line), nil
}

func TestAttack_what_a_viewer_or_an_app_can_repeat_does_not_fill_the_log(t *testing.T) {
	silent := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	for name, c := range map[string]struct {
		before func(w *world)
		socket bool
	}{
		"an app does not answer":            {func(*world) {}, false},
		"an app does not answer a socket":   {func(*world) {}, true},
		"an agent gives no stream":          {func(w *world) { w.agent.status.Store(int32(statusNotOwner)) }, false},
		"the backend gives no grant to any": {func(w *world) { w.backend.SetDown(true) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, silent)
			host, cookie := w.session("alice", "a")
			lines := &written{}
			w.proxy.log = logx.New(lines, slog.LevelInfo)
			c.before(w)
			client := w.client(true)
			const asked = 40
			start := time.Now()
			for range asked {
				if c.socket {
					conn, _, _ := w.socket(host, cookie)
					_ = conn.Close()
					continue
				}
				_ = w.ask(client, "POST", host, "/", cookie, nil).Body.Close()
			}
			// One a second, of each kind: one request can be told of in two.
			most := 2 * (2 + int64(time.Since(start)/time.Second))
			if n := lines.Load(); n == 0 || n > most {
				t.Errorf("%d lines of %d requests, at most %d would do", n, asked, most)
			}
		})
	}
}
