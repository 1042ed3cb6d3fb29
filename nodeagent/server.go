package nodeagent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/nodeagent/control"
	"github.com/carme-hpc/carme/nodeagent/enrol"
	"github.com/carme-hpc/carme/nodeagent/relay"
)

const (
	// handshakeTime is how long a handshake may take.
	handshakeTime = 5 * time.Second
	// handshakes is how many may go on at once: peers are not known yet.
	handshakes = 1024
	// perSource is how many of them from one address. Users may run programs on
	// a portal's host too, so that one too many shuts out the oldest, not the
	// newest: a portal's take milliseconds, and those that are stalled are older.
	perSource = 64
)

// server takes connections and gives them to who speaks their protocol.
type server struct {
	listener *net.TCPListener
	config   *tls.Config
	serve    map[string]func(context.Context, *relay.Conn)
	log      *slog.Logger

	mu      sync.Mutex
	shaking []handshake // oldest first
	refused logx.Seldom
}

type handshake struct {
	conn   *net.TCPConn
	source string
}

// chooseConfig picks the configuration by the one protocol a client names.
func chooseConfig(store func() *mtls.Store, enrolment *enrol.Enroller) *tls.Config {
	type configs struct {
		store          *mtls.Store
		relay, control *tls.Config
	}
	var mu sync.Mutex
	var last configs
	get := func() (configs, error) {
		mu.Lock()
		defer mu.Unlock()
		s := store()
		if s == nil {
			return configs{}, errors.New("no certificate yet")
		}
		if last.store != s {
			last = configs{
				store:   s,
				relay:   s.Server([]string{relay.ALPN}, only(mtls.RolePortal)),
				control: s.Server([]string{control.ALPN}, only(mtls.RoleBackend)),
			}
		}
		return last, nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch {
		case slices.Equal(hello.SupportedProtos, []string{relay.ALPN}):
			c, err := get()
			if err != nil {
				return nil, err
			}
			return c.relay.GetConfigForClient(hello)
		case slices.Equal(hello.SupportedProtos, []string{control.ALPN}):
			c, err := get()
			if err != nil {
				return nil, err
			}
			return c.control.GetConfigForClient(hello)
		case slices.Equal(hello.SupportedProtos, []string{enrol.ALPN}):
			return enrolment.Server()
		}
		return nil, errors.New("protocol is not known")
	}}
}

func only(role string) func(mtls.Identity) error {
	return func(id mtls.Identity) error {
		if id.Role != role {
			return fmt.Errorf("%s is no %s", id, role)
		}
		return nil
	}
}

// run takes connections until the listener is closed.
func (s *server) run(ctx context.Context) error {
	for {
		conn, err := s.listener.AcceptTCP()
		switch {
		case err == nil:
			s.take(ctx, conn)
		case errors.Is(err, net.ErrClosed):
			return nil
		default: // no descriptor left: others will be closed
			s.log.Error("cannot take connections", "error", err)
			if !pause(ctx, 100*time.Millisecond) {
				return nil
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (s *server) take(ctx context.Context, conn *net.TCPConn) {
	source := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().String()
	if oldest := s.enter(handshake{conn, source}); oldest != nil {
		_ = oldest.Close() // its own goroutine says so
	}
	go func() {
		serve, c, err := s.handshake(ctx, conn)
		s.leave(conn)
		if err != nil {
			_ = conn.Close()
			if left, ok := s.refused.Turn(time.Now()); ok {
				s.log.Info("connection refused", "peer", source, "reason", err.Error(), "left_out", left)
			}
			return
		}
		serve(ctx, c)
	}()
}

// enter counts a handshake, and returns the connection whose place it takes, nil if
// there was one left.
func (s *server) enter(h handshake) (oldest *net.TCPConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, same := -1, 0
	for i, other := range s.shaking {
		if other.source != h.source {
			continue
		}
		if same++; first < 0 {
			first = i
		}
	}
	switch {
	case same >= perSource:
	case len(s.shaking) >= handshakes:
		first = 0
	default:
		first = -1
	}
	if first >= 0 {
		oldest = s.shaking[first].conn
		s.shaking = slices.Delete(s.shaking, first, first+1)
	}
	s.shaking = append(s.shaking, h)
	return oldest
}

func (s *server) leave(conn *net.TCPConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shaking = slices.DeleteFunc(s.shaking, func(h handshake) bool { return h.conn == conn })
}

func (s *server) handshake(ctx context.Context, tcp *net.TCPConn) (func(context.Context, *relay.Conn), *relay.Conn, error) {
	if err := tcp.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, nil, err
	}
	// A portal that vanished without a word is noticed within a minute.
	if err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}); err != nil {
		return nil, nil, err
	}
	c, err := relay.NewConn(tcp, s.config)
	if err != nil {
		return nil, nil, err
	}
	if err := c.TLS().HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	serve, ok := s.serve[c.TLS().ConnectionState().NegotiatedProtocol]
	if !ok {
		return nil, nil, errors.New("protocol is not known")
	}
	return serve, c, nil
}
