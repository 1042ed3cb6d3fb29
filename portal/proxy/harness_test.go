package proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
	"github.com/carme-hpc/carme/portal/client/clienttest"
)

// world is a portal with a backend in memory, an agent and an app, over real
// TLS and TCP.
type world struct {
	t       *testing.T
	names   Names
	backend *clienttest.Backend
	proxy   *Proxy
	addr    string // of the portal
	roots   *x509.CertPool
	agent   *fakeAgent
	app     http.Handler
	clock   atomic.Int64 // added to the time, in nanoseconds
	stop    context.CancelFunc
	ended   chan error
}

// layouts are the two kinds of names that a site can have.
var layouts = map[string]Names{
	"one registrable domain":  {Portal: "portal.carme.localhost", Apps: "apps.carme.localhost", Port: 8443},
	"two registrable domains": {Portal: "portal.localhost", Apps: "apps.localhost", Port: 8443},
}

func newWorld(t *testing.T, app http.Handler) *world {
	t.Helper()
	return newWorldNamed(t, layouts["one registrable domain"], app)
}

func newWorldNamed(t *testing.T, names Names, app http.Handler) *world {
	t.Helper()
	w := &world{t: t, names: names, backend: clienttest.New(), app: app, ended: make(chan error, 1)}
	ca := newCA(t)
	w.roots = ca.pool
	rest := httptest.NewServer(w.backend)
	t.Cleanup(rest.Close)
	w.agent = newFakeAgent(t, ca, app)
	w.backend.Addr, w.backend.Node = w.agent.addr, "node1"
	w.proxy = New(Options{
		Names: names, Backend: client.New(rest.URL, &http.Transport{}), Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Now().Add(time.Duration(w.clock.Load())) },
		AgentTLS: func(node string) *tls.Config {
			return &tls.Config{RootCAs: ca.pool, ServerName: node, NextProtos: []string{RelayProtocol}, MinVersion: tls.VersionTLS13}
		},
	})
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	pages := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, "portal "+r.URL.Path) })
	tcp, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = tcp.Addr().String()
	pair := ca.issue(t, names.Portal, "*."+names.Apps)
	var all sync.WaitGroup
	all.Go(func() { w.proxy.Run(ctx) })
	all.Go(func() {
		w.ended <- Serve(ctx, tcp, &tls.Config{Certificates: []tls.Certificate{pair}}, names.Dispatch(pages, w.proxy), slog.New(slog.DiscardHandler))
	})
	t.Cleanup(func() { stop(); all.Wait() })
	eventually(t, "the first heartbeat", func() bool { return w.proxy.table.beat.Load() != nil })
	return w
}

// session adds a running session of a user and returns its host and the value
// of the app's cookie.
func (w *world) session(user, intent string) (host, cookie string) {
	label := clienttest.Label(intent)
	w.backend.Add(api.Job{ID: intent, Intent: intent, User: user, Stage: api.StageReady, State: "RUNNING", Host: label, Carme: true})
	return label + "." + w.names.authority(w.names.Apps), w.backend.App(user, label)
}

// client returns one that reaches the portal under every name, over HTTP/2 or
// 1.1.
func (w *world) client(h2 bool) *http.Client {
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: h2, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", w.addr)
		},
	}
	if !h2 {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// ask sends a request of a page of the same origin, changed by the headers:
// "Name: value" sets, "-Name" removes.
func (w *world) ask(c *http.Client, method, host, path, cookie string, body io.Reader, headers ...string) *http.Response {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, "https://"+host+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	if cookie != "" {
		r.Header.Set("Cookie", appCookie+"="+cookie)
	}
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Sec-Fetch-Mode", "cors")
	r.Header.Set("Sec-Fetch-Dest", "empty")
	for _, h := range headers {
		if name, ok := strings.CutPrefix(h, "-"); ok {
			r.Header.Del(name)
			continue
		}
		name, value, _ := strings.Cut(h, ": ")
		if name == "+Cookie" {
			value = r.Header.Get("Cookie") + "; " + value
			name = "Cookie"
		}
		r.Header.Set(name, value)
	}
	answer, err := c.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = answer.Body.Close() })
	return answer
}

func text(t *testing.T, answer *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// raw opens a TLS connection for HTTP/1.1 that is written by hand.
func (w *world) raw(host string) (*tls.Conn, *bufio.Reader) {
	w.t.Helper()
	name, _, _ := strings.Cut(host, ":")
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: w.roots, ServerName: name, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(w.t.Context(), "tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn.(*tls.Conn), bufio.NewReader(conn)
}

// socket opens a websocket's connection, as far as the answer's head.
func (w *world) socket(host, cookie string, headers ...string) (*tls.Conn, *bufio.Reader, *http.Response) {
	w.t.Helper()
	conn, r := w.raw(host)
	head := "GET /ws HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	if cookie != "" {
		head += "Cookie: " + appCookie + "=" + cookie + "; own=1\r\n"
	}
	for _, h := range headers {
		head += h + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		w.t.Fatal(err)
	}
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return conn, r, answer
}

// echoSocket is an app whose websocket sends back what it gets.
func echoSocket(rw http.ResponseWriter, r *http.Request) {
	conn, buffered, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return
	}
	defer conn.Close() //nolint:errcheck // a test's
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Cookie: "+r.Header.Get("Cookie")+"\r\nX-Origin: "+r.Header.Get("Origin")+"\r\nX-Auth: "+r.Header.Get("Authorization")+"\r\n\r\n")
	_, _ = io.Copy(conn, buffered)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(10 * time.Second); time.Now().Before(late); {
		if is() {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Fatalf("%s did not come", what)
}

type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newCA(t *testing.T) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &testCA{cert, key, pool}
}

func (ca *testCA) issue(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// fakeAgent speaks the relay protocol and leads to one app.
type fakeAgent struct {
	addr   string
	status atomic.Int32
	dials  atomic.Int64
	open   atomic.Int64
	hold   atomic.Pointer[chan struct{}] // if set, answers wait for it
	cut    atomic.Int64                  // so many streams end without an answer
	drop   atomic.Int64                  // so many end after it
	stale  atomic.Int64                  // so many have a token that has run out
}

func newFakeAgent(t *testing.T, ca *testCA, app http.Handler) *fakeAgent {
	t.Helper()
	a := &fakeAgent{}
	server := httptest.NewServer(app)
	t.Cleanup(server.CloseClientConnections)
	config := &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "node1")}, NextProtos: []string{RelayProtocol}, MinVersion: tls.VersionTLS13}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	a.addr = listener.Addr().String()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go a.serve(conn.(*tls.Conn), server.Listener.Addr().String())
		}
	}()
	return a
}

func (a *fakeAgent) serve(conn *tls.Conn, app string) {
	defer conn.Close() //nolint:errcheck // a test's
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return
	}
	if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint16(size[:]))); err != nil {
		return
	}
	a.dials.Add(1)
	if a.cut.Add(-1) >= 0 {
		return
	}
	if wait := a.hold.Load(); wait != nil {
		<-*wait
	}
	status := byte(a.status.Load())
	if a.stale.Add(-1) >= 0 {
		status = byte(statusToken)
	}
	up, err := net.Dial("tcp", app) //nolint:noctx // a test's
	if err != nil {
		status = 3
	}
	_, _ = conn.Write([]byte{status})
	if status != 0 || a.drop.Add(-1) >= 0 {
		return
	}
	a.open.Add(1)
	defer a.open.Add(-1)
	defer up.Close() //nolint:errcheck // a test's
	go func() {
		_, _ = io.Copy(up, conn)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(conn, up)
}

// later is an address at which the agent takes connections after a while only.
func (w *world) later(pause time.Duration) string {
	w.t.Helper()
	reserved, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's
	if err != nil {
		w.t.Fatal(err)
	}
	addr := reserved.Addr().String()
	_ = reserved.Close()
	timer := time.AfterFunc(pause, func() {
		listener, err := net.Listen("tcp", addr) //nolint:noctx // a test's
		if err != nil {
			return // the test fails by the answer
		}
		w.t.Cleanup(func() { _ = listener.Close() })
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()                       //nolint:errcheck // a test's
				up, err := net.Dial("tcp", w.agent.addr) //nolint:noctx // a test's
				if err != nil {
					return
				}
				defer up.Close() //nolint:errcheck // a test's
				go func() { _, _ = io.Copy(up, conn) }()
				_, _ = io.Copy(conn, up)
			}()
		}
	})
	w.t.Cleanup(func() { timer.Stop() })
	return addr
}
