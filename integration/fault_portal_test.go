//go:build integration

package integration

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestFault_W7_an_app_that_dies_ends_its_session_in_words(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	root(t, node1, "pkill", "-KILL", "-u", "alice", "-f", "it-mirror.py").ok(t)
	start := time.Now()
	r := v.get(app.origin + "/who")
	if r.code < 400 || !strings.Contains(r.body, "<h1") {
		t.Errorf("right after its death: %s", r)
	}
	t.Logf("the page came after %v: %d", time.Since(start).Round(time.Millisecond), r.code)
	recovers(t, 10*time.Second, "end of the websocket", func() bool { return !socket.live() })
	awaitState(t, app.job, 60*time.Second, "FAILED", "COMPLETED", "CANCELLED")
	recovers(t, 60*time.Second, "the end in words on the job's page", func() bool {
		_, body, _ := strings.Cut(v.get("/jobs/"+app.job).body, `id="jobhead"`)
		return words(body) != "" && !strings.Contains(words(body), "is ending") && !strings.Contains(body, app.origin)
	})
	if r := v.get(app.origin + "/who"); r.code != http.StatusNotFound || !strings.Contains(r.body, "There is no session here") {
		t.Errorf("afterwards: %s", r)
	}
	t.Logf("the job's page says: %s", words(v.get("/jobs/"+app.job).body))
}

var notice = regexp.MustCompile(`(?s)<div class="notice[^>]*>.*?<p>(.*?)</p>`)

// words is the end of a job, or the banner of a page, as it is read.
func words(page string) string {
	if m := notice.FindStringSubmatch(page); m != nil {
		return m[1]
	}
	return ""
}

const slowApp = `name: slow
title: Slow
description: Takes its time
command: [sh, -c, "sleep 12; exec python3 {{home}}/it-mirror.py {{socket}}"]
health: {path: /health, status: [200], timeout_seconds: 60}
path: /
`

func TestFault_W6_W14_an_app_that_is_slow_to_listen_is_waited_for(t *testing.T) {
	forgetAttempts(t)
	for _, machine := range everywhere {
		place(t, machine, "/etc/carme/apps.d/slow.yaml", []byte(slowApp))
	}
	v := visit(t, "alice").login()
	put(t, "alice", "it-mirror.py", mirror)
	id := sbatch(t, "alice", "--time=10", "-w", node1, "--carme=lab", "--carme-app=slow", "--wrap", "true")
	label := ""
	eventually(t, 60*time.Second, "the session's name", func() bool {
		v.get("/jobs/" + id)
		label = query(t, "SELECT label FROM hosts WHERE job = "+id)
		return label != ""
	})
	app := opened{"alice", id, "https://" + label + "." + appsDomain + ":" + portalPort}
	r := v.enter(app.origin + "/who")
	if r.code != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "starting") {
		t.Errorf("while the app is not there yet: %s", r)
	}
	t.Logf("meanwhile: %d, Retry-After %s", r.code, r.header.Get("Retry-After"))
	recovers(t, 90*time.Second, "the app, by looking again", func() bool { return v.enter(app.origin+"/who").code == http.StatusOK })
	if !v.answers(app) {
		t.Error("the app does not answer")
	}
}

// startPortal starts one more portal and returns nothing until it listens.
const startPortal = `setsid setpriv --reuid carme-portal --regid carme-portal --init-groups --no-new-privs \
	/usr/sbin/carme-portal --config /etc/carme/portal.yaml </dev/null >>/var/log/carme-portal-next.log 2>&1 &`

func TestFault_W14_A9_the_portal_is_killed_under_load(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	load := v.load(app, 8)
	load.flows()
	up := down(t, login, "kill", "carme-portal")
	up()
	recovers(t, 30*time.Second, "the app behind a killed portal, by the cookie alone", func() bool { return v.answers(app) })
	v.backOnWebsocket(app, socket)
	if !v.loggedIn() {
		t.Error("the login is gone")
	}
	load.flows()
	load.report("portal killed and started again")
}

func TestFault_W14_A9_the_portal_is_restarted_under_load(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	v.watches()
	load := v.load(app, 8)
	load.flows()
	start := time.Now()
	root(t, login, "svc", "restart", "carme-portal").ok(t)
	t.Logf("the restart itself took %v", time.Since(start).Round(10*time.Millisecond))
	recovers(t, 30*time.Second, "the app behind a restarted portal", func() bool { return v.answers(app) })
	v.backOnWebsocket(app, socket)
	load.flows()
	load.report("portal restarted")
}

func TestFault_W14_A9_one_portal_hands_over_to_the_next_under_load(t *testing.T) {
	v, app := mirrored(t)
	load := v.load(app, 8)
	load.flows()
	old := root(t, login, "pgrep", "-x", "carme-portal").ok(t)
	undo(t, login, "pgrep -x carme-portal >/dev/null || svc start carme-portal")
	sh(t, login, startPortal)
	eventually(t, 20*time.Second, "the next portal", func() bool {
		return strings.Count(root(t, login, "ss", "-Hltn", "sport = :"+portalPort).out, "\n") > 0
	})
	load.flows()
	root(t, login, "kill", "-TERM", old).ok(t)
	recovers(t, 60*time.Second, "end of the old portal", func() bool { return root(t, login, "test", "-e", "/proc/"+old).code != 0 })
	load.flows()
	if wrong := load.report("handed over"); wrong > 0 {
		t.Errorf("%d requests went wrong", wrong)
	}
	recovers(t, 10*time.Second, "websocket at the next portal", func() bool { return v.socket(app) != nil })
	if !v.loggedIn() {
		t.Error("the login is gone")
	}
}

func TestFault_W14_the_way_between_portal_and_node_is_cut(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	node := address(t, node1)
	for name, target := range map[string]string{"silently": "DROP", "with a word": "REJECT --reject-with icmp-host-unreachable"} {
		t.Run(name, func(t *testing.T) {
			rule := "OUTPUT -d " + node + " -j " + target
			undo(t, login, "iptables -D "+rule+" 2>/dev/null || true")
			sh(t, login, "iptables -I "+rule)
			start := time.Now()
			r := v.get(app.origin + "/who")
			if r.code != http.StatusBadGateway || !strings.Contains(r.body, "Your job goes on") {
				t.Errorf("cut %s: %s", name, r)
			}
			t.Logf("the page came after %v: %d", time.Since(start).Round(time.Millisecond), r.code)
			if !v.loggedIn() {
				t.Error("the portal's own pages are gone")
			}
			sh(t, login, "iptables -D "+rule)
			recovers(t, 60*time.Second, "the app after a cut "+name, func() bool { return v.answers(app) })
		})
	}
	v.backOnWebsocket(app, socket)
}

func TestFault_W14_A8_browsers_certificate_is_replaced_under_a_live_stream(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	const dir = "/var/lib/carme/portal/"
	undo(t, login, "cd "+dir+" && if [ -e old.crt ]; then mv old.crt web.crt && mv old.key web.key; fi")
	serial := func() string {
		l := v.dialled(portalHost)
		if l == nil {
			return ""
		}
		return l.serial()
	}
	before := serial()
	sh(t, login, `cd `+dir+` && cp -p web.crt old.crt && cp -p web.key old.key && cd /etc/carme/web-ca &&
		openssl ecparam -name prime256v1 -genkey -noout -out /tmp/new.key && openssl req -new -key /tmp/new.key -subj /CN=`+portalHost+` -out /tmp/new.csr &&
		printf 'subjectAltName=DNS:`+portalHost+`,DNS:*.`+appsDomain+`\nextendedKeyUsage=serverAuth\n' >/tmp/new.ext &&
		openssl x509 -req -in /tmp/new.csr -CA ca.pem -CAkey ca.key -days 30 -extfile /tmp/new.ext -out /tmp/new.crt &&
		cat /tmp/new.key >`+dir+`web.key && cat /tmp/new.crt >`+dir+`web.crt && rm /tmp/new.*`)
	recovers(t, 30*time.Second, "the new certificate, without a restart", func() bool { s := serial(); return s != "" && s != before })
	if !socket.live() {
		t.Error("the websocket has closed")
	}
	if !v.answers(app) || !v.loggedIn() {
		t.Error("the app or the login is gone")
	}
}

// ownCert is where a daemon keeps its certificate of Carme's CA.
type ownCert struct{ machine, user, file string }

var (
	portalsCert = ownCert{login, "carme-portal", portalCert}                            //nolint:gochecknoglobals // a constant that Go cannot write
	agentsCert  = ownCert{node1, "root", "/var/lib/carme/agent/certs/current/cert.pem"} //nolint:gochecknoglobals // the same
)

// goodFor says whether it is, for so many days.
func (c ownCert) goodFor(t *testing.T, days int) bool {
	t.Helper()
	return root(t, c.machine, "openssl", "x509", "-in", c.file, "-noout", "-checkend", strconv.Itoa(days*24*3600)).code == 0
}

// age signs the daemon's own key anew with Carme's CA, for a time that is given in
// days from now.
func (c ownCert) age(t *testing.T, from, until int) {
	t.Helper()
	block := func(machine, file string) []byte {
		t.Helper()
		b, _ := pem.Decode([]byte(root(t, machine, "cat", file).ok(t)))
		if b == nil {
			t.Fatalf("%s is not PEM", file)
		}
		return b.Bytes
	}
	ca, err := x509.ParseCertificate(block(ctl, "/var/lib/carme/signer/ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(block(ctl, "/var/lib/carme/signer/ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	now, err := x509.ParseCertificate(block(c.machine, c.file))
	if err != nil {
		t.Fatal(err)
	}
	now.NotBefore, now.NotAfter = time.Now().AddDate(0, 0, from), time.Now().AddDate(0, 0, until)
	der, err := x509.CreateCertificate(rand.Reader, now, ca, now.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pipe(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), "exec", "-i", container(c.machine), "sh", "-c",
		"cat >"+c.file+".aged && chown "+c.user+": "+c.file+".aged && mv "+c.file+".aged "+c.file)
}

const portalCert = "/var/lib/carme/portal/tls/cert.pem"

func TestFault_A8_W14_the_portals_own_certificate_is_renewed_by_itself(t *testing.T) {
	v, app := mirrored(t)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	undo(t, login, "if [ -e "+portalCert+".kept ]; then mv "+portalCert+".kept "+portalCert+"; fi")
	sh(t, login, "cp -p "+portalCert+" "+portalCert+".kept")
	portalsCert.age(t, -25, 5)
	if portalsCert.goodFor(t, 6) {
		t.Fatal("the certificate is not an old one")
	}
	load := v.load(app, 4)
	recovers(t, 90*time.Second, "a certificate for a month", func() bool { return portalsCert.goodFor(t, 28) })
	load.flows()
	load.end()
	if wrong := load.report("renewed"); wrong > 0 {
		t.Errorf("%d requests failed", wrong)
	}
	if !socket.live() {
		t.Error("the websocket has closed")
	}
	other := v.session("mirror")
	if r := v.enter(other.origin + "/who"); r.body != "alice in job "+other.job {
		t.Errorf("a session that starts afterwards: %s", r)
	}
	// One that was off for too long says so, and how to go on.
	up := down(t, login, "stop", "carme-portal")
	portalsCert.age(t, -40, -10)
	r := root(t, login, "setpriv", "--reuid", "carme-portal", "--regid", "carme-portal", "--init-groups", "/usr/sbin/carme-portal", "--check")
	if text := r.out + r.err; r.code == 0 || !strings.Contains(text, "expired") || !strings.Contains(text, "carme setup --role portal") {
		t.Errorf("an expired certificate: %d %s", r.code, text)
	}
	sh(t, login, "mv "+portalCert+".kept "+portalCert)
	up()
}

func TestFault_W7_W14_a_job_that_is_requeued_on_its_node_gets_another_name(t *testing.T) {
	forgetAttempts(t)
	mirrors(t)
	v := visit(t, "alice").login()
	put(t, "alice", "it-mirror.py", mirror)
	id := sbatch(t, "alice", "--time=15", "--requeue", "-w", node1, "--carme=lab", "--carme-app=mirror", "--wrap", "true")
	old := opened{"alice", id, v.origin(id)}
	v.enter(old.origin + "/who")
	socket := v.socket(old)
	if socket == nil {
		t.Fatal("no websocket")
	}
	root(t, ctl, "scontrol", "requeue", id).ok(t)
	start := time.Now()
	recovers(t, 60*time.Second, "end of the old websocket", func() bool { return !socket.live() })
	var next string
	recovers(t, 4*time.Minute, "the job's next life", func() bool {
		soon(t, id)
		_, body, _ := strings.Cut(v.get("/jobs/"+id).body, `id="jobhead"`)
		next = firstSite.origin().FindString(body)
		return next != "" && next != old.origin
	})
	t.Logf("requeue to ready took %v", time.Since(start).Round(time.Second))
	if r := v.get(old.origin + "/who"); strings.Contains(r.body, "in job") {
		t.Errorf("the old name leads to the new life: %s", r)
	}
	app := opened{"alice", id, next}
	if v.enter(next + "/who"); !v.answers(app) {
		t.Error("the new name leads nowhere")
	}
}
