package nodeagent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
	"github.com/carme-hpc/carme/internal/token"
	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/control"
	"github.com/carme-hpc/carme/nodeagent/enrol"
	"github.com/carme-hpc/carme/nodeagent/relay"
	"github.com/carme-hpc/carme/nodeagent/session/sessiontest"
)

// TestMain lets the tests' program be the agent's children.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && (os.Args[1] == ControlChild || os.Args[1] == GPUChild) {
		os.Exit(Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// backend is a backend that speaks internal/wire/api and dials back.
type backend struct {
	ca     *mtlstest.CA
	store  *mtls.Store
	server *httptest.Server
	key    ed25519.PrivateKey
	agent  string // its address

	mu      sync.Mutex
	down    bool
	life    time.Duration // of certificates
	gone    []uint32
	reports []api.Report
	asked   []string
	payload string
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	ca := mtlstest.New(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := &backend{ca: ca, key: key, store: ca.Open(t, mtls.RoleBackend, "b1"), life: 24 * time.Hour}
	b.server = httptest.NewUnstartedServer(b.handler(t))
	b.server.TLS = b.store.OptionalServer([]string{"http/1.1"})
	b.server.StartTLS()
	t.Cleanup(b.server.Close)
	return b
}

func reply(t *testing.T, w io.Writer, v any) {
	t.Helper()
	if err := json.NewEncoder(w).Encode(v); err != nil {
		t.Log(err) // the agent was stopped
	}
}

func (b *backend) keys() map[string][]byte {
	return map[string][]byte{"k": b.key.Public().(ed25519.PublicKey)}
}

func (b *backend) handler(t *testing.T) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	issue := func(w http.ResponseWriter, r *http.Request, check func(api.Enrol, *x509.CertificateRequest) error) {
		b.mu.Lock()
		b.asked = append(b.asked, r.URL.Path)
		life := b.life
		b.mu.Unlock()
		var in api.Enrol
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		csr, err := x509.ParseCertificateRequest(in.CSR)
		if err == nil {
			err = csr.CheckSignature()
		}
		if err == nil {
			err = check(in, csr)
		}
		if err != nil {
			w.WriteHeader(http.StatusForbidden)
			reply(t, w, api.ErrorBody{Error: api.Error{Code: "forbidden", Message: err.Error()}})
			return
		}
		id, err := mtls.NewIdentity(in.Role, in.Name)
		if err != nil {
			t.Error(err)
		}
		template := mtlstest.Template(t, id.URI())
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(life)
		reply(t, w, api.Enrolled{Certificate: b.ca.Sign(t, template, csr.PublicKey), CA: b.ca.PEM, RouteKeys: b.keys()})
	}
	mux.HandleFunc("POST /v1/agent/enrol", func(w http.ResponseWriter, r *http.Request) {
		issue(w, r, func(_ api.Enrol, csr *x509.CertificateRequest) error { return b.dialBack(r.Context(), csr) })
	})
	mux.HandleFunc("POST /v1/agent/renew", func(w http.ResponseWriter, r *http.Request) {
		issue(w, r, func(in api.Enrol, _ *x509.CertificateRequest) error {
			if id, ok := mtls.PeerIdentity(r.TLS); !ok || id.Name != in.Name || id.Role != mtls.RoleNode {
				return fmt.Errorf("%v may not renew", id)
			}
			return nil
		})
	})
	mux.HandleFunc("POST /v1/join", func(w http.ResponseWriter, r *http.Request) {
		issue(w, r, func(in api.Enrol, _ *x509.CertificateRequest) error {
			if in.JoinToken != "let-me-in" {
				return fmt.Errorf("token %q is not known", in.JoinToken)
			}
			return nil
		})
	})
	mux.HandleFunc("POST /v1/agent/report", func(w http.ResponseWriter, r *http.Request) {
		var report api.Report
		if err := json.NewDecoder(r.Body).Decode(&report); err != nil {
			t.Error(err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		if id, ok := mtls.PeerIdentity(r.TLS); b.down || !ok || id.String() != "carme://node/n1" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		b.reports = append(b.reports, report)
		reply(t, w, api.Reported{RouteKeys: b.keys(), Gone: b.gone, EverySeconds: 1})
	})
	return mux
}

// dialBack proves that root of the node has the key of the request.
func (b *backend) dialBack(ctx context.Context, csr *x509.CertificateRequest) error {
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{enrol.ALPN}, InsecureSkipVerify: true}} //nolint:gosec // G402: the key is compared
	b.mu.Lock()
	addr := b.agent
	b.mu.Unlock()
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // a test's connection
	leaf := c.(*tls.Conn).ConnectionState().PeerCertificates[0]
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, csr.RawSubjectPublicKeyInfo) {
		return fmt.Errorf("the node has another key")
	}
	fmt.Fprintf(c, "{\"nonce\":\"%s\",\"uid\":990}\n", strings.Repeat("0f", 16))
	var answer struct{ Munge, Error string }
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.payload = strings.TrimPrefix(answer.Munge, "MUNGE:")
	if want := fmt.Sprintf("carme-enrol|%s|%x|n1", strings.Repeat("0f", 16), mtls.SPKIHash(leaf)); b.payload != want {
		return fmt.Errorf("credential over %q (%s), want %q", b.payload, answer.Error, want)
	}
	return nil
}

func (b *backend) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// saw reports whether some report was as wanted.
func (b *backend) saw(is func(api.Report) bool) func() bool {
	return func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.ContainsFunc(b.reports, is)
	}
}

// ways are the requests for certificates; one that was sent again, because on a
// busy machine the answer came too late, counts once.
func (b *backend) ways() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(slices.Compact(slices.Clone(b.asked)), " ")
}

// rig is an agent with its surroundings.
type rig struct {
	node    sessiontest.Node
	backend *backend
	cfg     Config
	root    string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	b := newBackend(t)
	dir := t.TempDir()
	r := &rig{node: sessiontest.New(t), backend: b, cfg: DefaultConfig("n1.cluster"), root: dir}
	r.cfg.Cluster, r.cfg.Listen, r.cfg.State = "test", "127.0.0.1:0", filepath.Join(dir, "state")
	r.cfg.Backend = Backend{Address: b.server.Listener.Addr().String(), Name: "b1"}
	r.cfg.CA = filepath.Join(dir, "ca.pem")
	r.cfg.JoinToken = filepath.Join(dir, "join-token")
	r.cfg.Munge = filepath.Join(dir, "munge")
	r.cfg.Carme = filepath.Join(dir, "carme")
	r.cfg.LogLevel = "debug"
	for name, text := range map[string]string{
		r.cfg.CA: string(b.ca.PEM), r.cfg.Munge: "#!/bin/sh\n[ \"$*\" = --restrict-uid=990 ] || exit 1\nprintf MUNGE:; exec /bin/cat\n",
		r.cfg.Carme: "#!/bin/sh\necho '{\"ok\":false,\"findings\":[{\"name\":\"plugin\",\"status\":\"fail\",\"detail\":\"is absent\",\"mend\":\"install it\"}]}'\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// start runs the agent and returns what stops it.
func (r *rig) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	listening := make(chan net.Addr, 1)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, r.cfg, Machine{
			Root: r.root, JobsDir: r.node.Dir, Socket: r.node.Socket, Owner: uint32(os.Getuid()), IsAnchor: func(int) bool { return true },
			Self: self, Now: time.Now, Log: io.Discard,
			Listening: func(a net.Addr) {
				r.backend.set(func() { r.backend.agent = a.String() })
				listening <- a
			},
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-listening:
	case err := <-done:
		done <- nil
		t.Fatalf("agent does not start: %v", err)
	}
	return stop
}

func (r *rig) reported(t *testing.T, what string, is func(api.Report) bool) {
	t.Helper()
	sessiontest.Eventually(t, "report: "+what, r.backend.saw(is))
}

func hasJob(id uint32, stage string) func(api.Report) bool {
	return func(r api.Report) bool {
		return slices.ContainsFunc(r.Jobs, func(j api.NodeJob) bool { return j.Job == id && j.Stage == stage })
	}
}

func hasEnd(id uint32) func(api.Report) bool {
	return func(r api.Report) bool {
		return slices.ContainsFunc(r.Ended, func(j api.NodeEnd) bool { return j.Job == id })
	}
}

// stream opens a stream of portal p to job 7.
func (r *rig) stream(t *testing.T, portal *mtls.Store) (net.Conn, relay.Status) {
	t.Helper()
	cfg := portal.Client(mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, relay.ALPN)
	c, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", r.backend.agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	tok, err := token.Sign(r.backend.key, token.Claims{
		KeyID: "k", Cluster: "test", Node: "n1", Job: 7, Instance: sessiontest.Instance("a"), UID: uint32(os.Getuid()), App: "web",
		Viewer: "alice", Mode: "full", ID: "g", PortalKey: mtls.SPKIHash(portal.Leaf()),
		NotBefore: time.Now().Add(-10 * time.Second), Expires: time.Now().Add(time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(tok))), tok...)); err != nil {
		t.Fatal(err)
	}
	var status [1]byte
	if _, err := io.ReadFull(c, status[:]); err != nil {
		t.Fatal(err)
	}
	return c, relay.Status(status[0])
}

func echo(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestAgent_from_its_first_start_to_a_stream(t *testing.T) {
	r := newRig(t)
	r.start(t)
	job := r.node.Add(t, 7, func(n *wire.Session) { n.Devices = []wire.SessionDevice{{UUID: "GPU-1", Model: "X"}} })
	job.Register(t)
	r.reported(t, "image", hasJob(7, api.StageImage))
	r.reported(t, "problem", func(rep api.Report) bool { return rep.Problem == "plugin: is absent; install it" })
	job.Listen(t, sessiontest.Echo)
	job.Status(t, "ready\n")
	r.reported(t, "ready", hasJob(7, api.StageReady))
	portal := r.backend.ca.Open(t, mtls.RolePortal, "p1")
	c, status := r.stream(t, portal)
	if status != relay.OK {
		t.Fatalf("status %s", status)
	}
	echo(t, c)
	job.Kill()
	r.reported(t, "end", hasEnd(7))
	if _, err := io.ReadAll(c); err == nil {
		t.Log("the stream ended with a farewell")
	}
	if asked := r.backend.ways(); asked != "/v1/agent/enrol" {
		t.Errorf("asked for certificates by %s", asked)
	}
}

func TestAgent_restart_keeps_jobs_and_tells_ends_of_between(t *testing.T) {
	r := newRig(t)
	stop := r.start(t)
	job := r.node.Add(t, 7, nil)
	job.Listen(t, sessiontest.Echo)
	other := r.node.Add(t, 8, nil)
	r.reported(t, "both", func(rep api.Report) bool { return len(rep.Jobs) == 2 })
	stop()
	other.Kill()
	// The backend is not there when the agent comes back: streams work still.
	r.backend.set(func() { r.backend.down, r.backend.asked = true, nil })
	r.start(t)
	c, status := r.stream(t, r.backend.ca.Open(t, mtls.RolePortal, "p1"))
	if status != relay.OK {
		t.Fatalf("status %s", status)
	}
	echo(t, c)
	r.backend.set(func() { r.backend.down = false })
	r.reported(t, "end of job 8", hasEnd(8))
	r.backend.set(func() { r.backend.reports = nil })
	r.reported(t, "told once", func(rep api.Report) bool { return len(rep.Ended) == 0 && len(rep.Jobs) == 1 })
	if again := r.backend.ways(); again != "" {
		t.Errorf("asked for certificates again, by %s", again)
	}
}

func TestAgent_closes_streams_of_jobs_that_are_gone(t *testing.T) {
	r := newRig(t)
	r.start(t)
	r.node.Add(t, 7, nil).Listen(t, sessiontest.Echo)
	r.reported(t, "job", hasJob(7, api.StageImage))
	c, status := r.stream(t, r.backend.ca.Open(t, mtls.RolePortal, "p1"))
	if status != relay.OK {
		t.Fatalf("status %s", status)
	}
	r.backend.set(func() { r.backend.gone = []uint32{7} })
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the stream is open still (%v)", err)
	}
}

func TestAgent_joins_by_token_and_falls_back_to_MUNGE(t *testing.T) {
	for name, c := range map[string]struct{ token, want string }{
		"good": {"let-me-in\n", "/v1/join"}, "spent": {"other", "/v1/join /v1/agent/enrol"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if err := os.WriteFile(r.cfg.JoinToken, []byte(c.token), 0o600); err != nil {
				t.Fatal(err)
			}
			r.start(t)
			r.reported(t, "any", func(api.Report) bool { return true })
			if asked := r.backend.ways(); asked != c.want {
				t.Errorf("asked %s, want %s", asked, c.want)
			}
		})
	}
}

func TestAgent_renews_by_its_old_certificate_and_drops_no_stream(t *testing.T) {
	r := newRig(t)
	// Two thirds of it have passed when it is issued.
	r.backend.life = 20 * time.Second
	stop := r.start(t)
	r.reported(t, "job", func(api.Report) bool { return true })
	stop()
	r.node.Add(t, 7, nil).Listen(t, sessiontest.Echo)
	r.backend.set(func() { r.backend.life = 24 * time.Hour })
	r.start(t)
	portal := r.backend.ca.Open(t, mtls.RolePortal, "p1")
	c, status := r.stream(t, portal)
	if status != relay.OK {
		t.Fatalf("status %s", status)
	}
	sessiontest.Eventually(t, "renewed", func() bool {
		r.backend.mu.Lock()
		defer r.backend.mu.Unlock()
		return slices.Contains(r.backend.asked, "/v1/agent/renew")
	})
	sessiontest.Eventually(t, "new certificate is shown", func() bool {
		next, status := r.stream(t, portal)
		return status == relay.OK && time.Until(next.(*tls.Conn).ConnectionState().PeerCertificates[0].NotAfter) > time.Hour
	})
	echo(t, c)
	entries, err := os.ReadDir(filepath.Join(r.cfg.State, "certs"))
	if err != nil || len(entries) != 2 {
		t.Errorf("certs holds %v (%v), want one certificate and the link", entries, err)
	}
}

func TestFault_agent_whose_certificate_is_of_a_time_to_come_enrols_anew(t *testing.T) {
	r := newRig(t)
	stop := r.start(t)
	r.reported(t, "any", func(api.Report) bool { return true })
	stop()
	// The clock that signed it was ahead, and was put back since.
	files := mtls.In(filepath.Join(r.cfg.State, "certs", "current"))
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	template := mtlstest.Template(t, mtls.Identity{Role: mtls.RoleNode, Name: "n1"}.URI())
	template.NotBefore, template.NotAfter = time.Now().Add(24*time.Hour), time.Now().Add(31*24*time.Hour)
	if err := os.WriteFile(files.Cert, r.backend.ca.Sign(t, template, pair.Leaf.PublicKey), 0o600); err != nil {
		t.Fatal(err)
	}
	r.backend.set(func() { r.backend.asked, r.backend.reports = nil, nil })
	r.start(t)
	r.reported(t, "any", func(api.Report) bool { return true })
	if asked := r.backend.ways(); asked != "/v1/agent/enrol" {
		t.Errorf("asked %s", asked)
	}
}

func TestAgent_answers_the_backend_only(t *testing.T) {
	r := newRig(t)
	r.start(t)
	r.reported(t, "any", func(api.Report) bool { return true })
	ask := func(store *mtls.Store) (control.Answer, error) {
		cfg := store.Client(mtls.Identity{Role: mtls.RoleNode, Name: "n1"}, control.ALPN)
		c, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", r.backend.agent)
		if err != nil {
			return control.Answer{}, err
		}
		defer c.Close() //nolint:errcheck // a test's connection
		fmt.Fprintln(c, `{"op":"ping"}`)
		line, err := bufio.NewReader(c).ReadBytes('\n')
		if err != nil {
			return control.Answer{}, err
		}
		var a control.Answer
		return a, json.Unmarshal(line, &a)
	}
	if a, err := ask(r.backend.store); err != nil || !a.OK {
		t.Errorf("backend got %+v, %v", a, err)
	}
	for _, role := range []string{mtls.RolePortal, mtls.RoleNode} {
		if a, err := ask(r.backend.ca.Open(t, role, "n1")); err == nil {
			t.Errorf("%s got %+v", role, a)
		}
	}
}

func TestAgent_refuses_enrolment_challenges_that_it_did_not_ask_for(t *testing.T) {
	r := newRig(t)
	r.start(t)
	r.reported(t, "any", func(api.Report) bool { return true })
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{enrol.ALPN}, InsecureSkipVerify: true}} //nolint:gosec // G402: nothing is sent
	// The request that was answered is forgotten a moment later.
	sessiontest.Eventually(t, "a dial-back is refused", func() bool {
		c, err := d.DialContext(t.Context(), "tcp", r.backend.agent)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
}

func TestConfig_names_everything_that_is_wrong(t *testing.T) {
	root := t.TempDir()
	write := func(text string) error {
		if err := os.WriteFile(filepath.Join(root, "agent.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readConfig(config.Daemon{Source: config.Source{Root: root, TrustOwner: true}, File: "/agent.yaml", Manual: "carme-agent(8)"}, "n1.cluster")
		return err
	}
	if err := write("cluster: c\nbackend: {address: 'head:7443'}\n"); err != nil {
		t.Errorf("the shortest configuration: %v", err)
	}
	err := write("cluster: 'a b'\nnode: ''\nlisten: x\nca: ca.pem\nlimits: {job: 0}\nlog_level: loud\nbackend: {address: ':1'}\n")
	if err == nil || len(config.Problems(err)) != 7 {
		t.Errorf("problems: %q", config.Problems(err))
	}
	example, err := os.ReadFile("../contrib/carme/agent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := write(string(example)); err != nil {
		t.Errorf("the example: %v", err)
	}
}
