//go:build integration

package integration

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"
)

// visitor is one person at one machine, without a browser: plain HTTPS with a
// jar of cookies. What only a browser does is left out, so that every header is
// the test's own.
type visitor struct {
	t      *testing.T
	name   string
	secret string
	codes  []string // for recovery
	client *http.Client
	at     string // the portal's address
	conf   *tls.Config
	site   site
}

// site are the names of a portal, and its certificate if that is not of the
// testbed's CA.
type site struct {
	host, apps, port string
	own              *x509.Certificate
	// machine has portal and backend, unless it is the testbed's own.
	machine string
}

var firstSite = site{host: portalHost, apps: appsDomain, port: portalPort} //nolint:gochecknoglobals // a constant that Go cannot write

func (s site) url() string {
	if s.port == "443" {
		return "https://" + s.host // as browsers write it
	}
	return "https://" + s.host + ":" + s.port
}

// origin is what the address of a session looks like.
func (s site) origin() *regexp.Regexp {
	return regexp.MustCompile(`https://s-[a-z2-7]{26}\.` + regexp.QuoteMeta(s.apps) + `:` + s.port)
}

// reply is what came back.
type reply struct {
	code   int
	header http.Header
	body   string
}

// to is where a redirect leads, "" if it is none.
func (r reply) to() string { return r.header.Get("Location") }

func (r reply) String() string { return fmt.Sprintf("%d %s %.600s", r.code, r.to(), r.body) }

// webTLS trusts the CA of the testbed's portal.
func webTLS(t *testing.T) *tls.Config {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(root(t, login, "cat", "/etc/carme/web-ca/ca.pem").ok(t))) {
		t.Fatal("the portal's CA cannot be read")
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// visit starts somebody whom nobody knows.
func visit(t *testing.T, name string) *visitor {
	t.Helper()
	return firstSite.visit(t, name)
}

func (s site) visit(t *testing.T, name string) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	at, conf := net.JoinHostPort(address(t, cmp.Or(s.machine, login)), s.port), webTLS(t)
	if s.own != nil {
		conf.RootCAs.AddCert(s.own)
	}
	var dialer net.Dialer
	v := &visitor{t: t, name: name, at: at, conf: conf, site: s}
	transport := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", v.at) },
		TLSClientConfig: conf, ForceAttemptHTTP2: true, DisableCompression: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	v.client = &http.Client{
		Transport: transport, Jar: jar, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return v
}

// try sends a request; headers are lines as in "Name: value".
func (v *visitor) try(method, target, body string, headers ...string) (reply, error) {
	v.t.Helper()
	if strings.HasPrefix(target, "/") {
		target = v.site.url() + target
	}
	req, err := http.NewRequestWithContext(v.t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		switch name {
		case "Host":
			req.Host = value
		case "Cookie":
			req.Header.Add(name, value)
		default:
			req.Header[name] = append(req.Header[name], value)
		}
	}
	res, err := v.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	text, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	return reply{res.StatusCode, res.Header, string(text)}, err
}

func (v *visitor) send(method, target, body string, headers ...string) reply {
	v.t.Helper()
	r, err := v.try(method, target, body, headers...)
	if err != nil {
		v.t.Fatalf("%s %s: %v", method, target, err)
	}
	return r
}

func (v *visitor) get(target string, headers ...string) reply {
	v.t.Helper()
	return v.send("GET", target, "", headers...)
}

const formType = "Content-Type: application/x-www-form-urlencoded"

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// token is what the forms of a page are bound to.
func (v *visitor) token(page string) string {
	v.t.Helper()
	r := v.get(page)
	m := csrfField.FindStringSubmatch(r.body)
	if m == nil {
		v.t.Fatalf("%s has no form: %s", page, r)
	}
	return html.UnescapeString(m[1])
}

// post sends a form that the page shows, with pairs of name and value.
func (v *visitor) post(page, target string, pairs ...string) reply {
	v.t.Helper()
	form := url.Values{"csrf": {v.token(page)}}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	return v.send("POST", target, form.Encode(), formType)
}

// password is the first step of a login.
func (v *visitor) password(user, password string) reply {
	v.t.Helper()
	return v.post("/login", "/login", "username", user, "password", password)
}

// codeAt is the one-time code of a moment.
func (v *visitor) codeAt(at time.Time) string {
	v.t.Helper()
	c, err := totp.GenerateCode(v.secret, at)
	if err != nil {
		v.t.Fatal(err)
	}
	return c
}

// step is how long a one-time code is good.
const codeStep = 30 * time.Second

var (
	shownSecret = regexp.MustCompile(`id="secret">([A-Z2-7 ]+)<`)
	shownCode   = regexp.MustCompile(`\b[a-z2-7]{5}(?:-[a-z2-7]{1,5})+\b`)
)

// midStep waits out the last seconds of a one-time code's step: the backend may
// read a code a moment after it was made, and takes that of the step before its
// own at the earliest.
func midStep(t *testing.T) {
	t.Helper()
	eventually(t, codeStep, "a step of the one-time codes with some seconds left", func() bool {
		now := time.Now()
		return now.Truncate(codeStep).Add(codeStep).Sub(now) > 6*time.Second
	})
}

// login logs somebody in for the first time, with the code of the moment before
// this one: that of now is still good afterwards.
func (v *visitor) login() *visitor {
	v.t.Helper()
	resetFactorOn(v.t, cmp.Or(v.site.machine, ctl), v.name)
	if r := v.password(v.name, v.name+"-pass"); r.code != http.StatusSeeOther || !strings.HasPrefix(r.to(), "/login/enrol") {
		v.t.Fatalf("%s's password: %s", v.name, r)
	}
	r := v.get("/login/enrol")
	m := shownSecret.FindStringSubmatch(r.body)
	if m == nil {
		v.t.Fatalf("no secret is shown: %s", r)
	}
	v.secret = strings.ReplaceAll(m[1], " ", "")
	midStep(v.t)
	r = v.post("/login/enrol", "/login/enrol", "code", v.codeAt(time.Now().Add(-codeStep)))
	if v.codes = shownCode.FindAllString(r.body, -1); r.code != http.StatusOK || len(v.codes) != 10 {
		v.t.Fatalf("%s's first code: %s", v.name, r)
	}
	return v
}

// cookie is the value of one that the visitor would send to an address.
func (v *visitor) cookie(target, name string) string {
	v.t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, c := range v.client.Jar.Cookies(u) {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

// give puts a cookie into the jar.
func (v *visitor) give(target, name, value string) {
	v.t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		v.t.Fatal(err)
	}
	v.client.Jar.SetCookies(u, []*http.Cookie{{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}})
}

const (
	portalCookie = "__Host-carme"
	deviceCookie = "__Host-carme-device"
	nonceCookie  = "__Host-carme-n"
	appCookie    = "__Host-carme-app"
)

// enter follows redirects, as a browser does that comes to an app.
func (v *visitor) enter(target string) reply {
	v.t.Helper()
	for range 8 {
		r := v.get(target)
		if r.to() == "" {
			return r
		}
		base, err := url.Parse(target)
		if err != nil {
			v.t.Fatal(err)
		}
		next, err := base.Parse(r.to())
		if err != nil {
			v.t.Fatal(err)
		}
		target = next.String()
	}
	v.t.Fatalf("redirects without end, the last to %s", target)
	return reply{}
}

// forgetAttempts lets everybody log in again whom an attack has slowed down.
func forgetAttempts(t *testing.T) {
	t.Helper()
	query(t, "DELETE FROM attempts")
	t.Cleanup(func() { query(t, "DELETE FROM attempts") })
}

// query runs a statement on the backend's database, as its user.
func query(t *testing.T, statement string) string {
	t.Helper()
	return root(t, ctl, "setpriv", "--reuid", "carme-backend", "--regid", "carme-backend", "--clear-groups",
		"sqlite3", "-cmd", ".timeout 20000", "/var/lib/carme/backend/carme.db", statement).ok(t)
}

// mirror is a web app that says what it got, keeps a list of it, and answers
// whatever it is told to: it is a victim's witness and an attacker's tool.
const mirror = `
import base64, hashlib, os, socketserver, struct, sys, time, urllib.parse
seen = []
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while self.one(): pass
    def one(self):
        head = []
        while True:
            line = self.rfile.readline(1 << 21)
            if not line: return False
            line = line.rstrip(b"\r\n")
            if not line: break
            head.append(line.decode("latin-1"))
        method, target = (head[0] + "  ").split(" ")[:2]
        fields = {h.split(":", 1)[0].lower(): h.split(":", 1)[1].strip() for h in head[1:]}
        body = b""
        if "chunked" in fields.get("transfer-encoding", ""):
            while True:
                n = int(self.rfile.readline().split(b";")[0], 16)
                body += self.rfile.read(n); self.rfile.readline()
                if n == 0: break
        else:
            body = self.rfile.read(int(fields.get("content-length", 0)))
        path, _, query = target.partition("?")
        q = urllib.parse.parse_qs(query, keep_blank_values=True)
        if path not in ("/seen", "/health"): seen.append(method + " " + target + " " + body[:200].decode("latin-1"))
        if path == "/ws": return self.socket(head, fields)
        if path == "/hang": time.sleep(3600)
        if path == "/raw":
            self.wfile.write(base64.b64decode(q["b"][0])); return False
        status, more = "200 OK", ["Content-Type: text/plain"]
        out = "\n".join(head) + "\n\n" + body.decode("latin-1")
        if path == "/seen": out = "\n".join(seen)
        if path == "/who": out = os.environ["USER"] + " in job " + os.environ["SLURM_JOB_ID"]
        if path == "/reply":
            status, more, out = q.get("status", ["200 OK"])[0], q.get("h", []), q.get("body", [""])[0]
        out = out.encode("latin-1", "replace")
        if method == "HEAD": out = b""
        self.wfile.write(("HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n" % (status, len(out), "".join(m + "\r\n" for m in more))).encode("latin-1") + out)
        return True
    def frame(self, text):
        self.wfile.write(b"\x81" + (bytes([len(text)]) if len(text) < 126 else b"\x7e" + struct.pack(">H", len(text))) + text)
    def socket(self, head, fields):
        key = base64.b64encode(hashlib.sha1((fields.get("sec-websocket-key", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
        self.wfile.write(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n" % key).encode())
        self.frame(("secret of " + os.environ["USER"] + "\n" + "\n".join(head)).encode("latin-1"))
        while self.rfile.read(1): pass
        return False
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True; request_queue_size = 128
os.umask(0o077)
Server(sys.argv[1], Handler).serve_forever()
`

const mirrorApp = `name: mirror
title: Mirror
description: Says what it got
command: [python3, "{{home}}/it-mirror.py", "{{socket}}"]
health: {path: /health, status: [200], timeout_seconds: 30}
path: /
`

// labImage skips a test that needs the image with Python and JupyterLab on a
// cluster without it: it takes minutes to make, and one release has it.
func labImage(t *testing.T) {
	t.Helper()
	if root(t, node1, "test", "-s", "/opt/carme/images/lab.sif").code != 0 {
		t.Skip("this cluster has no image with JupyterLab; SLURM_SUITE=trixie has one")
	}
}

// mirrors offers the mirror on every machine until the test ends.
func mirrors(t *testing.T) {
	t.Helper()
	labImage(t)
	for _, machine := range everywhere {
		place(t, machine, "/etc/carme/apps.d/mirror.yaml", []byte(mirrorApp))
	}
}

// opened is a running session of an app.
type opened struct {
	user, job string
	origin    string // https://s-….apps.carme.localhost:8443
}

func (o opened) host() string  { return strings.TrimPrefix(o.origin, "https://") }
func (o opened) label() string { return strings.SplitN(o.host(), ".", 2)[0] }

// session starts an app with sbatch and waits until the portal shows the way in.
// The image is the one that has a whole Python.
func (v *visitor) session(app string, args ...string) opened {
	v.t.Helper()
	labImage(v.t)
	if app == "mirror" {
		put(v.t, v.name, "it-mirror.py", mirror)
	}
	id := sbatch(v.t, v.name, append([]string{"--time=10", "-w", node1, "--carme=lab", "--carme-app=" + app}, append(args, "--wrap", "true")...)...)
	return opened{v.name, id, v.origin(id)}
}

// origin waits for a job's address.
func (v *visitor) origin(id string) string {
	v.t.Helper()
	var found string
	var last reply
	defer func() {
		if found == "" {
			v.t.Logf("the job's page: %s\nits output: %s", last, homeFile(v.t, v.name, "it-"+id+".out"))
		}
	}()
	eventually(v.t, 2*time.Minute, "the way into job "+id, func() bool {
		last = v.get("/jobs/" + id)
		_, body, _ := strings.Cut(last.body, `id="jobhead"`)
		found = v.site.origin().FindString(body)
		return found != ""
	})
	return found
}

// neighbours are alice and mallory, each with an app on the same node, each with
// a login, and each inside their own app.
func neighbours(t *testing.T) (alice, mallory *visitor, hers, evil opened) {
	t.Helper()
	return firstSite.neighbours(t)
}

func (s site) neighbours(t *testing.T) (alice, mallory *visitor, hers, evil opened) {
	t.Helper()
	mirrors(t)
	alice, mallory = s.visit(t, "alice").login(), s.visit(t, "mallory").login()
	hers, evil = alice.session("mirror"), mallory.session("mirror")
	for _, one := range []struct {
		who *visitor
		app opened
	}{{alice, hers}, {mallory, evil}} {
		if r := one.who.enter(one.app.origin + "/who"); r.body != one.who.name+" in job "+one.app.job {
			t.Fatalf("%s's own app: %s", one.who.name, r)
		}
	}
	return alice, mallory, hers, evil
}

// seen is what an app has got so far, told to its owner.
func (v *visitor) seen(app opened) string {
	v.t.Helper()
	r := v.get(app.origin + "/seen")
	if r.code != http.StatusOK {
		v.t.Fatalf("%s's own app: %s", v.name, r)
	}
	return r.body
}

// line is a connection to the portal on which every byte is the test's own.
type line struct {
	net.Conn

	in *bufio.Reader
}

// connect opens one for a host; protocols are those of ALPN.
func connect(t *testing.T, conf *tls.Config, at, host string, protocols ...string) *line {
	t.Helper()
	name, _, _ := strings.Cut(host, ":")
	conf = conf.Clone()
	conf.ServerName, conf.NextProtos = name, protocols
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: conf}
	conn, err := dialer.DialContext(t.Context(), "tcp", at)
	if err != nil {
		t.Fatalf("connect to %s: %v", host, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &line{conn, bufio.NewReader(conn)}
}

// line opens a connection to the portal, for a host.
func (v *visitor) line(host string) *line {
	v.t.Helper()
	return connect(v.t, v.conf, v.at, host, "http/1.1")
}

// ask writes bytes and reads one answer; nil if there is none.
func (l *line) ask(bytes string) *reply {
	if err := l.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return nil
	}
	if _, err := io.WriteString(l, bytes); err != nil {
		return nil
	}
	res, err := http.ReadResponse(l.in, nil)
	if err != nil {
		return nil
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	got := &reply{code: res.StatusCode, header: res.Header}
	if res.StatusCode != http.StatusSwitchingProtocols && !strings.HasPrefix(bytes, "HEAD ") {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20)) // what there is, is looked at
		got.body = string(text)
	}
	return got
}

// handshake is a request for a websocket.
func handshake(host string, headers ...string) string {
	return "GET /ws HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: " + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef")) + "\r\n" + strings.Join(append(headers, "\r\n"), "\r\n")
}

// frame reads one frame of a websocket, as the mirror sends them.
func (l *line) frame() (string, error) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(l.in, head); err != nil {
		return "", err
	}
	size := uint16(head[1])
	if size == 126 {
		if err := binary.Read(l.in, binary.BigEndian, &size); err != nil {
			return "", err
		}
	}
	text := make([]byte, size)
	_, err := io.ReadFull(l.in, text)
	return string(text), err
}

// websocket opens one to an app, with the visitor's cookie; headers are further
// ones. The line is nil if it was refused.
func (v *visitor) websocket(app opened, headers ...string) (*line, string, int) {
	v.t.Helper()
	l := v.line(app.host())
	res := l.ask(handshake(app.host(), append(headers, "Cookie: "+appCookie+"="+v.cookie(app.origin, appCookie))...))
	if res == nil {
		v.t.Fatal("no answer to a websocket's handshake")
	}
	if res.code != http.StatusSwitchingProtocols {
		return nil, "", res.code
	}
	text, err := l.frame()
	if err != nil {
		v.t.Fatalf("the websocket says nothing: %v", err)
	}
	return l, text, res.code
}

// atOnce runs a function many times at the same time.
func atOnce(n int, do func(i int)) {
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-start
			do(i)
		})
	}
	close(start)
	all.Wait()
}
