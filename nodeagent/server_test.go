package nodeagent

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
	"github.com/carme-hpc/carme/nodeagent/enrol"
	"github.com/carme-hpc/carme/nodeagent/relay"
	"github.com/carme-hpc/carme/nodeagent/session/sessiontest"
)

func startServer(t *testing.T, store func() *mtls.Store, serve func(context.Context, *relay.Conn)) (*server, string) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{
		listener: l.(*net.TCPListener), config: chooseConfig(store, &enrol.Enroller{}), log: slog.New(slog.DiscardHandler),
		serve: map[string]func(context.Context, *relay.Conn){relay.ALPN: serve},
	}
	done := make(chan error)
	go func() { done <- s.run(context.Background()) }()
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.shaking)
}

func TestAttack_handshakes_stalled_on_a_portals_host_shut_nobody_out(t *testing.T) {
	ca := mtlstest.New(t)
	store := ca.Open(t, mtls.RoleNode, "n1")
	s, addr := startServer(t, func() *mtls.Store { return store }, func(_ context.Context, c *relay.Conn) {
		_, _ = c.TLS().Write([]byte{1})
		_ = c.TLS().Close()
	})
	var slow []net.Conn
	for range perSource {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		slow = append(slow, c)
	}
	sessiontest.Eventually(t, "all are shaking hands", func() bool { return s.count() == perSource })
	cfg := ca.Open(t, mtls.RolePortal, "p").Client(mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, relay.ALPN)
	good, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatalf("a portal beside them: %v", err)
	}
	defer good.Close() //nolint:errcheck // a test's connection
	if _, err := io.ReadFull(good, make([]byte, 1)); err != nil {
		t.Errorf("a portal beside them: %v", err)
	}
	began := time.Now()
	if _, err := slow[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) > time.Second {
		t.Errorf("the oldest, which had to make room: %v after %s", err, time.Since(began))
	}
	if _, err := slow[1].Read(make([]byte, 1)); err == nil || time.Since(began) > 2*handshakeTime {
		t.Errorf("a slow one: %v after %s", err, time.Since(began))
	}
	sessiontest.Eventually(t, "all are given up", func() bool { return s.count() == 0 })
}

func TestServer_makes_room_for_the_newest_handshake(t *testing.T) {
	s := &server{}
	conns := make([]net.TCPConn, handshakes+2)
	for i := range handshakes {
		if s.enter(handshake{&conns[i], strconv.Itoa(i % 32)}) != nil {
			t.Fatalf("number %d takes another's place", i)
		}
	}
	if s.enter(handshake{&conns[handshakes], "new"}) != &conns[0] {
		t.Error("the oldest of all has not made room for another address")
	}
	s.leave(&conns[0]) // it was shut out, and says so later
	s.leave(&conns[1])
	if s.enter(handshake{&conns[handshakes+1], "new"}) != nil || len(s.shaking) != handshakes {
		t.Errorf("%d handshakes go on, and there was a place left", len(s.shaking))
	}
}

func TestServer_without_a_certificate_takes_nobody(t *testing.T) {
	ca := mtlstest.New(t)
	_, addr := startServer(t, func() *mtls.Store { return nil }, func(context.Context, *relay.Conn) { t.Error("served") })
	for _, proto := range []string{relay.ALPN, enrol.ALPN, "h2", "carme-control/1"} {
		cfg := ca.Open(t, mtls.RolePortal, "p").Client(mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, proto)
		if c, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", addr); err == nil {
			_ = c.Close()
			t.Errorf("%s was taken", proto)
		}
	}
}

func TestServer_refuses_clients_that_name_several_protocols(t *testing.T) {
	ca := mtlstest.New(t)
	store := ca.Open(t, mtls.RoleNode, "n1")
	_, addr := startServer(t, func() *mtls.Store { return store }, func(context.Context, *relay.Conn) { t.Error("served") })
	cfg := ca.Open(t, mtls.RolePortal, "p").Client(mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, relay.ALPN, "carme-control/1")
	if c, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", addr); err == nil {
		_ = c.Close()
		t.Error("taken")
	}
}
