package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/subtle"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/token"
	"github.com/carme-hpc/carme/nodeagent/session"
)

// ALPN is the protocol's name.
const ALPN = "carme-relay/1"

// Status is the one byte that answers a token.
type Status byte

// Statuses.
const (
	OK           Status = 0
	BadToken     Status = 1
	NoJob        Status = 2
	NotListening Status = 3
	NotTheUsers  Status = 4
	Busy         Status = 5
	WrongNode    Status = 6
)

var statusNames = map[Status]string{
	OK: "ok", BadToken: "bad_token", NoJob: "no_job", NotListening: "not_listening",
	NotTheUsers: "not_the_users", Busy: "busy", WrongNode: "wrong_node",
}

// String is a word for logs and metrics.
func (s Status) String() string { return statusNames[s] }

// Limits are how many streams there may be at once.
type Limits struct {
	Job   int `yaml:"job"`
	User  int `yaml:"user"`
	Total int `yaml:"total"`
}

// Times are deadlines.
type Times struct {
	// Header is how long a client may take to show its token.
	Header time.Duration
	// App is how long an app may take to accept.
	App time.Duration
}

// DefaultTimes are those of the protocol.
var DefaultTimes = Times{Header: 5 * time.Second, App: 3 * time.Second} //nolint:gochecknoglobals // a constant that Go cannot write

// Jobs finds jobs.
type Jobs interface {
	Get(id uint32) (*session.Job, bool)
}

// Relay carries streams.
type Relay struct {
	Cluster string
	Node    string
	Jobs    Jobs
	// Keys returns the keys that sign tokens, by their ids.
	Keys   func() map[string]ed25519.PublicKey
	Limits Limits
	Times  Times
	Now    func() time.Time
	Log    *slog.Logger

	// Carried counts the bytes to and from apps.
	ToApps, FromApps atomic.Int64

	// refused are streams: a user can ask for one of an app that is not there a
	// thousand times a second.
	refused logx.Seldom

	mu      sync.Mutex
	streams map[*stream]struct{}
	perJob  map[*session.Job]int
	perUser map[uint32]int
	counts  [WrongNode + 1]int64
}

// Counts returns how many streams there are, and how often each status was
// answered.
func (r *Relay) Counts() (open int, answered map[string]int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answered = map[string]int64{}
	for s, n := range r.counts {
		answered[Status(s).String()] = n
	}
	return len(r.streams), answered
}

// stream is one client at one app.
type stream struct {
	id     string
	job    *session.Job
	client *net.TCPConn

	mu     sync.Mutex
	app    *net.UnixConn
	closed bool

	halves atomic.Int32 // that have ended
	// answered says that the app spoke last: over HTTP, that no request waits.
	answered atomic.Bool
	moves    atomic.Uint32 // counts what was carried
	deaf     bool          // the app does not read any more; of toApp alone
}

// close ends a stream at once, from any goroutine. Without a farewell: TLS has
// one that may wait for the peer.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	_ = s.client.Close()
	if s.app != nil {
		_ = s.app.Close()
	}
}

// attach gives the stream its app; false if it is closed already.
func (s *stream) attach(app *net.UnixConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.app = app
	return true
}

// EndJob closes the streams of a job.
func (r *Relay) EndJob(job *session.Job) {
	r.closeIf(func(s *stream) bool { return s.job == job })
}

// drainEvery is how often Drain looks.
const drainEvery = 5 * time.Millisecond

// Drain closes each stream once its app has spoken last and nothing has moved
// for a moment, and all when ctx ends. So a restart seldom cuts a request in
// half.
func (r *Relay) Drain(ctx context.Context) {
	defer r.CloseAll()
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	before := map[*stream]uint32{}
	for {
		now := map[*stream]uint32{}
		r.closeIf(func(s *stream) bool {
			now[s] = s.moves.Load()
			last, seen := before[s]
			return seen && last == now[s] && s.answered.Load()
		})
		if len(now) == 0 {
			return
		}
		before = now
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// CloseAll closes all streams.
func (r *Relay) CloseAll() { r.closeIf(func(*stream) bool { return true }) }

func (r *Relay) closeIf(match func(*stream) bool) {
	r.mu.Lock()
	var found []*stream
	for s := range r.streams {
		if match(s) {
			found = append(found, s)
		}
	}
	r.mu.Unlock()
	for _, s := range found {
		s.close()
	}
}

var errLimit = errors.New("too many streams")

// register counts a stream. From then on the end of its job closes it.
func (r *Relay) register(s *stream) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.streams == nil {
		r.streams, r.perJob, r.perUser = map[*stream]struct{}{}, map[*session.Job]int{}, map[uint32]int{}
	}
	if len(r.streams) >= r.Limits.Total || r.perJob[s.job] >= r.Limits.Job || r.perUser[s.job.UID] >= r.Limits.User {
		return errLimit
	}
	r.streams[s] = struct{}{}
	r.perJob[s.job]++
	r.perUser[s.job.UID]++
	return nil
}

func (r *Relay) unregister(s *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.streams, s)
	if r.perJob[s.job]--; r.perJob[s.job] == 0 {
		delete(r.perJob, s.job)
	}
	if r.perUser[s.job.UID]--; r.perUser[s.job.UID] == 0 {
		delete(r.perUser, s.job.UID)
	}
}

// refusal is why there is no stream, and what the client hears of it.
type refusal struct {
	status Status
	err    error
}

func (f *refusal) Error() string { return f.err.Error() }

func refuse(status Status, format string, args ...any) error {
	return &refusal{status, fmt.Errorf(format, args...)}
}

// Serve opens a stream for a connection whose handshake is done, and returns
// when it is refused or open. The connection is Serve's. The handshake must have
// been made with a configuration of mtls.Store.Server that allows portals alone.
func (r *Relay) Serve(ctx context.Context, conn *Conn) {
	s, err := r.open(ctx, conn)
	if f := (*refusal)(nil); errors.As(err, &f) {
		r.answered(f.status)
		if left, ok := r.refused.Turn(r.Now()); ok {
			r.Log.Warn("stream refused", "status", f.status.String(), "reason", f.err.Error(), "peer", conn.tcp.RemoteAddr().String(), "left_out", left)
		}
		_ = conn.tcp.SetDeadline(time.Now().Add(r.Times.Header))
		if _, err := conn.tls.Write([]byte{byte(f.status)}); err == nil {
			_ = conn.tls.CloseWrite()
		}
	}
	if err != nil {
		_ = conn.tcp.Close()
		return
	}
	r.answered(OK)
	if _, err := conn.tls.Write([]byte{byte(OK)}); err != nil || conn.tcp.SetDeadline(time.Time{}) != nil {
		s.close()
		r.unregister(s)
		return
	}
	r.carry(conn, s)
}

func (r *Relay) answered(s Status) {
	r.mu.Lock()
	r.counts[s]++
	r.mu.Unlock()
}

// open reads the token and connects to the app. An error that is no refusal is
// not answered: the client said nothing.
func (r *Relay) open(ctx context.Context, conn *Conn) (*stream, error) {
	if err := conn.tcp.SetDeadline(time.Now().Add(r.Times.Header)); err != nil {
		return nil, err
	}
	tok, err := readToken(conn.tls)
	if err != nil {
		return nil, err
	}
	claims, err := token.Verify(tok, r.Keys(), r.Now())
	if err != nil {
		return nil, refuse(BadToken, "%w", err)
	}
	job, err := r.authorise(claims, conn.tls.ConnectionState())
	if err != nil {
		return nil, err
	}
	s := &stream{id: claims.ID, job: job, client: conn.tcp}
	if err := r.register(s); err != nil {
		return nil, refuse(Busy, "%w", err)
	}
	if err := r.dial(ctx, s); err != nil {
		r.unregister(s)
		return nil, err
	}
	return s, nil
}

func (r *Relay) dial(ctx context.Context, s *stream) error {
	ctx, cancel := context.WithTimeout(ctx, r.Times.App)
	defer cancel()
	app, err := s.job.Dial(ctx)
	switch {
	case errors.Is(err, session.ErrNotListening):
		return refuse(NotListening, "job %d: %w", s.job.Job, err)
	case errors.Is(err, session.ErrNotTheUsers):
		return refuse(NotTheUsers, "job %d: %w", s.job.Job, err)
	case err != nil: // this process has no descriptor left, or the like
		return refuse(Busy, "job %d: %w", s.job.Job, err)
	}
	// The job may have ended, or been given up, before it was registered.
	if s.job.Ended() || s.job.Gone() || !s.attach(app) {
		_ = app.Close()
		return refuse(NoJob, "job %d has ended", s.job.Job)
	}
	return nil
}

// readToken reads the header: a length and the token.
func readToken(in io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(in, size[:]); err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > token.MaxSize {
		return nil, refuse(BadToken, "token of %d bytes", n)
	}
	tok := make([]byte, n)
	if _, err := io.ReadFull(in, tok); err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	return tok, nil
}

// authorise compares what a good token says with this node, this peer, and the
// job as the node knows it.
func (r *Relay) authorise(c token.Claims, state tls.ConnectionState) (*session.Job, error) {
	if c.Cluster != r.Cluster || c.Node != r.Node {
		return nil, refuse(WrongNode, "token for node %q of cluster %q", c.Node, c.Cluster)
	}
	peer := mtls.SPKIHash(state.PeerCertificates[0])
	if subtle.ConstantTimeCompare(peer[:], c.PortalKey[:]) != 1 {
		return nil, refuse(BadToken, "token is another portal's")
	}
	job, ok := r.Jobs.Get(c.Job)
	switch {
	case !ok || job.Gone():
		return nil, refuse(NoJob, "there is no job %d", c.Job)
	case job.Instance != c.Instance:
		return nil, refuse(NoJob, "job %d was another one", c.Job)
	case job.UID != c.UID:
		return nil, refuse(NoJob, "job %d is not of user %d", c.Job, c.UID)
	case job.App != c.App:
		return nil, refuse(NoJob, "job %d does not have app %q", c.Job, c.App)
	}
	return job, nil
}
