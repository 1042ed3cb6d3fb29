package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

const (
	firstPassed = 3  // sd_listen_fds(3)
	reusePort   = 15 // SO_REUSEPORT of asm-generic/socket.h, which syscall lacks
)

// listen returns systemd's socket if there is one: it outlives the process, and
// no browser is refused while the portal is started again. Otherwise it opens
// one beside which the next portal can open its own.
func listen(ctx context.Context, addr string, log *slog.Logger) (net.Listener, error) {
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") == "1" {
		file := os.NewFile(firstPassed, "portal socket")
		defer file.Close() //nolint:errcheck // the listener has a copy
		listener, err := net.FileListener(file)
		if err != nil {
			return nil, fmt.Errorf("use systemd's socket: %w", err)
		}
		if _, want, err := net.SplitHostPort(addr); err == nil && !strings.HasSuffix(listener.Addr().String(), ":"+want) {
			log.WarnContext(ctx, "portal: systemd listens on another port than portal.yaml says; set ListenStream= with: systemctl edit carme-portal.socket",
				"systemd", listener.Addr().String(), "listen", addr)
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
