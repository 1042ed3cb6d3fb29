package clienttest

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// Code is the one that every factor takes, Password every user's.
const (
	Code     = "123456"
	Password = "correct horse"
	Recovery = "aaaa-bbbb-cccc-dddd"
)

// Secret is the TOTP secret of every enrolment.
const Secret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP" //nolint:gosec // a test's

// Backend is the state; its methods may be called while it serves.
type Backend struct {
	mu       sync.Mutex
	mux      *http.ServeMux
	users    map[string]*user
	sessions map[string]*session // by token
	jobs     []*api.Job
	codes    map[string]opened // by one-time code
	apps     map[string]opened // by app token
	next     int
	version  int
	changed  chan struct{} // closed at each change
	revoked  []api.Revocation
	silent   bool
	// Home is the answer about everybody's home.
	Home api.Home
	// Addr and Node lead to the agent.
	Addr, Node string
	// Down makes every answer a 503.
	down   bool
	grants int
	// Misconfigured: nothing is offered.
	Misconfigured bool
	// Output is what every job has written, if not the usual.
	Output string
	// QR is the picture of an enrolment.
	QR []byte
	// GrantFor is how long a grant is good.
	GrantFor time.Duration
}

type user struct {
	api.User
	enrolled bool
	since    time.Time
}

type session struct {
	api.LoginSession
	token string
	user  *user
}

type opened struct {
	host, nonce string
	session     *session
}

// New returns a backend with the users alice (enrolled), bob (enrolled) and
// carol (not yet).
func New() *Backend {
	b := &Backend{
		users: map[string]*user{}, sessions: map[string]*session{},
		codes: map[string]opened{}, apps: map[string]opened{},
		next: 41, version: 1, changed: make(chan struct{}),
		Home:     api.Home{OK: true, FreeMB: 81920, TotalMB: 102400},
		GrantFor: 2 * time.Minute,
	}
	for i, name := range []string{"alice", "bob", "carol"} {
		full := strings.ToUpper(name[:1]) + name[1:]
		b.users[name] = &user{
			User:     api.User{Name: name, Full: full + " Example", Mail: name + "@example.org", UID: uint32(10001 + i), Roles: []string{api.RoleUser}},
			enrolled: name != "carol", since: time.Now().AddDate(0, -2, 0),
		}
	}
	b.routes()
	return b
}

// ServeHTTP answers as the backend would.
func (b *Backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	down := b.down
	b.mu.Unlock()
	if down {
		fail(w, http.StatusServiceUnavailable, "unavailable", "the backend is away")
		return
	}
	b.mux.ServeHTTP(w, r)
}

// SetDown makes every further answer a failure, or ends that.
func (b *Backend) SetDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

// Silence stops the heartbeat of the revocations, or starts it again.
func (b *Backend) Silence(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.silent = on
}

// Grants is how many grants were given.
func (b *Backend) Grants() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.grants
}

// Revoke sends a revocation.
func (b *Backend) Revoke(kind, value string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.revoke(kind, value)
}

func (b *Backend) revoke(kind, value string) {
	b.revoked = append(b.revoked, api.Revocation{Seq: int64(len(b.revoked) + 1), Kind: kind, Value: value})
	b.touch()
}

func (b *Backend) touch() {
	b.version++
	close(b.changed)
	b.changed = make(chan struct{})
}

// EndLogins ends all of a user's logins.
func (b *Backend) EndLogins(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.sessions, func(_ string, s *session) bool { return s.user.Name == name })
}

// Add puts a job there as it is and returns its id.
func (b *Backend) Add(job api.Job) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if job.ID == "" {
		b.next++
		job.ID = strconv.Itoa(b.next)
	}
	b.jobs = append(b.jobs, &job)
	b.touch()
	return job.ID
}

// Change changes a job.
func (b *Backend) Change(id string, change func(*api.Job)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if job := b.find(id); job != nil {
		change(job)
		b.touch()
	}
}

var stages = []string{api.StageQueued, api.StageAllocated, api.StageImage, api.StageApp, api.StageReady}

var stageTexts = map[string]string{
	api.StageQueued:    "Slurm has the job.",
	api.StageAllocated: "It has its nodes: carme-node1.",
	api.StageImage:     "The job is sealed on carme-node1; its image is starting.",
	api.StageApp:       "The app is starting on carme-node1.",
	api.StageReady:     "The app answers.",
}

// Advance moves a job to its next stage and returns that.
func (b *Backend) Advance(id string) string {
	stage := ""
	b.Change(id, func(job *api.Job) {
		at := slices.Index(stages, job.Stage)
		if at < 0 || at+1 == len(stages) {
			stage = job.Stage
			return
		}
		job.Stage = stages[at+1]
		stage = job.Stage
		job.Detail.Log = append(job.Detail.Log, api.Event{Time: time.Now(), Stage: stage, Text: stageTexts[stage], Code: "event." + stage})
		if last := &job.Detail.Log[len(job.Detail.Log)-1]; stage != api.StageReady {
			last.Args = []string{"carme-node1"}
		}
		if stage == api.StageAllocated {
			job.State, job.Reason, job.Started, job.Nodes = "RUNNING", "", time.Now(), []string{"carme-node1"}
			job.Detail.Devices = []api.Device{{Node: "carme-node1", UUID: "GPU-2c1f0e52-8a1e-4d3b-9b1c-0d7c6c1f9a01", Model: "NVIDIA A100-SXM4-40GB"}}
		}
		if stage == api.StageImage || stage == api.StageReady {
			job.Host = Label(job.Intent)
		}
	})
	return stage
}

// Label is the origin's label that this backend gives the job with an intent.
func Label(intent string) string {
	sum := sha256.Sum256([]byte(intent))
	return "s-" + strings.ToLower(base32Encode(sum[:16]))
}

func base32Encode(data []byte) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567"
	var out []byte
	bits, have := 0, 0
	for _, one := range data {
		bits, have = bits<<8|int(one), have+8
		for have >= 5 {
			out = append(out, alphabet[bits>>(have-5)&31])
			have -= 5
		}
	}
	if have > 0 {
		out = append(out, alphabet[bits<<(5-have)&31])
	}
	return string(out)
}

// Session opens a full session without a login and returns its token.
func (b *Backend) Session(name string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open(b.users[name], api.SessionFull, "192.0.2.1", "test").token
}

func (b *Backend) open(u *user, state, source, agent string) *session {
	token := random()
	s := &session{token: token, user: u, LoginSession: api.LoginSession{
		ID: random()[:12], State: state, Created: time.Now(), Seen: time.Now(), Expires: time.Now().Add(12 * time.Hour),
		Source: source, Agent: agent,
	}}
	b.sessions[token] = s
	return s
}

func random() string {
	data := make([]byte, 32)
	_, _ = rand.Read(data) // never fails
	return base64.RawURLEncoding.EncodeToString(data)
}

func (b *Backend) find(id string) *api.Job {
	for _, job := range b.jobs {
		if job.ID == id || job.Intent == id && id != "" {
			return job
		}
	}
	return nil
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) //nolint:errchkjson // the portal notices
}

func fail(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, api.ErrorBody{Error: api.Error{Code: code, Message: message}})
}

func read[T any](w http.ResponseWriter, r *http.Request) (in T, ok bool) {
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "invalid", err.Error())
		return in, false
	}
	return in, true
}

// as wraps a handler for sessions in one of the states; full if none is named.
func (b *Backend) as(handle func(http.ResponseWriter, *http.Request, *session), states ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		b.mu.Lock()
		defer b.mu.Unlock()
		s := b.sessions[token]
		if len(states) == 0 {
			states = []string{api.SessionFull}
		}
		if s == nil || !slices.Contains(states, s.State) {
			e := api.Error{Code: "no_session", Message: "log in first"}
			if s != nil && s.State != api.SessionFull {
				e.Step = s.State
			}
			answer(w, http.StatusUnauthorized, api.ErrorBody{Error: e})
			return
		}
		handle(w, r, s)
	}
}

// left is the time until then, in seconds.
func left(expires time.Time) int { return int(time.Until(expires).Seconds()) }

func (b *Backend) step(w http.ResponseWriter, s *session, state string, codes []string) {
	delete(b.sessions, s.token)
	fresh := b.open(s.user, state, s.Source, s.Agent)
	answer(w, http.StatusOK, api.LoginAnswer{Token: fresh.token, State: state, User: s.user.User, Expires: fresh.Expires, ExpiresIn: left(fresh.Expires), Device: "device-" + s.user.Name, RecoveryCodes: codes})
}

func recoveryCodes() []string {
	var codes []string
	for i := range 10 {
		sum := sha256.Sum256([]byte{byte(i)})
		text := hex.EncodeToString(sum[:10])
		codes = append(codes, text[:5]+"-"+text[5:10]+"-"+text[10:15]+"-"+text[15:20])
	}
	return codes
}

func (b *Backend) routes() {
	m := http.NewServeMux()
	b.mux = m
	m.HandleFunc("POST /v1/login", b.login)
	m.HandleFunc("POST /v1/login/factor", b.as(b.factor, api.SessionPending))
	m.HandleFunc("POST /v1/login/enrol", b.as(b.enrol, api.SessionEnrol))
	m.HandleFunc("POST /v1/login/enrol/confirm", b.as(b.enrolConfirm, api.SessionEnrol))
	m.HandleFunc("POST /v1/logout", b.as(b.logout, api.SessionFull, api.SessionPending, api.SessionEnrol))
	m.HandleFunc("GET /v1/me", b.as(b.me))
	m.HandleFunc("GET /v1/me/sessions", b.as(b.mySessions))
	m.HandleFunc("DELETE /v1/me/sessions", b.as(b.endOthers))
	m.HandleFunc("DELETE /v1/me/sessions/{id}", b.as(b.endSession))
	m.HandleFunc("POST /v1/me/recovery", b.as(b.recovery))
	m.HandleFunc("POST /v1/me/factors/totp", b.as(b.totp))
	m.HandleFunc("POST /v1/me/factors/totp/confirm", b.as(b.totpConfirm))
	m.HandleFunc("GET /v1/dashboard", b.as(b.dashboard))
	m.HandleFunc("GET /v1/offer", b.as(b.offer))
	m.HandleFunc("GET /v1/home", b.as(func(w http.ResponseWriter, _ *http.Request, _ *session) { answer(w, http.StatusOK, b.Home) }))
	m.HandleFunc("POST /v1/script", b.as(b.script))
	m.HandleFunc("POST /v1/jobs", b.as(b.start))
	m.HandleFunc("GET /v1/jobs", b.as(b.list))
	m.HandleFunc("GET /v1/jobs/{id}", b.as(b.job))
	m.HandleFunc("DELETE /v1/jobs/{id}", b.as(b.stop))
	m.HandleFunc("GET /v1/jobs/{id}/output", b.as(b.output))
	m.HandleFunc("GET /v1/jobs/{id}/metrics", b.as(b.metrics))
	m.HandleFunc("GET /v1/cluster", b.as(b.cluster))
	m.HandleFunc("GET /v1/events", b.events)
	m.HandleFunc("POST /v1/open", b.as(b.openApp))
	m.HandleFunc("POST /v1/redeem", b.redeem)
	m.HandleFunc("POST /v1/grants", b.grant)
	m.HandleFunc("GET /v1/revocations", b.revocations)
}

func (b *Backend) login(w http.ResponseWriter, r *http.Request) {
	in, ok := read[api.Login](w, r)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	u := b.users[in.Username]
	if in.Username == "slow" {
		answer(w, http.StatusTooManyRequests, api.ErrorBody{Error: api.Error{Code: "slow_down", Message: "too many attempts", RetryAfter: 30}})
		return
	}
	if u == nil || in.Password != Password {
		fail(w, http.StatusUnauthorized, "login_refused", "user name or password is wrong")
		return
	}
	state := api.SessionPending
	if !u.enrolled {
		state = api.SessionEnrol
	}
	s := b.open(u, state, in.Source, in.Agent)
	answer(w, http.StatusOK, api.LoginAnswer{Token: s.token, State: state, User: u.User, Expires: s.Expires, ExpiresIn: left(s.Expires)})
}

func (b *Backend) factor(w http.ResponseWriter, r *http.Request, s *session) {
	in, ok := read[api.Factor](w, r)
	if !ok {
		return
	}
	if in.Code != Code && in.Recovery != Recovery {
		fail(w, http.StatusUnauthorized, "factor_refused", "the code is wrong")
		return
	}
	b.step(w, s, api.SessionFull, nil)
}

func (b *Backend) enrolment(u *user) api.Enrolment {
	return api.Enrolment{Secret: Secret, URI: "otpauth://totp/Carme:" + u.Name + "?secret=" + Secret + "&issuer=Carme", QR: b.QR}
}

func (b *Backend) enrol(w http.ResponseWriter, _ *http.Request, s *session) {
	answer(w, http.StatusOK, b.enrolment(s.user))
}

func (b *Backend) enrolConfirm(w http.ResponseWriter, r *http.Request, s *session) {
	in, ok := read[api.Confirm](w, r)
	if !ok {
		return
	}
	if in.Code != Code {
		fail(w, http.StatusUnauthorized, "factor_refused", "the code is wrong")
		return
	}
	s.user.enrolled, s.user.since = true, time.Now()
	b.step(w, s, api.SessionFull, recoveryCodes())
}

func (b *Backend) end(s *session) {
	delete(b.sessions, s.token)
	maps.DeleteFunc(b.apps, func(_ string, o opened) bool { return o.session == s })
	b.revoke(api.RevokeSession, s.ID)
}

func (b *Backend) logout(w http.ResponseWriter, _ *http.Request, s *session) {
	b.end(s)
	w.WriteHeader(http.StatusNoContent)
}

func (b *Backend) me(w http.ResponseWriter, _ *http.Request, s *session) {
	answer(w, http.StatusOK, api.Me{User: s.user.User, Session: s.LoginSession, RecoveryLeft: 8, TOTPSince: s.user.since})
}

func (b *Backend) mySessions(w http.ResponseWriter, _ *http.Request, s *session) {
	all := []api.LoginSession{}
	for _, one := range b.sessions {
		if one.user == s.user {
			entry := one.LoginSession
			entry.Current = one == s
			all = append(all, entry)
		}
	}
	slices.SortFunc(all, func(a, b api.LoginSession) int { return b.Created.Compare(a.Created) })
	answer(w, http.StatusOK, all)
}

func (b *Backend) endSession(w http.ResponseWriter, r *http.Request, s *session) {
	for _, one := range b.sessions {
		if one.user == s.user && one.ID == r.PathValue("id") {
			b.end(one)
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	fail(w, http.StatusNotFound, "not_found", "there is no such session")
}

func (b *Backend) endOthers(w http.ResponseWriter, _ *http.Request, s *session) {
	for _, one := range b.sessions {
		if one.user == s.user && one != s {
			b.end(one)
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

func (b *Backend) recovery(w http.ResponseWriter, r *http.Request, _ *session) {
	in, ok := read[api.Confirm](w, r)
	if ok && in.Code != Code {
		fail(w, http.StatusUnauthorized, "factor_refused", "the code is wrong")
	} else if ok {
		answer(w, http.StatusOK, api.LoginAnswer{RecoveryCodes: recoveryCodes()})
	}
}

func (b *Backend) totp(w http.ResponseWriter, r *http.Request, s *session) {
	in, ok := read[api.Confirm](w, r)
	if ok && in.Code != Code && in.Code != Recovery {
		fail(w, http.StatusUnauthorized, "factor_refused", "the code is wrong")
	} else if ok {
		answer(w, http.StatusOK, b.enrolment(s.user))
	}
}

func (b *Backend) totpConfirm(w http.ResponseWriter, r *http.Request, _ *session) {
	in, ok := read[api.Confirm](w, r)
	if ok && in.Code != Code {
		fail(w, http.StatusUnauthorized, "factor_refused", "the code is wrong")
	} else if ok {
		w.WriteHeader(http.StatusNoContent)
	}
}

func gpus() []api.GPUCount {
	return []api.GPUCount{
		{Type: "a100", Total: 16, Used: 11, Free: 5, Queued: 3, PerNode: 4},
		{Type: "h100", Total: 8, Used: 8, Free: 0, Queued: 6, PerNode: 4},
		{Type: "l40s", Total: 12, Used: 2, Free: 10, PerNode: 2},
	}
}

// broken is why nothing is offered.
var broken = api.Error{Code: "misconfigured", Message: "the site's configuration has a mistake"}

func (b *Backend) dashboard(w http.ResponseWriter, _ *http.Request, s *session) {
	out := api.Dashboard{User: s.user.User, Home: b.Home, Sessions: api.Jobs{Jobs: b.listed(s)}, Cluster: cluster()}
	if b.Misconfigured {
		out.Broken = &broken
	} else {
		out.Offer = b.offered(s)
	}
	answer(w, http.StatusOK, out)
}

func (b *Backend) offer(w http.ResponseWriter, _ *http.Request, s *session) {
	if b.Misconfigured {
		answer(w, http.StatusServiceUnavailable, api.ErrorBody{Error: broken})
		return
	}
	answer(w, http.StatusOK, b.offered(s))
}

func (b *Backend) offered(s *session) api.Offer {
	used := api.Used{}
	for _, job := range b.jobs {
		if job.User == s.user.Name && job.Stage != api.StageEnded && job.Stage != api.StageFailed {
			used.Running++
			for _, g := range job.GPUs {
				used.GPUs += g.Count
			}
		}
	}
	return api.Offer{
		Images: []api.OfferImage{
			{Name: "base", Description: "Debian 12 with Python 3.11 and JupyterLab", Apps: []string{"jupyterlab", "terminal"}},
			{Name: "pytorch", Description: "PyTorch 2.9, CUDA 12.8", Descriptions: map[string]string{"en": "PyTorch 2.9, CUDA 12.8", "de": "PyTorch 2.9 mit CUDA 12.8"}, Apps: []string{"jupyterlab", "code-server", "terminal"}},
		},
		Apps: []api.OfferApp{
			{Name: "jupyterlab", Title: "JupyterLab", Description: "Notebooks, terminals and files", Icon: "jupyterlab", Sharing: "none"},
			{Name: "code-server", Title: "code-server", Description: "VS Code in the browser", Icon: "code-server", Sharing: "none"},
			{Name: "terminal", Title: "Terminal", Description: "A shell in the job", Descriptions: map[string]string{"de": "Eine Shell im Job"}, Icon: "terminal", Sharing: "none"},
		},
		GPUs: gpus(), Partitions: []string{"gpu", "debug"},
		Limits: api.Limits{Nodes: 4, GPUs: 8, Running: 4, Minutes: 1440}, Used: used,
		Default: api.Start{Image: "base", App: "jupyterlab", GPUs: 1, Nodes: 1, Minutes: 240},
	}
}

func (b *Backend) script(w http.ResponseWriter, r *http.Request, _ *session) {
	in, ok := read[api.Start](w, r)
	if !ok {
		return
	}
	if refused(w, in) {
		return
	}
	answer(w, http.StatusOK, api.Script{Script: fmt.Sprintf(
		"#!/bin/sh\n#SBATCH --job-name=%s\n#SBATCH --nodes=%d\n#SBATCH --gres=gpu:%d\n#SBATCH --time=%d\n#SBATCH --carme=%s\n#SBATCH --carme-app=%s\n:\n",
		in.Name, in.Nodes, in.GPUs, in.Minutes, in.Image, in.App)})
}

// refused answers a request that cannot be.
func refused(w http.ResponseWriter, in api.Start) bool {
	var what api.Error
	switch {
	case in.App == "code-server" && in.Image == "base":
		what = api.Error{Code: "invalid", Message: "see the marked fields", Fields: map[string]string{"app": "the image does not have this app"}}
	case in.GPUs*in.Nodes > 8:
		what = api.Error{Code: "limit", Message: "your limit is 8 GPUs per job", Fields: map[string]string{"gpus": "at most 8 over all nodes"}}
	default:
		return false
	}
	answer(w, http.StatusUnprocessableEntity, api.ErrorBody{Error: what})
	return true
}

func (b *Backend) start(w http.ResponseWriter, r *http.Request, s *session) {
	in, ok := read[api.Start](w, r)
	if !ok {
		return
	}
	if job := b.find(in.ID); job != nil {
		answer(w, http.StatusOK, job)
		return
	}
	if refused(w, in) {
		return
	}
	b.next++
	kind := in.GPUType
	if kind == "" {
		kind = "a100"
	}
	job := &api.Job{
		ID: strconv.Itoa(b.next), Intent: in.ID, Name: in.Name, User: s.user.Name, State: "PENDING", Reason: "Priority", Partition: "gpu",
		NodeCount: in.Nodes, Nodes: []string{}, CPUs: 8, MemoryMB: 65536, GPUs: []api.JobGPUs{{Type: kind, Count: in.GPUs * in.Nodes}},
		Submitted: time.Now(), Minutes: in.Minutes, Carme: true, Image: in.Image, App: in.App, Stage: api.StageQueued,
		Detail: &api.JobDetail{
			WorkDir: "/home/" + s.user.Name, Output: "/home/" + s.user.Name + "/carme-" + strconv.Itoa(b.next) + ".out", Error: "/home/" + s.user.Name + "/carme-" + strconv.Itoa(b.next) + ".out",
			Log: []api.Event{{Time: time.Now(), Stage: api.StageQueued, Text: stageTexts[api.StageQueued], Code: "event.queued"}},
		},
	}
	if in.GPUs == 0 {
		job.GPUs = nil
	}
	b.jobs = append(b.jobs, job)
	b.touch()
	answer(w, http.StatusCreated, job)
}

func (b *Backend) list(w http.ResponseWriter, r *http.Request, s *session) {
	tag := `"` + strconv.Itoa(b.version) + `"`
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	answer(w, http.StatusOK, api.Jobs{Jobs: b.listed(s)})
}

// listed are a user's jobs, the newest first.
func (b *Backend) listed(s *session) []api.Job {
	out := []api.Job{}
	for _, job := range slices.Backward(b.jobs) {
		if job.User == s.user.Name {
			short := *job
			short.Detail = nil
			out = append(out, short)
		}
	}
	return out
}

func (b *Backend) mine(w http.ResponseWriter, r *http.Request, s *session) *api.Job {
	job := b.find(r.PathValue("id"))
	if job == nil || job.User != s.user.Name {
		fail(w, http.StatusNotFound, "not_found", "you have no such job")
		return nil
	}
	return job
}

func (b *Backend) job(w http.ResponseWriter, r *http.Request, s *session) {
	if job := b.mine(w, r, s); job != nil {
		answer(w, http.StatusOK, job)
	}
}

func (b *Backend) stop(w http.ResponseWriter, r *http.Request, s *session) {
	job := b.mine(w, r, s)
	if job == nil {
		return
	}
	array, _, _ := strings.Cut(job.ID, "_")
	for _, one := range b.jobs {
		if one == job || r.URL.Query().Get("array") == "all" && one.User == job.User && strings.HasPrefix(one.ID, array+"_") {
			one.Stage, one.State, one.Ended, one.End, one.EndCode = api.StageEnded, "CANCELLED", time.Now(), "It was cancelled.", "end.cancelled"
			b.revoke(api.RevokeJob, one.ID)
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

const outputText = "[I ServerApp] jupyterlab | extension was successfully linked.\n[I ServerApp] Serving notebooks from local directory: /home/alice\n[I ServerApp] Jupyter Server 2.12 is running at:\n[I ServerApp] http+unix://%2Frun%2Fcarme%2Fsess%2Fapp.sock/\n"

func (b *Backend) output(w http.ResponseWriter, r *http.Request, s *session) {
	job := b.mine(w, r, s)
	if job == nil {
		return
	}
	if job.Started.IsZero() {
		answer(w, http.StatusOK, api.Output{Problem: "There is no output yet: the job has not started.", Code: "output.waiting"})
		return
	}
	text := cmp.Or(b.Output, outputText)
	size := int64(len(text))
	if r.FormValue("stream") == "err" {
		text, size = "", 0
	}
	offset, _ := strconv.ParseInt(r.FormValue("offset"), 10, 64)
	if offset < 0 {
		offset = max(0, size+offset)
	}
	offset = min(offset, size)
	answer(w, http.StatusOK, api.Output{Text: text[offset:], Offset: offset, Next: size, Size: size})
}

func (b *Backend) metrics(w http.ResponseWriter, r *http.Request, s *session) {
	if b.mine(w, r, s) == nil {
		return
	}
	const points = 60
	out := api.Metrics{}
	names := []string{"cpu_percent", "memory_mb", "gpu_percent", "gpu_memory_mb", "gpu_power_w"}
	for i := range points {
		out.Times = append(out.Times, time.Now().Add(time.Duration(i-points)*10*time.Second).Unix())
	}
	for k, name := range names {
		line := api.Series{Node: "carme-node1", Name: name}
		if strings.HasPrefix(name, "gpu") {
			line.Device = "GPU-2c1f0e52-8a1e-4d3b-9b1c-0d7c6c1f9a01"
		}
		for i := range points {
			value := float64((i*i*(k+3))%97) * float64(1+k*k*20)
			if name == "cpu_percent" || name == "gpu_percent" {
				value = float64((i*(k+7) + i*i) % 100)
			}
			line.Values = append(line.Values, &value)
		}
		out.Series = append(out.Series, line)
	}
	answer(w, http.StatusOK, out)
}

func (b *Backend) cluster(w http.ResponseWriter, _ *http.Request, _ *session) {
	answer(w, http.StatusOK, cluster())
}

func cluster() api.Cluster {
	return api.Cluster{GPUs: gpus(), Nodes: []api.ClusterNode{
		{Name: "carme-node1", State: "MIXED", GPUs: []api.GPUCount{{Type: "a100", Total: 4, Used: 3, Free: 1}}, CPUs: 64, CPUsUsed: 40, Carme: true, Agent: true},
		{Name: "carme-node2", State: "IDLE", GPUs: []api.GPUCount{{Type: "a100", Total: 4, Free: 4}}, CPUs: 64, Carme: true, Agent: true},
		{Name: "carme-node3", State: "DOWN", GPUs: []api.GPUCount{{Type: "l40s", Total: 2}}, CPUs: 32},
	}}
}
