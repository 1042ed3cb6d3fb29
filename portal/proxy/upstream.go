package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// RelayProtocol is the ALPN name of what agents speak to portals.
const RelayProtocol = "carme-relay/1"

const (
	dialPatience = 8 * time.Second
	// An agent that is started anew takes no connections for a moment, and cuts
	// those it had not answered yet. For that long it is asked again, at first
	// after dialPause.
	dialAgain = 3 * time.Second
	dialPause = 25 * time.Millisecond
	// openingMax is how many connections to one agent are opened at once.
	openingMax = 32
	// writePatience is how long one piece of data may wait for its reader.
	writePatience = 60 * time.Second
	// unheard is how long an agent may leave data or a probe unacknowledged: a
	// node that lost its network says no word, and TCP alone would try for a
	// quarter of an hour.
	unheard = 10 * time.Second
	// A connection on which nothing moves is probed after probeAfter, and where that
	// is not answered again: one probe that is lost or comes late on a busy machine
	// ends nothing. The kernel gives up at the first probe that is due after unheard.
	probeAfter = 6 * time.Second
	probeAgain = 2 * time.Second
	// tcpUserTimeout is TCP_USER_TIMEOUT of linux/tcp.h, which syscall lacks.
	tcpUserTimeout = 18
	// answerHeadMax bounds the head of an app's answer, in bytes.
	answerHeadMax = 256 << 10
)

var errEOF = io.EOF

// status is the byte that an agent answers a route token with.
type status byte

const (
	statusOK status = iota
	statusToken
	statusNoJob
	statusNotListening
	statusNotOwner
	statusBusy
	statusNode
)

// relayError is an agent's refusal to lead to an app.
type relayError struct{ status status }

func (e relayError) Error() string {
	return fmt.Sprintf("agent refuses the stream with status %d", e.status)
}

// stream is one connection to an app, and what hangs on it.
type stream struct {
	route *route

	mu     sync.Mutex
	closed bool
	held   []io.Closer
}

// hold adds what must be closed with the stream, and closes it if it is late.
func (s *stream) hold(c io.Closer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close() // the stream is closed, nobody asks how
		return errEnded
	}
	s.held = append(s.held, c)
	return nil
}

// close closes everything that is held, by the connections below TLS: a
// farewell could wait for a reader that is stuck.
func (s *stream) close() {
	s.mu.Lock()
	held := s.held
	s.closed, s.held = true, nil
	s.mu.Unlock()
	for _, c := range held {
		_ = c.Close() // nobody asks how
	}
}

// end closes the stream and takes it off its route.
func (s *stream) end() {
	s.close()
	s.route.forget(s)
}

type closerFunc func()

func (f closerFunc) Close() error {
	f()
	return nil
}

// upstream is a stream whose way to the app is open.
type upstream struct {
	*stream
	conn   *tls.Conn
	quiet  *quietConn
	meter  *meter
	reader *bufio.Reader
	since  time.Time // idle since
}

// meter bounds how much of an answer's head is read.
type meter struct {
	io.Reader
	left int64
}

func (m *meter) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, errors.New("the app's answer has too long a head")
	}
	n, err := m.Reader.Read(p)
	m.left -= int64(n)
	return n, err
}

func (m *meter) bound()   { m.left = answerHeadMax }
func (m *meter) unbound() { m.left = math.MaxInt64 }

// newDialer returns one whose connections end once the other side is unheard.
func newDialer() net.Dialer {
	probes := net.KeepAliveConfig{Enable: true, Idle: probeAfter, Interval: probeAgain}
	return net.Dialer{KeepAliveConfig: probes, Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(unheard.Milliseconds()))
		})
		return errors.Join(err, failed)
	}}
}

// dial opens a stream to the route's app, and bridges the restart of an agent.
// Unless it must be fresh, one that became idle while it waited for its turn will
// do.
func (p *Proxy) dial(ctx context.Context, r *route, fresh bool) (*upstream, error) {
	late := time.Now().Add(dialAgain)
	for pause := dialPause; ; pause *= 2 {
		up, err := p.dialOnce(ctx, r, fresh)
		if err == nil || !startsAnew(err) || time.Now().Add(pause).After(late) {
			return up, err
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil, ctx.Err()
		case <-wait.C:
		}
	}
}

// startsAnew says whether an agent ended before it gave an answer, as one does
// that is killed or not up yet. One that is silent may be cut off for long.
func startsAnew(err error) bool {
	return isOne(err, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF)
}

// cutOff says whether there was no way to the agent for as long as unheard.
func cutOff(err error) bool {
	return isOne(err, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH)
}

func isOne(err error, of ...error) bool {
	return slices.ContainsFunc(of, func(one error) bool { return errors.Is(err, one) })
}

func (p *Proxy) dialOnce(ctx context.Context, r *route, fresh bool) (*upstream, error) {
	g := r.grant.Load()
	leave, err := p.enterNode(ctx, g.Addr)
	if err != nil {
		return nil, fmt.Errorf("wait for agent of %s: %w", g.Node, err)
	}
	defer leave()
	if !fresh {
		if up, err := r.take(); up != nil || err != nil {
			return up, err
		}
	}
	s := &stream{route: r}
	if err := r.register(s); err != nil {
		return nil, err
	}
	up, err := p.connect(ctx, s, g)
	if err != nil {
		s.end()
		return nil, err
	}
	return up, nil
}

func (p *Proxy) connect(ctx context.Context, s *stream, g *api.Grant) (*upstream, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	if err := s.hold(closerFunc(cancel)); err != nil {
		return nil, err
	}
	conn, err := p.dialer.DialContext(ctx, "tcp", g.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial agent of %s: %w", g.Node, err)
	}
	if err := s.hold(conn); err != nil {
		return nil, err
	}
	quiet, err := newQuiet(conn)
	if err != nil {
		return nil, fmt.Errorf("use connection to %s: %w", g.Node, err)
	}
	secure := tls.Client(quiet, p.agentTLS(g.Node))
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("shake hands with agent of %s: %w", g.Node, err)
	}
	if err := introduce(secure, g.Token); err != nil {
		return nil, fmt.Errorf("ask agent of %s: %w", g.Node, err)
	}
	m := &meter{Reader: secure}
	return &upstream{stream: s, conn: secure, quiet: quiet, meter: m, reader: bufio.NewReaderSize(m, 4<<10)}, nil
}

// enterNode bounds how many connections to one agent are being opened: it shuts
// out who opens too many at once, as all streams do after a restart.
func (p *Proxy) enterNode(ctx context.Context, addr string) (leave func(), err error) {
	found, ok := p.opening.Load(addr)
	if !ok {
		found, _ = p.opening.LoadOrStore(addr, make(chan struct{}, openingMax))
	}
	slots := found.(chan struct{})
	late := time.NewTimer(dialPatience)
	defer late.Stop()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-late.C:
		return nil, errors.New("too many others wait too")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// introduce shows the agent the route token.
func introduce(conn net.Conn, token []byte) error {
	if err := conn.SetDeadline(time.Now().Add(dialPatience)); err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(token)), uint16(len(token))) //nolint:gosec // at most 2 KiB
	if _, err := conn.Write(append(frame, token...)); err != nil {
		return err
	}
	var said [1]byte
	if _, err := io.ReadFull(conn, said[:]); err != nil {
		return err
	}
	if status(said[0]) != statusOK {
		return relayError{status(said[0])}
	}
	return conn.SetDeadline(time.Time{})
}
