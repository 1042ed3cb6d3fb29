//go:build integration

package integration

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// siteMachine is a host with systemd beside the testbed's machines, which have
// none.
const siteMachine = "carme-site"

// siteNames are those of the portal there.
var siteNames = site{host: "portal.site.localhost", apps: "apps.site.localhost", port: "443", machine: siteMachine} //nolint:gochecknoglobals // a constant that Go cannot write

// analyser says what systemd thinks of units.
const analyser = "systemd-analyze" //nolint:misspell // its name

// services are Carme's on such a host, with the user of each and the exposure
// that systemd may find, in tenths.
var services = []struct { //nolint:gochecknoglobals // a constant that Go cannot write
	unit, user, exposure string
}{
	{"carme-signer.service", "carme-signer", "16"},
	{"carme-backend.service", "carme-backend", "16"},
	{"carme-portal.service", "carme-portal", "14"},
	{"carme-agent.service", "root", "40"},
}

// siteHost starts the machine with Slurm's and the directory's configuration, and
// installs Carme as `make install` does.
func siteHost(t *testing.T) {
	t.Helper()
	if suite() != "trixie" {
		t.Skip("the host with systemd is made for trixie alone (testbed/bin/up)")
	}
	name, network := container(siteMachine), container("carme-testbed")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(root(t, siteMachine, "sh", "-c", "systemctl --no-pager --failed; journalctl --no-pager -b -o short-monotonic | grep -v 'systemd\\[1\\]: Start' | tail -n 120").out)
		}
		run(t, "docker", "rm", "-f", name)
	})
	run(t, "docker", "rm", "-f", name)
	args := []string{
		"run", "-d", "--name", name, "--hostname", siteMachine, "--network", network, "--network-alias", siteMachine,
		"--label", "org.carme." + container("testbed") + "=site", "--cap-add", "ALL", "--security-opt", "seccomp=unconfined",
		"--security-opt", "apparmor=unconfined", "--cgroupns=private", "--memory", "2g", "--pids-limit", "2000",
		"--tmpfs", "/run:exec,mode=755", "--tmpfs", "/tmp:exec,mode=1777",
	}
	for _, dangerous := range []string{"SYS_RESOURCE", "SYS_MODULE", "SYS_TIME", "SYS_BOOT", "SYS_RAWIO", "AUDIT_CONTROL", "MAC_ADMIN", "SYSLOG"} {
		args = append(args, "--cap-drop", dangerous)
	}
	run(t, "docker", append(args, "carme-site:"+suite())...).ok(t)
	eventually(t, time.Minute, "systemd", func() bool {
		return slices.Contains([]string{"running", "degraded"}, root(t, siteMachine, "systemctl", "is-system-running").out)
	})
	copied := pipe(t, nil, "exec", container(ctl), "tar", "-C", "/", "-c", "etc/munge/munge.key", "etc/nslcd.conf", "etc/nsswitch.conf", "etc/ssl/testbed-ca.pem",
		"etc/slurm/slurm.conf", "etc/slurm/slurm.conf.d", "etc/slurm/jwks.json", "etc/carme-testbed/jwt.key", "etc/carme/spank.yaml", "etc/carme/images.d", "etc/carme/apps.d")
	pipe(t, copied, "exec", "-i", container(siteMachine), "tar", "-C", "/", "--numeric-owner", "-xp")
	installed, err := filepath.Abs(filepath.Join("..", "build", suite(), "root"))
	if err != nil {
		t.Fatal(err)
	}
	packed := filepath.Join(t.TempDir(), "tree.tar")
	run(t, "tar", "-C", installed, "--owner=0", "--group=0", "-cf", packed, "usr", "etc").ok(t)
	archive, err := os.ReadFile(packed)
	if err != nil {
		t.Fatal(err)
	}
	pipe(t, archive, "exec", "-i", container(siteMachine), "tar", "-C", "/", "--no-overwrite-dir", "-x")
	sh(t, siteMachine, "systemctl daemon-reload && systemctl restart munge nslcd slurmrestd")
}

// setupSite is what an administrator types; more comes behind it.
func setupSite(t *testing.T, more ...string) result {
	t.Helper()
	return root(t, siteMachine, append([]string{
		"carme", "setup", "--portal-host", siteNames.host, "--apps-domain", siteNames.apps, "--cluster", "carme",
		"--ldap-url", "ldap://carme-ldap", "--ldap-ca", "/etc/ssl/testbed-ca.pem", "--ldap-people", "ou=people,dc=carme,dc=test",
		"--ldap-groups", "ou=groups,dc=carme,dc=test", "--ldap-bind-dn", "cn=reader,dc=carme,dc=test",
		"--ldap-password-file", "/root/password", "--login-group", "carme-users", "--admin-group", "carme-admins",
		"--slurm-key", "/etc/carme-testbed/jwt.key", "--slurm-key-id", "testbed-1",
	}, more...)...)
}

// property is one of a unit's (systemctl(1)).
func property(t *testing.T, unit, name string) string {
	t.Helper()
	return root(t, siteMachine, "systemctl", "show", "--value", "-p", name, unit).ok(t)
}

func siteVisitor(t *testing.T, name string) *visitor {
	t.Helper()
	s := siteNames
	block, _ := pem.Decode([]byte(root(t, siteMachine, "cat", "/etc/carme/web-ca/ca.pem").ok(t)))
	if block == nil {
		t.Fatal("the portal's CA is no PEM")
	}
	var err error
	if s.own, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return s.visit(t, name)
}

// The units run on a real systemd, from `carme setup` on a fresh host on.
func TestScenario_A8_A9_W1_a_host_with_systemd_is_set_up_and_survives_what_hosts_live_through(t *testing.T) {
	siteHost(t)
	sh(t, siteMachine, "umask 077; printf reader-pass >/root/password")

	// A hurried administrator first.
	setupSite(t, "--portal-host", "portal.apps.site.localhost").fails(t, "an app could pose as the portal")
	setupSite(t, "--ldap-url", "carme-ldap").fails(t, "--ldap-url", "ldaps://HOST")
	root(t, siteMachine, "carme", "setup", "--portal-host", siteNames.host).fails(t, "--apps-domain is missing", "--cluster", "--ldap-url", "--login-group is missing")
	root(t, siteMachine, "setpriv", "--reuid", "1", "carme", "setup").fails(t, "run it as root")
	busy := "systemd-socket-activate -l 443 cat"
	background(t, "root", siteMachine, "sh", "-c", "exec "+busy)
	eventually(t, 10*time.Second, "a busy port", func() bool { return sh(t, siteMachine, "ss -Hltn sport = :443") != "" })
	setupSite(t).fails(t, "port 443 is taken", "--public-port")
	sh(t, siteMachine, "pkill -f '^"+busy+"' && ! ls /etc/carme/backend.yaml /var/lib/carme")

	first := setupSite(t).ok(t)
	for _, want := range []string{
		"copied /root/password", "runs   carme-signer.service", "runs   carme-backend.service", "runs   carme-portal.service",
		"AuthAltTypes=auth/jwt", "PrologFlags=Contain", "TCP 443", "TCP 7443", "TCP 7444", "--backend " + siteMachine + ":7443",
	} {
		if !strings.Contains(first, want) {
			t.Errorf("it does not say %q:\n%s", want, first)
		}
	}
	health := root(t, siteMachine, "carme", "health")
	for _, part := range []string{"database", "directory", "signer", "slurm"} {
		if !regexp.MustCompile(`(?m)^` + part + ` +ok$`).MatchString(health.out) {
			t.Errorf("%s is not well:\n%s", part, health.out)
		}
	}
	alice := siteVisitor(t, "alice").login()
	if !alice.loggedIn() {
		t.Error("alice cannot log in")
	}

	joinAgent(t)
	t.Run("sandbox", inSandbox)
	t.Run("again", func(t *testing.T) { setUpAgain(t, alice) })
	t.Run("killed", func(t *testing.T) { killDaemons(t, alice) })
	t.Run("restarted", func(t *testing.T) { stopAndStart(t, alice) })
	t.Run("another port", anotherPort)
}

// joinAgent makes the host a node as well, one that Slurm does not know.
func joinAgent(t *testing.T) {
	t.Helper()
	sh(t, siteMachine, "umask 077; carme-backend token --role node --name "+siteMachine+" >/etc/carme/join-token")
	root(t, siteMachine, "carme", "setup", "--role", "node", "--cluster", "carme", "--backend", siteMachine+":7443", "--ca", "/etc/carme/ca.pem").ok(t)
	eventually(t, 30*time.Second, "the agent's certificate", func() bool {
		return root(t, siteMachine, "test", "-e", "/var/lib/carme/agent/certs/current/cert.pem").code == 0
	})
}

// inSandbox looks at what each daemon can do, and whether systemd has complaints.
func inSandbox(t *testing.T) {
	if said := sh(t, siteMachine, analyser+" verify --man=no /usr/lib/systemd/system/carme-* 2>&1"); said != "" {
		t.Errorf("systemd says of the units:\n%s", said)
	}
	for _, s := range services {
		if got := property(t, s.unit, "ActiveState") + " " + property(t, s.unit, "UnitFileState"); got != "active enabled" {
			t.Errorf("%s is %s", s.unit, got)
			continue
		}
		pid := property(t, s.unit, "MainPID")
		if user := root(t, siteMachine, "ps", "-o", "user:32=", "-p", pid).ok(t); strings.TrimSpace(user) != s.user {
			t.Errorf("%s runs as %s", s.unit, user)
		}
		status := facts(strings.ReplaceAll(sh(t, siteMachine, "cat /proc/"+pid+"/status"), ":\t", "="))
		if status["NoNewPrivs"] != "1" || status["Seccomp"] != "2" || s.user != "root" && (status["CapBnd"] != "0000000000000000" || status["CapEff"] != "0000000000000000") {
			t.Errorf("%s has %v", s.unit, status)
		}
		if r := root(t, siteMachine, analyser, "security", "--no-pager", "--threshold="+s.exposure, s.unit); r.code != 0 {
			t.Errorf("%s is more exposed than it was:\n%s%s", s.unit, r.out, r.err)
		}
		if log := sh(t, siteMachine, "journalctl --no-pager -o cat -u "+s.unit); !regexp.MustCompile(`(?m)^\{.*"(ready|portal: serving|agent is ready)"`).MatchString(log) {
			t.Errorf("%s's journal does not tell that it is ready:\n%s", s.unit, log)
		}
		// It writes where its state and its certificates are, and nowhere else.
		role := strings.TrimSuffix(strings.TrimPrefix(s.unit, "carme-"), ".service")
		inside := "nsenter -t " + pid + " -m setpriv --reuid " + s.user + " --regid " + s.user + " --clear-groups "
		sh(t, siteMachine, inside+"sh -c 'f=$(mktemp /var/lib/carme/"+role+"/XXXXXX) && rm $f'")
		for _, dir := range []string{"/etc/carme", "/usr/lib/carme"} {
			if r := root(t, siteMachine, "nsenter", "-t", pid, "-m", "touch", dir+"/x"); !strings.Contains(r.err, "Read-only file system") {
				t.Errorf("%s in %s: %s", s.unit, dir, r.err)
			}
		}
		if got := sh(t, siteMachine, "stat -c '%a %U' /var/lib/carme/"+role); got != "700 "+s.user {
			t.Errorf("/var/lib/carme/%s is %s", role, got)
		}
	}
	// The agent opens what users can change by openat2, which not every sandbox
	// leaves it: it gets as far as the owner and mode of a job's directory.
	sh(t, siteMachine, "mkdir -p /run/carme/jobs && mkdir -m 777 /run/carme/jobs/4242")
	eventually(t, 20*time.Second, "the agent's look at a directory", func() bool {
		return strings.Contains(sh(t, siteMachine, "journalctl --no-pager -o cat -u carme-agent"), "others can change it")
	})
	sh(t, siteMachine, "rmdir /run/carme/jobs/4242")
	for _, dir := range []string{"backend", "portal"} { // where renewed certificates go
		if got := sh(t, siteMachine, "stat -c '%a %U' /var/lib/carme/"+dir+"/tls"); got != "700 carme-"+dir {
			t.Errorf("/var/lib/carme/%s/tls is %s", dir, got)
		}
	}
	if root(t, siteMachine, "setpriv", "--reuid", "carme-backend", "--regid", "carme-backend", "--clear-groups", "cat", "/var/lib/carme/signer/slurm.key").code == 0 {
		t.Error("the backend can read the signer's key")
	}
}

// setUpAgain runs the set-up a second time: nothing that people trust changes,
// and nobody notices.
func setUpAgain(t *testing.T, alice *visitor) {
	t.Helper()
	const sums = "sha256sum /etc/carme/*.pem /etc/carme/web-ca/* /etc/carme/*.yaml /var/lib/carme/*/tls/* /var/lib/carme/signer/* /var/lib/carme/backend/*.key"
	before := sh(t, siteMachine, sums)
	pid := property(t, "carme-portal.service", "MainPID")
	if said := setupSite(t).ok(t); !strings.Contains(said, "kept   /etc/carme/backend.yaml") {
		t.Errorf("it says:\n%s", said)
	}
	if after := sh(t, siteMachine, sums); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if now := property(t, "carme-portal.service", "MainPID"); now != pid {
		t.Error("the portal was started again for nothing")
	}
	if !alice.loggedIn() {
		t.Error("alice's login is gone")
	}
	sh(t, siteMachine, "sed -i 's/^cluster:.*/cluster: carme # mine/' /etc/carme/backend.yaml")
	if said := setupSite(t, "--admin-group", "carme-users").ok(t); !strings.Contains(said, "compare /etc/carme/backend.yaml.new") {
		t.Errorf("of the file that was edited it says:\n%s", said)
	}
	sh(t, siteMachine, "grep -q '# mine' /etc/carme/backend.yaml && rm /etc/carme/backend.yaml.new")
}

// killDaemons kills each daemon and finds it back.
func killDaemons(t *testing.T, alice *visitor) {
	t.Helper()
	for _, s := range services {
		pid := property(t, s.unit, "MainPID")
		sh(t, siteMachine, "kill -KILL "+pid)
		eventually(t, 20*time.Second, s.unit+" again", func() bool {
			now := property(t, s.unit, "MainPID")
			return now != pid && now != "0" && property(t, s.unit, "ActiveState") == "active"
		})
	}
	eventually(t, 20*time.Second, "alice's login", alice.loggedIn)
	// Faster and more often than systemd puts up with by default. It holds the
	// socket: a browser waits and is not refused.
	const faster = "/run/systemd/system/carme-portal.service.d"
	sh(t, siteMachine, "mkdir -p "+faster+" && printf '[Service]\nRestartSec=50ms\n' >"+faster+"/faster.conf && systemctl daemon-reload")
	answers := sh(t, siteMachine, `for _ in 1 2 3 4 5 6 7; do
		pid=$(systemctl show --value -p MainPID carme-portal.service)
		[ $pid = 0 ] || kill -KILL $pid
		curl -sS --max-time 20 -o /dev/null -w '%{http_code} ' --cacert /etc/carme/web-ca/ca.pem --resolve `+siteNames.host+`:443:127.0.0.1 https://`+siteNames.host+`/login 2>&1
	done; rm -r `+faster+`; systemctl daemon-reload`)
	if answers != strings.Repeat("200 ", 7) {
		t.Errorf("while the portal is killed again and again browsers get %s", answers)
	}
}

// stopAndStart stops everything and starts it as a boot does: by the units that are
// enabled, with an empty /run.
func stopAndStart(t *testing.T, alice *visitor) {
	t.Helper()
	var units []string
	for _, s := range services {
		units = append(units, s.unit)
	}
	all := strings.Join(units, " ")
	sh(t, siteMachine, "systemctl stop carme-portal.socket "+all+" && rm -rf /run/carme*")
	if left := root(t, siteMachine, "pgrep", "-l", "carme-").out; left != "" {
		t.Errorf("still there: %s", left)
	}
	sh(t, siteMachine, "systemctl start multi-user.target sockets.target && systemctl start --no-block $(systemctl show -p Wants --value multi-user.target sockets.target | tr ' ' '\\n' | grep ^carme-)")
	for _, unit := range append(units, "carme-portal.socket") {
		eventually(t, 30*time.Second, unit, func() bool { return property(t, unit, "ActiveState") == "active" })
	}
	eventually(t, 20*time.Second, "alice's login", alice.loggedIn)
	if r := root(t, siteMachine, "carme", "audit", "verify"); r.code != 0 {
		t.Errorf("the audit log: %s%s", r.out, r.err)
	}
}

// anotherPort moves the portal, by the set-up alone, and reaches it from another
// machine by the tunnel that the demo tells of.
func anotherPort(t *testing.T) {
	said := setupSite(t, "--public-port", "8443").ok(t)
	if !strings.Contains(said, "wrote  /etc/carme/portal.yaml") {
		t.Errorf("it says:\n%s", said)
	}
	for port, listens := range map[string]bool{"443": false, "8443": true} {
		if got := sh(t, siteMachine, "ss -Hltn sport = :"+port) != ""; got != listens {
			t.Errorf("somebody listens on %s: %v", port, got)
		}
	}
	const own = node1 // one's own machine
	undo(t, own, "pkill -f '^ssh .*-L 8443'; rm -rf /root/tunnel")
	sh(t, own, "mkdir -m 700 /root/tunnel && ssh-keygen -q -t ed25519 -N '' -f /root/tunnel/key")
	key := root(t, own, "cat", "/root/tunnel/key.pub").ok(t)
	sh(t, siteMachine, "install -d -m 700 /root/.ssh && echo '"+key+"' >/root/.ssh/authorized_keys && systemctl start ssh")
	sh(t, own, "ssh -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/root/tunnel/known -i /root/tunnel/key -fN -L 8443:127.0.0.1:8443 root@"+siteMachine)
	pipe(t, []byte(root(t, siteMachine, "cat", "/etc/carme/web-ca/ca.pem").ok(t)+"\n"), "exec", "-i", container(own), "sh", "-c", "cat >/root/tunnel/ca.pem")
	// As a browser resolves them (RFC 6761).
	ask := func(host, path string) string {
		t.Helper()
		return sh(t, own, fmt.Sprintf("curl -sS --cacert /root/tunnel/ca.pem --resolve %[1]s:8443:127.0.0.1 -H 'Accept: text/html' -w '\\n%%{http_code} %%{redirect_url}' https://%[1]s:8443%[2]s", host, path))
	}
	if page := ask(siteNames.host, "/login"); !strings.HasSuffix(page, "\n200 ") || !strings.Contains(page, `name="username"`) {
		t.Errorf("the login page is %s", page)
	}
	// A session's host sends who is not logged in to the portal, with the port that
	// the browser sees.
	if page := ask("s-"+strings.Repeat("a", 26)+"."+siteNames.apps, "/lab"); !strings.Contains(page, " https://"+siteNames.host+":8443/") {
		t.Errorf("an app's address answers %s", page)
	}
}

// Two portals that browsers cannot tell apart, as behind a load balancer.
func TestScenario_A9_W14_two_portals_with_one_backend_share_logins_and_sessions(t *testing.T) {
	siteHost(t)
	hand := func(from, command, to string) {
		t.Helper()
		pipe(t, []byte(root(t, from, "sh", "-c", command).ok(t)+"\n"), "exec", "-i", container(siteMachine), "sh", "-c", "umask 077; mkdir -p /etc/carme/web-ca; cat >"+to)
	}
	hand(ctl, "cat /etc/carme/ca.pem", "/root/ca.pem")
	hand(ctl, "carme-backend token --role portal --name "+siteMachine, "/root/token")
	hand(login, "cat /etc/carme/web-ca/ca.pem", "/etc/carme/web-ca/ca.pem")
	hand(login, "cat /etc/carme/web-ca/ca.key", "/etc/carme/web-ca/ca.key")
	set := func() result {
		return root(t, siteMachine, "carme", "setup", "--role", "portal", "--portal-host", portalHost, "--apps-domain", appsDomain,
			"--public-port", portalPort, "--backend", "carme-ctl:7443", "--ca", "/root/ca.pem", "--join-token-file", "/root/token")
	}
	set().ok(t)

	first, app := mirrored(t)
	second := site{host: portalHost, apps: appsDomain, port: portalPort, machine: siteMachine}.visit(t, first.name)
	second.client.Jar = first.client.Jar // one browser
	if !second.loggedIn() {
		t.Error("the second portal does not know the login")
	}
	eventually(t, 20*time.Second, "the app through the second portal", func() bool { return second.answers(app) })
	socket := func(v *visitor) (open *line) {
		t.Helper()
		recovers(t, 20*time.Second, "a websocket", func() bool { open = v.socket(app); return open != nil })
		return open
	}
	here := socket(first)

	// One of them dies: the other goes on, without a login.
	sh(t, siteMachine, "systemctl kill --signal=KILL carme-portal")
	kept(t, 3*time.Second, "what is open at the first portal", func() bool { return here.live() && first.answers(app) && first.loggedIn() })
	recovers(t, 20*time.Second, "the app at the second portal", func() bool { return second.answers(app) })
	there := socket(second)
	up := down(t, login, "stop", "carme-portal")
	if _, err := first.try("GET", "/login", ""); err == nil {
		t.Error("the first portal has not stopped")
	}
	if !second.loggedIn() || !second.answers(app) || !there.live() {
		t.Error("what was open at the second ends with the first portal")
	}
	up()
	here = socket(first)

	// Who logs out at one is out at both.
	if r := first.post("/security", "/logout"); r.to() != "/login" {
		t.Fatalf("log out: %s", r)
	}
	recovers(t, 10*time.Second, "the end of the websockets at both", func() bool { return !here.live() && !there.live() })
	if second.answers(app) || second.loggedIn() {
		t.Error("the second portal lets in who has logged out")
	}

	// A token is good once; who has joined needs none.
	set().ok(t)
	sh(t, siteMachine, "rm -r /var/lib/carme/portal/tls")
	set().fails(t, "the backend refuses")
}
