//go:build integration

package integration

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestAttack_W14_another_users_session_stays_closed(t *testing.T) {
	alice, mallory, hers, evil := neighbours(t)
	stolen := mallory.cookie(evil.origin, appCookie)
	before := alice.seen(hers)
	// By its address, with a good login.
	if r := mallory.enter(hers.origin + "/who"); r.code < 400 || strings.Contains(r.body, "alice") {
		t.Errorf("by its address: %s", r)
	}
	// With the cookies of her own session, and her login's own value.
	for what, value := range map[string]string{
		"her own session's cookie": stolen, "her login": mallory.cookie(portalURL, portalCookie), "nonsense": strings.Repeat("A", 43),
		"two of them": stolen + "; " + appCookie + "=" + stolen, "quoted": `"` + stolen + `"`, "SQL": "' OR 1=1 --",
	} {
		v := visit(t, "mallory")
		if r := v.get(hers.origin+"/who", "Cookie: "+appCookie+"="+value); r.code < 300 || strings.Contains(r.body, "alice") {
			t.Errorf("%s: %s", what, r)
		}
		l := v.line(hers.host())
		if res := l.ask(handshake(hers.host(), "Origin: "+hers.origin, "Cookie: "+appCookie+"="+value)); res == nil || res.code < 400 {
			t.Errorf("%s by websocket: %v", what, res)
		}
	}
	// alice's cookie shows nothing at another host, should she be led there.
	if r := visit(t, "mallory").get(evil.origin+"/who", "Cookie: "+appCookie+"="+alice.cookie(hers.origin, appCookie)); strings.Contains(r.body, "in job") {
		t.Errorf("alice's cookie opens mallory's session: %s", r)
	}
	// A code for one's own session is none for another's.
	v := visit(t, "mallory")
	v.give(portalURL, portalCookie, mallory.cookie(portalURL, portalCookie))
	r := v.get(hers.origin + "/") // sets the nonce at alice's host
	r = v.get(strings.ReplaceAll(r.to(), hers.label(), evil.label()))
	code, err := url.Parse(r.to())
	if err != nil || code.Query().Get("code") == "" {
		t.Fatalf("a code for the own session: %s", r)
	}
	if r := v.get(hers.origin + "/.carme/cb?code=" + url.QueryEscape(code.Query().Get("code"))); v.cookie(hers.origin, appCookie) != "" {
		t.Errorf("a code for the own session at alice's host: %s", r)
	}
	// A code that was overheard is of no use in another browser, and spent.
	a := visit(t, "alice")
	a.give(portalURL, portalCookie, alice.cookie(portalURL, portalCookie))
	r = a.get(a.get(hers.origin + "/who").to())
	thief := visit(t, "mallory")
	thief.get(hers.origin + "/") // a nonce of her own
	if x := thief.get(r.to()); thief.cookie(hers.origin, appCookie) != "" {
		t.Errorf("an overheard code: %s", x)
	}
	if x := a.get(r.to()); a.cookie(hers.origin, appCookie) != "" {
		t.Errorf("a code that somebody has tried is good: %s", x)
	}
	// Login CSRF: mallory's code does not bring alice into mallory's session.
	m := visit(t, "mallory")
	m.give(portalURL, portalCookie, mallory.cookie(portalURL, portalCookie))
	r = m.get(m.get(evil.origin + "/").to())
	fresh := visit(t, "alice")
	fresh.get(evil.origin + "/")
	if x := fresh.get(r.to()); fresh.cookie(evil.origin, appCookie) != "" {
		t.Errorf("another's code lets in: %s", x)
	}
	if after := alice.seen(hers); after != before {
		t.Errorf("alice's app got\n%s", strings.TrimPrefix(after, before))
	}
}

func TestAttack_W14_hosts_that_are_guessed_or_malformed(t *testing.T) {
	alice, mallory, hers, evil := neighbours(t)
	before := alice.seen(hers)
	stolen := appCookie + "=" + mallory.cookie(evil.origin, appCookie)
	label, end := hers.label(), "."+appsDomain+":"+portalPort
	for what, host := range map[string]string{
		"another": "s-" + strings.Repeat("a", 26) + end, "cut": label[:20] + end, "longer": label + "a" + end, "upper case": strings.ToUpper(label) + end,
		"a dot behind": label + "." + appsDomain + ".:" + portalPort, "without the port": label + "." + appsDomain, "another port": label + "." + appsDomain + ":22",
		"two ports": hers.host() + ":" + portalPort, "below it": "x." + hers.host(), "two labels": label + "." + evil.host(), "apps domain": appsDomain + ":" + portalPort,
		"job's number": hers.job + end, "an address": "127.0.0.1:7444", "the backend": "carme-ctl:7443", "the node": node1 + ":7444", "the agent's socket": "/run/carme/agent.sock",
		"user info": "alice@" + hers.host(), "a path": hers.host() + "/who", "semicolon": label + ";" + end, "percent": label + "%2e" + appsDomain + ":" + portalPort,
		"empty": "", "comma": hers.host() + "," + evil.host(), "underscore": strings.Replace(label, "-", "_", 1) + end, "tab": hers.host() + "\t", "a star": "*" + end,
	} {
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			l := mallory.line(evil.host())
			res := l.ask(method + " /who HTTP/1.1\r\nHost: " + host + "\r\nCookie: " + stolen + "\r\nConnection: close\r\n\r\n")
			if res != nil && res.code < 300 {
				t.Errorf("%s, %s: %d", what, method, res.code)
			}
		}
	}
	cookie := "Cookie: " + stolen + "\r\n\r\n"
	for what, text := range map[string]string{
		"absolute form":                "GET https://" + hers.host() + "/who HTTP/1.1\r\nHost: " + evil.host() + "\r\n" + cookie,
		"absolute form of another":     "GET http://127.0.0.1:7444/ HTTP/1.1\r\nHost: " + evil.host() + "\r\n" + cookie,
		"absolute form of the backend": "GET https://carme-ctl:7443/v1/me HTTP/1.1\r\nHost: " + portalHost + ":" + portalPort + "\r\n" + cookie,
		"two hosts":                    "GET /who HTTP/1.1\r\nHost: " + evil.host() + "\r\nHost: " + hers.host() + "\r\n" + cookie,
		"no host":                      "GET /who HTTP/1.1\r\n" + cookie,
		"HTTP/1.0":                     "GET /who HTTP/1.0\r\n" + cookie,
		"a host on the next line":      "GET /who HTTP/1.1\r\nHost: " + evil.host() + "\r\n " + hers.host() + "\r\n" + cookie,
		"CONNECT":                      "CONNECT " + node1 + ":7444 HTTP/1.1\r\nHost: " + evil.host() + "\r\n" + cookie,
		"CONNECT to a host":            "CONNECT " + hers.host() + " HTTP/1.1\r\nHost: " + hers.host() + "\r\n" + cookie,
		"TRACE":                        "TRACE /who HTTP/1.1\r\nHost: " + evil.host() + "\r\n" + cookie,
		"asterisk":                     "OPTIONS * HTTP/1.1\r\nHost: " + evil.host() + "\r\n" + cookie,
		"no slash":                     "GET who HTTP/1.1\r\nHost: " + evil.host() + "\r\n" + cookie,
		"HTTP/2 preface":               "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"h2c":                          "GET /who HTTP/1.1\r\nHost: " + hers.host() + "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + cookie,
	} {
		l := mallory.line(evil.host())
		if res := l.ask(text); res != nil {
			if res.code < 300 || strings.Contains(res.body, "alice") {
				t.Errorf("%s: %s", what, res)
			}
		}
	}
	if after := alice.seen(hers); after != before {
		t.Errorf("alice's app got\n%s", strings.TrimPrefix(after, before))
	}
}

func TestAttack_W14_one_connection_for_two_hosts_mixes_nothing(t *testing.T) {
	alice, mallory, hers, evil := neighbours(t)
	// One HTTP/2 connection, as browsers make it for all names of a certificate.
	v := visit(t, "both")
	own := "Cookie: " + appCookie + "=" + alice.cookie(hers.origin, appCookie)
	foreign := "Cookie: " + appCookie + "=" + mallory.cookie(evil.origin, appCookie)
	for range 3 {
		if r := v.get(hers.origin+"/who", own); !strings.HasPrefix(r.body, "alice") {
			t.Errorf("alice: %s", r)
		}
		if r := v.get(hers.origin+"/who", foreign, "Host: "+evil.host()); !strings.HasPrefix(r.body, "mallory") {
			t.Errorf("mallory, on the same connection: %s", r)
		}
		if r := v.get(hers.origin+"/who", foreign); r.code < 300 || strings.Contains(r.body, "alice") {
			t.Errorf("mallory's cookie at alice's host: %s", r)
		}
		if r := v.get(hers.origin+"/who", own, "Host: "+evil.host()); r.code < 300 || strings.Contains(r.body, "mallory") {
			t.Errorf("alice's cookie at mallory's host: %s", r)
		}
		if r := v.get(hers.origin+"/security", "Host: "+portalHost+":"+portalPort); r.code != http.StatusSeeOther {
			t.Errorf("the portal, on the same connection: %s", r)
		}
	}
	// The same over HTTP/1.1, whatever name the handshake had.
	l := mallory.line(evil.host())
	res := l.ask("GET /who HTTP/1.1\r\nHost: " + evil.host() + "\r\n" + foreign + "\r\n\r\n")
	if res == nil || res.code != http.StatusOK {
		t.Fatalf("mallory's own: %v", res)
	}
	if res = l.ask("GET /who HTTP/1.1\r\nHost: " + hers.host() + "\r\n" + foreign + "\r\n\r\n"); res == nil || res.code < 300 {
		t.Errorf("alice's host on mallory's connection: %v", res)
	}
}

func TestAttack_W14_the_end_of_a_job_closes_the_way_to_it(t *testing.T) {
	mirrors(t)
	v := visit(t, "alice").login()
	app := v.session("mirror", "--requeue")
	v.enter(app.origin + "/")
	cookie := v.cookie(app.origin, appCookie)
	socket, text, code := v.websocket(app, "Origin: "+app.origin)
	if socket == nil || !strings.HasPrefix(text, "secret of alice") {
		t.Fatalf("the own websocket: %d %s", code, text)
	}
	ended := func(l *line, old opened) {
		t.Helper()
		if err := l.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := l.frame(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the websocket is open: %v", err)
		}
		again := visit(t, "alice")
		for _, method := range []string{"GET", "POST"} {
			if r := again.send(method, old.origin+"/who", "", "Cookie: "+appCookie+"="+cookie, "Origin: "+old.origin); r.code < 300 || strings.Contains(r.body, "in job") {
				t.Errorf("%s after the end: %s", method, r)
			}
		}
		// The backend hears of the end a moment later than who holds a stream; a code
		// that it gives until then leads nowhere.
		eventually(t, 10*time.Second, "refusal of a code", func() bool {
			if r := v.enter(old.origin + "/who"); strings.Contains(r.body, "in job") {
				t.Errorf("the owner gets in after the end: %s", r)
			}
			return v.get("/open?host="+old.label()+"&n="+strings.Repeat("a", 64)).code >= 400
		})
	}
	// Requeued on the same node it is another session.
	root(t, ctl, "scontrol", "requeue", app.job).ok(t)
	ended(socket, app)
	root(t, ctl, "scontrol", "update", "jobid="+app.job, "starttime=now")
	next := opened{"alice", app.job, ""}
	eventually(t, 3*time.Minute, "the requeued job", func() bool {
		_, body, _ := strings.Cut(v.get("/jobs/"+app.job).body, `id="jobhead"`)
		next.origin = v.site.origin().FindString(body)
		return next.origin != "" && next.origin != app.origin
	})
	if r := v.enter(next.origin + "/who"); !strings.HasPrefix(r.body, "alice in job") {
		t.Errorf("the requeued job's app: %s", r)
	}
	if r := visit(t, "alice").get(next.origin+"/who", "Cookie: "+appCookie+"="+cookie); r.code < 300 {
		t.Errorf("the old cookie at the new host: %s", r)
	}
	if r := visit(t, "alice").get(app.origin+"/who", "Cookie: "+appCookie+"="+v.cookie(next.origin, appCookie)); r.code < 300 {
		t.Errorf("the new cookie at the old host: %s", r)
	}
	socket, _, _ = v.websocket(next, "Origin: "+next.origin)
	cookie = v.cookie(next.origin, appCookie)
	root(t, ctl, "scancel", app.job).ok(t)
	ended(socket, next)
}

func TestAttack_W14_logging_out_closes_the_way_to_every_app(t *testing.T) {
	mirrors(t)
	v := visit(t, "alice").login()
	app := v.session("mirror")
	v.enter(app.origin + "/")
	cookie := v.cookie(app.origin, appCookie)
	socket, _, _ := v.websocket(app, "Origin: "+app.origin)
	v.post("/security", "/logout")
	if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.frame(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the websocket is open: %v", err)
	}
	if r := visit(t, "alice").get(app.origin+"/who", "Cookie: "+appCookie+"="+cookie); r.code < 300 {
		t.Errorf("after logging out: %s", r)
	}
	if s := state(t, app.job); s != "RUNNING" {
		t.Errorf("the job is %s", s)
	}
}

func TestAttack_W14_nothing_of_ours_and_nothing_spoofed_reaches_the_app(t *testing.T) {
	mirrors(t)
	v := visit(t, "mallory").login()
	app := v.session("mirror")
	v.enter(app.origin + "/")
	login, ticket := v.cookie(portalURL, portalCookie), v.cookie(app.origin, appCookie)
	spoofed := []string{
		"Authorization: Bearer " + login, "Proxy-Authorization: Basic YTpi", "X-Forwarded-For: 192.0.2.9", "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: http",
		"X_Forwarded_For: 192.0.2.9", "X-Forwarded_Host: evil.example", "Forwarded: for=192.0.2.9;host=evil.example", "X-Remote-User: root", "X_Remote_User: root", "Remote-User: root",
		"REMOTE_USER: root", "X-Carme-User: root", "X-Carme-Viewer: root", "X-Carme-Mode: root", "X_Carme_User: root", "x-carme-user: root", "X-Real-IP: 192.0.2.9",
		"X-Original-URL: /evil", "X-Rewrite-URL: /evil", "X-Auth-User: root", "Proxy: http://192.0.2.9", "Ssl-Client-Verify: SUCCESS", "Via: 1.1 evil.example",
		"True-Client-IP: 192.0.2.9", "X-HTTP-Method-Override: GET-evil.example",
		"Cookie: " + portalCookie + "=" + login + "; " + deviceCookie + "=x; __HOST-CARME=" + login + "; own=1; " + nonceCookie + "=n; " + appCookie + "=" + ticket,
		"Connection: X-Carme-User, X-Carme-Mode, X-Forwarded-For, Host, Cookie, close",
	}
	check := func(what, head string) {
		t.Helper()
		low := strings.ToLower(head)
		for _, never := range []string{
			strings.ToLower(login), strings.ToLower(ticket), "__host-carme", "authorization", "192.0.2.9", "evil.example/", "host: evil", "host=evil", ": root", "_user", "_for", "_host", "success", "proxy:", "/evil", "x-auth", "via:",
		} {
			if strings.Contains(low, never) {
				t.Errorf("%s: the app gets %q:\n%s", what, never, head)
			}
		}
		for _, want := range []string{"host: " + app.host(), "x-carme-user: mallory", "x-forwarded-proto: https", "x-forwarded-host: " + app.host(), "x-forwarded-for: "} {
			if strings.Count(low, "\n"+want) != 1 {
				t.Errorf("%s: the app gets %q %d times:\n%s", what, want, strings.Count(low, "\n"+want), head)
			}
		}
		if !strings.Contains(head, "own=1") {
			t.Errorf("%s: the app's own cookie is lost:\n%s", what, head)
		}
	}
	text := strings.Join(spoofed, "\r\n")
	l := v.line(app.host())
	res := l.ask("GET /echo HTTP/1.1\r\nHost: " + app.host() + "\r\n" + text + "\r\n\r\n")
	if res == nil || res.code != http.StatusOK {
		t.Fatalf("a request with many headers: %v", res)
	}
	check("over HTTP/1.1", res.body)
	check("over HTTP/2", v.get(app.origin+"/echo", spoofed[:len(spoofed)-1]...).body)
	l = v.line(app.host())
	res = l.ask(strings.TrimSuffix(handshake(app.host(), "Origin: "+app.origin, strings.Join(spoofed[:len(spoofed)-1], "\r\n")), "\r\n\r\n") + "\r\n\r\n")
	if res == nil || res.code != http.StatusSwitchingProtocols {
		t.Fatalf("a websocket with many headers: %v", res)
	}
	head, err := l.frame()
	if err != nil {
		t.Fatal(err)
	}
	check("by websocket", head)
}

func TestAttack_W14_an_apps_answer_harms_nobody_else(t *testing.T) {
	mirrors(t)
	v := visit(t, "mallory").login()
	app := v.session("mirror")
	v.enter(app.origin + "/")
	answer := func(status string, headers ...string) reply {
		t.Helper()
		return v.get(app.origin + "/reply?" + url.Values{"status": {status}, "h": headers}.Encode())
	}
	r := answer("200 OK",
		"Set-Cookie: a=1; Domain="+appsDomain, "Set-Cookie: b=1; dOmAiN=.carme.localhost; Path=/", "Set-Cookie: c=1; Domain = localhost", "Set-Cookie: "+portalCookie+"=evil; Path=/; Secure",
		"Set-Cookie: "+appCookie+"=evil; Path=/; Secure", "Set-Cookie: __host-Carme-app=evil", "Set-Cookie:  "+nonceCookie+"=evil; Path=/; Secure", "Set-Cookie: own=1", "Set-Cookie: =__Host-carme-app=evil",
		"Clear-Site-Data: \"*\"", "Strict-Transport-Security: max-age=0; includeSubDomains", "Alt-Svc: h2=\":7444\"; ma=86400", "Service-Worker-Allowed: https://"+portalHost+"/",
		"NEL: {\"report_to\":\"x\",\"max_age\":1,\"include_subdomains\":true}", "Report-To: {\"group\":\"x\"}", "Public-Key-Pins: x", "Expect-CT: x", "Origin-Agent-Cluster: ?0",
		"Connection: Strict-Transport-Security, Origin-Agent-Cluster", "Keep-Alive: timeout=1", "Proxy-Authenticate: Basic", "X-Fine: 1")
	if r.code != http.StatusOK || r.header.Get("X-Fine") != "1" {
		t.Fatalf("the app's answer: %s", r)
	}
	for _, c := range r.header.Values("Set-Cookie") {
		if low := strings.ToLower(c); strings.Contains(low, "domain") || strings.Contains(low, "__host-carme") {
			t.Errorf("a cookie that reaches others: %s", c)
		}
	}
	if !strings.Contains(strings.Join(r.header.Values("Set-Cookie"), "\n"), "own=1") {
		t.Error("the app's own cookie is lost")
	}
	for _, name := range []string{"Clear-Site-Data", "Alt-Svc", "Service-Worker-Allowed", "Nel", "Report-To", "Public-Key-Pins", "Expect-Ct", "Proxy-Authenticate"} {
		if value := r.header.Get(name); value != "" {
			t.Errorf("%s: %s", name, value)
		}
	}
	if got := r.header.Values("Strict-Transport-Security"); len(got) != 1 || got[0] != "max-age=31536000; includeSubDomains" {
		t.Errorf("Strict-Transport-Security: %v", got)
	}
	// Redirects inwards are neither followed nor passed on.
	for _, inner := range []string{
		"http://127.0.0.1:7444/x", "http://localhost:8888/x", "https://carme-ctl:7443/v1/me", "http://10.0.0.1/x", "http://169.254.169.254/latest", "http://[::1]:22/x",
		"//127.0.0.1/x", "http://2130706433/x", "http://user:pw@192.168.0.1/x", "https://" + app.host() + "/x",
	} {
		r := answer("302 Found", "Location: "+inner)
		if r.code != http.StatusFound || !strings.HasPrefix(r.to(), "/") || strings.HasPrefix(r.to(), "//") {
			t.Errorf("a redirect to %s: %s", inner, r)
		}
	}
	for what, raw := range map[string]string{
		"no HTTP":             "hello\r\n\r\n",
		"two lengths":         "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"a space before":      "HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\na",
		"a switch unasked":    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
		"a huge head":         "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 600000) + "\r\n\r\n",
		"100s without end":    strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 500),
		"a NUL in a header":   "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
		"nothing":             "",
		"more than announced": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nSet-Cookie: x=1; Domain=" + appsDomain + "\r\nContent-Length: 0\r\n\r\n",
		"length and chunks":   "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
	} {
		if len(raw) > 40000 {
			continue // more than the app can be told in a request; see the unit tests
		}
		l := v.line(app.host())
		res := l.ask("GET /raw?b=" + url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(raw))) + " HTTP/1.1\r\nHost: " + app.host() + "\r\nCookie: " + appCookie + "=" + v.cookie(app.origin, appCookie) + "\r\n\r\n")
		if res != nil && (res.code < 200 || strings.Contains(strings.Join(res.header.Values("Set-Cookie"), ""), "Domain")) {
			t.Errorf("%s: %d", what, res.code)
		}
		// The next request is answered by its own answer.
		for range 3 {
			if r := v.get(app.origin + "/who"); r.code != http.StatusOK || !strings.HasPrefix(r.body, "mallory in job") || len(r.header.Values("Set-Cookie")) > 0 {
				t.Errorf("the request after %s: %s", what, r)
			}
		}
	}
}

func TestAttack_W14_requests_that_can_be_read_in_two_ways(t *testing.T) {
	alice, mallory, hers, evil := neighbours(t)
	before := alice.seen(hers)
	front := "POST /first HTTP/1.1\r\nHost: " + evil.host() + "\r\nOrigin: " + evil.origin + "\r\nCookie: " + appCookie + "=" + mallory.cookie(evil.origin, appCookie) + "\r\n"
	inner := "GET /smuggled HTTP/1.1\r\nHost: " + hers.host() + "\r\nX-Carme-User: root\r\n\r\n"
	n := fmt.Sprint(len(inner))
	for _, text := range map[string]string{
		"TE and CL":                 front + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"CL and TE":                 front + "Transfer-Encoding: chunked\r\nContent-Length: " + n + "\r\n\r\n0\r\n\r\n" + inner,
		"TE with a space":           front + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + inner,
		"TE with a tab":             front + "Transfer-Encoding:\tchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + inner,
		"TE xchunked":               front + "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + inner,
		"TE identity":               front + "Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + inner,
		"TE twice":                  front + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inner,
		"TE chunked, chunked":       front + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + inner,
		"TE folded":                 front + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + inner,
		"TE with a vertical tab":    front + "Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + inner,
		"TE by underscore":          front + "Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + inner,
		"two lengths":               front + "Content-Length: 0\r\nContent-Length: " + n + "\r\n\r\n" + inner,
		"lengths in a list":         front + "Content-Length: 0, " + n + "\r\n\r\n" + inner,
		"a length with a sign":      front + "Content-Length: +0\r\n\r\n" + inner,
		"a length in hex":           front + "Content-Length: 0x0\r\n\r\n" + inner,
		"a negative length":         front + "Content-Length: -1\r\n\r\n" + inner,
		"bare LF":                   strings.ReplaceAll(front, "\r\n", "\n") + "Content-Length: 0\n\n" + inner,
		"bare LF in a header":       front + "X: a\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"bare CR in a header":       front + "X: a\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + inner,
		"a header with a NUL":       front + "X: a\x00b\r\nContent-Length: 0\r\n\r\n" + inner,
		"a header without a name":   front + ": x\r\nContent-Length: 0\r\n\r\n" + inner,
		"a header without a colon":  front + "Transfer-Encoding chunked\r\nContent-Length: 0\r\n\r\n" + inner,
		"a line before the request": " " + front + "Content-Length: 0\r\n\r\n" + inner,
		"chunk extension with LF":   front + "Transfer-Encoding: chunked\r\n\r\n2;a\nxx\r\n0\r\n\r\n" + inner,
		"chunk with bare LF":        front + "Transfer-Encoding: chunked\r\n\r\n0\n\n" + inner,
		"a chunk too large":         front + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + inner,
		"trailers":                  front + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\nContent-Length: 5\r\nX-Carme-User: root\r\n\r\n" + inner,
		"Expect and a body":         front + "Expect: 100-continue\r\nContent-Length: " + n + "\r\n\r\n" + inner,
		"upgrade and a body":        front + "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: " + n + "\r\n\r\n" + inner,
		"request line with LF":      "GET /a\nGET /smuggled HTTP/1.1\r\nHost: " + hers.host() + "\r\n\r\n",
		"request line with CR":      "GET /a\rX HTTP/1.1\r\nHost: " + evil.host() + "\r\n\r\n" + inner,
		"two spaces":                "GET  /a HTTP/1.1\r\nHost: " + evil.host() + "\r\n\r\n" + inner,
		"HTTP/0.9":                  "GET /a\r\n" + inner,
		"HTTP/1.2":                  "GET /a HTTP/1.2\r\nHost: " + evil.host() + "\r\n\r\n" + inner,
	} {
		l := mallory.line(evil.host())
		l.ask(text)
	}
	for _, got := range lines(mallory.seen(evil)) {
		// As a body it may come; as a request of its own it may not.
		if strings.HasPrefix(got, "GET /smuggled") {
			t.Errorf("mallory's app got %s", got)
		}
	}
	if after := alice.seen(hers); after != before {
		t.Errorf("alice's app got\n%s", strings.TrimPrefix(after, before))
	}
}

func TestAttack_W14_paths_do_not_choose_where_a_request_goes(t *testing.T) {
	alice, mallory, hers, evil := neighbours(t)
	before := alice.seen(hers)
	cookie := "\r\nCookie: " + appCookie + "=" + mallory.cookie(evil.origin, appCookie) + "\r\n\r\n"
	for _, path := range []string{
		"/%2e%2e/" + hers.host() + "/who", "/../" + hers.label() + "/who", "/..;/who", "/.;/x", "/a%2f..%2fb", "/%00", "/a\x00b", "/a%0d%0aX-Carme-User:%20root", "/a;b=c", "/a?x=1;y=%zz",
		"//" + hers.host() + "/who", "///who", "/\\" + hers.host(), "/%5c..%5cx", "/.carme%2fcb?code=x", "/%2ecarme/cb", "/.carme/../who", "/.Carme/cb", "/.carme/..%2fwho", "/.carme;/cb", "/./.carme/cb",
		"/a\tb", "/a\x7fb", "/\xff", "/%ff%fe", "/a#b", "/who HTTP/1.1\r\nX: y",
	} {
		l := mallory.line(evil.host())
		res := l.ask("GET " + path + " HTTP/1.1\r\nHost: " + evil.host() + cookie)
		if res == nil {
			continue
		}
		if strings.Contains(res.body, "alice") {
			t.Errorf("%q: %s", path, res)
		}
		// What reaches the app is what was sent, byte for byte.
		if first, _, _ := strings.Cut(res.body, "\n"); res.code == http.StatusOK && strings.HasPrefix(first, "GET ") && first != "GET "+path+" HTTP/1.1" {
			t.Errorf("%q became %q", path, first)
		}
	}
	if after := alice.seen(hers); after != before {
		t.Errorf("alice's app got\n%s", strings.TrimPrefix(after, before))
	}
}

func TestAttack_W14_other_pages_neither_send_nor_listen(t *testing.T) {
	alice, _, hers, evil := neighbours(t)
	before := alice.seen(hers)
	for what, origin := range map[string]string{
		"a foreign page": "https://evil.example", "a sibling": evil.origin, "a sandboxed page": "null", "the portal": portalURL, "no origin": "",
		"without the port": strings.TrimSuffix(hers.origin, ":"+portalPort), "in the clear": strings.Replace(hers.origin, "https", "http", 1), "upper case": strings.ToUpper(hers.origin),
		"a slash behind": hers.origin + "/", "a suffix": hers.origin + ".evil.example", "a prefix": "https://evil" + hers.host(), "two": hers.origin + " " + evil.origin, "twice": hers.origin + "\r\nOrigin: " + evil.origin,
	} {
		header := "Origin: " + origin
		if origin == "" {
			header = "X-Origin: none"
		}
		if l, text, code := alice.websocket(hers, header); l != nil || code != http.StatusForbidden {
			t.Errorf("a websocket from %s: %d %s", what, code, text)
		}
		if strings.Contains(origin, "\n") {
			continue
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
			if r := alice.send(method, hers.origin+"/write", "x", header); r.code != http.StatusForbidden {
				t.Errorf("%s from %s: %s", method, what, r)
			}
		}
		if origin != "" {
			if r := alice.get(hers.origin+"/read", header); r.code != http.StatusForbidden {
				t.Errorf("GET from %s: %s", what, r)
			}
		}
	}
	for what, headers := range map[string][]string{
		"a sibling's fetch":          {"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty", "Origin: " + evil.origin},
		"a sibling's no-cors fetch":  {"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: empty"},
		"a sibling's image":          {"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"},
		"a sibling's script":         {"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"},
		"a sibling's frame":          {"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"},
		"a sibling's object":         {"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: object"},
		"a foreign frame":            {"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"},
		"a prefetch without a place": {"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"},
		"a site nobody knows":        {"Sec-Fetch-Site: friendly"},
		"two sites":                  {"Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"},
	} {
		if r := alice.get(hers.origin+"/read", headers...); r.code != http.StatusForbidden {
			t.Errorf("%s: %s", what, r)
		}
	}
	post := []string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Origin: " + evil.origin}
	if r := alice.send("POST", hers.origin+"/write", "x=1", post...); r.code != http.StatusForbidden {
		t.Errorf("a sibling's form: %s", r)
	}
	if after := alice.seen(hers); after != before {
		t.Errorf("alice's app got\n%s", strings.TrimPrefix(after, before))
	}
	if r := alice.get(hers.origin+"/who", "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"); r.code != http.StatusOK {
		t.Errorf("a link from the portal: %s", r)
	}
}

func TestAttack_W14_slow_and_stalled_clients_stop_nobody(t *testing.T) {
	alice, mallory, hers, evil := neighbours(t)
	at := net.JoinHostPort(address(t, login), portalPort)
	var dialer net.Dialer
	// Ten thousand that say nothing at all.
	const many = 10000
	silent := make([]net.Conn, 0, many)
	t.Cleanup(func() {
		for _, c := range silent {
			_ = c.Close()
		}
	})
	for range many {
		c, err := dialer.DialContext(t.Context(), "tcp", at)
		if err != nil {
			t.Fatalf("connection %d: %v", len(silent), err)
		}
		silent = append(silent, c)
	}
	// And some that speak slowly.
	slow := make([]*line, 0, 40)
	for i := range cap(slow) {
		l := mallory.line(evil.host())
		text := "GET /x HTTP/1.1\r\nHost: " + evil.host() + "\r\n"
		if i%2 == 0 {
			text += "X-Slow: "
		}
		if _, err := io.WriteString(l, text); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, l)
	}
	for range 5 {
		start := time.Now()
		if r := alice.get(hers.origin + "/who"); r.code != http.StatusOK || time.Since(start) > 3*time.Second {
			t.Errorf("alice waits %v: %s", time.Since(start), r)
		}
	}
	if r := visit(t, "bob").get("/login"); r.code != http.StatusOK {
		t.Errorf("a newcomer: %s", r)
	}
	// All are given up.
	for i, l := range slow {
		if err := l.SetReadDeadline(time.Now().Add(25 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, l); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("slow connection %d is open", i)
		}
	}
	for i := range 50 {
		c := silent[i*many/50]
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("silent connection %d is open", i)
		}
	}
}

func TestAttack_W14_one_user_takes_no_more_streams_than_are_theirs(t *testing.T) {
	alice, mallory, hers, evil := neighbours(t)
	full := 0
	for range 270 {
		if l, _, code := mallory.websocket(evil, "Origin: "+evil.origin); l == nil {
			if code != http.StatusServiceUnavailable {
				t.Fatalf("a websocket too many: %d", code)
			}
			full++
		}
	}
	if full == 0 {
		t.Error("270 websockets are open to one app")
	}
	if l, text, code := alice.websocket(hers, "Origin: "+hers.origin); l == nil || !strings.HasPrefix(text, "secret of alice") {
		t.Errorf("alice's websocket: %d %s", code, text)
	}
	if r := alice.get(hers.origin + "/who"); r.code != http.StatusOK {
		t.Errorf("alice: %s", r)
	}
}

func TestAttack_W14_huge_headers_are_refused_with_a_way_out(t *testing.T) {
	alice, _, hers, _ := neighbours(t)
	before := alice.seen(hers)
	var pile []string
	for i := range 180 {
		pile = append(pile, fmt.Sprintf("evil%d=%s", i, strings.Repeat("a", 3800)))
	}
	flood := "Cookie: " + strings.Join(pile, "; ")
	for path, method := range map[string]string{"/who": "GET", "/.carme/cb?code=x": "GET"} {
		r := alice.send(method, hers.origin+path, "", flood)
		if r.code != http.StatusRequestHeaderFieldsTooLarge || !strings.Contains(r.body, "/.carme/clear") {
			t.Errorf("%s with 180 cookies: %s", path, r)
		}
		removed := strings.Join(r.header.Values("Set-Cookie"), "\n")
		for _, domain := range []string{appsDomain, "carme.localhost"} {
			if !strings.Contains(removed, "evil179=; Domain="+domain+"; Path=/;") {
				t.Errorf("%s: the cookies of %s are not removed", path, domain)
			}
		}
	}
	// The last way out works under the very flood that it is for.
	if r := alice.send("POST", hers.origin+"/.carme/clear", "", flood, "Origin: "+hers.origin); r.header.Get("Clear-Site-Data") != `"cookies"` {
		t.Errorf("the button under a flood: %s", r)
	}
	if r := alice.send("POST", hers.origin+"/.carme/clear", "", "Origin: https://evil.example"); r.header.Get("Clear-Site-Data") != "" {
		t.Errorf("another page presses the button: %s", r)
	}
	// Cookies that were put on one path are removed there.
	r := alice.get(hers.origin+"/lab/tree/x", flood)
	if !strings.Contains(strings.Join(r.header.Values("Set-Cookie"), "\n"), "; Path=/lab/tree;") {
		t.Errorf("cookies of a path are not removed: %d cookies", len(r.header.Values("Set-Cookie")))
	}
	// The portal's pages stay in reach.
	if r := alice.get("/security", flood); r.code != http.StatusOK {
		t.Errorf("the portal under a flood: %s", r)
	}
	for what, header := range map[string]string{
		"one of 100 KB": "X: " + strings.Repeat("a", 100<<10), "of 3 MB": "X: " + strings.Repeat("a", 3<<20),
	} {
		if r, err := alice.try("GET", hers.origin+"/who", "", header); err == nil && r.code != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: %s", what, r)
		}
	}
	if r, err := alice.try("GET", hers.origin+"/"+strings.Repeat("a", 70<<10), ""); err == nil && r.code < 400 {
		t.Errorf("a path of 70 KB: %s", r)
	}
	if after := alice.seen(hers); after != before {
		t.Errorf("alice's app got\n%.500s", strings.TrimPrefix(after, before))
	}
}

func TestAttack_W14_a_page_that_was_asked_for_is_remembered_on_its_own_host_alone(t *testing.T) {
	mirrors(t)
	v := visit(t, "alice").login()
	app := v.session("mirror")
	for _, path := range []string{"//evil.example/", "/\\evil.example", "/%0d%0aX-Evil:1", "/..//evil.example", "/.//evil.example/%2e%2e"} {
		again := visit(t, "alice")
		again.give(portalURL, portalCookie, v.cookie(portalURL, portalCookie))
		l := again.line(app.host())
		res := l.ask("GET " + path + " HTTP/1.1\r\nHost: " + app.host() + "\r\nAccept: text/html\r\n\r\n")
		if res == nil || res.code != http.StatusSeeOther {
			continue
		}
		to, err := url.Parse(res.header.Get("Location"))
		if err != nil || to.Host != portalHost+":"+portalPort {
			t.Errorf("%q: to %s", path, res.header.Get("Location"))
			continue
		}
		cookies := regexp.MustCompile(nonceCookie + "=([^;]*)").FindStringSubmatch(res.header.Get("Set-Cookie"))
		if cookies == nil {
			t.Fatalf("%q: no nonce", path)
		}
		again.give(app.origin, nonceCookie, cookies[1])
		r := again.get(again.get(to.String()).to())
		base, err := url.Parse(app.origin + "/.carme/cb")
		if err != nil {
			t.Fatal(err)
		}
		if at, err := base.Parse(r.to()); err != nil || r.to() == "" || at.Host != app.host() || len(r.header.Values("X-Evil")) > 0 {
			t.Errorf("%q: at last to %q", path, r.to())
		}
	}
}
