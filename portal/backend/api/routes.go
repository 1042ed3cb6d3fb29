package api

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/jobs"
	"github.com/carme-hpc/carme/portal/backend/problem"
)

// enrolWait is when a node should try again.
const enrolWait = 5 * time.Second

// route is one path with who may use it.
type route struct {
	method, path string
	// peer is the role that the client's certificate must have, empty for none.
	peer string
	// states are those of the login session, one of which is needed; none: no
	// session.
	states []string
	// admin says that the session must be an admin's, or the caller local.
	admin bool
	// large bodies are a node's reports; a stream has no end.
	large, stream bool
	// passive is what pages ask for by themselves, as long as they are open: that
	// alone keeps no login alive. A page that a person opens also asks for /v1/me.
	passive bool
	handle  func(*request) error
}

func full() []string { return []string{api.SessionFull} }

// table is every route.
func table() []route {
	portal, node := mtls.RolePortal, mtls.RoleNode
	pending, enrol := []string{api.SessionPending}, []string{api.SessionEnrol}
	any3 := []string{api.SessionFull, api.SessionPending, api.SessionEnrol}
	return []route{
		{method: "POST", path: "/v1/login", peer: portal, handle: login},
		{method: "POST", path: "/v1/login/factor", peer: portal, states: pending, handle: loginFactor},
		{method: "POST", path: "/v1/login/enrol", peer: portal, states: enrol, handle: loginEnrol},
		{method: "POST", path: "/v1/login/enrol/confirm", peer: portal, states: enrol, handle: loginConfirm},
		{method: "POST", path: "/v1/logout", states: any3, handle: logout},
		{method: "GET", path: "/v1/me", states: full(), handle: me},
		{method: "GET", path: "/v1/me/sessions", states: full(), handle: mySessions},
		{method: "DELETE", path: "/v1/me/sessions", states: full(), handle: endOthers},
		{method: "DELETE", path: "/v1/me/sessions/{id}", states: full(), handle: endSession},
		{method: "POST", path: "/v1/me/recovery", states: full(), handle: recovery},
		{method: "POST", path: "/v1/me/factors/totp", states: full(), handle: replaceFactor},
		{method: "POST", path: "/v1/me/factors/totp/confirm", states: full(), handle: confirmFactor},

		{method: "GET", path: "/v1/dashboard", states: full(), handle: dashboard},
		{method: "GET", path: "/v1/offer", states: full(), handle: offer},
		{method: "GET", path: "/v1/home", states: full(), handle: home},
		{method: "POST", path: "/v1/script", states: full(), handle: script},
		{method: "POST", path: "/v1/jobs", states: full(), handle: startJob},
		{method: "GET", path: "/v1/jobs", states: full(), passive: true, handle: listJobs},
		{method: "GET", path: "/v1/jobs/{id}", states: full(), passive: true, handle: getJob},
		{method: "DELETE", path: "/v1/jobs/{id}", states: full(), handle: cancelJob},
		{method: "GET", path: "/v1/jobs/{id}/output", states: full(), passive: true, handle: output},
		{method: "GET", path: "/v1/jobs/{id}/metrics", states: full(), passive: true, handle: metrics},
		{method: "GET", path: "/v1/cluster", states: full(), passive: true, handle: cluster},
		{method: "GET", path: "/v1/events", states: full(), passive: true, stream: true, handle: events},

		{method: "POST", path: "/v1/open", states: full(), handle: open},
		{method: "POST", path: "/v1/redeem", peer: portal, handle: redeem},
		{method: "POST", path: "/v1/grants", peer: portal, handle: grant},
		{method: "GET", path: "/v1/revocations", peer: portal, stream: true, handle: revocations},

		{method: "POST", path: "/v1/agent/enrol", handle: agentEnrol},
		{method: "POST", path: "/v1/agent/renew", peer: node, handle: agentRenew},
		{method: "POST", path: "/v1/agent/report", peer: node, large: true, handle: agentReport},
		{method: "POST", path: "/v1/join", handle: join},
		{method: "POST", path: "/v1/renew", handle: renew},

		{method: "GET", path: "/v1/audit", states: full(), admin: true, handle: auditList},
		{method: "GET", path: "/v1/audit/verify", states: full(), admin: true, handle: auditVerify},
		{method: "DELETE", path: "/v1/users/{name}/factors", states: full(), admin: true, handle: resetFactors},
		{method: "DELETE", path: "/v1/users/{name}/sessions", states: full(), admin: true, handle: endLogins},
		{method: "POST", path: "/v1/join-tokens", states: full(), admin: true, handle: joinToken},
		{method: "GET", path: "/v1/health", states: full(), admin: true, handle: health},
		{method: "GET", path: "/v1/openapi.yaml", handle: description},
	}
}

// with decodes the body into In, calls do and answers what it returns.
func with[In, Out any](r *request, do func(In) (Out, error)) error {
	var in In
	if err := r.read(&in); err != nil {
		return err
	}
	out, err := do(in)
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, out)
}

func login(r *request) error {
	return with(r, func(in api.Login) (api.LoginAnswer, error) { return r.server.Auth.Login(r.Context(), r.peer.Name, in) })
}

func loginFactor(r *request) error {
	return with(r, func(in api.Factor) (api.LoginAnswer, error) { return r.server.Auth.Factor(r.Context(), r.session, in) })
}

func loginEnrol(r *request) error {
	out, err := r.server.Auth.Enrol(r.Context(), r.session)
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, out)
}

func loginConfirm(r *request) error {
	return with(r, func(in api.Confirm) (api.LoginAnswer, error) {
		return r.server.Auth.ConfirmEnrol(r.Context(), r.session, in)
	})
}

func logout(r *request) error {
	if err := r.server.Auth.End(r.Context(), r.session.UserName, r.session.UserName, r.session.ID, "logged out"); err != nil {
		return err
	}
	return r.done()
}

func me(r *request) error {
	left, err := r.server.Auth.RecoveryLeft(r.Context(), r.session.UserName)
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, api.Me{
		User: r.session.User(), Session: r.session.API(r.session.ID), RecoveryLeft: left, TOTPSince: micro(r.session.TotpSince),
	})
}

func mySessions(r *request) error {
	all, err := r.server.Auth.Sessions(r.Context(), r.session.UserName)
	if err != nil {
		return err
	}
	out := make([]api.LoginSession, 0, len(all))
	for i := range all {
		out = append(out, all[i].API(r.session.ID))
	}
	return r.answer(http.StatusOK, out)
}

func endSession(r *request) error {
	if err := r.server.Auth.End(r.Context(), r.session.UserName, r.session.UserName, r.PathValue("id"), "session ended by its user"); err != nil {
		return err
	}
	return r.done()
}

func endOthers(r *request) error {
	if err := r.server.Auth.EndOthers(r.Context(), r.session); err != nil {
		return err
	}
	return r.done()
}

func recovery(r *request) error {
	return with(r, func(in api.Confirm) (api.LoginAnswer, error) {
		return r.server.Auth.Recovery(r.Context(), r.session, r.token, in)
	})
}

func replaceFactor(r *request) error {
	return with(r, func(in api.Confirm) (api.Enrolment, error) { return r.server.Auth.Replace(r.Context(), r.session, in) })
}

func confirmFactor(r *request) error {
	var in api.Confirm
	if err := r.read(&in); err != nil {
		return err
	}
	if err := r.server.Auth.ConfirmReplace(r.Context(), r.session, in); err != nil {
		return err
	}
	return r.done()
}

func dashboard(r *request) error {
	body, err := r.server.Jobs.Dashboard(r.Context(), r.session)
	if err != nil {
		return err
	}
	r.w.Header().Set("Content-Type", "application/json")
	if _, err := r.w.Write(body); err != nil {
		r.server.Log.Debug("answer not sent", "err", err.Error())
	}
	return nil
}

func offer(r *request) error {
	out, err := r.server.Jobs.Offer(r.Context(), r.session)
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, out)
}

func home(r *request) error {
	out, err := r.server.Jobs.Home(r.Context(), r.session)
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, out)
}

func script(r *request) error {
	return with(r, func(in api.Start) (api.Script, error) { return r.server.Jobs.Script(r.Context(), r.session, in) })
}

func startJob(r *request) error {
	var in api.Start
	if err := r.read(&in); err != nil {
		return err
	}
	job, created, err := r.server.Jobs.Start(r.Context(), r.session, in)
	switch {
	case err != nil:
		return err
	case job.Stage == api.StageSending:
		return r.answer(http.StatusAccepted, job)
	case created:
		return r.answer(http.StatusCreated, job)
	}
	return r.answer(http.StatusOK, job)
}

// version is the jobs' version of the session's user.
func (r *request) version() string {
	for _, n := range r.server.Jobs.Hub.Versions(r.session.UserName) {
		if n.Topic == jobs.TopicJobs {
			return n.Version
		}
	}
	return ""
}

func listJobs(r *request) error {
	before := r.version()
	list := r.server.Jobs.List
	if r.URL.Query().Get("live") != "" {
		list = r.server.Jobs.Live
	}
	out, err := list(r.Context(), r.session.UserName, r.session.User().UID)
	if err != nil {
		return err
	}
	// Only a list that was made at one version may be called by it.
	if after := r.version(); before == after && out.Problem == "" {
		tag := strconv.Quote(after)
		r.w.Header().Set("ETag", tag)
		r.w.Header().Set("Cache-Control", "private, no-cache")
		if r.Header.Get("If-None-Match") == tag || r.URL.Query().Get("since") == after {
			r.w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	return r.answer(http.StatusOK, out)
}

func getJob(r *request) error {
	out, err := r.server.Jobs.Get(r.Context(), r.session, r.PathValue("id"))
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, out)
}

func cancelJob(r *request) error {
	cancel := r.server.Jobs.Cancel
	if r.URL.Query().Get("array") == "all" {
		cancel = r.server.Jobs.CancelArray
	}
	if err := cancel(r.Context(), r.session, r.PathValue("id")); err != nil {
		return err
	}
	return r.done()
}

func output(r *request) error {
	q := r.URL.Query()
	stream := q.Get("stream")
	if stream != "out" && stream != "err" {
		return problem.Invalid("Which output?", map[string]string{"stream": "use out or err"})
	}
	var offset int64
	if text := q.Get("offset"); text != "" {
		var err error
		if offset, err = strconv.ParseInt(text, 10, 64); err != nil {
			return problem.Invalid("From where?", map[string]string{"offset": "is no number"})
		}
	}
	out, err := r.server.Jobs.Output(r.Context(), r.session, r.PathValue("id"), stream, offset)
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, out)
}

func metrics(r *request) error {
	out, err := r.server.Jobs.Metrics(r.Context(), r.session, r.PathValue("id"))
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, out)
}

func cluster(r *request) error {
	return r.answer(http.StatusOK, r.server.Jobs.Cluster(r.Context(), r.session.User().UID))
}

func open(r *request) error {
	return with(r, func(in api.Open) (api.Opened, error) { return r.server.Routes.Open(r.Context(), r.session, in) })
}

func redeem(r *request) error {
	return with(r, func(in api.Redeem) (api.Redeemed, error) { return r.server.Routes.Redeem(r.Context(), r.peer.Name, in) })
}

func grant(r *request) error {
	key := mtls.SPKIHash(r.TLS.PeerCertificates[0])
	return with(r, func(in api.GrantRequest) (api.Grant, error) { return r.server.Routes.Grant(r.Context(), key, in) })
}

func agentEnrol(r *request) error {
	defer r.server.enrolling.Add(-1)
	if r.server.enrolling.Add(1) > enrolMax {
		return problem.SlowDown(enrolWait)
	}
	return with(r, func(in api.Enrol) (api.Enrolled, error) { return r.server.Enrol.Enrol(r.Context(), in) })
}

func agentRenew(r *request) error {
	return with(r, func(in api.Enrol) (api.Enrolled, error) { return r.server.Enrol.Renew(r.Context(), r.peer, in) })
}

// renew is agentRenew for any of Carme's daemons.
func renew(r *request) error {
	if r.peer.Role == "" {
		return problem.Forbidden()
	}
	return agentRenew(r)
}

func agentReport(r *request) error {
	return with(r, func(in api.Report) (api.Reported, error) { return r.server.Nodes.Report(r.Context(), r.peer.Name, in) })
}

func join(r *request) error {
	return with(r, func(in api.Enrol) (api.Enrolled, error) { return r.server.Enrol.Join(r.Context(), in) })
}

func auditList(r *request) error {
	var after int64
	if text := r.URL.Query().Get("after"); text != "" {
		var err error
		if after, err = strconv.ParseInt(text, 10, 64); err != nil {
			return problem.Invalid("After which record?", map[string]string{"after": "is no number"})
		}
	}
	out, err := audit.List(r.Context(), r.server.DB.Read(), after)
	if err != nil {
		return err
	}
	return r.answer(http.StatusOK, out)
}

func auditVerify(r *request) error {
	n, hash, err := audit.Verify(r.Context(), r.server.DB.Read())
	var broken audit.BrokenError
	if err != nil && !errors.As(err, &broken) {
		return err
	}
	out := api.AuditVerified{OK: err == nil, Records: n, Hash: hash}
	if err != nil {
		out.Problem = err.Error()
	}
	return r.answer(http.StatusOK, out)
}

func resetFactors(r *request) error {
	if err := r.server.Auth.ResetFactors(r.Context(), r.actor(), r.PathValue("name")); err != nil {
		return err
	}
	return r.done()
}

func endLogins(r *request) error {
	if err := r.server.Auth.EndLogins(r.Context(), r.actor(), r.PathValue("name")); err != nil {
		return err
	}
	return r.done()
}

// JoinToken is the body of POST /v1/join-tokens, and with Token its answer.
type JoinToken struct {
	Role  string `json:"role"`
	Name  string `json:"name"`
	Token string `json:"token,omitempty"`
}

func joinToken(r *request) error {
	return with(r, func(in JoinToken) (JoinToken, error) {
		tok, err := r.server.Enrol.JoinToken(r.Context(), r.actor(), in.Role, in.Name)
		return JoinToken{Role: in.Role, Name: in.Name, Token: tok}, err
	})
}

func health(r *request) error { return r.answer(http.StatusOK, r.server.Health(r.Context())) }

func description(r *request) error {
	r.w.Header().Set("Content-Type", "application/yaml")
	_, _ = r.w.Write(openapi) // nobody is left to tell
	return nil
}
