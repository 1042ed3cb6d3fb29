package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/carme-hpc/carme/portal/proxy"
)

const (
	firstPassed = 3  // sd_listen_fds(3)
	reusePort   = 15 // SO_REUSEPORT of asm-generic/socket.h, which syscall lacks
)

// listen returns systemd's socket if there is one: it outlives the process, and
// no browser is refused while the portal is started again. Otherwise it opens
// one beside which the next portal can open its own.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") == "1" {
		file := os.NewFile(firstPassed, "portal socket")
		defer file.Close() //nolint:errcheck // the listener has a copy
		listener, err := net.FileListener(file)
		if err != nil {
			return nil, fmt.Errorf("use systemd's socket: %w", err)
		}
		return listener, nil
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, reusePort, 1)
		})
		if err != nil {
			return err
		}
		return failed
	}}
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for browsers: %w", err)
	}
	return listener, nil
}

// serveMetrics serves the counters for Prometheus, if an address is given.
func serveMetrics(ctx context.Context, addr string, apps *proxy.Proxy, log *slog.Logger) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	server := &http.Server{ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		s := apps.Stats()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		for _, one := range []struct {
			name, kind, help string
			value            int64
		}{
			{"carme_portal_app_requests_total", "counter", "Requests for sessions' hosts.", s.Requests},
			{"carme_portal_app_refused_total", "counter", "Of them, refused.", s.Refused},
			{"carme_portal_websockets_total", "counter", "Websockets opened.", s.Websockets},
			{"carme_portal_websockets", "gauge", "Websockets open.", s.Open},
			{"carme_portal_routes", "gauge", "Viewers' ways to apps in use.", s.Routes},
		} {
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", one.name, one.help, one.name, one.kind, one.name, one.value)
		}
	})}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			log.ErrorContext(ctx, "metrics: server ended", "error", err)
		}
	}()
	return func() { _ = server.Close() }, nil
}
