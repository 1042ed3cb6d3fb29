//go:build integration

package integration

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ours trusts the CA of Carme's daemons.
func ours(t *testing.T) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(root(t, ctl, "cat", "/etc/carme/ca.pem").ok(t))) {
		t.Fatal("the CA cannot be read")
	}
	return pool
}

// where a daemon has its certificate and key.
var identities = map[string]struct{ machine, dir string }{
	"portal": {login, "/var/lib/carme/portal/tls"}, "backend": {ctl, "/var/lib/carme/backend/tls"},
	"node1": {node1, "/var/lib/carme/agent/certs/current"}, "node2": {node2, "/var/lib/carme/agent/certs/current"},
}

// stolen is a daemon's certificate, as whoever is root on its machine has it.
func stolen(t *testing.T, who string) *tls.Certificate {
	t.Helper()
	from := identities[who]
	cert, err := tls.X509KeyPair([]byte(root(t, from.machine, "cat", from.dir+"/cert.pem").ok(t)), []byte(root(t, from.machine, "cat", from.dir+"/key.pem").ok(t)))
	if err != nil {
		t.Fatal(err)
	}
	return &cert
}

// forged makes a certificate with a key of its own, signed by the CA whose files
// are on a machine, or by itself.
func forged(t *testing.T, machine, caDir string, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "carme-login"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	change(template)
	parent, signer := template, crypto.Signer(key)
	if caDir != "" {
		pair, err := tls.X509KeyPair([]byte(root(t, machine, "cat", caDir+"/ca.pem").ok(t)), []byte(root(t, machine, "cat", caDir+"/ca.key").ok(t)))
		if err != nil {
			t.Fatal(err)
		}
		parent, signer = pair.Leaf, pair.PrivateKey.(crypto.Signer)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

const (
	ownCA = "/var/lib/carme/signer"
	webCA = "/etc/carme/web-ca"
)

func named(uris ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, text := range uris {
			u, err := url.Parse(text)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

// rest is the backend's API for somebody with a certificate or none.
type rest struct {
	t      *testing.T
	client *http.Client
}

func api(t *testing.T, cert *tls.Certificate) rest {
	t.Helper()
	conf := &tls.Config{RootCAs: ours(t), MinVersion: tls.VersionTLS13, ServerName: ctl}
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	at := net.JoinHostPort(address(t, ctl), "7443")
	var dialer net.Dialer
	transport := &http.Transport{
		TLSClientConfig: conf, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", at) },
	}
	t.Cleanup(transport.CloseIdleConnections)
	return rest{t, &http.Client{Transport: transport, Timeout: 30 * time.Second}}
}

// ask sends a request with a session's token, if there is one. The status is 0
// if there was no answer at all.
func (a rest) ask(method, path, token string, body any) (code int, text string) {
	a.t.Helper()
	// The API bounds how much one source may ask in a moment: that is no answer.
	eventually(a.t, time.Minute, "an answer to "+method+" "+path, func() bool {
		code, text = a.once(method, path, token, body)
		return code != http.StatusTooManyRequests
	})
	return code, text
}

// once asks without patience.
func (a rest) once(method, path, token string, body any) (int, string) {
	a.t.Helper()
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			a.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+ctl+":7443"+path, bytes.NewReader(data))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := a.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	if res.StatusCode == http.StatusOK && (path == "/v1/events" || strings.HasPrefix(path, "/v1/revocations")) {
		return res.StatusCode, "a stream"
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(text)
}

// operations are all of the API's, with what each one's description says of who
// may use it.
func operations(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../portal/backend/api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	all, path, method := map[string]string{}, "", ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case regexp.MustCompile(`^  /v1/`).MatchString(line):
			path = strings.TrimSuffix(strings.TrimSpace(line), ":")
		case regexp.MustCompile(`^    (get|post|delete|put):$`).MatchString(line):
			method = strings.ToUpper(strings.TrimSuffix(strings.TrimSpace(line), ":"))
		case strings.HasPrefix(line, "      summary:"):
			m := regexp.MustCompile(`\[([^\]]+)\]"?$`).FindStringSubmatch(line)
			if m == nil {
				t.Fatalf("%s %s: the description does not say who may use it: %s", method, path, line)
			}
			all[method+" "+path] = m[1]
		}
	}
	if len(all) < 30 {
		t.Fatalf("only %d operations", len(all))
	}
	return all
}

func TestAttack_W18_nobody_uses_the_API_without_a_certificate_or_a_session_for_it(t *testing.T) {
	forgetAttempts(t)
	alice := visit(t, "alice").login()
	full := alice.cookie(portalURL, portalCookie)
	half := visit(t, "alice")
	half.password("alice", "alice-pass")
	pending := half.cookie(portalURL, portalCookie)
	stranger, node, portal := api(t, nil), api(t, stolen(t, "node1")), api(t, stolen(t, "portal"))
	fill := strings.NewReplacer("{id}", "1", "{name}", "alice")
	for operation, scope := range operations(t) {
		method, path, _ := strings.Cut(operation, " ")
		path = fill.Replace(path)
		for what, c := range map[string]struct {
			by      rest
			token   string
			allowed bool
		}{
			"nobody":            {stranger, "", scope == "public"},
			"a guessed token":   {stranger, strings.Repeat("A", 43), scope == "public"},
			"SQL as a token":    {stranger, "' OR '1'='1", scope == "public"},
			"half a login":      {stranger, pending, scope == "public" || scope == "any"},
			"a login":           {stranger, full, scope == "public" || scope == "full" || scope == "any"},
			"a node":            {node, "", scope == "public" || scope == "node" || scope == "any certificate"},
			"a node, a login":   {node, full, scope != "portal" && scope != "admin" && !strings.HasPrefix(scope, "portal+")},
			"the portal":        {portal, "", scope == "public" || scope == "portal" || scope == "any certificate"},
			"the portal, half":  {portal, pending, scope != "full" && scope != "node" && scope != "admin" && scope != "portal+enrol"},
			"the portal, whole": {portal, full, scope != "node" && scope != "admin" && !strings.HasPrefix(scope, "portal+")},
		} {
			if c.allowed {
				continue
			}
			code, text := c.by.ask(method, path, c.token, map[string]string{})
			if code != http.StatusUnauthorized && code != http.StatusForbidden {
				t.Errorf("%s [%s] by %s: %d %.200s", operation, scope, what, code, text)
			}
		}
	}
	if !alice.in() {
		t.Error("alice's session ended")
	}
	for _, path := range []string{"/", "/v1", "/v2/me", "/v1/../v1/audit", "/v1//audit", "/debug/pprof/", "/metrics", "/v1/me/", "/V1/me", "/v1/%61udit", "/v1/audit;x"} {
		if code, text := stranger.ask("GET", path, full, nil); code < 300 {
			t.Errorf("%s: %d %.200s", path, code, text)
		}
	}
}

func TestAttack_W18_what_is_another_users_does_not_exist(t *testing.T) {
	alice, mallory, hers, _ := neighbours(t)
	own := mallory.cookie(portalURL, portalCookie)
	a := api(t, nil)
	var job struct {
		ID, Intent, Host string
		Detail           struct{ Output string }
	}
	if code, text := a.ask("GET", "/v1/jobs/"+hers.job, alice.cookie(portalURL, portalCookie), nil); code != http.StatusOK || json.Unmarshal([]byte(text), &job) != nil || job.Host != hers.label() {
		t.Fatalf("alice's own job: %d %s", code, text)
	}
	var sessions []struct{ ID string }
	if code, text := a.ask("GET", "/v1/me/sessions", alice.cookie(portalURL, portalCookie), nil); code != http.StatusOK || json.Unmarshal([]byte(text), &sessions) != nil || len(sessions) == 0 {
		t.Fatalf("alice's own sessions: %d %s", code, text)
	}
	// What does not exist is answered the same.
	_, nothing := a.ask("GET", "/v1/jobs/999999", own, nil)
	for _, id := range []string{hers.job, "0" + hers.job, hers.job + ".0", hers.job + "_0", "+" + hers.job, hers.job + "%00", "%20" + hers.job, hers.label(), "4294967296", "-1", "*", "%25", "1%20OR%201=1", "..%2f" + hers.job} {
		for operation, body := range map[string]any{
			"GET /v1/jobs/" + id: nil, "DELETE /v1/jobs/" + id: nil, "GET /v1/jobs/" + id + "/output?stream=out&offset=0": nil,
			"GET /v1/jobs/" + id + "/output?stream=err&offset=-100": nil, "GET /v1/jobs/" + id + "/metrics": nil,
		} {
			method, path, _ := strings.Cut(operation, " ")
			if code, text := a.ask(method, path, own, body); code != http.StatusNotFound || id == hers.job && text != nothing {
				t.Errorf("%s: %d %.200s", operation, code, text)
			}
		}
		for _, path := range []string{"/jobs/" + id, "/jobs/" + id + "/stop", "/jobs/" + id + "/output?offset=0", "/jobs/" + id + "/metrics", "/fragments/jobs/" + id} {
			if r := mallory.get(path); r.code < 400 {
				t.Errorf("the portal's %s: %s", path, r)
			}
		}
		if r := mallory.post("/security", "/jobs/"+id+"/stop"); r.code < 400 {
			t.Errorf("stop %s by the portal: %s", id, r)
		}
	}
	if code, text := a.ask("POST", "/v1/open", own, map[string]string{"host": hers.label(), "nonce": strings.Repeat("a", 64)}); code != http.StatusNotFound {
		t.Errorf("a code for alice's session: %d %s", code, text)
	}
	for _, s := range sessions {
		if code, text := a.ask("DELETE", "/v1/me/sessions/"+s.ID, own, nil); code != http.StatusNotFound {
			t.Errorf("end alice's login: %d %s", code, text)
		}
		if r := mallory.post("/security", "/security/sessions/"+s.ID+"/end"); r.code < 400 {
			t.Errorf("end alice's login by the portal: %s", r)
		}
	}
	for operation, body := range map[string]any{
		"GET /v1/audit?after=0": nil, "GET /v1/audit/verify": nil, "DELETE /v1/users/alice/factors": nil, "GET /v1/health": nil,
		"POST /v1/join-tokens": map[string]string{"role": "portal", "name": "evil"},
	} {
		method, path, _ := strings.Cut(operation, " ")
		if code, text := a.ask(method, path, own, body); code != http.StatusForbidden {
			t.Errorf("%s: %d %.200s", operation, code, text)
		}
	}
	// Lists hold the own alone.
	for _, path := range []string{"/v1/jobs", "/v1/jobs?since=0", "/v1/me", "/v1/me/sessions", "/v1/offer", "/v1/cluster"} {
		code, text := a.ask("GET", path, own, nil)
		if code != http.StatusOK || strings.Contains(text, "alice") || strings.Contains(text, hers.label()) || strings.Contains(text, sessions[0].ID) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if !alice.in() || state(t, hers.job) != "RUNNING" {
		t.Errorf("alice is in: %v; her job is %s", alice.in(), state(t, hers.job))
	}
	if r := alice.get(hers.origin + "/who"); r.code != http.StatusOK {
		t.Errorf("alice's app: %s", r)
	}
}

func TestAttack_W18_an_intent_is_its_makers_alone(t *testing.T) {
	alice, mallory := visit(t, "alice").login(), visit(t, "mallory").login()
	a := api(t, nil)
	id := "0a1b2c3d-" + strconv.FormatInt(time.Now().Unix()%9000+1000, 10) + "-4000-8000-000000000001"
	start := func(v *visitor, change map[string]any) (int, string) {
		t.Helper()
		body := map[string]any{"id": id, "image": "base", "app": "terminal", "nodes": 1, "minutes": 2, "gpus": 0, "name": "it-intent"}
		maps.Copy(body, change)
		return a.ask("POST", "/v1/jobs", v.cookie(portalURL, portalCookie), body)
	}
	t.Cleanup(func() { scancel("-n", "it-intent") })
	code, text := start(alice, nil)
	if code != http.StatusCreated && code != http.StatusAccepted {
		t.Fatalf("alice's own: %d %s", code, text)
	}
	if code, text := start(mallory, nil); code < 400 || strings.Contains(text, "alice") {
		t.Errorf("alice's form sent by mallory: %d %s", code, text)
	}
	for _, method := range []string{"GET", "DELETE"} {
		if code, text := a.ask(method, "/v1/jobs/"+id, mallory.cookie(portalURL, portalCookie), nil); code != http.StatusNotFound {
			t.Errorf("%s alice's intent: %d %s", method, code, text)
		}
	}
	// What the form says beyond its fields, or in them, is no option of Slurm's.
	for what, change := range map[string]map[string]any{
		"another user": {"user": "alice"}, "a uid": {"uid": 0}, "an image by path": {"image": "/etc"}, "an image above": {"image": "../../etc/passwd"}, "an unknown app": {"app": "../terminal"},
		"an option": {"partition": "debug --uid=root"}, "a line": {"account": "a\n#SBATCH --uid=0"}, "a shell": {"qos": "$(id)"}, "SQL": {"partition": "debug'; DROP TABLE jobs; --"},
		"a negative number": {"gpus": -1}, "a huge number": {"gpus": 1 << 40}, "a fraction": {"gpus": 0.5}, "many nodes": {"nodes": 1 << 30}, "a year and more": {"minutes": 1 << 30},
		"a name too long": {"name": strings.Repeat("a", 5000)}, "a NUL": {"name": "a\x00b"}, "an id of markup": {"id": "<script>"}, "no id": {"id": ""}, "a GPU type": {"gpu_type": "a100:4,gres/evil"},
		"memory": {"memory_mb": -5}, "an admin's image": {"image": "admins"},
	} {
		fresh := map[string]any{"id": strings.Replace(id, "0001", "0002", 1)}
		maps.Copy(fresh, change)
		if code, text := start(mallory, fresh); code < 400 || code >= 500 {
			t.Errorf("%s: %d %.300s", what, code, text)
		}
	}
}

func TestAttack_A8_certificates_of_others_expired_or_made_at_home(t *testing.T) {
	probe := func(cert *tls.Certificate, path string) (int, string) {
		return api(t, cert).ask("POST", path, "", map[string]any{"host": "s-" + strings.Repeat("a", 26), "token": "x"})
	}
	if code, text := probe(stolen(t, "portal"), "/v1/grants"); code != http.StatusUnauthorized || !strings.Contains(text, "session") {
		t.Fatalf("the portal's own certificate: %d %s", code, text)
	}
	good := named("carme://portal/carme-login")
	for what, cert := range map[string]*tls.Certificate{
		"none": nil, "the node's": stolen(t, "node1"), "the backend's own": stolen(t, "backend"),
		"self-signed":            forged(t, "", "", good),
		"of the CA for browsers": forged(t, login, webCA, good),
		"expired":                forged(t, ctl, ownCA, func(c *x509.Certificate) { good(c); c.NotAfter = time.Now().Add(-time.Minute) }),
		"of tomorrow":            forged(t, ctl, ownCA, func(c *x509.Certificate) { good(c); c.NotBefore = time.Now().Add(time.Hour) }),
		"with its name in CN":    forged(t, ctl, ownCA, func(c *x509.Certificate) { c.Subject.CommonName = "carme://portal/carme-login" }),
		"with a DNS name":        forged(t, ctl, ownCA, func(c *x509.Certificate) { c.DNSNames = []string{"carme-login", "portal"} }),
		"with two roles":         forged(t, ctl, ownCA, named("carme://node/x", "carme://portal/carme-login")),
		"with a role in capital": forged(t, ctl, ownCA, named("carme://PORTAL/x")),
		"with another scheme":    forged(t, ctl, ownCA, named("https://portal/carme-login")),
		"with a host behind":     forged(t, ctl, ownCA, named("carme://portal.evil/x")),
		"with a user in it":      forged(t, ctl, ownCA, named("carme://portal@node/x")),
		"for servers only":       forged(t, ctl, ownCA, func(c *x509.Certificate) { good(c); c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
	} {
		for _, path := range []string{"/v1/grants", "/v1/redeem", "/v1/login"} {
			if code, text := probe(cert, path); code != 0 && code != http.StatusForbidden {
				t.Errorf("%s to %s: %d %s", what, path, code, text)
			}
		}
	}
	// The control: the same way of making one, with what is right.
	if code, text := probe(forged(t, ctl, ownCA, good), "/v1/grants"); code != http.StatusUnauthorized {
		t.Errorf("a good one: %d %s", code, text)
	}
	// Old protocols are not spoken.
	conf := &tls.Config{RootCAs: ours(t), ServerName: ctl, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12} //nolint:gosec // G402: that it is refused is what is tested
	for _, at := range []string{net.JoinHostPort(address(t, ctl), "7443"), net.JoinHostPort(address(t, node1), "7444")} {
		dialer := tls.Dialer{Config: conf}
		if c, err := dialer.DialContext(t.Context(), "tcp", at); err == nil {
			_ = c.Close()
			t.Errorf("%s speaks TLS 1.2", at)
		}
	}
}

func TestAttack_A8_a_node_speaks_for_itself_alone(t *testing.T) {
	alice, mallory, hers, _ := neighbours(t) // on node 1
	node := api(t, stolen(t, "node2"))
	report := func(jobs ...map[string]any) (int, string) {
		t.Helper()
		return node.ask("POST", "/v1/agent/report", "", map[string]any{"boot": "evil", "seq": 1, "jobs": jobs, "ended": []any{}, "samples": []any{}})
	}
	number, err := strconv.Atoi(hers.job)
	if err != nil {
		t.Fatal(err)
	}
	// Another node claims alice's job for mallory, with an instance of its own.
	fake := strings.Repeat("ab", 16)
	for _, uid := range []int{10001, 10005, 0} {
		code, text := report(map[string]any{"job": number, "uid": uid, "instance": fake, "app": "terminal", "image": "x", "stage": "ready", "started": time.Now(), "text": "<script>alert(1)</script>"})
		if code >= 500 {
			t.Errorf("uid %d: %d %s", uid, code, text)
		}
	}
	if n := query(t, "SELECT COUNT(*) FROM hosts WHERE instance = '"+fake+"'"); n != "0" {
		t.Errorf("%s origins for an instance that node 2 made up", n)
	}
	// And says that it has ended, also as one that it never spoke of.
	instance := query(t, "SELECT instance FROM hosts WHERE label = '"+hers.label()+"'")
	for range 2 {
		code, text := node.ask("POST", "/v1/agent/report", "", map[string]any{"boot": "evil", "seq": 2, "jobs": []any{}, "samples": []any{}, "ended": []map[string]any{{"job": number, "instance": instance, "time": time.Now(), "oom": true}}})
		if code >= 500 {
			t.Errorf("an end: %d %s", code, text)
		}
	}
	kept(t, 3*time.Second, "a session of node 1 that node 2 calls ended", func() bool { return alice.answers(hers) })
	// What it measures of alice's job is not hers.
	code, text := node.ask("POST", "/v1/agent/report", "", map[string]any{
		"boot": "evil", "seq": 3, "ended": []any{},
		"jobs":    []map[string]any{{"job": number, "uid": 10001, "instance": fake, "app": "terminal", "image": "x", "stage": "ready", "started": time.Now()}},
		"samples": []map[string]any{{"job": number, "instance": fake, "time": time.Now(), "cpu_percent": 4711}},
	})
	if code >= 500 {
		t.Errorf("samples: %d %s", code, text)
	}
	if r := alice.get("/jobs/" + hers.job + "/metrics"); r.code != http.StatusOK || strings.Contains(r.body, node2) || strings.Contains(r.body, "4711") {
		t.Errorf("node 2 measures a job of node 1: %s", r)
	}
	if r := mallory.enter(hers.origin + "/who"); r.code < 400 {
		t.Errorf("mallory is let in: %s", r)
	}
	// A certificate for another name is not to be had by an own one, nor by none.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: node1}}, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, role, name, token string }{
		{"/v1/agent/renew", "node", node1, ""},
		{"/v1/agent/renew", "portal", node2, ""},
		{"/v1/agent/renew", "backend", "carme-ctl", ""},
		{"/v1/renew", "portal", "carme-login", ""},
		{"/v1/agent/enrol", "node", node1, ""},
		{"/v1/agent/enrol", "portal", "carme-login", ""},
		{"/v1/agent/enrol", "node", "nowhere", ""},
		{"/v1/agent/enrol", "node", "../carme-node1", ""},
		{"/v1/agent/enrol", "node", "127.0.0.1", ""},
		{"/v1/agent/enrol", "node", "carme-node1\n", ""},
		{"/v1/join", "portal", "evil", ""},
		{"/v1/join", "portal", "evil", strings.Repeat("A", 43)},
		{"/v1/join", "portal", "evil", "' OR 1=1 --"},
		{"/v1/join", "backend", "carme-ctl", "x"},
	} {
		code, text := node.ask("POST", c.path, "", map[string]any{"role": c.role, "name": c.name, "csr": csr, "join_token": c.token})
		if code < 400 || strings.Contains(text, "CERTIFICATE") {
			t.Errorf("%+v: %d %.300s", c, code, text)
		}
	}
}

func TestAttack_W20_sockets_of_the_head_node_answer_their_users_alone(t *testing.T) {
	curl := func(user, socket, path string, args ...string) result {
		t.Helper()
		return root(t, ctl, append([]string{
			"setpriv", "--reuid", user, "--regid", user, "--init-groups", "curl", "-s", "-m", "5", "-w", " %{http_code}", "--unix-socket", socket, "http://carme" + path,
		}, args...)...)
	}
	const admin, signer = "/run/carme-backend/admin.sock", "/run/carme-signer/signer.sock"
	for _, user := range []string{"alice", "mallory", "carol", "nobody", "daemon", "slurm", "slurmrestd", "carme-signer", "munge"} {
		if r := curl(user, admin, "/v1/audit"); r.code == 0 || strings.Contains(r.out, "200") {
			t.Errorf("%s at the admin socket: %s", user, r.out)
		}
	}
	for _, user := range []string{"alice", "mallory", "nobody", "daemon", "slurm", "root", "munge"} {
		if r := curl(user, signer, "/token", "-d", `{"user":"alice"}`); r.code == 0 || strings.Contains(r.out, "200") || strings.Contains(r.out, "token") {
			t.Errorf("%s at the signer: %s", user, r.out)
		}
	}
	// The backend itself, should it be taken over, gets no token of the mighty.
	for _, body := range []string{
		`{"user":"root"}`, `{"user":"slurm"}`, `{"user":"daemon"}`, `{"user":"dave"}`, `{"user":"munge"}`, `{"user":"carme-signer"}`, `{"user":"nobody"}`, `{"user":"0"}`, `{"user":"10001"}`, `{"user":""}`,
		`{"user":"alice\u0000"}`, `{"user":"alice\n"}`, `{"user":" root"}`, `{"user":"Root"}`, `{"user":"../alice"}`, `{"user":"alice","uid":0}`, `{"user":"alice","sun":"root"}`, `{"user":["root"]}`, `not json`, `{"user":"alice"}{"user":"root"}`,
	} {
		r := curl("carme-backend", signer, "/token", "-d", body)
		if body != `{"user":"alice"}{"user":"root"}` && strings.Contains(r.out, "200") {
			t.Errorf("%s: %s", body, r.out)
		}
		if m := regexp.MustCompile(`"token":"[^.]+\.([^."]+)`).FindStringSubmatch(r.out); m != nil {
			claims, err := base64.RawURLEncoding.DecodeString(m[1])
			if err != nil || !strings.Contains(string(claims), `"sun":"alice"`) {
				t.Errorf("%s: a token that says %s", body, claims)
			}
		}
	}
	if r := curl("carme-backend", signer, "/token", "-d", `{"user":"alice"}`); !strings.Contains(r.out, "200") {
		t.Errorf("the control: %s", r.out)
	}
	for _, body := range []string{`{"role":"ca","name":"x","spki":"AAAA"}`, `{"role":"portal","name":"../x","spki":"AAAA"}`, `{"role":"portal","name":"","spki":""}`} {
		if r := curl("carme-backend", signer, "/certificate", "-d", body); strings.Contains(r.out, "200") {
			t.Errorf("%s: %s", body, r.out)
		}
	}
	// Nobody but their owners reads keys and database.
	for user, paths := range map[string][]string{
		"mallory":       {"/var/lib/carme/backend/carme.db", "/var/lib/carme/backend/factor.key", "/var/lib/carme/backend/route.key", "/var/lib/carme/signer/ca.key", "/var/lib/carme-jwt.key", "/etc/carme/ldap-password"},
		"carme-backend": {"/var/lib/carme/signer/ca.key", "/var/lib/carme-jwt.key"},
		"carme-signer":  {"/var/lib/carme/backend/carme.db", "/var/lib/carme/backend/factor.key", "/etc/carme/ldap-password"},
		"slurmrestd":    {"/var/lib/carme/backend/carme.db", "/var/lib/carme/signer/ca.key"},
	} {
		for _, path := range paths {
			if r := root(t, ctl, "setpriv", "--reuid", user, "--regid", user, "--init-groups", "head", "-c1", path); r.code == 0 {
				t.Errorf("%s reads %s", user, path)
			}
			if r := root(t, ctl, "head", "-c1", path); r.code != 0 {
				t.Errorf("the control: there is no %s", path)
			}
		}
	}
	for _, path := range []string{"/var/lib/carme/portal/tls/key.pem", "/var/lib/carme/portal/web.key", "/etc/carme/web-ca/ca.key"} {
		for _, user := range []string{"mallory", "nobody"} {
			if r := root(t, login, "setpriv", "--reuid", user, "--regid", user, "--init-groups", "head", "-c1", path); r.code == 0 {
				t.Errorf("%s reads %s", user, path)
			}
		}
	}
	// No secret is on a command line or in an environment that others see.
	for _, machine := range []string{ctl, login, node1} {
		if r := as(t, "mallory", machine, "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline; tr '\0' ' ' <$p/environ; done 2>/dev/null | grep -a -E 'reader-pass|eyJ[A-Za-z0-9]{8}|BEGIN .*KEY'`); strings.Contains(r.out, "reader-pass") && !strings.Contains(r.out, "grep") {
			t.Errorf("%s: a secret is in sight: %.300s", machine, r.out)
		}
	}
}

func TestAttack_W20_names_with_markup_control_characters_and_SQL_stay_text(t *testing.T) {
	v := visit(t, "mallory").login()
	names := map[string]string{
		"markup": `<script>alert(1)</script>`, "an attribute": `"><img src=x onerror=alert(1)>`, "a template": `{{.Data}}${7*7}`, "SQL": `'; DROP TABLE users; --`, "a row": "x\n9999|RUNNING|root|p",
		"a terminal": "\x1b[31mred\x07", "direction": "a\u202eb", "NEL": "a\u0085b", "a long one": strings.Repeat("A", 900), "a comment of ours": "carme:00000000-0000-4000-8000-000000000000",
	}
	for what, name := range names {
		t.Run(what, func(t *testing.T) {
			id := sbatch(t, "mallory", "-w", node2, "-J", name, "--comment="+name, "--wrap", "exec sleep 60")
			var page reply
			eventually(t, 20*time.Second, "the job at the portal", func() bool {
				page = v.get("/jobs/" + id)
				return page.code == http.StatusOK
			})
			for where, r := range map[string]reply{"its page": page, "the list": v.get("/jobs"), "the dashboard": v.get("/"), "the question": v.get("/jobs/" + id + "/stop"), "a fragment": v.get("/fragments/jobs")} {
				if r.code != http.StatusOK {
					t.Errorf("%s: %s", where, r)
				}
				for _, bad := range []string{"<script>alert", "<img src=x", "\x1b", "\x07", "\u0085", "\u202e"} {
					if strings.Contains(r.body, bad) {
						t.Errorf("%s has %q", where, bad)
					}
				}
			}
			code, text := api(t, nil).ask("GET", "/v1/jobs", v.cookie(portalURL, portalCookie), nil)
			var list struct{ Jobs []struct{ ID, User string } }
			if code != http.StatusOK || json.Unmarshal([]byte(text), &list) != nil {
				t.Fatalf("the list: %d %.300s", code, text)
			}
			for _, j := range list.Jobs {
				if j.User != "mallory" || j.ID == "9999" {
					t.Errorf("the list has job %s of %s", j.ID, j.User)
				}
			}
		})
	}
	if r := visit(t, "alice").get("/login"); r.code != http.StatusOK || query(t, "SELECT COUNT(*) > 0 FROM users") != "1" {
		t.Errorf("afterwards: %s", r)
	}
}

func TestAttack_W20_a_comment_claims_no_form_of_another(t *testing.T) {
	alice, mallory := visit(t, "alice").login(), visit(t, "mallory").login()
	a := api(t, nil)
	id := "0a1b2c3d-" + strconv.FormatInt(time.Now().Unix()%9000+1000, 10) + "-4000-8000-00000000c0de"
	t.Cleanup(func() { scancel("-n", "it-comment") })
	if code, text := a.ask("POST", "/v1/jobs", alice.cookie(portalURL, portalCookie), map[string]any{"id": id, "image": "base", "app": "terminal", "nodes": 1, "minutes": 2, "gpus": 0, "name": "it-comment"}); code >= 300 {
		t.Fatalf("alice's own: %d %s", code, text)
	}
	job := sbatch(t, "mallory", "-w", node2, "--comment=carme:"+id, "--wrap", "exec sleep 60")
	eventually(t, 20*time.Second, "mallory's job at the portal", func() bool { return mallory.get("/jobs/"+job).code == http.StatusOK })
	if r := mallory.get("/jobs/" + id); strings.Contains(r.body, "it-comment") {
		t.Errorf("mallory sees alice's: %s", r)
	}
	code, text := a.ask("GET", "/v1/jobs/"+id, alice.cookie(portalURL, portalCookie), nil)
	if code != http.StatusOK || strings.Contains(text, `"id":"`+job+`"`) {
		t.Errorf("alice's form became mallory's job: %d %s", code, text)
	}
}

// audited are the records since a moment, as the admin reads them.
func audited(t *testing.T) string {
	t.Helper()
	last := query(t, "SELECT MAX(seq) FROM audit")
	n, err := strconv.Atoi(last)
	if err != nil {
		t.Fatal(err)
	}
	return sh(t, ctl, "curl -s --unix-socket /run/carme-backend/admin.sock 'http://backend/v1/audit?after="+strconv.Itoa(max(0, n-60))+"'")
}

func verified(t *testing.T) result {
	t.Helper()
	return root(t, ctl, "carme-backend", "audit", "verify")
}

func TestAttack_W20_nobody_writes_records_into_the_audit_log(t *testing.T) {
	forgetAttempts(t)
	secret := "Tr0ub4dor-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	for _, name := range []string{
		secret, // typed into the wrong field
		"alice\",\"act\":\"factors removed\",\"actor\":\"carol", "alice\n{\"seq\":1}", "=cmd|' /C calc'!A0", "alice\x00", "\x1b[2Jalice", "alice'); DELETE FROM audit; --", strings.Repeat("a", 60000),
	} {
		visit(t, name).password(name, "x")
		query(t, "DELETE FROM attempts")
	}
	v := visit(t, "alice")
	v.send("POST", "/login", url.Values{"csrf": {v.token("/login")}, "username": {"alice"}, "password": {"wrong"}}.Encode(), formType, "User-Agent: x\",\"actor\":\"carol", "X-Forwarded-For: evil")
	text := audited(t)
	var records []struct {
		Seq                int64
		Actor, Act, Object string
		Detail             map[string]string
	}
	if err := json.Unmarshal([]byte(text), &records); err != nil {
		t.Fatalf("the records: %v\n%.500s", err, text)
	}
	if strings.Contains(text, secret) || strings.Contains(text, "calc") || strings.Contains(text, "evil") {
		t.Error("what was typed as a name is in the log")
	}
	refused := 0
	for _, r := range records {
		if r.Act == "login refused" {
			refused++
		}
		for _, field := range []string{r.Actor, r.Act, r.Object} {
			if len(field) > 512 || strings.ContainsAny(field, "\n\x00\x1b\"") {
				t.Errorf("record %d has %q", r.Seq, field)
			}
		}
		if r.Actor == "carol" {
			t.Errorf("record %d is carol's: %+v", r.Seq, r)
		}
	}
	if refused < 5 {
		t.Errorf("%d refusals are recorded", refused)
	}
	if r := verified(t); r.code != 0 {
		t.Errorf("the chain: %s %s", r.out, r.err)
	}
	// Nor are they removed or changed by the daemon's own hands.
	for _, statement := range []string{"UPDATE audit SET actor = 'x' WHERE seq = 1", "DELETE FROM audit WHERE seq = 1", "REPLACE INTO audit SELECT * FROM audit WHERE seq = 1"} {
		r := root(t, ctl, "setpriv", "--reuid", "carme-backend", "--regid", "carme-backend", "--clear-groups", "sqlite3", "-cmd", ".timeout 20000", "-cmd", "PRAGMA recursive_triggers=ON", "/var/lib/carme/backend/carme.db", statement)
		if r.code == 0 {
			t.Errorf("%s is done", statement)
		}
	}
	if r := verified(t); r.code != 0 {
		t.Errorf("the chain: %s %s", r.out, r.err)
	}
}

func TestAttack_W20_a_record_that_was_changed_or_removed_is_found(t *testing.T) {
	// In a copy: a second backend on another port, without anything to do.
	const dir = "/var/lib/it-audit"
	undo(t, ctl, "rm -rf "+dir)
	for what, statement := range map[string]string{
		"nothing":          "SELECT 1",
		"a changed actor":  "UPDATE audit SET actor = 'nobody' WHERE seq = (SELECT seq FROM audit LIMIT 1 OFFSET 3)",
		"a changed detail": "UPDATE audit SET detail = '{}' WHERE seq = (SELECT MAX(seq) FROM audit WHERE detail <> '{}')",
		"a changed time":   "UPDATE audit SET at = at + 1 WHERE seq = (SELECT seq FROM audit LIMIT 1 OFFSET 4)",
		"a removed record": "DELETE FROM audit WHERE seq = (SELECT seq FROM audit LIMIT 1 OFFSET 5)",
		"two exchanged":    "UPDATE audit SET seq = -1 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4; UPDATE audit SET seq = 4 WHERE seq = -1",
		"one put between":  "INSERT INTO audit SELECT MAX(seq) + 1, at, actor, act, object, detail, hash FROM audit",
	} {
		sh(t, ctl, "rm -rf "+dir+" && mkdir -p "+dir+"/state && cp -a /var/lib/carme/backend/. "+dir+"/state/ && rm -f "+dir+"/state/carme.db* && "+
			"sqlite3 /var/lib/carme/backend/carme.db '.timeout 20000' \".backup "+dir+"/state/carme.db\"")
		triggers := sh(t, ctl, "sqlite3 "+dir+"/state/carme.db \"SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit'\"")
		drop := ""
		for _, name := range lines(triggers) {
			drop += "DROP TRIGGER " + name + "; "
		}
		root(t, ctl, "sqlite3", dir+"/state/carme.db", drop+statement).ok(t)
		sh(t, ctl, "sed -e '/^listen:/d' -e '/^admin_socket:/d' -e '/^state:/d' -e '/^metrics_listen:/d' /etc/carme/backend.yaml >"+dir+"/backend.yaml && "+
			"printf 'listen: 127.0.0.1:17443\\nadmin_socket: "+dir+"/state/admin.sock\\nstate: "+dir+"/state\\n' >>"+dir+"/backend.yaml && chown -R carme-backend:carme-backend "+dir+"/state")
		out := sh(t, ctl, "setpriv --reuid carme-backend --regid carme-backend --init-groups timeout 20 carme-backend --config "+dir+"/backend.yaml >"+dir+"/log 2>&1 & pid=$!; "+
			"for i in $(seq 100); do test -S "+dir+"/state/admin.sock && break; sleep 0.1; done; carme-backend --config "+dir+"/backend.yaml audit verify; echo status=$?; kill $pid; wait $pid; tail -3 "+dir+"/log >&2")
		if ok := strings.Contains(out, "status=0"); ok != (what == "nothing") {
			t.Errorf("%s: %s\n%s", what, out, sh(t, ctl, "tail -3 "+dir+"/log"))
		}
	}
}
