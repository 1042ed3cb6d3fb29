//go:build integration

package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// jupyter asks a JupyterLab's own API, as its pages do.
func (v *visitor) jupyter(app opened, method, path string) reply {
	v.t.Helper()
	return v.send(method, app.origin+path, "", "Origin: "+app.origin, "Sec-Fetch-Site: same-origin", "X-XSRFToken: "+v.cookie(app.origin, "_xsrf"))
}

// kernel starts one and returns a function that runs Python in it and returns
// what it prints, and one that sends any message.
func (v *visitor) kernel(app opened) (python func(code string) string, message func(channel, kind string, content any)) {
	v.t.Helper()
	var made struct{ ID string }
	if r := v.jupyter(app, "POST", "/api/kernels"); json.Unmarshal([]byte(r.body), &made) != nil || made.ID == "" {
		v.t.Fatalf("start a kernel: %s", r)
	}
	at := net.JoinHostPort(address(v.t, login), portalPort)
	var dialer net.Dialer
	client := &http.Client{Jar: v.client.Jar, Transport: &http.Transport{
		TLSClientConfig: webTLS(v.t), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", at) },
	}}
	conn, res, err := websocket.Dial(v.t.Context(), app.origin+"/api/kernels/"+made.ID+"/channels", &websocket.DialOptions{HTTPClient: client, HTTPHeader: http.Header{"Origin": {app.origin}}}) //nolint:bodyclose // the library does
	if err != nil {
		v.t.Fatalf("open the kernel's channels: %v %v", err, res)
	}
	conn.SetReadLimit(16 << 20)
	v.t.Cleanup(func() { _ = conn.CloseNow() })
	n := 0
	message = func(channel, kind string, content any) {
		v.t.Helper()
		n++
		data, err := json.Marshal(map[string]any{
			"header":        map[string]any{"msg_id": strings.Repeat("m", n), "username": "u", "session": "s", "msg_type": kind, "version": "5.3", "date": time.Now()},
			"parent_header": map[string]any{}, "metadata": map[string]any{}, "content": content, "channel": channel, "buffers": []any{},
		})
		if err != nil {
			v.t.Fatal(err)
		}
		if err := conn.Write(v.t.Context(), websocket.MessageText, data); err != nil {
			v.t.Fatalf("ask the kernel: %v", err)
		}
	}
	python = func(code string) string {
		v.t.Helper()
		message("shell", "execute_request", map[string]any{"code": code, "silent": false, "store_history": false, "user_expressions": map[string]any{}, "allow_stdin": false})
		id := strings.Repeat("m", n)
		ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
		defer cancel()
		out := ""
		for {
			_, data, err := conn.Read(ctx)
			if err != nil {
				v.t.Fatalf("the kernel says nothing: %v\n%s", err, out)
			}
			var m struct {
				Type   string `json:"msg_type"`
				Parent struct {
					MsgID string `json:"msg_id"`
				} `json:"parent_header"` //nolint:tagliatelle // Jupyter's name
				Content struct {
					Text  string
					State string `json:"execution_state"` //nolint:tagliatelle // Jupyter's name
					Value string `json:"evalue"`
				}
			}
			if json.Unmarshal(data, &m) != nil || m.Parent.MsgID != id {
				continue
			}
			out += m.Content.Text + m.Content.Value
			if m.Type == "status" && m.Content.State == "idle" {
				return out
			}
		}
	}
	return python, message
}

func TestAttack_J2_a_neighbours_kernel_terminal_and_debugger(t *testing.T) {
	alice := visit(t, "alice").login()
	abstract := func() []string { return lines(sh(t, node1, `awk '$8 ~ /^@/ {print $8}' /proc/net/unix | sort -u`)) }
	before := abstract()
	app := alice.session("jupyterlab", "--mem=1500")
	alice.enter(app.origin + "/lab")
	python, message := alice.kernel(app)
	if r := alice.jupyter(app, "POST", "/api/terminals"); r.code != http.StatusOK && r.code != http.StatusCreated {
		t.Fatalf("start a terminal: %s", r)
	}
	const secret = "secret-of-alice-4711"
	if out := python("print('" + secret + "')"); !strings.Contains(out, secret) {
		t.Fatalf("the kernel prints %q", out)
	}
	// The debugger, by its own protocol and by hand.
	message("control", "debug_request", map[string]any{"seq": 1, "type": "request", "command": "initialize", "arguments": map[string]any{}}) //nolint:misspell // the protocol's spelling
	message("control", "debug_request", map[string]any{"seq": 2, "type": "request", "command": "attach", "arguments": map[string]any{}})
	if out := python("import debugpy\nprint(debugpy.listen(0))"); !strings.Contains(out, "carme-net=private") {
		t.Errorf("the debugger is there: %q", out)
	}
	python("import threading, time\nthreading.Thread(target=lambda: [(print('" + secret + "', i), time.sleep(0.2)) for i in range(600)], daemon=True).start()")
	if names := slices.DeleteFunc(abstract(), func(name string) bool { return slices.Contains(before, name) }); len(names) > 0 {
		t.Errorf("abstract sockets that were not there before: %v", names)
	}
	script := put(t, "mallory", "it-neighbour.py", `
import os, re, socket, struct, sys, time
secret = b"secret-of-alice"
def ports():
    found = set()
    for proto in ("tcp", "tcp6"):
        for row in open("/proc/net/" + proto).readlines()[1:]:
            f = row.split()
            if f[3] == "0A": found.add((int(f[1].split(":")[1], 16), int(f[7])))
    return found
# ZMTP 3.0: greeting, READY as a given kind of socket, a subscription to everything.
greeting = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\0" + b"NULL".ljust(20, b"\0") + b"\0" + b"\0" * 31
def ready(kind):
    body = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind + b"\x08Identity" + struct.pack(">I", 0)
    return b"\x04" + bytes([len(body)]) + body
def listen(port, first):
    got = b""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as s:
            s.settimeout(2); s.sendall(first)
            end = time.time() + 3
            while time.time() < end:
                part = s.recv(65536)
                if not part: break
                got += part
    except OSError: pass
    return got
for port, uid in sorted(ports()):
    if uid in (0, os.getuid()): continue
    print("port", port, "of", uid)
    for what, first in {
        "sub": greeting + ready(b"SUB") + b"\0\x01\x01", "dealer": greeting + ready(b"DEALER") + b"\x01\0\0\x0bnothing-yet", "push": greeting + ready(b"PUSH") + b"\x01\x05wrong\0\x01a",
        "http": b"GET /api/contents HTTP/1.1\r\nHost: localhost\r\n\r\n", "dap": b'Content-Length: 59\r\n\r\n{"seq":1,"type":"request","command":"attach___","arguments":{}}', "silence": b"",
    }.items():
        got = listen(port, first)
        if secret in got or b"HTTP/1" in got or b"Content-Length" in got: print("won", port, what, got[:300])
for row in open("/proc/net/unix").readlines()[1:]:
    f = row.split()
    if len(f) < 8: continue
    name = f[7]
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        s = socket.socket(socket.AF_UNIX, kind); s.settimeout(1)
        try:
            s.connect("\0" + name[1:] if name.startswith("@") else name)
            if name.startswith("@") or "jupyter" in name or "kernel" in name or "app.sock" in name: print("won socket", name)
        except OSError: pass
        s.close()
for pid in filter(str.isdigit, os.listdir("/proc")):
    for what in ("environ", "maps", "root/etc/hostname", "cwd", "fd/0", "mem"):
        try:
            if os.stat("/proc/" + pid).st_uid in (0, os.getuid()): continue
            open("/proc/%s/%s" % (pid, what), "rb").read(1); print("won", pid, what)
        except OSError: pass
for top in ("/tmp", "/run", "/var/tmp", "/dev/shm", "/home/alice/.local/share/jupyter/runtime", "/run/user"):
    for at, dirs, files in os.walk(top):
        for f in files:
            if re.match(r"kernel-.*\.json|jpserver-", f):
                try: open(os.path.join(at, f)).read(); print("won", at, f)
                except OSError: pass
print("tried")
`)
	for where, args := range map[string][]string{"in a seal": {"--carme=none"}, "in an image": {"--carme=lab"}, "without a seal": nil} {
		r := srun(t, "mallory", append(append([]string{"-w", node1}, args...), "python3", script)...)
		if !strings.Contains(r.out, "tried") || strings.Contains(r.out, "won") {
			t.Errorf("%s: %s\n%s", where, r.out, r.err)
		}
		// One port for each kernel is left, the output of its children: it takes
		// what comes with 16 secret bytes in front, and gives nothing.
		if n := strings.Count(r.out, "of 10001"); n > 1 {
			t.Errorf("%s: alice listens on %d ports:\n%s", where, n, r.out)
		}
	}
	if out := python("print('still', 'here')"); !strings.Contains(out, "still here") || strings.Contains(out, "wrong") {
		t.Errorf("the kernel afterwards: %q", out)
	}
}

func TestAttack_J2_another_jobs_app_by_any_path(t *testing.T) {
	alice, _, hers, _ := neighbours(t)
	before := alice.seen(hers)
	connect := `perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, pack_sockaddr_un($ARGV[0])) or exit 1; syswrite S, "GET /who HTTP/1.1\r\n\r\n"; alarm 2; sysread S, $_, 4096; print "won: $ARGV[0]: $_\n" unless /mallory in job/' `
	script := `
for p in /run/carme/jobs/` + hers.job + `/sess/app.sock /run/carme/jobs/*/sess/app.sock /run/carme/sess/../jobs/` + hers.job + `/sess/app.sock /run/carme/job/../jobs/` + hers.job + `/sess/app.sock /run/carme/agent.sock /run/carme/jobs/` + hers.job + `/anchor.sock; do
	` + connect + `"$p" 2>/dev/null; ln -sfn "$p" /tmp/link; ` + connect + `/tmp/link 2>/dev/null; done
for p in /proc/[0-9]*; do [ "$(stat -c %u $p 2>/dev/null)" = "$(id -u)" ] && [ -e $p/root/run/carme/sess ] && [ "$(readlink $p/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ] && echo won $p
	` + connect + `$p/root/run/carme/sess/app.sock 2>/dev/null; ` + connect + `$p/cwd/app.sock 2>/dev/null; done
awk '{print $8}' /proc/net/unix | sort -u | while read -r p; do case $p in *app.sock|/run/carme*) ` + connect + `"$p" 2>/dev/null;; esac; done
ls -A /run/carme/jobs/` + hers.job + ` 2>/dev/null | grep . && echo won listing
cat /run/carme/jobs/` + hers.job + `/session.json 2>/dev/null && echo won record
echo x >/run/carme/jobs/` + hers.job + `/session.json 2>/dev/null && echo won write
mkdir -p /run/carme/jobs/99999/sess 2>/dev/null && echo won invention
unshare -Urm sh -c 'umount -l /run/carme; ls /run/carme/jobs/` + hers.job + `/sess' 2>/dev/null && echo won by umount
unshare -Urm sh -c 'mount --bind / /mnt && ls /mnt/run/carme/jobs/` + hers.job + `/sess' 2>/dev/null && echo won by bind
`
	attack(t, script)
	// Without a seal she sees her own job, and that alone.
	r := srun(t, "mallory", "-w", node1, "bash", "-c", script+"\necho tried")
	if strings.Contains(regexp.MustCompile(`won /proc/\d+`).ReplaceAllString(r.out, ""), "won") || !strings.Contains(r.out, "tried") {
		t.Errorf("without a seal:\n%s\n%s", r.out, r.err)
	}
	if after := alice.seen(hers); after != before {
		t.Errorf("alice's app got\n%s", strings.TrimPrefix(after, before))
	}
}

func TestAttack_J2_W14_the_sessions_directory_leads_the_agent_nowhere(t *testing.T) {
	alice, mallory, hers, evil := neighbours(t)
	before := alice.seen(hers)
	inside := func(script string) result {
		t.Helper()
		return as(t, "mallory", login, "timeout", "80", "srun", "--jobid="+evil.job, "--overlap", "bash", "-c", "cd /run/carme/sess && "+script)
	}
	inside("mv app.sock real.sock").ok(t)
	for what, script := range map[string]string{
		"the neighbour's, by a link":   "ln -s /run/carme/jobs/" + hers.job + "/sess/app.sock app.sock",
		"by a relative link":           "ln -s ../../" + hers.job + "/sess/app.sock app.sock",
		"the agent's":                  "ln -s /run/carme/agent.sock app.sock",
		"MUNGE's":                      "ln -s /run/munge/munge.socket.2 app.sock",
		"MUNGE's, by a hard link":      "ln -P /run/munge/munge.socket.2 app.sock || ln -s /run/munge/munge.socket.2 app.sock",
		"through /proc":                "ln -s /proc/1/root/run/carme/agent.sock app.sock",
		"the own one, by a link":       "ln -s real.sock app.sock",
		"a pipe":                       "mkfifo app.sock",
		"a directory":                  "mkdir app.sock",
		"a directory with one":         "mkdir app.sock && cp -a real.sock app.sock/app.sock",
		"a file":                       "echo hello >app.sock",
		"a link to itself":             "ln -s app.sock app.sock",
		"nothing":                      "true",
		"a socket that nobody answers": `perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un("app.sock"))'`,
	} {
		inside("rm -rf app.sock; " + script).ok(t)
		// A websocket is a new stream each time.
		for range 2 {
			if l, text, code := mallory.websocket(evil, "Origin: "+evil.origin); l != nil || code < 500 {
				t.Errorf("%s: %d %s", what, code, text)
			}
		}
	}
	// Swapped all the time, it is the own one or none.
	swap := "rm -rf app.sock; end=$((SECONDS+20)); while [ $SECONDS -lt $end ]; do ln -sfn /run/carme/jobs/" + hers.job + "/sess/app.sock a; mv -T a app.sock; ln -sfn /run/carme/agent.sock a; mv -T a app.sock; ln -f real.sock b; mv -T b app.sock; done"
	done := make(chan struct{})
	go func() {
		defer close(done)
		inside(swap)
	}()
	own := 0
	for range 100 {
		l, text, code := mallory.websocket(evil, "Origin: "+evil.origin)
		switch {
		case l != nil && strings.HasPrefix(text, "secret of mallory"):
			own++
			_ = l.Close() // the next one has room
		case l != nil || code < 500:
			t.Errorf("while swapping: %d %s", code, text)
		}
	}
	<-done
	t.Logf("%d of 100 reached the own app", own)
	// What the job says of itself goes no further than a line of text.
	for what, script := range map[string]string{
		"root's file": "ln -sfn /etc/shadow status", "a pipe": "rm -f status; mkfifo status", "a device": "ln -sfn /dev/zero status", "a directory": "rm -f status; mkdir status",
		"much": "rm -rf status; head -c 50000000 /dev/zero | tr '\\0' a >status", "markup": "rm -f status; printf 'starting\\n<script>alert(1)</script>\\033[2J\\n' >status", "nonsense": "printf '\\377\\376\\0' >status",
	} {
		inside(script).ok(t)
		eventually(t, 15*time.Second, "the page", func() bool { return mallory.get("/jobs/"+evil.job).code == http.StatusOK })
		for range 5 {
			if r := mallory.get("/jobs/" + evil.job); strings.Contains(r.body, "root:") || strings.Contains(r.body, "<script>alert") || strings.Contains(r.body, "\x1b") || len(r.body) > 1<<20 {
				t.Errorf("%s: the page says %.300s", what, r.body)
			}
		}
		if r := alice.get(hers.origin + "/who"); r.code != http.StatusOK {
			t.Errorf("%s: alice's app: %s", what, r)
		}
	}
	// The directory itself cannot be exchanged.
	if r := inside("cd /; mv /run/carme/sess /run/carme/x || rmdir /run/carme/sess || mount --bind /tmp /run/carme/sess"); r.code == 0 {
		t.Error("the directory was exchanged")
	}
	inside("rm -rf app.sock status; ln real.sock app.sock").ok(t)
	if r := mallory.get(evil.origin + "/who"); !strings.HasPrefix(r.body, "mallory") {
		t.Errorf("the own app at last: %s", r)
	}
	if after := alice.seen(hers); strings.ReplaceAll(strings.TrimPrefix(after, before), "\nGET /who ", "") != "" {
		t.Errorf("alice's app got\n%s", strings.TrimPrefix(after, before))
	}
}

// door is a node's agent and what it is known by. To ask Docker for each of
// hundreds of attempts would take minutes.
type door struct {
	at string
	ca *x509.CertPool
}

var doors sync.Map //nolint:gochecknoglobals // of a node's name to its door

// agent speaks to a node's agent: it sends bytes and returns the first that come
// back; an error if the agent closes instead.
func agent(t *testing.T, node string, cert *tls.Certificate, send []byte, protocols ...string) ([]byte, error) {
	t.Helper()
	known, ok := doors.Load(node)
	if !ok {
		known, _ = doors.LoadOrStore(node, door{net.JoinHostPort(address(t, node), "7444"), ours(t)})
	}
	conf := &tls.Config{RootCAs: known.(door).ca, ServerName: node, NextProtos: protocols, MinVersion: tls.VersionTLS13}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	if slices.Contains(protocols, "carme-enrol/1") {
		conf.InsecureSkipVerify = true
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: conf}
	conn, err := dialer.DialContext(t.Context(), "tcp", known.(door).at)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing is kept
	if err := conn.SetDeadline(time.Now().Add(8 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(send); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer)
	return answer[:n], err
}

// framed is a route token as the relay reads it.
func framed(token []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(token))), token...)
}

const (
	relayALPN   = "carme-relay/1"
	controlALPN = "carme-control/1"
	enrolALPN   = "carme-enrol/1"
)

func TestAttack_A8_the_agent_answers_certificates_of_the_right_role_alone(t *testing.T) {
	ping := []byte("{\"op\":\"ping\"}\n")
	tail := []byte(`{"op":"tail","uid":10001,"gid":10001,"path":"/home/alice/.bashrc","offset":0,"max":100}` + "\n")
	if answer, err := agent(t, node1, stolen(t, "backend"), ping, controlALPN); err != nil || !strings.Contains(string(answer), `"ok":true`) {
		t.Fatalf("the control: %q %v", answer, err)
	}
	portal := named("carme://portal/carme-login")
	backend := named("carme://backend/carme-ctl")
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	all := map[string]*tls.Certificate{
		"nobody": nil, "its own node": stolen(t, "node1"), "another node": stolen(t, "node2"), "self-signed portal": forged(t, "", "", portal), "self-signed backend": forged(t, "", "", backend),
		"the browsers' CA": forged(t, login, webCA, backend), "expired portal": forged(t, ctl, ownCA, func(c *x509.Certificate) { portal(c); expired(c) }), "expired backend": forged(t, ctl, ownCA, func(c *x509.Certificate) { backend(c); expired(c) }),
		"two roles": forged(t, ctl, ownCA, named("carme://backend/x", "carme://portal/x")), "a DNS name alone": forged(t, ctl, ownCA, func(c *x509.Certificate) { c.DNSNames = []string{"carme-ctl"} }),
	}
	for what, cert := range all {
		for _, protocol := range []string{relayALPN, controlALPN, enrolALPN} {
			for _, bytes := range [][]byte{ping, tail, framed([]byte("token")), {0, 0}, []byte("GET / HTTP/1.1\r\n\r\n"), []byte(`{"nonce":"00112233445566778899aabbccddeeff","uid":10005}` + "\n")} {
				if answer, err := agent(t, node1, cert, bytes, protocol); len(answer) > 0 || err == nil {
					t.Errorf("%s by %s: %q", what, protocol, answer)
				}
			}
		}
	}
	for what, c := range map[string]struct {
		who       string
		send      []byte
		protocols []string
	}{
		"a portal at the control": {"portal", tail, []string{controlALPN}}, "a backend at the relay": {"backend", framed([]byte("token")), []string{relayALPN}},
		"no protocol": {"backend", ping, nil}, "HTTP/2": {"backend", ping, []string{"h2"}}, "all protocols": {"portal", tail, []string{relayALPN, controlALPN}}, "the other way round": {"portal", tail, []string{controlALPN, relayALPN}},
	} {
		if answer, err := agent(t, node1, stolen(t, c.who), c.send, c.protocols...); err == nil && len(answer) > 0 {
			t.Errorf("%s: %q", what, answer)
		}
	}
	// Not even the backend reads as root, or what is no file.
	for _, request := range []string{
		`{"op":"tail","uid":0,"gid":0,"path":"/etc/shadow","offset":0,"max":100}`, `{"op":"tail","uid":10005,"gid":0,"path":"/etc/shadow","offset":0,"max":100}`, `{"op":"tail","uid":10005,"gid":10005,"gids":[0],"path":"/etc/shadow","offset":0,"max":100}`,
		`{"op":"tail","uid":10005,"gid":10005,"path":"/etc/shadow","offset":0,"max":100}`, `{"op":"tail","uid":10005,"gid":10005,"path":"/dev/zero","offset":0,"max":100}`, `{"op":"tail","uid":10005,"gid":10005,"path":"../etc/passwd","offset":0,"max":100}`,
		`{"op":"tail","uid":999,"gid":999,"path":"/etc/passwd","offset":0,"max":100}`, `{"op":"tail","uid":4294967295,"gid":10005,"path":"/etc/passwd","offset":0,"max":100}`, `{"op":"tail","uid":-1,"gid":10005,"path":"/etc/passwd"}`, `{"op":"exec","path":"/bin/sh"}`, `[]`,
	} {
		if answer, err := agent(t, node1, stolen(t, "backend"), []byte(request+"\n"), controlALPN); err == nil && strings.Contains(string(answer), `"ok":true`) {
			t.Errorf("%s: %q", request, answer)
		}
	}
	// From inside a job, with what a user has.
	script := put(t, "mallory", "it-agent.py", `
import os, socket, ssl
def attempt(host, port, alpn):
    c = ssl._create_unverified_context(); c.set_alpn_protocols(alpn)
    try:
        with c.wrap_socket(socket.create_connection((host, port), 5), server_hostname=host) as s:
            s.settimeout(8); s.sendall(b'{"op":"ping"}\n'); got = s.recv(100)
            if got: print("won", host, port, alpn, got)
    except OSError: pass
for host in ("127.0.0.1", "`+node1+`", "`+node2+`"):
    for alpn in (["`+relayALPN+`"], ["`+controlALPN+`"], ["`+enrolALPN+`"], ["h2"]): attempt(host, 7444, alpn)
for address in (("", 7444), ("127.0.0.1", 7444), (socket.gethostbyname("`+node1+`"), 7444)):
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, option, 1)
        try: s.bind(address); s.listen(); print("won the port", address, option)
        except OSError: pass
        s.close()
for path in ("/run/carme/agent.sock", "/run/carme/jobs/../agent.sock"):
    try: socket.socket(socket.AF_UNIX).connect(path); print("won", path)
    except OSError: pass
print("tried")
`)
	for where, args := range map[string][]string{"in a seal": {"--carme=none"}, "without a seal": nil} {
		r := srun(t, "mallory", append(append([]string{"-w", node1}, args...), "python3", script)...)
		if strings.Contains(r.out, "won") || !strings.Contains(r.out, "tried") {
			t.Errorf("%s: %s\n%s", where, r.out, r.err)
		}
	}
}

func TestAttack_A8_route_tokens_are_for_one_job_one_node_one_portal_and_two_minutes(t *testing.T) {
	mirrors(t)
	mallory := visit(t, "mallory").login()
	evil := mallory.session("mirror")
	mallory.enter(evil.origin + "/")
	portal := stolen(t, "portal")
	grant := func(cert *tls.Certificate) []byte {
		t.Helper()
		code, text := api(t, cert).ask("POST", "/v1/grants", "", map[string]string{"host": evil.label(), "token": mallory.cookie(evil.origin, appCookie)})
		var g struct {
			Token   []byte
			Expires time.Time
		}
		if code != http.StatusOK || json.Unmarshal([]byte(text), &g) != nil || len(g.Token) == 0 || time.Until(g.Expires) > 2*time.Minute {
			t.Fatalf("a grant for the own app: %d %s", code, text)
		}
		return g.Token
	}
	token := grant(portal)
	issued := time.Now()
	status := func(node string, cert *tls.Certificate, token []byte) int {
		t.Helper()
		answer, err := agent(t, node, cert, framed(token), relayALPN)
		if len(answer) == 0 {
			if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("no answer: %v", err)
			}
			return -1
		}
		return int(answer[0])
	}
	if s := status(node1, portal, token); s != 0 {
		t.Fatalf("the token itself: %d", s)
	}
	// Every bit counts; so does the length.
	for i := range token {
		changed := bytes.Clone(token)
		changed[i] ^= 1 << (i % 8)
		if s := status(node1, portal, changed); s == 0 {
			t.Errorf("byte %d changed: %d", i, s)
		}
	}
	for what, bad := range map[string][]byte{
		"cut": token[:len(token)-1], "longer": append(bytes.Clone(token), 0), "twice": append(bytes.Clone(token), token...), "empty": {}, "zeros": make([]byte, len(token)),
		"the longest": bytes.Repeat([]byte{1}, 2048), "too long": bytes.Repeat([]byte{1}, 60000), "in base64": []byte(base64.StdEncoding.EncodeToString(token)),
	} {
		if s := status(node1, portal, bad); s == 0 {
			t.Errorf("%s: %d", what, s)
		}
	}
	for range 30 {
		guess := bytes.Clone(token)
		if _, err := io.ReadFull(rand.Reader, guess[len(guess)-64:]); err != nil {
			t.Fatal(err)
		}
		if s := status(node1, portal, guess); s == 0 {
			t.Error("a guessed signature is taken")
		}
	}
	if s := status(node2, portal, token); s != 6 {
		t.Errorf("on the other node: %d", s)
	}
	other := forged(t, ctl, ownCA, named("carme://portal/carme-login"))
	if s := status(node1, other, token); s != 1 {
		t.Errorf("shown by another portal: %d", s)
	}
	if s := status(node1, other, grant(other)); s != 0 {
		t.Errorf("the other portal's own: %d", s)
	}
	// Time passes, and the same bytes are worth nothing.
	eventually(t, 3*time.Minute, "end of the token's life", func() bool { return status(node1, portal, token) == 1 })
	if life := time.Since(issued); life > 125*time.Second {
		t.Errorf("the token lived %v", life)
	}
	last := grant(portal)
	root(t, ctl, "scancel", evil.job).ok(t)
	eventually(t, 20*time.Second, "end of the way", func() bool { return status(node1, portal, last) == 2 })
}

func TestAttack_W14_while_the_agent_is_away_its_port_is_nobodys(t *testing.T) {
	mirrors(t)
	alice := visit(t, "alice").login()
	hers := alice.session("mirror")
	alice.enter(hers.origin + "/")
	undo(t, node1, "svc start carme-agent")
	root(t, node1, "svc", "stop", "carme-agent").ok(t)
	// mallory's job takes the port and notes everything that is sent to it.
	script := put(t, "mallory", "it-port.py", `
import os, socket, ssl, subprocess, threading, time
home = os.path.expanduser("~")
subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", home + "/it.key", "-out", home + "/it.crt", "-subj", "/CN=`+node1+`", "-addext", "subjectAltName=URI:carme://node/`+node1+`,DNS:`+node1+`"], check=True, stderr=subprocess.DEVNULL)
c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain(home + "/it.crt", home + "/it.key"); c.set_alpn_protocols(["`+relayALPN+`", "`+controlALPN+`"])
s = socket.create_server(("", 7444)); print("up", flush=True)
while True:
    raw, _ = s.accept(); raw.settimeout(5)
    try:
        with c.wrap_socket(raw, server_side=True) as conn: print("got", conn.recv(100), flush=True); conn.sendall(b"\0HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nwon")
    except OSError as e: print("tried", flush=True)
`)
	id := sbatch(t, "mallory", "-w", node1, "--carme=none", "--wrap", "python3 "+script)
	eventually(t, 30*time.Second, "mallory's server", func() bool { return strings.HasPrefix(homeFile(t, "mallory", "it-"+id+".out"), "up") })
	for range 5 {
		if r := alice.get(hers.origin + "/who"); r.code < 500 || strings.Contains(r.body, "won") {
			t.Errorf("alice reaches %s", r)
		}
	}
	alice.get("/jobs/" + hers.job) // the backend asks the node for the output
	out := homeFile(t, "mallory", "it-"+id+".out")
	if !strings.Contains(out, "tried") || regexp.MustCompile(`got b'.`).MatchString(out) {
		t.Errorf("mallory's server says\n%s", out)
	}
	root(t, ctl, "scancel", id).ok(t)
	awaitState(t, id, 30*time.Second, "CANCELLED")
	root(t, node1, "svc", "start", "carme-agent").ok(t)
	eventually(t, 40*time.Second, "alice's app", func() bool { return alice.get(hers.origin+"/who").code == http.StatusOK })
}

// Users may run programs on a portal's host too, and of one address the agent has only
// so many handshakes at once.
func TestAttack_W14_handshakes_stalled_on_the_portals_host_shut_no_session_out(t *testing.T) {
	mirrors(t)
	alice := visit(t, "alice").login()
	// One after the other, so that they are given up so, and each is begun anew.
	script := put(t, "mallory", "it-stall.pl", `
use IO::Socket::INET; use IO::Select; my $all = IO::Select->new;
sub stall { select undef, undef, undef, $_[0]; my $s = IO::Socket::INET->new(PeerAddr => "`+net.JoinHostPort(address(t, node1), "7444")+`", Timeout => 2); $all->add($s) if $s }
stall(0.05) for 1 .. 96;
open my $up, ">", "$ENV{HOME}/it-stalled"; close $up;
while (1) { for my $s ($all->can_read(5)) { $all->remove($s); close $s; stall(0.002) } }`)
	as(t, "mallory", login, "rm", "-f", "it-stalled").ok(t)
	background(t, "mallory", login, "perl", script)
	eventually(t, 30*time.Second, "stalled handshakes", func() bool {
		return as(t, "mallory", login, "test", "-e", "it-stalled").code == 0
	})
	eventually(t, 10*time.Second, "as many as there may be", func() bool {
		open := lines(root(t, node1, "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6 | grep -i ':1D14 [0-9A-F:]* 01 ' || :").ok(t)) // 7444, established
		return len(open) >= 64
	})
	hers := alice.session("mirror")
	start := time.Now()
	if r := alice.enter(hers.origin + "/who"); r.body != "alice in job "+hers.job || time.Since(start) > 10*time.Second {
		t.Errorf("alice's app, after %v: %s", time.Since(start), r)
	}
}

// In a network of its own a kernel may have its debugger: its ports are the job's.
func TestScenario_W13_J3_the_debugger_works_in_a_private_network(t *testing.T) {
	alice := visit(t, "alice").login()
	app := alice.session("jupyterlab", "--mem=1500", "--carme-net=private")
	alice.enter(app.origin + "/lab")
	python, _ := alice.kernel(app)
	out := python("import debugpy\nprint('listens on', debugpy.listen(('127.0.0.1', 0))[1])")
	m := regexp.MustCompile(`listens on (\d+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("the debugger: %q", out)
	}
	inside := python("import socket\ns = socket.create_connection(('127.0.0.1', " + m[1] + "), 5)\nprint(s.recv(20)[:15])")
	if !strings.Contains(inside, "Content-Length") {
		t.Errorf("from inside: %q", inside)
	}
	for where, args := range map[string][]string{"in a seal": {"--carme=none"}, "without a seal": nil} {
		r := srun(t, "mallory", append(append([]string{"-w", node1}, args...), "perl", "-MIO::Socket::INET", "-e",
			`print IO::Socket::INET->new(PeerAddr => "127.0.0.1:$ARGV[0]", Timeout => 3) ? "won" : "tried"`, m[1])...)
		if r.out != "tried" {
			t.Errorf("a neighbour %s: %s %s", where, r.out, r.err)
		}
	}
}
