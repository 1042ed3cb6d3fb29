//go:build integration

package integration

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// thief is who has taken the portal's certificate and its key, as root on its
// host can.
type thief struct {
	t      *testing.T
	conf   *tls.Config
	client *http.Client
}

func stealPortal(t *testing.T) *thief {
	t.Helper()
	const dir = "/var/lib/carme/portal/tls/"
	pair, err := tls.X509KeyPair([]byte(root(t, login, "cat", dir+"cert.pem").ok(t)), []byte(root(t, login, "cat", dir+"key.pem").ok(t)))
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13} //nolint:gosec // a thief does not care
	transport := &http.Transport{TLSClientConfig: conf}
	t.Cleanup(transport.CloseIdleConnections)
	return &thief{t, conf, &http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// call calls the backend; the answer's body is cut.
func (th *thief) call(method, path, token string, in any) (int, string) {
	th.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		th.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(th.t.Context(), method, "https://"+net.JoinHostPort(address(th.t, ctl), "7443")+path, bytes.NewReader(body))
	if err != nil {
		th.t.Fatal(err)
	}
	if in == nil {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := th.client.Do(req)
	if err != nil {
		th.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	text, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
	return res.StatusCode, string(text)
}

// agent opens a connection to a node's agent with a protocol, and sends bytes.
// It returns the first byte of the answer, or an error.
func (th *thief) agent(protocol string, say []byte) (byte, error) {
	th.t.Helper()
	conf := th.conf.Clone()
	conf.NextProtos = []string{protocol}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}
	conn, err := dialer.DialContext(th.t.Context(), "tcp", net.JoinHostPort(address(th.t, node1), "7444"))
	if err != nil {
		return 0, err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := conn.Write(say); err != nil {
		return 0, err
	}
	var one [1]byte
	_, err = io.ReadFull(conn, one[:])
	return one[0], err
}

func TestFault_W14_a_stolen_portal_gets_nothing_of_who_is_not_logged_in_through_it(t *testing.T) {
	v, app := mirrored(t)
	old, oldApp := v.cookie(portalURL, portalCookie), v.cookie(app.origin, appCookie)
	socket := v.socket(app)
	if socket == nil {
		t.Fatal("no websocket")
	}
	if r := v.post("/security", "/logout"); r.to() != "/login" {
		t.Fatalf("log out: %s", r)
	}
	th := stealPortal(t)
	// It is the portal's: it may ask, and is told what needs a login.
	if code, _ := th.call("GET", "/v1/openapi.yaml", "", nil); code != http.StatusOK {
		t.Fatalf("the backend does not know the certificate: %d", code)
	}
	job := "/v1/jobs/" + app.job
	start := map[string]any{"id": "3f0f9e7e-0b4e-4b64-9b39-2f6f0ab1c001", "image": "base", "app": "terminal"}
	calls := []struct {
		method, path string
		in           any
	}{
		{"GET", "/v1/me", nil},
		{"GET", "/v1/me/sessions", nil},
		{"DELETE", "/v1/me/sessions/1", nil},
		{"POST", "/v1/me/recovery", map[string]string{"code": "123456"}},
		{"POST", "/v1/me/factors/totp", map[string]string{"code": "123456"}},
		{"POST", "/v1/me/factors/totp/confirm", map[string]string{"code": "123456"}},
		{"POST", "/v1/login/factor", map[string]string{"code": "123456"}},
		{"POST", "/v1/login/enrol", nil},
		{"POST", "/v1/login/enrol/confirm", map[string]string{"code": "123456"}},
		{"GET", "/v1/offer", nil},
		{"GET", "/v1/home", nil},
		{"POST", "/v1/script", start},
		{"POST", "/v1/jobs", start},
		{"GET", "/v1/jobs", nil},
		{"GET", job, nil},
		{"DELETE", job, nil},
		{"GET", job + "/output?stream=out&offset=0", nil},
		{"GET", job + "/metrics", nil},
		{"GET", "/v1/cluster", nil},
		{"GET", "/v1/events", nil},
		{"POST", "/v1/open", map[string]string{"host": app.label(), "nonce": strings.Repeat("0", 64)}},
		{"POST", "/v1/redeem", map[string]string{"host": app.label(), "code": "guessed", "nonce": strings.Repeat("0", 64)}},
		{"POST", "/v1/grants", map[string]string{"host": app.label(), "token": "guessed"}},
		{"POST", "/v1/grants", map[string]string{"host": app.label(), "token": oldApp}},
		{"POST", "/v1/agent/report", map[string]any{"node": node1}},
		{"POST", "/v1/agent/renew", map[string]string{"role": "node", "name": node1, "csr": ""}},
		{"GET", "/v1/audit", nil},
		{"GET", "/v1/audit/verify", nil},
		{"DELETE", "/v1/users/alice/factors", nil},
		{"POST", "/v1/join-tokens", map[string]string{"role": "portal", "name": "another"}},
		{"GET", "/v1/health", nil},
	}
	for _, c := range calls {
		for name, token := range map[string]string{"no token": "", "an invented one": strings.Repeat("A", len(old)), "one of a login that has ended": old} {
			code, body := th.call(c.method, c.path, token, c.in)
			// A body that is none of theirs may be refused before anybody looks further.
			if !slices.Contains([]int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound}, code) {
				t.Errorf("%s %s with %s: %d %s", c.method, c.path, name, code, body)
			}
			if strings.Contains(body, "alice") || strings.Contains(body, app.host()) {
				t.Errorf("%s %s with %s tells of alice: %s", c.method, c.path, name, body)
			}
		}
	}
	t.Logf("%d calls with the portal's certificate, each without a login, were refused", 3*len(calls))
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("alice's job is %s", s)
	}
	if got := lines(queued(t, "alice")); len(got) != 1 {
		t.Errorf("alice's jobs: %v", got)
	}
	// The agents know the portal, and let it to no app without a token of the
	// backend's; what is for the backend alone it cannot even begin.
	invented := []byte(fmt.Sprintf("\x00\x10%s", strings.Repeat("x", 16)))
	if status, err := th.agent("carme-relay/1", invented); err != nil || status != 1 {
		t.Errorf("an invented route token: status %d, %v", status, err)
	}
	if _, err := th.agent("carme-control/1", []byte(`{"op":"ping"}`+"\n")); err == nil {
		t.Error("the agent's control answers the portal")
	}
	recovers(t, 10*time.Second, "end of the websocket that was open before the logout", func() bool { return !socket.live() })
}
