//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// says is the answer to a page, and how long it took.
func (v *visitor) timed(path string) (reply, time.Duration) {
	v.t.Helper()
	start := time.Now()
	r, err := v.try("GET", path, "")
	took := time.Since(start).Round(10 * time.Millisecond)
	if err != nil {
		v.t.Errorf("%s: %v after %v", path, err, took)
	}
	return r, took
}

func TestFault_W14_A9_the_backend_is_killed_and_what_is_open_goes_on(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	load := v.load(app, 4)
	load.flows()
	up := down(t, ctl, "kill", "carme-backend")
	kept(t, 15*time.Second, "the app, without a backend", func() bool { return socket.live() && v.answers(app) })
	for _, page := range []string{"/", "/jobs", "/jobs/" + app.job, "/login"} {
		if r, took := v.timed(page); took > 5*time.Second || page != "/login" && (r.code != http.StatusServiceUnavailable || !strings.Contains(r.body, "Your jobs go on")) {
			t.Errorf("%s after %v: %s", page, took, r)
		}
	}
	// What is new is refused, with a reason.
	stranger := visit(t, "alice")
	if r := stranger.password("alice", "alice-pass"); r.code != http.StatusServiceUnavailable {
		t.Errorf("a login without a backend: %s", r)
	}
	if r := stranger.get(app.origin + "/who"); strings.Contains(r.body, "in job") {
		t.Errorf("a stranger is let in: %s", r)
	}
	v.give(app.origin, appCookie, "unseen")
	up()
	recovers(t, 30*time.Second, "the portal's pages, without a login", v.loggedIn)
	recovers(t, 30*time.Second, "new ways to the app", func() bool { r := v.enter(app.origin + "/who"); return r.code == http.StatusOK })
	if !socket.live() {
		t.Error("the websocket has closed")
	}
	load.flows()
	if wrong := load.report("backend killed for 15 s"); wrong > 0 {
		t.Errorf("%d requests went wrong", wrong)
	}
}

func TestFault_W14_A9_without_the_backend_streams_end_after_a_minute(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	up := down(t, ctl, "kill", "carme-backend")
	start := time.Now()
	kept(t, 50*time.Second, "the websocket, without a backend", socket.live)
	recovers(t, 30*time.Second, "end of the websocket, 50 s later", func() bool { return !socket.live() })
	t.Logf("the websocket closed after %v", time.Since(start).Round(time.Second))
	r := v.get(app.origin + "/who")
	if r.code != http.StatusServiceUnavailable || !strings.Contains(r.body, "Your job goes on") {
		t.Errorf("afterwards: %s", r)
	}
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("the job is %s", s)
	}
	up()
	recovers(t, 30*time.Second, "the app, by the cookie alone", func() bool { return v.answers(app) })
	v.backOnWebsocket(app, socket)
}

// slurmFault is a fault of Slurm: pages answer with the age of what they show,
// nothing hangs, nobody is logged out, and what is open stays so.
func slurmFault(t *testing.T, v *visitor, app opened, mend func(), limit time.Duration) {
	t.Helper()
	socket := v.socket(app)
	banner := ""
	recovers(t, 60*time.Second, "the banner", func() bool {
		r, took := v.timed("/jobs")
		if r.code != http.StatusOK || took > 12*time.Second {
			t.Errorf("/jobs: %d after %v", r.code, took)
		}
		banner = words(r.body)
		return banner != ""
	})
	t.Logf("the banner says: %s", banner)
	for _, page := range []string{"/", "/jobs", "/jobs/" + app.job, "/fragments/sessions", "/fragments/cluster"} {
		r, took := v.timed(page)
		if r.code != http.StatusOK || took > 8*time.Second {
			t.Errorf("%s: %d after %v", page, r.code, took)
		}
		t.Logf("%s: %d after %v", page, r.code, took)
	}
	// Refused, and not hanging.
	start := time.Now()
	r, err := v.form(newID(t), v.token("/security"))
	if err != nil || r.code == http.StatusOK || time.Since(start) > 20*time.Second {
		t.Errorf("a start after %v: %v %s", time.Since(start), err, r)
	}
	t.Logf("a start: %d %s after %v: %s", r.code, r.to(), time.Since(start).Round(10*time.Millisecond), words(r.body))
	if socket == nil || !socket.live() || !v.answers(app) {
		t.Error("the app is away")
	}
	if !visit(t, "bob").login().loggedIn() {
		t.Error("nobody can log in")
	}
	mend()
	recovers(t, limit, "fresh pages", func() bool {
		r, _ := v.timed("/jobs")
		return r.code == http.StatusOK && words(r.body) == ""
	})
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("the job is %s", s)
	}
}

// remembered waits until slurmctld has written down that a job runs: killed
// before, it would start the job anew. It writes some seconds after a job comes or
// goes, but not when the backfill scheduler starts one, hence another job.
func remembered(t *testing.T, job string) {
	t.Helper()
	scancel(as(t, "bob", login, "sbatch", "--parsable", "--hold", "-o", "/dev/null", "--wrap", "true").ok(t))
	eventually(t, 30*time.Second, "slurmctld's record of job "+job, func() bool {
		return root(t, ctl, "sh", "-c", `test "$(stat -c %Y /var/spool/slurmctld/job_state)" -gt "$(date -d "$(squeue -h -j `+job+` -o %S)" +%s)"`).code == 0
	})
}

func TestFault_W6_A9_slurm_is_away(t *testing.T) {
	v, app := mirrored(t)
	t.Cleanup(func() { scancel("-u", "alice") })
	remembered(t, app.job)
	for name, f := range map[string]fault{"slurmctld is down": {ctl, killed, "slurmctld"}, "slurmctld hangs": {ctl, frozen, "slurmctld"}} {
		t.Run(name, func(t *testing.T) { slurmFault(t, v, app, f.strike(t), time.Minute) })
	}
}

func TestFault_W6_A9_slurmrestd_is_away(t *testing.T) {
	v, app := mirrored(t)
	t.Cleanup(func() { scancel("-u", "alice") })
	for name, f := range map[string]fault{"is down": {ctl, killed, "slurmrestd"}, "hangs": {ctl, frozen, "slurmrestd"}} {
		t.Run(name, func(t *testing.T) {
			mend := f.strike(t)
			for _, page := range []string{"/", "/jobs", "/jobs/" + app.job} {
				r, took := v.timed(page)
				if r.code != http.StatusOK || took > 8*time.Second {
					t.Errorf("%s: %d after %v", page, r.code, took)
				}
				t.Logf("%s: %d after %v: %s", page, r.code, took, words(r.body))
			}
			if !v.answers(app) {
				t.Error("the app is away")
			}
			mend()
			recovers(t, time.Minute, "pages", func() bool { r, took := v.timed("/"); return r.code == http.StatusOK && took < 3*time.Second })
		})
	}
}

// jobsWith are the jobs of Slurm with a comment of ours, in whatever state.
func jobsWith(t *testing.T, id string) []string {
	t.Helper()
	var found []string
	for _, line := range lines(root(t, ctl, "squeue", "-h", "-a", "-t", "all", "-O", "JobID:12,Comment:60").ok(t)) {
		if strings.Contains(line, "carme:"+id) {
			found = append(found, strings.Fields(line)[0])
		}
	}
	return found
}

// unanswered lets every request come to slurmctld, and drops what it answers: all
// packets that carry more than an acknowledgement.
func unanswered(t *testing.T) (mend func()) {
	t.Helper()
	return filtered(t, "OUTPUT -p tcp --sport 6817 -m length --length 100: -j DROP")
}

// filtered puts a rule before the packets of the head node, until it is mended or
// the test ends.
func filtered(t *testing.T, rule string) (mend func()) {
	t.Helper()
	image := run(t, "docker", "inspect", "-f", "{{.Image}}", container(login)).ok(t) // it has iptables
	tables := func(verb string) {
		t.Helper()
		run(t, "docker", append([]string{"run", "--rm", "--cap-add", "NET_ADMIN", "--network", "container:" + container(ctl), "--entrypoint", "iptables", image, verb},
			strings.Fields(rule)...)...).ok(t)
	}
	tables("-I")
	mended := false
	mend = func() {
		if !mended {
			mended = true
			tables("-D")
		}
	}
	t.Cleanup(mend)
	return mend
}

func TestFault_W6_a_submit_whose_answer_is_lost_is_one_job(t *testing.T) {
	asleep := func(t *testing.T) (mend func()) { t.Helper(); return freeze(t, ctl, "^slurmrestd") }
	for name, c := range map[string]struct {
		lose  func(*testing.T) (mend func())
		since time.Duration
		// sure says that Slurm got the request.
		sure bool
	}{
		"soon after":                 {asleep, 2 * time.Second, false},
		"long after it was given up": {asleep, 25 * time.Second, false},
		"dropped by the network":     {unanswered, 25 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			forgetAttempts(t)
			v := visit(t, "carol").login()
			t.Cleanup(func() { scancel("-u", "carol") })
			v.get("/")
			id, csrf := newID(t), v.token("/security")
			mend := c.lose(t)
			start := time.Now()
			// Sent twice, as by somebody who reloads.
			atOnce(2, func(int) {
				r, err := v.form(id, csrf)
				t.Logf("a start whose answer does not come: %d %s %v after %v: %s", r.code, r.to(), err, time.Since(start).Round(10*time.Millisecond), words(r.body))
			})
			seen := map[string]bool{}
			kept(t, max(c.since-time.Since(start), time.Second), "an answer to the page", func() bool {
				r, took := v.timed("/jobs/" + id)
				state := query(t, "SELECT state, problem FROM intents WHERE id = '"+id+"'")
				if text := fmt.Sprint(r.code, " ", state); !seen[text] {
					seen[text] = true
					t.Logf("after %v: %s (page after %v)", time.Since(start).Round(time.Second), text, took)
				}
				return took < 12*time.Second
			})
			before := query(t, "SELECT state FROM intents WHERE id = '"+id+"'")
			mend()
			recovers(t, 60*time.Second, "the outcome", func() bool {
				s := query(t, "SELECT state FROM intents WHERE id = '"+id+"'")
				return s == "job" || s == "failed"
			})
			found := ""
			kept(t, 15*time.Second, "one job", func() bool {
				all := jobsWith(t, id)
				found = strings.Join(all, " ")
				return len(all) <= 1
			})
			state := query(t, "SELECT state FROM intents WHERE id = '"+id+"'")
			t.Logf("before the end of the fault %q, then %q with Slurm's jobs %q", before, state, found)
			if (found != "") != (state == "job") {
				t.Errorf("the portal says %s, Slurm has %q", state, found)
			}
			if c.sure && found == "" {
				t.Error("Slurm had the request, and there is no job")
			}
			if before == "failed" && found != "" {
				t.Error("it was called failed, and there is a job: whoever starts again has two")
			}
			if found != "" {
				if r := v.get("/jobs/" + id); r.code != http.StatusOK || !strings.Contains(r.body, found) {
					t.Errorf("its page does not name the job %s", found)
				}
			}
		})
	}
}

func TestFault_W1_A9_the_directory_is_away(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	// One user each: who was refused waits before the next try.
	const ldap = "carme-ldap"
	for name, c := range map[string]struct {
		user  string
		fault fault
		span  time.Duration
	}{
		"is down": {"bob", fault{ldap, killed, "slapd"}, 5 * time.Second},
		// Longer than the backend waits before it looks at everybody again.
		"hangs":                {"carol", fault{ldap, frozen, "slapd"}, 75 * time.Second},
		"shows a foreign name": {"mallory", fault{ldap, foreign, "slapd"}, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			mend := c.fault.strike(t)
			start := time.Now()
			stranger := visit(t, c.user)
			r := stranger.password(c.user, c.user+"-pass")
			if r.code != http.StatusServiceUnavailable || stranger.cookie(portalURL, portalCookie) != "" {
				t.Errorf("a login: %s", r)
			}
			if took := time.Since(start); took > 14*time.Second {
				t.Errorf("a login took %v", took)
			}
			t.Logf("a login: %d after %v: %s", r.code, time.Since(start).Round(10*time.Millisecond), words(r.body))
			kept(t, c.span, "what is open", func() bool { return socket.live() && v.loggedIn() && v.answers(app) })
			mend()
			query(t, "DELETE FROM attempts")
			recovers(t, 60*time.Second, "logins", func() bool {
				stranger := visit(t, c.user)
				r := stranger.password(c.user, c.user+"-pass")
				return r.code == http.StatusSeeOther && stranger.cookie(portalURL, portalCookie) != ""
			})
		})
	}
}

// foreignDirectory is a slapd with a certificate that nobody vouches for, as
// somebody in between would show it.
func foreignDirectory(t *testing.T) func() {
	t.Helper()
	const ldap, dir = "carme-ldap", "/etc/ldap/tls/"
	back := "cd " + dir + " && if [ -e good.pem ]; then mv good.pem cert.pem && mv good.key key.pem; fi && svc restart slapd"
	undo(t, ldap, back)
	sh(t, ldap, "cd "+dir+` && cp -p cert.pem good.pem && cp -p key.pem good.key &&
		openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/key.pem -out /tmp/cert.pem -days 2 -subj /CN=carme-ldap -addext subjectAltName=DNS:carme-ldap &&
		cat /tmp/key.pem >key.pem && cat /tmp/cert.pem >cert.pem && svc restart slapd`)
	return func() {
		t.Helper()
		sh(t, ldap, back)
	}
}

// second is a backend beside the one that runs, with a state directory of its
// own. It returns a command that starts it, for a few seconds.
func second(t *testing.T, dir string) string {
	t.Helper()
	config := "/etc/carme/backend-second.yaml"
	undo(t, ctl, "rm -rf "+config+" "+dir)
	sh(t, ctl, "cp /etc/carme/backend.yaml "+config+" && printf '%s\\n' 'state: "+dir+"' 'listen: \":17443\"' 'admin_socket: "+dir+"/admin.sock' >>"+config+`
		cp -a /var/lib/carme/backend `+dir+` && rm -f `+dir+`/carme.db* && sqlite3 /var/lib/carme/backend/carme.db ".backup `+dir+`/carme.db" &&
		chown -R carme-backend:carme-backend `+dir)
	return "timeout 6 setpriv --reuid carme-backend --regid carme-backend --init-groups /usr/sbin/carme-backend --config " + config
}

func TestFault_A9_a_backend_refuses_a_database_that_it_cannot_trust(t *testing.T) {
	const dir, db = "/var/lib/carme/second", "/var/lib/carme/second/carme.db"
	for name, c := range map[string]struct {
		fault string
		words []string // "": it starts
	}{
		"good":         {"true", nil},
		"missing":      {"rm " + db, []string{"is missing", "carme-backend init", "restore"}},
		"empty":        {": >" + db, []string{"is empty", "restore it from a backup"}},
		"cut":          {"truncate -s 40000 " + db, []string{"restore it from a backup"}},
		"no database":  {"head -c 100000 /dev/urandom >" + db, []string{"restore it from a backup"}},
		"newer schema": {"sqlite3 " + db + ` "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)"`, []string{"newer"}},
		"not its own":  {"chown root " + db + " && chmod 600 " + db, []string{"permission denied", "chown carme-backend"}},
		"read-only":    {"chmod 400 " + db, []string{"permission denied", "chown carme-backend"}},
	} {
		t.Run(name, func(t *testing.T) {
			command := second(t, dir)
			sh(t, ctl, c.fault)
			sum := func() string { return root(t, ctl, "sha256sum", db).out }
			before := sum()
			start := time.Now()
			r := root(t, ctl, "sh", "-c", command)
			t.Logf("status %d after %v: %s", r.code, time.Since(start).Round(10*time.Millisecond), lastLine(r.err))
			if c.words == nil {
				if r.code != 124 && r.code != 0 {
					t.Errorf("it does not start: %s", r.err)
				}
				return
			}
			if r.code != 1 {
				t.Errorf("it starts: %d %s", r.code, r.err)
			}
			for _, word := range c.words {
				if !strings.Contains(r.err, word) {
					t.Errorf("it does not say %q: %s", word, r.err)
				}
			}
			if after := sum(); after != before {
				t.Errorf("the file has changed from %s to %s", before, after)
			}
		})
	}
}

func lastLine(text string) string {
	all := lines(text)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1]
}

func TestFault_A9_a_second_backend_on_one_database_is_refused(t *testing.T) {
	config := "/etc/carme/backend-second.yaml"
	undo(t, ctl, "rm -f "+config)
	sh(t, ctl, "cp /etc/carme/backend.yaml "+config+" && printf '%s\\n' 'listen: \":17443\"' 'admin_socket: /run/carme-backend/second.sock' >>"+config)
	r := root(t, ctl, "timeout", "8", "setpriv", "--reuid", "carme-backend", "--regid", "carme-backend", "--init-groups", "/usr/sbin/carme-backend", "--config", config)
	if r.code != 1 || !strings.Contains(r.err, "in use") {
		t.Errorf("status %d: %s", r.code, r.err)
	}
	t.Logf("it says: %s", lastLine(r.err))
}

func TestFault_W1_W6_A9_the_backends_disk_is_full(t *testing.T) {
	const dir = "/var/lib/carme/backend"
	forgetAttempts(t)
	undo(t, ctl, "svc stop carme-backend; if mountpoint -q "+dir+"; then umount "+dir+"; fi; svc start carme-backend")
	sh(t, ctl, `svc stop carme-backend && mkdir /tmp/small && mount -t tmpfs -o size=4m,mode=700 small /tmp/small && cp -a `+dir+`/. /tmp/small/ &&
		chown carme-backend:carme-backend /tmp/small && mount --move /tmp/small `+dir+` && rmdir /tmp/small && svc start carme-backend`)
	recovers(t, 30*time.Second, "the portal", func() bool {
		r, err := visit(t, "x").try("GET", "/login", "")
		return err == nil && r.code == http.StatusOK
	})
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	// As after minutes: that they are in use is due to be stored.
	query(t, "UPDATE login_sessions SET seen = seen - 120000000")
	sh(t, ctl, "dd if=/dev/zero of="+dir+"/fill bs=4k 2>/dev/null || true; df "+dir+" | tail -1")
	start := time.Now()
	r := visit(t, "bob").password("bob", "bob-pass")
	if r.code < http.StatusInternalServerError {
		t.Errorf("a login that cannot be recorded: %s", r)
	}
	t.Logf("a login: %d after %v: %s", r.code, time.Since(start).Round(10*time.Millisecond), words(r.body))
	r, err := v.form(newID(t), v.token("/security"))
	if err != nil || r.code < http.StatusInternalServerError {
		t.Errorf("a start that cannot be recorded: %s %v", r, err)
	}
	t.Logf("a start: %d: %s", r.code, words(r.body))
	if got := queued(t, "alice"); len(lines(got)) != 1 {
		t.Errorf("alice's jobs are %s", got)
	}
	kept(t, 10*time.Second, "what is open", func() bool { return socket.live() && v.answers(app) && v.loggedIn() })
	sh(t, ctl, "rm "+dir+"/fill")
	recovers(t, 60*time.Second, "logins", func() bool { return visit(t, "bob").password("bob", "bob-pass").code == http.StatusSeeOther })
	if out := root(t, ctl, "carme-backend", "audit", "verify"); out.code != 0 {
		t.Errorf("the audit log: %s%s", out.out, out.err)
	}
}

func TestFault_W3_W4_A9_mistakes_in_the_sites_files_are_named_and_cost_no_more_than_they_must(t *testing.T) {
	alice := visit(t, "alice").login()
	soon := func(what string, yes func(page string) bool) {
		t.Helper()
		eventually(t, 30*time.Second, what, func() bool { // it is read anew every ten seconds
			r := alice.get("/")
			return r.code == http.StatusOK && yes(r.body)
		})
	}
	check := func() result {
		return root(t, ctl, "setpriv", "--reuid", "carme-backend", "--regid", "carme-backend", "--init-groups", "/usr/sbin/carme-backend", "--check")
	}
	for _, machine := range []string{ctl, login, node1} {
		place(t, machine, "/etc/carme/apps.d/odd.yaml", []byte("name: odd\ntitle: Odd one\ncommand: [x]\nport: 80\n"))
		place(t, machine, "/etc/carme/apps.d/sound.yaml", []byte("name: sound\ntitle: Sound one\ncommand: [x]\n"))
	}
	soon("the apps but the one with a mistake", func(page string) bool {
		return strings.Contains(page, "Sound one") && strings.Contains(page, "JupyterLab") && !strings.Contains(page, "Odd one")
	})
	const place1 = "/etc/carme/apps.d/odd.yaml:4"
	if r := check(); r.code == 0 || !strings.Contains(r.err, place1) {
		t.Errorf("carme-backend --check: %d %s", r.code, r.err)
	}
	if out := sh(t, ctl, "cat /var/log/testbed/carme-backend.log"); !strings.Contains(out, place1) {
		t.Error("the backend's log does not name the file")
	}
	if out := root(t, node1, "timeout", "60", "carme", "doctor").out; !strings.Contains(out, place1) {
		t.Errorf("carme doctor does not name the file:\n%s", out)
	}
	job := alice.session("terminal")
	if r := alice.enter(job.origin); r.code != http.StatusOK {
		t.Errorf("the terminal beside it: %s", r)
	}
	srun(t, "alice", "-w", node1, "--carme=none", "--carme-app=odd", "true").fails(t, place1)

	place(t, ctl, "/etc/carme/images.d/odd.yaml", []byte("name: odd\nnonsense: 1\n"))
	soon("the mistake in an image", func(page string) bool {
		return strings.Contains(page, "The site&#39;s configuration has a mistake") && !strings.Contains(page, `id="start"`) && !strings.Contains(page, "odd.yaml")
	})
	if r := alice.get("/jobs/" + job.job); r.code != http.StatusOK {
		t.Errorf("the job that runs: %s", r)
	}
	if r := alice.enter(job.origin); r.code != http.StatusOK {
		t.Errorf("the session that runs: %s", r)
	}
	root(t, ctl, "rm", "/etc/carme/images.d/odd.yaml").ok(t)
	soon("the form", func(page string) bool { return strings.Contains(page, `id="start"`) })
	// The next test finds the page as this one did.
	root(t, ctl, "rm", "/etc/carme/apps.d/odd.yaml", "/etc/carme/apps.d/sound.yaml").ok(t)
	soon("the apps of before", func(page string) bool { return !strings.Contains(page, "Sound one") })
}
