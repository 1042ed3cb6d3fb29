package api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/pquerna/otp/totp"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	"github.com/carme-hpc/carme/internal/token"
	wire "github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/auth"
	seal "github.com/carme-hpc/carme/portal/backend/auth/totp"
	"github.com/carme-hpc/carme/portal/backend/jobs"
	"github.com/carme-hpc/carme/portal/backend/nodes"
	"github.com/carme-hpc/carme/portal/backend/policy"
	"github.com/carme-hpc/carme/portal/backend/routes"
	"github.com/carme-hpc/carme/portal/backend/store"
)

// people is a directory in memory.
type people struct {
	mu   sync.Mutex
	all  map[string]auth.Person
	down bool
	// before is called once when somebody is looked for.
	before func()
}

func (p *people) Find(_ context.Context, name string) (auth.Person, error) {
	p.mu.Lock()
	before := p.before
	p.before = nil
	p.mu.Unlock()
	if before != nil {
		before()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return auth.Person{}, errors.New("no route to host")
	}
	for _, one := range p.all {
		if strings.EqualFold(one.Name, name) {
			return one, nil
		}
	}
	return auth.Person{}, auth.ErrUnknown
}

func (p *people) Check(_ context.Context, dn, password string) error {
	if dn == "" || password != strings.TrimPrefix(dn, "uid=")+"-pass" {
		return auth.ErrPassword
	}
	return nil
}

// cluster is a Slurm in memory.
type cluster struct {
	mu     sync.Mutex
	jobs   map[uint32]rest.Job
	next   uint32
	sent   []rest.Submission
	as     []string
	submit func() error // what happens to the answer
	lost   bool         // the job is made, the answer lost
	asked  atomic.Int32
	listed atomic.Int32 // how often its nodes were
	down   bool
	hung   bool // slurmrestd is silent
}

func (c *cluster) Ping(context.Context, string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hung {
		return rest.ErrUnavailable
	}
	return nil
}

// hang makes slurmrestd silent, or lets it go on.
func (c *cluster) hang(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hung = yes
}

func (c *cluster) Submit(_ context.Context, user string, s rest.Submission) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent, c.as = append(c.sent, s), append(c.as, user)
	if c.submit != nil {
		if err := c.submit(); err != nil && !c.lost {
			return 0, err
		}
	}
	c.next++
	uid := map[string]uint32{"alice": 10001, "bob": 10002}[user]
	c.jobs[c.next] = rest.Job{
		ID: c.next, Name: s.Name, Comment: s.Comment, User: user, UID: uid, State: "PENDING", Submitted: time.Now().Truncate(time.Second),
		Partition: "debug", Stdout: s.Output, WorkDir: s.WorkDir, Minutes: s.Minutes, TRES: "cpu=1,mem=100M,node=1,gres/gpu=1,gres/gpu:a100=1",
	}
	if c.lost {
		return 0, rest.ErrUnknown
	}
	return c.next, nil
}

func (c *cluster) Cancel(_ context.Context, user, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := rest.ErrNotFound
	for n, j := range c.jobs { // by its number alone an array ends as a whole
		if (shown(j) == id || strings.HasPrefix(shown(j), id+"_")) && j.User == user {
			j.State = "CANCELLED"
			c.jobs[n] = j
			err = nil
		}
	}
	return err
}

func (c *cluster) Job(_ context.Context, _ string, id uint32) (rest.Job, error) {
	c.asked.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	j, ok := c.jobs[id]
	if !ok {
		return j, rest.ErrNotFound
	}
	return j, nil
}

func (c *cluster) Recorded(context.Context, string, time.Time) ([]rest.Past, error) { return nil, nil }

func (c *cluster) Nodes(context.Context, string) ([]rest.Node, error) {
	c.listed.Add(1)
	return []rest.Node{{
		Name: "n1", Address: "127.0.0.1", States: []string{"IDLE"}, CPUs: 8, MemoryMB: 9000, Gres: "gpu:a100:2(S:0),gpu:l40s:1", GresUsed: "gpu:a100:1(IDX:0),gpu:l40s:0(IDX:N/A)",
		Features: []string{"carme"},
	}}, nil
}

func (c *cluster) Partitions(context.Context, string) ([]rest.Partition, error) {
	return []rest.Partition{{Name: "debug", Up: true}, {Name: "off"}}, nil
}

func (c *cluster) queue(context.Context) ([]slurm.QueueRow, error) {
	c.asked.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return nil, errors.New("squeue: error: slurm_load_jobs error: Unable to contact slurm controller")
	}
	var rows []slurm.QueueRow
	for id, j := range c.jobs {
		rows = append(rows, slurm.QueueRow{
			ID: id, Shown: shown(j), State: j.State, UID: j.UID, Partition: j.Partition, Nodes: 1, TRES: j.TRES, CPUs: j.CPUs, Minutes: j.Minutes,
			Submitted: j.Submitted, Started: j.Started, Ended: j.Ended, NodeList: j.Nodes, BatchHost: j.BatchHost, Reason: j.Reason, Account: j.Account,
			QOS: j.QOS, Comment: j.Comment, Name: j.Name, ExitCode: j.ExitCode, Signal: j.Signal,
		})
	}
	return rows, nil
}

// shown is how squeue prints a job's id.
func shown(j rest.Job) string {
	if j.Array != "" {
		return j.Array
	}
	return itoa(j.ID)
}

func itoa(n uint32) string {
	return strconv.FormatUint(uint64(n), 10)
}

// run starts a job on node n1.
func (c *cluster) run(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[id]
	j.State, j.Nodes, j.BatchHost, j.NodeCount, j.Started = "RUNNING", "n1", "n1", 1, time.Now()
	c.jobs[id] = j
}

// away are agents that do not answer.
type away struct{}

var errAway = errors.New("no route to host")

func (away) Tail(context.Context, string, nodes.As, string, int64, int64) (nodes.Tail, error) {
	return nodes.Tail{}, errAway
}

func (away) Home(context.Context, string, nodes.As, string) (nodes.HomeState, error) {
	return nodes.HomeState{}, errAway
}

// world is a backend with everything around it.
type world struct {
	t       *testing.T
	dir     *people
	slurm   *cluster
	db      *store.DB
	path    string
	ca      *mtlstest.CA
	addr    string
	auth    *auth.Service
	jobs    *jobs.Service
	enrol   *nodes.Enrolment
	server  *api.Server
	key     ed25519.PublicKey
	clock   *clock
	log     *testLog
	stop    func()
	portal  *http.Client
	node    *http.Client
	bare    *http.Client
	portalK [32]byte
}

type clock struct {
	mu sync.Mutex
	by time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.by)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by += d
}

func person(name string, uid uint32, roles ...string) auth.Person {
	return auth.Person{Name: name, DN: "uid=" + name, UID: uid, GID: uid, Home: "/home/" + name, Full: name, Groups: []string{"carme-users"}, Roles: append([]string{"user"}, roles...)}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, ca: mtlstest.New(t), clock: &clock{}, path: filepath.Join(t.TempDir(), "carme.db"),
		dir: &people{all: map[string]auth.Person{
			"alice": person("alice", 10001), "bob": person("bob", 10002), "carol": person("carol", 10003, "admin"),
		}},
		slurm: &cluster{jobs: map[uint32]rest.Job{}, next: 100},
	}
	if err := store.Create(t.Context(), w.path); err != nil {
		t.Fatal(err)
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) start() {
	w.t.Helper()
	t := w.t
	db, err := store.Open(t.Context(), w.path)
	if err != nil {
		t.Fatal(err)
	}
	w.db = db
	w.log = &testLog{t: t}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	records := &audit.Log{Now: w.clock.now, Out: log}
	feed := &routes.Feed{DB: db, Now: w.clock.now}
	sealer, err := seal.NewSealer(bytes.Repeat([]byte{3}, seal.KeySize), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.key = public
	w.auth = &auth.Service{
		DB: db, Dir: w.dir, Sealer: sealer, Audit: records, Revoke: feed, Issuer: "Carme", Now: w.clock.now, Random: rand.Reader,
		Rules: auth.Rules{SessionLife: 12 * time.Hour, IdleLife: 2 * time.Hour},
	}
	registry := &nodes.Registry{DB: db, Now: w.clock.now, Log: log}
	ways := &routes.Service{DB: db, Audit: records, Feed: feed, Sessions: w.auth, Now: w.clock.now, Cluster: "c", KeyID: "k", Key: key}
	cfg := &config.Config{
		Spank: config.Default(), Images: []config.Image{{Name: "base", Path: "/images/base", AllowBinds: true}, {Name: "secret", Path: "/images/s", Groups: []string{"staff"}}},
		Apps: []config.App{{Name: "jupyterlab", Title: "JupyterLab"}, {Name: "terminal", Images: []string{"other"}}},
	}
	w.jobs = &jobs.Service{
		DB: db, Audit: records, Log: log, Now: w.clock.now, Slurm: w.slurm, Nodes: registry, Routes: ways, Hub: &jobs.Hub{Boot: "b"},
		Limits:    policy.Limits{"user": {Running: 2, Minutes: 600, GPUs: 2, Nodes: 2}},
		Catalogue: func() (*config.Config, error) { return cfg, nil }, ServiceUser: "carme-backend", AgentPort: "7444", Timeout: time.Second,
		Identity: func(context.Context, string) ([]uint32, error) { return []uint32{1}, nil }, Queue: w.slurm.queue, Agents: away{},
	}
	registry.Changes, ways.Jobs = w.jobs, w.jobs
	w.enrol = &nodes.Enrolment{DB: db, Audit: records, Now: w.clock.now, Addr: w.jobs.Addr}
	srv := &api.Server{
		DB: db, Auth: w.auth, Jobs: w.jobs, Routes: ways, Feed: feed, Nodes: registry, Enrol: w.enrol, Audit: records, Log: log, Now: w.clock.now,
		Health: func(context.Context) map[string]string { return map[string]string{} },
	}
	w.server = srv
	certs := w.ca.Open(t, mtls.RoleBackend, "b")
	hs := srv.HTTP(certs.OptionalServer([]string{"h2", "http/1.1"}))
	var conf net.ListenConfig
	l, err := conf.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = "https://" + l.Addr().String()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = hs.ServeTLS(l, "", "")
	}()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { w.jobs.Run(ctx) })
	said := w.log
	w.stop = func() {
		defer said.end()
		cancel()
		_ = hs.Close()
		<-done
		wg.Wait()
		_ = db.Close()
		w.stop = func() {}
	}
	portal := w.ca.Open(t, mtls.RolePortal, "p")
	w.portal, w.portalK = client(portal), mtls.SPKIHash(portal.Leaf())
	w.node = client(w.ca.Open(t, mtls.RoleNode, "n1"))
	bare := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} //nolint:gosec // a test's client
	w.bare = &http.Client{Transport: &http.Transport{TLSClientConfig: bare}}
}

func client(s *mtls.Store) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: s.Client(mtls.Identity{Role: mtls.RoleBackend, Name: "b"}, "h2", "http/1.1"), ForceAttemptHTTP2: true}}
}

// testLog keeps what is logged, and shows warnings with the test's output.
type testLog struct {
	t     *testing.T
	mu    sync.Mutex
	text  strings.Builder
	ended bool // the test may be over before a connection is
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return len(b), nil
	}
	if line := strings.TrimSpace(string(b)); !strings.Contains(line, "level=INFO") {
		l.t.Log(line)
	}
	return l.text.Write(b)
}

func (l *testLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
}

// comes waits a while for a line that has all of the words.
func (l *testLog) comes(words ...string) bool {
	late := time.After(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !l.has(words...) {
		select {
		case <-late:
			return false
		case <-tick.C:
		}
	}
	return true
}

// has says whether a line has all of the words.
func (l *testLog) has(words ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			return true
		}
	}
	return false
}

// ask sends a request and decodes the answer, of which it returns the status.
func (w *world) ask(c *http.Client, method, path, tok string, in, out any) (int, wire.Error) {
	w.t.Helper()
	var body io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			w.t.Error(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.addr+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if tok != "" {
		req.Header.Set("Authorization", "Bearer "+tok)
	}
	res, err := c.Do(req)
	if err != nil {
		w.t.Error(err)
		return 0, wire.Error{}
	}
	defer res.Body.Close() //nolint:errcheck // a test's
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Error(err)
	}
	if res.StatusCode >= 400 {
		var e wire.ErrorBody
		if err := json.Unmarshal(raw, &e); err != nil || e.Error.Code == "" || e.Error.Message == "" {
			w.t.Errorf("%s %s: status %d with body %q", method, path, res.StatusCode, raw)
		}
		return res.StatusCode, e.Error
	}
	if out != nil && len(raw) > 0 {
		if err := json.Unmarshal(raw, out); err != nil {
			w.t.Errorf("%s %s: %v in %q", method, path, err, raw)
		}
	}
	return res.StatusCode, wire.Error{}
}

func (w *world) must(c *http.Client, method, path, tok string, in, out any) {
	w.t.Helper()
	if status, e := w.ask(c, method, path, tok, in, out); status >= 300 {
		w.t.Fatalf("%s %s: status %d, %+v", method, path, status, e)
	}
}

func (w *world) password(name string) wire.LoginAnswer {
	w.t.Helper()
	var a wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login", "", wire.Login{Username: name, Password: name + "-pass", Source: "192.0.2.1"}, &a)
	return a
}

func (w *world) code(secret string) string {
	w.t.Helper()
	code, err := totp.GenerateCode(secret, w.clock.now())
	if err != nil {
		w.t.Fatal(err)
	}
	return code
}

// login is a first login with enrolment; it returns the session and the secret.
func (w *world) login(name string) (tok, secret string) {
	w.t.Helper()
	a := w.password(name)
	if a.State != wire.SessionEnrol {
		w.t.Fatalf("state is %s", a.State)
	}
	var e wire.Enrolment
	w.must(w.portal, "POST", "/v1/login/enrol", a.Token, nil, &e)
	var b wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login/enrol/confirm", a.Token, wire.Confirm{Code: w.code(e.Secret), Source: "192.0.2.1"}, &b)
	if b.State != wire.SessionFull || len(b.RecoveryCodes) != 10 || b.Token == a.Token || b.Device == "" {
		w.t.Fatalf("answer is %+v", b)
	}
	return b.Token, e.Secret
}

func newStart() wire.Start {
	return wire.Start{ID: uuid.NewString(), Image: "base", App: "jupyterlab", GPUs: 1, GPUType: "a100", Nodes: 1, Minutes: 60, Name: "try"}
}

func (w *world) submit(tok string) wire.Job {
	w.t.Helper()
	var j wire.Job
	in := newStart()
	if status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, in, &j); status != http.StatusCreated || j.ID == "" || j.Intent != in.ID {
		w.t.Fatalf("status %d, %+v, job %+v", status, e, j)
	}
	return j
}

const instance = "00112233445566778899aabbccddeeff"

// session runs a job of alice, whose token it is, until its app is ready.
func (w *world) session(tok string) (job wire.Job) {
	w.t.Helper()
	job = w.submit(tok)
	w.slurm.run(w.slurm.next)
	w.report(w.slurm.next, 10001, instance)
	w.must(w.portal, "GET", "/v1/jobs/"+job.ID, tok, nil, &job)
	if job.Host == "" || job.Stage != wire.StageReady {
		w.t.Fatalf("job is %+v", job)
	}
	return job
}

func (w *world) report(id, uid uint32, inst string) {
	w.t.Helper()
	w.must(w.node, "POST", "/v1/agent/report", "", wire.Report{Boot: "x", Jobs: []wire.NodeJob{{Job: id, UID: uid, Instance: inst, App: "jupyterlab", Stage: wire.StageReady}}}, nil)
}

func TestA_person_logs_in_starts_a_session_and_opens_it(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	var offer wire.Offer
	w.must(w.portal, "GET", "/v1/offer", tok, nil, &offer)
	if len(offer.Images) != 1 || offer.Default.Image != "base" || offer.Default.App != "jupyterlab" || len(offer.GPUs) != 2 || offer.GPUs[0].Free != 1 {
		t.Errorf("offer is %+v", offer)
	}
	job := w.session(tok)
	sub := w.slurm.sent[0]
	if w.slurm.as[0] != "alice" || sub.Comment != "carme:"+job.Intent || sub.TRESPerNode != "gres/gpu:a100:1" || sub.Script != "#!/bin/sh\n:\n" {
		t.Errorf("submitted %+v", sub)
	}
	n := strings.Repeat("n", 43)
	var opened wire.Opened
	w.must(w.portal, "POST", "/v1/open", tok, wire.Open{Host: job.Host, Nonce: sha(n)}, &opened)
	var red wire.Redeemed
	w.must(w.portal, "POST", "/v1/redeem", "", wire.Redeem{Host: job.Host, Code: opened.Code, Nonce: n}, &red)
	var g wire.Grant
	w.must(w.portal, "POST", "/v1/grants", "", wire.GrantRequest{Host: job.Host, Token: red.Token}, &g)
	c, err := token.Verify(g.Token, map[string]ed25519.PublicKey{"k": w.key}, time.Now())
	if err != nil || c.Node != "n1" || c.Instance != instance || c.UID != 10001 || c.PortalKey != w.portalK || g.Addr != "127.0.0.1:7444" {
		t.Errorf("grant %+v, claims %+v, %v", g, c, err)
	}
	if status, _ := w.ask(w.portal, "POST", "/v1/redeem", "", wire.Redeem{Host: job.Host, Code: opened.Code, Nonce: n}, nil); status != http.StatusUnauthorized {
		t.Errorf("a code was taken twice: %d", status)
	}
	lines := w.revocations()
	w.must(w.portal, "POST", "/v1/logout", tok, nil, nil)
	if r := lines(); r.Kind != wire.RevokeSession || r.Value != g.Session {
		t.Errorf("revoked %+v", r)
	}
	if status, _ := w.ask(w.portal, "POST", "/v1/grants", "", wire.GrantRequest{Host: job.Host, Token: red.Token}, nil); status != http.StatusUnauthorized {
		t.Errorf("a grant after the logout: %d", status)
	}
	var n2 int
	if records, _, err := audit.Verify(t.Context(), w.db.Read()); err != nil || records < 6 {
		t.Errorf("audit log of %d records: %v %d", records, err, n2)
	}
}

// revocations listens and returns a function that waits for the next one.
func (w *world) revocations() func() wire.Revocation {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.addr+"/v1/revocations", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := w.portal.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = res.Body.Close() })
	in := bufio.NewScanner(res.Body)
	next := func() wire.Revocation {
		var r wire.Revocation
		if !in.Scan() {
			w.t.Errorf("stream ended: %v", in.Err())
			return r
		}
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			w.t.Error(err)
		}
		return r
	}
	if r := next(); r.Kind != wire.Heartbeat {
		w.t.Errorf("first line is %+v", r)
	}
	return func() wire.Revocation {
		for range 10 {
			if r := next(); r.Kind != wire.Heartbeat {
				return r
			}
		}
		return wire.Revocation{}
	}
}

// forget makes a submission look as if the process had died in it.
func (w *world) forget(intent string) {
	w.t.Helper()
	err := w.db.Write(w.t.Context(), func(tx store.Tx) error {
		_, err := store.Exec(w.t.Context(), tx, "UPDATE intents SET state = 'sending', job = 0 WHERE id = ?", intent)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}
