//go:build integration

package integration

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// backOnWebsocket waits until the app answers on a websocket again, by the
// cookie alone: nobody logs in.
func (v *visitor) backOnWebsocket(app opened, old *line) {
	v.t.Helper()
	recovers(v.t, 30*time.Second, "websocket", func() bool { return old.live() || v.socket(app) != nil })
}

func TestFault_W14_A9_the_agent_is_killed_under_load(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	load := v.load(app, 8)
	load.flows()
	up := down(t, node1, "kill", "carme-agent")
	up()
	recovers(t, 30*time.Second, "the app behind a killed agent", func() bool { return v.answers(app) })
	v.backOnWebsocket(app, socket)
	load.flows()
	load.report("agent killed and started again")
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("the job is %s", s)
	}
	if !v.loggedIn() {
		t.Error("the login is gone")
	}
	idle(t)
}

func TestFault_W14_A9_the_agent_is_restarted_under_load(t *testing.T) {
	v, app := mirrored(t)
	load := v.load(app, 8)
	load.flows()
	root(t, node1, "svc", "restart", "carme-agent").ok(t)
	load.flows()
	if wrong := load.report("agent restarted"); wrong > 0 {
		t.Errorf("%d requests went wrong", wrong)
	}
}

func TestFault_W14_A9_without_an_agent_the_page_says_so_and_the_job_goes_on(t *testing.T) {
	v, app := mirrored(t)
	up := down(t, node1, "kill", "carme-agent")
	start := time.Now()
	r := v.get(app.origin + "/who")
	if r.code != http.StatusBadGateway || !strings.Contains(r.body, "Your job goes on") || r.header.Get("Retry-After") == "" {
		t.Errorf("without an agent: %s", r)
	}
	t.Logf("the page came after %v", time.Since(start).Round(time.Millisecond))
	if !v.loggedIn() {
		t.Error("the portal's own pages are gone")
	}
	up()
	recovers(t, 30*time.Second, "the app", func() bool { return v.answers(app) })
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("the job is %s", s)
	}
}

func TestFault_W7_A9_a_job_that_ends_while_the_agent_is_away_loses_its_session(t *testing.T) {
	v, app := mirrored(t)
	up := down(t, node1, "kill", "carme-agent")
	scancel(app.job)
	awaitState(t, app.job, 60*time.Second, "CANCELLED")
	recovers(t, 60*time.Second, "end of the session on its page, without an agent", func() bool {
		return !strings.Contains(v.get("/jobs/"+app.job).body, app.origin)
	})
	up()
	recovers(t, 60*time.Second, "end of the way to it", func() bool { return v.enter(app.origin+"/who").code == http.StatusNotFound })
	recovers(t, 60*time.Second, "nothing left of the job", func() bool {
		return root(t, node1, "test", "-e", "/run/carme/jobs/"+app.job).code != 0
	})
}

func TestFault_W14_an_agent_without_descriptors_keeps_what_is_open(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	pid := root(t, node1, "pgrep", "-x", "carme-agent").ok(t)
	before := strings.Fields(sh(t, node1, `awk '/Max open files/ { print $4 ":" $5 }' /proc/`+pid+`/limits`))[0]
	undo(t, node1, "prlimit --pid "+pid+" --nofile="+before)
	root(t, node1, "prlimit", "--pid", pid, "--nofile=8:"+strings.Split(before, ":")[1]).ok(t)
	for range 4 {
		start := time.Now()
		if s := v.socket(app); s != nil {
			t.Error("a stream is opened without a descriptor")
		}
		t.Logf("without descriptors: refused after %v", time.Since(start).Round(time.Millisecond))
	}
	if !socket.live() {
		t.Error("what was open has closed")
	}
	root(t, node1, "prlimit", "--pid", pid, "--nofile="+before).ok(t)
	recovers(t, 60*time.Second, "new streams", func() bool { return v.socket(app) != nil })
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("the job is %s", s)
	}
	if now := root(t, node1, "pgrep", "-x", "carme-agent").ok(t); now != pid {
		t.Errorf("the agent has died: it is %s, not %s", now, pid)
	}
}

func TestFault_A8_A9_an_agent_that_lost_its_certificate_enrols_by_itself(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	up := down(t, node1, "stop", "carme-agent")
	sh(t, node1, "rm -r /var/lib/carme/agent/certs")
	up()
	recovers(t, 60*time.Second, "the app, by a new certificate", func() bool { return v.answers(app) })
	v.backOnWebsocket(app, socket)
}

func TestFault_A8_W14_the_agents_own_certificate_is_renewed_by_itself(t *testing.T) {
	v, app := mirrored(t)
	shown := func() string {
		t.Helper()
		return sh(t, login, "openssl s_client -connect "+node1+":7444 -alpn carme-relay/1 </dev/null 2>/dev/null | openssl x509 -noout -serial")
	}
	before := shown()
	up := down(t, node1, "stop", "carme-agent")
	agentsCert.age(t, -25, 5)
	if agentsCert.goodFor(t, 6) {
		t.Fatal("the certificate is not an old one")
	}
	// Until the backend can be asked, the old one serves.
	mend := filtered(t, "INPUT -s "+address(t, node1)+" -p tcp --dport 7443 -j REJECT --reject-with tcp-reset")
	up()
	recovers(t, 30*time.Second, "the app, by the old certificate", func() bool { return v.answers(app) })
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	load := v.load(app, 4)
	load.flows()
	if agentsCert.goodFor(t, 6) || shown() != before {
		t.Fatal("there is a new certificate though the backend cannot be asked")
	}
	mend()
	recovers(t, 90*time.Second, "a certificate for a month", func() bool { return agentsCert.goodFor(t, 28) })
	if after := shown(); after == before || after == "" {
		t.Errorf("the agent still shows the old one: %q", after)
	}
	load.flows()
	if wrong := load.report("renewed"); wrong > 0 {
		t.Errorf("%d requests failed", wrong)
	}
	if !socket.live() {
		t.Error("the websocket has closed")
	}
	if v.socket(app) == nil {
		t.Error("no further websocket")
	}
	idle(t)
}
