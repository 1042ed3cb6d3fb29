//go:build integration

package integration

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// configured is a daemon with one more line in its file, until the test ends.
func configured(t *testing.T, machine, daemon, line string) {
	t.Helper()
	file := "/etc/carme/" + daemon + ".yaml"
	key, _, _ := strings.Cut(line, ":")
	undo(t, machine, "mv "+file+".kept "+file+" && svc restart carme-"+daemon)
	sh(t, machine, "cp -p "+file+" "+file+".kept && sed -i '/^"+key+":/d' "+file+" && printf '%s\\n' '"+line+"' >>"+file+" && svc restart carme-"+daemon)
	if daemon == "backend" {
		awaitPortal(t)
	}
}

// awaitPortal waits until the portal can look names up.
func awaitPortal(t *testing.T) {
	t.Helper()
	v := visit(t, "nobody")
	eventually(t, 30*time.Second, "a login page that works", func() bool {
		r, err := v.try("GET", "/login", "")
		return err == nil && r.code == http.StatusOK && csrfField.MatchString(r.body)
	})
}

func TestScenario_W2_a_known_browser_needs_a_code_once_a_day_where_the_site_says_so(t *testing.T) {
	forgetAttempts(t)
	configured(t, ctl, "backend", "sessions: {factor_hours: 24}")
	alice := visit(t, "alice").login()
	leave := func() {
		t.Helper()
		if r := alice.post("/security", "/logout"); r.to() != "/login" {
			t.Fatalf("log out: %s", r)
		}
	}
	leave()
	if r := alice.password("alice", "alice-pass"); r.to() != "/" || !alice.in() {
		t.Fatalf("the password alone, where a code was shown a minute ago: %s", r)
	}
	// It is this browser's, and hers.
	thief := visit(t, "alice")
	if r := thief.password("alice", "alice-pass"); !strings.HasPrefix(r.to(), "/login/factor") || thief.in() {
		t.Errorf("the password alone, elsewhere: %s", r)
	}
	leave()
	if r := alice.password("alice", "guess"); r.code != http.StatusUnauthorized {
		t.Errorf("no password, on her browser: %s", r)
	}
	if r := alice.password("mallory", "mallory-pass"); r.to() == "/" || alice.in() {
		t.Errorf("mallory's password on alice's browser: %s", r)
	}
	if r := alice.password("alice", "alice-pass"); r.to() != "/" || !alice.in() {
		t.Errorf("alice after that: %s", r)
	}
	leave()
	query(t, "UPDATE devices SET factor_at = factor_at - 25 * 3600 * 1000000")
	if r := alice.password("alice", "alice-pass"); !strings.HasPrefix(r.to(), "/login/factor") {
		t.Errorf("a day later: %s", r)
	}
	if r := alice.post("/login/factor", "/login/factor", "code", alice.codeAt(time.Now())); r.to() != "/" || !alice.in() {
		t.Errorf("her code, a day later: %s", r)
	}
}

func TestScenario_A8_a_node_without_MUNGE_joins_by_a_token(t *testing.T) {
	v, app := mirrored(t)
	const config, join = "/etc/carme/agent.yaml", "/etc/carme/join-token"
	undo(t, node1, "rm -f "+join+"; mv "+config+".kept "+config+" && svc restart carme-agent")
	sh(t, node1, "svc stop carme-agent && cp -p "+config+" "+config+".kept && sed -i '/^munge:/d' "+config+" && echo 'munge: /usr/bin/no-munge' >>"+config)
	newcomer := func(token string) {
		t.Helper()
		sh(t, node1, "svc stop carme-agent; rm -rf /var/lib/carme/agent/certs; umask 077; printf '%s\\n' '"+token+"' >"+join+"; svc start carme-agent")
	}
	token := func(node string) string {
		t.Helper()
		return root(t, ctl, "carme-backend", "token", "--role", "node", "--name", node).ok(t)
	}
	// A token for another node is none for this one, and is not spent by trying.
	foreign := token("carme-node2")
	newcomer(foreign)
	log := func(words ...string) func() bool {
		return func() bool {
			text := sh(t, node1, "tail -n 40 /var/log/testbed/carme-agent.log")
			for _, word := range words {
				if !strings.Contains(text, word) {
					return false
				}
			}
			return true
		}
	}
	eventually(t, 20*time.Second, "the refusal in the agent's log", log("join token was refused", join, "no-munge"))
	if v.answers(app) {
		t.Error("a node without a certificate serves")
	}
	good := token("carme-node1")
	newcomer(good)
	recovers(t, 60*time.Second, "the app, by a certificate that a token has brought", func() bool { return v.answers(app) })
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("the job is %s", s)
	}
	// It is good once.
	newcomer(good)
	eventually(t, 20*time.Second, "the refusal of a token that is spent", log("join token was refused"))
	if v.answers(app) {
		t.Error("a token was good twice")
	}
	newcomer(token("carme-node1"))
	recovers(t, 60*time.Second, "the app, by the next token", func() bool { return v.answers(app) })
}

func TestFault_A9_W1_another_program_holds_the_backends_database(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	// As after minutes: that they are in use is due to be stored.
	query(t, "UPDATE login_sessions SET seen = seen - 120000000")
	const sign = "/tmp/it-held"
	undo(t, ctl, "rm -f "+sign)
	run(t, "docker", "exec", "-d", container(ctl), "setpriv", "--reuid", "carme-backend", "--regid", "carme-backend", "--clear-groups",
		"sqlite3", "-cmd", ".timeout 20000", "/var/lib/carme/backend/carme.db", "BEGIN EXCLUSIVE;", ".shell touch "+sign+"; sleep 20; rm "+sign, "COMMIT;").ok(t)
	eventually(t, 20*time.Second, "the lock", func() bool { return root(t, ctl, "test", "-e", sign).code == 0 })
	for _, page := range []string{"/", "/jobs", "/jobs/" + app.job} {
		r, took := v.timed(page)
		if r.code != http.StatusOK || took > 8*time.Second {
			t.Errorf("%s: %d after %v: %s", page, r.code, took, words(r.body))
		}
	}
	if !v.answers(app) || !socket.live() {
		t.Error("the app is away")
	}
	start := time.Now()
	r := visit(t, "bob").password("bob", "bob-pass")
	if took := time.Since(start); r.code < http.StatusInternalServerError || took > 20*time.Second {
		t.Errorf("a login that cannot be recorded, after %v: %s", took, r)
	}
	t.Logf("a login: %d after %v: %s", r.code, time.Since(start).Round(10*time.Millisecond), words(r.body))
	recovers(t, 60*time.Second, "logins", func() bool {
		query(t, "DELETE FROM attempts")
		return visit(t, "bob").password("bob", "bob-pass").code == http.StatusSeeOther
	})
	if !v.loggedIn() || !socket.live() {
		t.Error("what was open has closed")
	}
	if out := root(t, ctl, "carme-backend", "audit", "verify"); out.code != 0 {
		t.Errorf("the audit log: %s%s", out.out, out.err)
	}
}

// processOf is the daemon's process: backend and signer are one program of two users,
// each called after its daemon.
func processOf(t *testing.T, machine, daemon string) string {
	t.Helper()
	return root(t, machine, "pgrep", "-u", daemon, "-x", daemon).ok(t)
}

// starved takes the descriptors of a daemon away that it does not have yet. Its own
// user may do so; root may not on machines that lack CAP_SYS_RESOURCE.
func starved(t *testing.T, machine, daemon string) (pid string, fed func()) {
	t.Helper()
	pid = processOf(t, machine, daemon)
	limit := "setpriv --reuid " + daemon + " --regid " + daemon + " --clear-groups prlimit --pid " + pid + " --nofile="
	before := strings.Fields(sh(t, machine, `awk '/Max open files/ { print $4 ":" $5 }' /proc/`+pid+`/limits`))[0]
	undo(t, machine, "[ ! -e /proc/"+pid+" ] || "+limit+before)
	sh(t, machine, limit+"8:"+strings.Split(before, ":")[1])
	return pid, func() {
		t.Helper()
		sh(t, machine, limit+before)
	}
}

func TestFault_W14_A9_a_daemon_without_descriptors_keeps_what_is_open(t *testing.T) {
	v, app := mirrored(t)
	for daemon, machine := range map[string]string{"carme-portal": login, "carme-backend": ctl} {
		t.Run(daemon, func(t *testing.T) {
			var socket *line
			eventually(t, 30*time.Second, "a websocket", func() bool { socket = v.socket(app); return socket != nil })
			pid, fed := starved(t, machine, daemon)
			start := time.Now()
			fresh := visit(t, "bob")
			fresh.client.Timeout = 4 * time.Second
			r, err := fresh.try("GET", "/login", "")
			t.Logf("a newcomer: %d, %v after %v", r.code, err, time.Since(start).Round(10*time.Millisecond))
			kept(t, 6*time.Second, "what is open", socket.live)
			fed()
			recovers(t, 60*time.Second, "the portal for newcomers", func() bool {
				fresh := visit(t, "bob")
				fresh.client.Timeout = 8 * time.Second
				r, err := fresh.try("GET", "/login", "")
				return err == nil && r.code == http.StatusOK
			})
			recovers(t, 60*time.Second, "logins", func() bool {
				query(t, "DELETE FROM attempts")
				return visit(t, "bob").password("bob", "bob-pass").code == http.StatusSeeOther
			})
			recovers(t, 30*time.Second, "the app", func() bool { return v.answers(app) && v.loggedIn() })
			if !socket.live() {
				t.Error("the websocket has closed")
			}
			if now := processOf(t, machine, daemon); now != pid {
				t.Errorf("it has died: it is %s, not %s", now, pid)
			}
		})
	}
}

// drowsy stops a daemon most of the time: it answers everything, late.
func drowsy(t *testing.T, machine, daemon string) (mend func()) {
	t.Helper()
	const flag = "/tmp/it-drowsy"
	daemon = "'" + daemon + "(-wlm)?'" // Slurm's, once it was reconfigured (testbed/machine/svc)
	undo(t, machine, "rm -f "+flag+"; pkill -CONT -x "+daemon+" || true")
	sh(t, machine, "touch "+flag)
	run(t, "docker", "exec", "-d", container(machine), "sh", "-c",
		"while [ -e "+flag+" ]; do pkill -STOP -x "+daemon+"; sleep 2; pkill -CONT -x "+daemon+"; sleep 0.1; done; pkill -CONT -x "+daemon).ok(t)
	return func() {
		t.Helper()
		sh(t, machine, "rm -f "+flag+"; sleep 2; pkill -CONT -x "+daemon)
	}
}

func TestFault_W1_W5_A9_the_directory_and_Slurm_are_slow(t *testing.T) {
	v, app := mirrored(t)
	t.Cleanup(func() { scancel("-u", "alice") })
	for daemon, machine := range map[string]string{"slapd": "carme-ldap", "slurmctld": ctl, "slurmrestd": ctl} {
		t.Run(daemon, func(t *testing.T) {
			query(t, "DELETE FROM attempts")
			mend := drowsy(t, machine, daemon)
			for _, page := range []string{"/", "/jobs", "/jobs/" + app.job} {
				r, took := v.timed(page)
				if r.code != http.StatusOK || took > 8*time.Second {
					t.Errorf("%s: %d after %v", page, r.code, took)
				}
				t.Logf("%s after %v: %s", page, took, words(r.body))
			}
			if !v.answers(app) {
				t.Error("the app is away")
			}
			start := time.Now()
			bob := visit(t, "bob")
			r := bob.password("bob", "bob-pass")
			took := time.Since(start).Round(10 * time.Millisecond)
			if r.code != http.StatusSeeOther || took > 20*time.Second {
				t.Errorf("a login after %v: %s", took, r)
			}
			t.Logf("a login: %d after %v", r.code, took)
			start = time.Now()
			id := newID(t)
			r, err := v.form(id, v.token("/security"), "minutes", "2")
			t.Logf("a start: %d %s %v after %v: %s", r.code, r.to(), err, time.Since(start).Round(10*time.Millisecond), words(r.body))
			if err != nil || time.Since(start) > 25*time.Second {
				t.Errorf("a start after %v: %v", time.Since(start), err)
			}
			mend()
			recovers(t, time.Minute, "the outcome of the start", func() bool {
				s := query(t, "SELECT state FROM intents WHERE id = '"+id+"'")
				return s == "job" || s == "failed" || s == ""
			})
			all := jobsWith(t, id)
			if s := query(t, "SELECT state FROM intents WHERE id = '"+id+"'"); len(all) > 1 || (s == "job") != (len(all) == 1) {
				t.Errorf("the portal says %q, Slurm has %q", s, all)
			}
			for _, job := range all {
				scancel(job)
			}
			recovers(t, time.Minute, "fresh pages", func() bool {
				r, took := v.timed("/jobs")
				return r.code == http.StatusOK && words(r.body) == "" && took < 3*time.Second
			})
		})
	}
}
