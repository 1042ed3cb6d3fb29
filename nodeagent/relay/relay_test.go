package relay_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
	"github.com/carme-hpc/carme/internal/token"
	"github.com/carme-hpc/carme/nodeagent/relay"
	"github.com/carme-hpc/carme/nodeagent/session"
	"github.com/carme-hpc/carme/nodeagent/session/sessiontest"
)

// world is a node with one job, and a portal.
type world struct {
	*relay.Relay

	node   sessiontest.Node
	job    *sessiontest.Job
	table  *session.Table
	ca     *mtlstest.CA
	dir    string // the node's certificate
	store  *mtls.Store
	portal *mtls.Store
	key    ed25519.PrivateKey
	addr   string
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	ca := mtlstest.New(tb)
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{node: sessiontest.New(tb), ca: ca, key: key, portal: ca.Open(tb, mtls.RolePortal, "p1")}
	w.Relay = &relay.Relay{
		Cluster: "test", Node: "n1",
		Keys:   func() map[string]ed25519.PublicKey { return map[string]ed25519.PublicKey{"k": public} },
		Limits: relay.Limits{Job: 5000, User: 5000, Total: 5000},
		Times:  relay.Times{Header: time.Second, App: time.Second},
		Now:    time.Now, Log: slog.New(slog.DiscardHandler),
	}
	w.job = w.node.Add(tb, 7, nil)
	w.table = w.node.Open(tb, func(o *session.Options) {
		o.Ended = func(j *session.Job, _ time.Time) { w.EndJob(j) }
	})
	w.Jobs = w.table
	w.dir = ca.Issue(tb, mtls.RoleNode, "n1")
	w.store, err = mtls.Open(mtls.In(w.dir), nil)
	if err != nil {
		tb.Fatal(err)
	}
	w.listen(tb)
	tb.Cleanup(w.CloseAll)
	return w
}

func (w *world) listen(tb testing.TB) {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	w.addr = l.Addr().String()
	cfg := w.store.Server([]string{relay.ALPN}, func(id mtls.Identity) error {
		if id.Role != mtls.RolePortal {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				conn, err := relay.NewConn(c.(*net.TCPConn), cfg)
				if err != nil || conn.TLS().HandshakeContext(context.Background()) != nil {
					_ = c.Close()
					return
				}
				w.Serve(context.Background(), conn)
			}()
		}
	}()
}

func (w *world) claims() token.Claims {
	return token.Claims{
		KeyID: "k", Cluster: "test", Node: "n1", Job: 7, Instance: sessiontest.Instance("a"), UID: uint32(os.Getuid()),
		App: "web", Viewer: "alice", Mode: "full", ID: "g1", PortalKey: mtls.SPKIHash(w.portal.Leaf()),
		NotBefore: time.Now().Add(-10 * time.Second), Expires: time.Now().Add(time.Minute),
	}
}

func (w *world) sign(tb testing.TB, c token.Claims) []byte {
	tb.Helper()
	tok, err := token.Sign(w.key, c)
	if err != nil {
		tb.Fatal(err)
	}
	return tok
}

func (w *world) dial(tb testing.TB) *tls.Conn {
	tb.Helper()
	d := tls.Dialer{Config: w.portal.Client(mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, relay.ALPN)}
	c, err := d.DialContext(context.Background(), "tcp", w.addr)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	return c.(*tls.Conn)
}

func header(tok []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(tok))), tok...)
}

// show sends a token and returns the status.
func show(tb testing.TB, c *tls.Conn, tok []byte) relay.Status {
	tb.Helper()
	if _, err := c.Write(header(tok)); err != nil {
		tb.Fatal(err)
	}
	var status [1]byte
	if _, err := io.ReadFull(c, status[:]); err != nil {
		tb.Fatal(err)
	}
	return relay.Status(status[0])
}

func (w *world) open(tb testing.TB) *tls.Conn {
	tb.Helper()
	sessiontest.Eventually(tb, "job is known", func() bool {
		_, ok := w.table.Get(7)
		return ok
	})
	c := w.dial(tb)
	if s := show(tb, c, w.sign(tb, w.claims())); s != relay.OK {
		tb.Fatalf("status %s", s)
	}
	return c
}

func ask(tb testing.TB, c *tls.Conn, text string) {
	tb.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		tb.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		tb.Fatalf("got %q, %v", got, err)
	}
}

func TestRelay_carries_both_ways(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, sessiontest.Echo)
	c := w.open(t)
	for _, text := range []string{"a", "hello", string(bytes.Repeat([]byte("x"), 5000))} {
		ask(t, c, text)
	}
}

func TestRelay_carries_what_comes_right_behind_the_token(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, sessiontest.Echo)
	w.open(t)
	c := w.dial(t)
	// One record with the token and the first bytes: crypto/tls holds these
	// when the relay starts to wait for more.
	if _, err := c.Write(append(header(w.sign(t, w.claims())), "first"...)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "\x00first" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestRelay_passes_half_closes_on_and_loses_nothing(t *testing.T) {
	w := newWorld(t)
	// The app answers only after it has read everything.
	w.job.Listen(t, func(c *net.UnixConn) {
		defer c.Close() //nolint:errcheck // a test's connection
		sum := sha256.New()
		_, _ = io.Copy(sum, c)
		_, _ = io.Copy(c, bytes.NewReader(bytes.Repeat(sum.Sum(nil), 1<<16)))
	})
	c := w.open(t)
	sent := make([]byte, 5<<20)
	_, _ = rand.Read(sent)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	sum := sha256.Sum256(sent)
	if err != nil || !bytes.Equal(got, bytes.Repeat(sum[:], 1<<16)) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	sessiontest.Eventually(t, "no stream is left", w.idle)
}

func (w *world) idle() bool {
	open, _ := w.Counts()
	return open == 0
}

func TestRelay_delivers_the_answer_of_an_app_that_stops_listening(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, func(c *net.UnixConn) {
		_, _ = c.Write(bytes.Repeat([]byte("n"), 1<<20)) // too large, go away
		_ = c.Close()
	})
	c := w.open(t)
	go func() {
		_, _ = c.Write(make([]byte, 8<<20))
	}()
	got, err := io.ReadAll(c)
	if err != nil || len(got) != 1<<20 {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	_ = c.Close()
	sessiontest.Eventually(t, "no stream is left", w.idle)
}

func TestRelay_ends_when_the_client_does_though_the_app_does_not(t *testing.T) {
	w := newWorld(t)
	closed := make(chan struct{})
	w.job.Listen(t, func(c *net.UnixConn) {
		defer close(closed)
		_, _ = io.Copy(io.Discard, c)
		// It does not care, until it is cut off for writing.
		for {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	})
	c := w.open(t)
	_ = c.Close()
	sessiontest.Eventually(t, "no stream is left", w.idle)
	<-closed
}

func TestRelay_refuses_tokens(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, sessiontest.Echo)
	w.open(t)
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*token.Claims)
		want   relay.Status
	}{
		"for another node":     {func(c *token.Claims) { c.Node = "n2" }, relay.WrongNode},
		"for another cluster":  {func(c *token.Claims) { c.Cluster = "other" }, relay.WrongNode},
		"for another portal":   {func(c *token.Claims) { c.PortalKey[0] ^= 1 }, relay.BadToken},
		"for another instance": {func(c *token.Claims) { c.Instance = sessiontest.Instance("b") }, relay.NoJob},
		"for another user":     {func(c *token.Claims) { c.UID++ }, relay.NoJob},
		"for another app":      {func(c *token.Claims) { c.App = "shell" }, relay.NoJob},
		"for another job":      {func(c *token.Claims) { c.Job = 8 }, relay.NoJob},
		"by an unknown key":    {func(c *token.Claims) { c.KeyID = "x" }, relay.BadToken},
		"too early":            {func(c *token.Claims) { c.NotBefore = time.Now().Add(5 * time.Second) }, relay.BadToken},
		"replayed after its expiry": {func(c *token.Claims) {
			c.NotBefore, c.Expires = time.Now().Add(-2*time.Minute), time.Now().Add(-time.Second)
		}, relay.BadToken},
		"that is good": {func(*token.Claims) {}, relay.OK},
	} {
		t.Run(name, func(t *testing.T) {
			claims := w.claims()
			c.change(&claims)
			if s := show(t, w.dial(t), w.sign(t, claims)); s != c.want {
				t.Errorf("status %s, want %s", s, c.want)
			}
		})
	}
	forged, err := token.Sign(other, w.claims())
	if err != nil {
		t.Fatal(err)
	}
	for name, tok := range map[string][]byte{
		"signed by another": forged, "empty": {}, "noise": bytes.Repeat([]byte{1}, 500), "huge": make([]byte, token.MaxSize+1),
	} {
		if s := show(t, w.dial(t), tok); s != relay.BadToken {
			t.Errorf("%s: status %s", name, s)
		}
	}
	if _, counts := w.Counts(); counts["bad_token"] < 7 || counts["ok"] < 2 {
		t.Errorf("counted %v", counts)
	}
}

// written counts the lines of a log.
type written struct{ atomic.Int64 }

func (n *written) Write(line []byte) (int, error) {
	n.Add(1)
	return len(line), nil
}

func TestAttack_refused_streams_do_not_fill_the_log(t *testing.T) {
	w := newWorld(t)
	lines := &written{}
	w.Log = logx.New(lines, slog.LevelInfo)
	const asked = 40
	start := time.Now()
	for range asked {
		if s := show(t, w.dial(t), w.sign(t, w.claims())); s == relay.OK {
			t.Fatal("there is an app")
		}
	}
	if n, most := lines.Load(), 2+int64(time.Since(start)/time.Second); n == 0 || n > most {
		t.Errorf("%d lines of %d streams, at most %d would do", n, asked, most)
	}
}

func TestRelay_refuses_apps_that_are_not_there_or_not_the_users(t *testing.T) {
	w := newWorld(t)
	sessiontest.Eventually(t, "job is known", func() bool {
		_, ok := w.table.Get(7)
		return ok
	})
	if s := show(t, w.dial(t), w.sign(t, w.claims())); s != relay.NotListening {
		t.Errorf("status %s", s)
	}
	if err := os.Symlink(w.node.Socket, w.job.SocketPath()); err != nil {
		t.Fatal(err)
	}
	if s := show(t, w.dial(t), w.sign(t, w.claims())); s != relay.NotTheUsers {
		t.Errorf("status %s", s)
	}
	if !w.idle() {
		t.Error("a refused stream is counted")
	}
}

func TestRelay_waits_for_the_token_only_so_long(t *testing.T) {
	w := newWorld(t)
	c := w.dial(t)
	began := time.Now()
	if _, err := c.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
		t.Error("half a token was answered")
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("closed after %s", d)
	}
}

func TestRelay_limits_streams(t *testing.T) {
	for name, limits := range map[string]relay.Limits{
		"of a job": {Job: 2, User: 9, Total: 9}, "of a user": {Job: 9, User: 2, Total: 9}, "of all": {Job: 9, User: 9, Total: 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Limits = limits
			w.job.Listen(t, sessiontest.Echo)
			first := w.open(t)
			w.open(t)
			if s := show(t, w.dial(t), w.sign(t, w.claims())); s != relay.Busy {
				t.Errorf("status %s", s)
			}
			_ = first.Close()
			sessiontest.Eventually(t, "one has ended", func() bool { n, _ := w.Counts(); return n == 1 })
			w.open(t)
		})
	}
}

func TestRelay_closes_streams_when_the_job_ends(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, sessiontest.Echo)
	c := w.open(t)
	ask(t, c, "x")
	w.job.Kill()
	if _, err := io.ReadAll(c); err == nil {
		// Either end of a stream is fine; that it ends is what counts.
		t.Log("ended with a farewell")
	}
	sessiontest.Eventually(t, "no stream is left", w.idle)
	if s := show(t, w.dial(t), w.sign(t, w.claims())); s != relay.NoJob {
		t.Errorf("status %s", s)
	}
}

func TestRelay_refuses_jobs_that_Slurm_does_not_know(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, sessiontest.Echo)
	w.open(t)
	all := w.table.All()
	if lost := w.table.SetGone(all, []uint32{7}); len(lost) != 1 {
		t.Errorf("lost %d", len(lost))
	}
	if s := show(t, w.dial(t), w.sign(t, w.claims())); s != relay.NoJob {
		t.Errorf("status %s", s)
	}
	// Slurm's controller had lost its memory for a while.
	w.table.SetGone(all, nil)
	w.open(t)
}

func TestRelay_drains_streams_when_their_app_has_answered(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, func(c *net.UnixConn) {
		defer c.Close() //nolint:errcheck // a test's connection
		buf := make([]byte, 1)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if buf[0] == 's' { // it thinks
				<-time.After(200 * time.Millisecond)
			}
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	idle, busy, mute := w.open(t), w.open(t), w.open(t)
	ask(t, idle, "q")
	if _, err := busy.Write([]byte("s")); err != nil {
		t.Fatal(err)
	}
	// A stream that never spoke ends with the deadline.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Drain(ctx)
	}()
	if _, err := idle.Read(make([]byte, 1)); err == nil || time.Since(began) > time.Second {
		t.Errorf("the idle stream ended with %v after %s", err, time.Since(began))
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(busy, answer); err != nil || answer[0] != 's' {
		t.Errorf("the answer was cut: %v", err)
	}
	if _, err := mute.Read(make([]byte, 1)); err == nil || time.Since(began) < time.Second {
		t.Errorf("the stream that waits ended with %v after %s", err, time.Since(began))
	}
	<-done
}

func TestRelay_keeps_streams_while_certificates_change(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, sessiontest.Echo)
	c := w.open(t)
	before := c.ConnectionState().PeerCertificates[0]
	id := mtls.Identity{Role: mtls.RoleNode, Name: "n1"}
	w.ca.Write(t, w.dir, mtlstest.Template(t, id.URI()))
	if err := w.store.Reload(); err != nil {
		t.Fatal(err)
	}
	next := w.open(t)
	if next.ConnectionState().PeerCertificates[0].Equal(before) {
		t.Error("the old certificate is shown")
	}
	ask(t, c, "still there")
	ask(t, next, "me too")
}

func TestRelay_token_works_on_a_resumed_session_of_its_portal_only(t *testing.T) {
	w := newWorld(t)
	w.job.Listen(t, sessiontest.Echo)
	w.open(t)
	thief := w.ca.Open(t, mtls.RolePortal, "p2")
	cfg := thief.Client(mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, relay.ALPN)
	for i := range 2 {
		c, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		if s := show(t, c.(*tls.Conn), w.sign(t, w.claims())); s != relay.BadToken {
			t.Errorf("connection %d: status %s", i, s)
		}
		if resumed := c.(*tls.Conn).ConnectionState().DidResume; resumed != (i > 0) {
			t.Errorf("connection %d: resumed %v", i, resumed)
		}
		_ = c.Close()
	}
}

func TestRelay_refuses_peers_that_are_no_portal(t *testing.T) {
	w := newWorld(t)
	for _, role := range []string{mtls.RoleBackend, mtls.RoleNode} {
		cfg := w.ca.Open(t, role, "p1").Client(mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, relay.ALPN)
		c, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", w.addr)
		if err != nil {
			continue
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s was taken", role)
		}
		_ = c.Close()
	}
}

func memory() (rss int64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// BenchmarkIdle reports the memory of an idle stream: both ends and the app are
// in this process, so it is measured with and without the relay between them.
func BenchmarkIdle(b *testing.B) {
	const streams = 2000
	w := newWorld(b)
	w.job.Listen(b, func(c *net.UnixConn) {
		defer c.Close() //nolint:errcheck // a test's connection
		for buf := make([]byte, 16); ; {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			_, _ = c.Write(buf[:n])
		}
	})
	w.open(b)
	for b.Loop() {
		before := memory()
		clients := make([]*tls.Conn, streams)
		for i := range clients {
			clients[i] = w.open(b)
		}
		for _, c := range clients {
			ask(b, c, "hello")
		}
		all := memory() - before
		w.CloseAll()
		sessiontest.Eventually(b, "closed", w.idle)
		left := memory() - before
		runtime.KeepAlive(clients)
		b.ReportMetric(float64(all)/streams, "B/stream-all-ends")
		b.ReportMetric(float64(all-left)/streams, "B/stream-relay+app")
	}
}

func BenchmarkEcho(b *testing.B) {
	w := newWorld(b)
	w.job.Listen(b, sessiontest.Echo)
	c := w.open(b)
	if err := c.SetDeadline(time.Time{}); err != nil {
		b.Fatal(err)
	}
	text := string(make([]byte, 64))
	for b.Loop() {
		ask(b, c, text)
	}
}

func BenchmarkDownload(b *testing.B) {
	w := newWorld(b)
	w.job.Listen(b, func(c *net.UnixConn) {
		defer c.Close() //nolint:errcheck // a test's connection
		_, _ = io.Copy(c, &io.LimitedReader{R: zero{}, N: 1 << 40})
	})
	c := w.open(b)
	if err := c.SetDeadline(time.Time{}); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { return len(p), nil }
