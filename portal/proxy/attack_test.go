package proxy

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
)

// mirror is an app that says what reached it.
func mirror(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/ws" {
		echoSocket(rw, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(rw, "%s %s\nHost: %s\n", r.Method, r.RequestURI, r.Host)
	_ = r.Header.Write(rw)
	fmt.Fprintf(rw, "\n%s", body)
}

func TestApp_gets_the_request_as_it_is_and_who_asks(t *testing.T) {
	for name, names := range layouts {
		t.Run(name, func(t *testing.T) {
			w := newWorldNamed(t, names, http.HandlerFunc(mirror))
			host, cookie := w.session("alice", "a")
			for _, h2 := range []bool{false, true} {
				answer := w.ask(w.client(h2), "POST", host, "/a%2Fb/..;x/%e4?q=1;2&bad=%zz&u=%00", cookie, strings.NewReader("hello"), "+Cookie: _xsrf=own", "Origin: https://"+host)
				got := text(t, answer)
				for _, want := range []string{
					"POST /a%2Fb/..;x/%e4?q=1;2&bad=%zz&u=%00\n", "Host: " + host + "\n", "Origin: https://" + host + "\r\n", "Cookie: _xsrf=own\r\n",
					"X-Forwarded-For: 127.0.0.1\r\n", "X-Forwarded-Proto: https\r\n", "X-Forwarded-Host: " + host, "X-Carme-User: alice", "X-Carme-Mode: full", "\nhello",
				} {
					if answer.StatusCode != 200 || !strings.Contains(got, want) {
						t.Errorf("HTTP/2 %v, status %d: %q is missing in\n%s", h2, answer.StatusCode, want, got)
					}
				}
				if strings.Contains(got, cookie) {
					t.Error("our cookie reached the app")
				}
			}
		})
	}
}

func TestAttack_headers_that_claim_an_identity_or_name_ours_do_not_reach_the_app(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	headers := []string{
		"X-Forwarded-For: evil", "X-Forwarded-User: evil", "X_Forwarded_For: evil", "Forwarded: for=evil", "X-Remote-User: evil", "Remote-User: evil",
		"X-Real-Ip: evil", "X-Carme-User: evil", "X_Carme_User: evil", "Authorization: Bearer evil", "Proxy-Authorization: evil", "Proxy: evil",
		"X-Auth-Request-User: evil", "X-Original-Url: /evil", "Via: evil", "X-Webauth-User: evil", "Connection: X-Carme-User, X-Forwarded-For, X-Drop", "X-Drop: evil", "+Cookie: __HOST-carme=evil",
	}
	for _, h2 := range []bool{false, true} {
		use := headers
		if h2 { // HTTP/2 has no Connection
			use = append(append([]string{}, headers[:16]...), headers[18])
		}
		got := text(t, w.ask(w.client(h2), "GET", host, "/", cookie, nil, use...))
		if strings.Contains(got, "evil") || strings.Contains(strings.ToLower(got), "__host-carme") {
			t.Errorf("HTTP/2 %v: it reached the app:\n%s", h2, got)
		}
		if !strings.Contains(got, "X-Carme-User: alice") || !strings.Contains(got, "X-Forwarded-For: 127.0.0.1") {
			t.Errorf("HTTP/2 %v: ours were dropped:\n%s", h2, got)
		}
	}
}

func TestAttack_only_the_sessions_own_pages_reach_it(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	sibling, _ := w.session("mallory", "m")
	own := "Origin: https://" + host
	for name, test := range map[string]struct {
		method  string
		headers []string
		want    int
	}{
		"own fetch":                         {"GET", nil, 200},
		"own post":                          {"POST", []string{own}, 200},
		"typed address":                     {"GET", []string{"Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}, 200},
		"link from elsewhere":               {"GET", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}, 200},
		"link from a sibling":               {"GET", []string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}, 200},
		"sibling fetches":                   {"GET", []string{"Sec-Fetch-Site: same-site", "Origin: https://" + sibling}, 403},
		"sibling fetches without cors":      {"GET", []string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"}, 403},
		"sibling frames":                    {"GET", []string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"}, 403},
		"sibling posts a form":              {"POST", []string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Origin: https://" + sibling}, 403},
		"foreign page":                      {"GET", []string{"Sec-Fetch-Site: cross-site"}, 403},
		"foreign object":                    {"GET", []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: object"}, 403},
		"old browser":                       {"GET", []string{"-Sec-Fetch-Site", "-Sec-Fetch-Mode", "-Sec-Fetch-Dest"}, 200},
		"old browser, foreign origin":       {"GET", []string{"-Sec-Fetch-Site", "Origin: https://evil.example"}, 403},
		"old browser, null origin":          {"GET", []string{"-Sec-Fetch-Site", "Origin: null"}, 403},
		"old browser posts without origin":  {"POST", []string{"-Sec-Fetch-Site"}, 403},
		"old browser deletes, other origin": {"DELETE", []string{"-Sec-Fetch-Site", "Origin: https://" + sibling}, 403},
		"old browser posts, own origin":     {"POST", []string{"-Sec-Fetch-Site", own}, 200},
		"origin with plain http":            {"POST", []string{"-Sec-Fetch-Site", "Origin: http://" + host}, 403},
	} {
		for _, h2 := range []bool{false, true} {
			if got := w.ask(w.client(h2), test.method, host, "/", cookie, nil, test.headers...).StatusCode; got != test.want {
				t.Errorf("%s, HTTP/2 %v: %d, want %d", name, h2, got, test.want)
			}
		}
	}
}

func TestAttack_websocket_needs_the_hosts_own_origin(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	sibling, _ := w.session("mallory", "m")
	for name, test := range map[string]struct {
		headers []string
		want    int
	}{
		"own":            {[]string{"Origin: https://" + host}, 101},
		"missing":        {nil, 403},
		"null":           {[]string{"Origin: null"}, 403},
		"sibling":        {[]string{"Origin: https://" + sibling}, 403},
		"foreign":        {[]string{"Origin: https://evil.example"}, 403},
		"without port":   {[]string{"Origin: https://" + strings.TrimSuffix(host, ":8443")}, 403},
		"own and theirs": {[]string{"Origin: https://" + host, "Origin: https://evil.example"}, 403},
		"upper case":     {[]string{"Origin: HTTPS://" + strings.ToUpper(host)}, 403},
	} {
		if _, _, answer := w.socket(host, cookie, test.headers...); answer.StatusCode != test.want {
			t.Errorf("%s: %d, want %d", name, answer.StatusCode, test.want)
		}
	}
}

func TestWebsocket_carries_bytes_both_ways_without_our_secrets(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	conn, r, answer := w.socket(host, cookie, "Origin: https://"+host, "Authorization: Bearer secret")
	if answer.Header.Get("X-Cookie") != "own=1" || answer.Header.Get("X-Origin") != "https://"+host || answer.Header.Get("X-Auth") != "" {
		t.Errorf("the app got cookie %q, origin %q, authorization %q", answer.Header.Get("X-Cookie"), answer.Header.Get("X-Origin"), answer.Header.Get("X-Auth"))
	}
	big := strings.Repeat("0123456789abcdef", 16<<10) // 256 KiB: more than any buffer
	for _, message := range []string{"ping", big, "pong"} {
		go func() { _, _ = io.WriteString(conn, message) }()
		got := make([]byte, len(message))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != message {
			t.Fatalf("%d bytes came back wrong: %v", len(message), err)
		}
	}
	_ = conn.Close()
	eventually(t, "the end of the stream at the agent", func() bool { return w.agent.open.Load() == 0 && w.proxy.Stats().Open == 0 })
}

func TestAttack_another_users_session_stays_closed(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	alice, aliceCookie := w.session("alice", "a")
	mallory, malloryCookie := w.session("mallory", "m")
	c := w.client(true)
	for name, test := range map[string]struct{ host, cookie string }{
		"by the cookie of another session": {alice, malloryCookie},
		"by a guessed cookie":              {alice, "guess"},
		"without a cookie":                 {alice, ""},
		"the other way":                    {mallory, aliceCookie},
	} {
		if got := w.ask(c, "GET", test.host, "/", test.cookie, nil); got.StatusCode != 401 {
			t.Errorf("%s: %d", name, got.StatusCode)
		}
		if _, _, answer := w.socket(test.host, test.cookie, "Origin: https://"+test.host); answer.StatusCode != 401 {
			t.Errorf("%s, websocket: %d", name, answer.StatusCode)
		}
	}
	// One connection of HTTP/2 for both hosts: each request counts by itself.
	if a, b := w.ask(c, "GET", alice, "/", aliceCookie, nil), w.ask(c, "GET", mallory, "/", aliceCookie, nil); a.StatusCode != 200 || b.StatusCode != 401 {
		t.Errorf("statuses %d and %d on one connection", a.StatusCode, b.StatusCode)
	}
}

func TestAttack_hosts_that_are_none(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	label, _ := w.names.Label(host)
	for _, bad := range []string{
		"evil.example", "apps.carme.localhost:8443", "x." + host, strings.TrimSuffix(host, ":8443"), label + ".apps.carme.localhost.:8443", strings.ToUpper(host),
		"s-short.apps.carme.localhost:8443", label + ".apps.carme.localhost:22", "portal.carme.localhost", "127.0.0.1:8443", label + "%2eapps.carme.localhost:8443",
	} {
		conn, r := w.raw(host) // the name in the handshake is good and does not count
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+bad+"\r\nCookie: "+appCookie+"="+cookie+"\r\nConnection: close\r\n\r\n")
		answer, err := http.ReadResponse(r, nil)
		if err == nil && answer.StatusCode != 421 && answer.StatusCode != 400 {
			t.Errorf("%s: %d", bad, answer.StatusCode)
		}
	}
}

func TestAttack_requests_that_can_be_read_in_two_ways(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen = append(seen, r.Method+" "+r.RequestURI+" "+string(body))
		mu.Unlock()
		mirror(rw, r)
	}))
	host, cookie := w.session("alice", "a")
	base := "Host: " + host + "\r\nSec-Fetch-Site: same-origin\r\nCookie: " + appCookie + "=" + cookie + "\r\n"
	smuggled := "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, request := range map[string]string{
		"TE and CL":           "POST /1 HTTP/1.1\r\n" + base + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"two lengths":         "POST /2 HTTP/1.1\r\n" + base + "Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + smuggled,
		"odd encoding":        "POST /3 HTTP/1.1\r\n" + base + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"space before colon":  "POST /4 HTTP/1.1\r\n" + base + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"bare LF in a header": "GET /5 HTTP/1.1\r\n" + base + "X: a\nX-Carme-User: evil\r\n\r\n",
		"bare CR in a header": "GET /6 HTTP/1.1\r\n" + base + "X: a\rX-Carme-User: evil\r\n\r\n",
		"NUL in a header":     "GET /7 HTTP/1.1\r\n" + base + "X: a\x00b\r\n\r\n",
		"absolute target":     "GET https://" + host + "/8 HTTP/1.1\r\n" + base + "\r\n",
		"inner target":        "GET http://127.0.0.1:22/9 HTTP/1.1\r\n" + base + "\r\n",
		"connect":             "CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + base + "\r\n",
		"trace":               "TRACE / HTTP/1.1\r\n" + base + "\r\n",
		"star":                "OPTIONS * HTTP/1.1\r\n" + base + "\r\n",
		"two hosts":           "GET /10 HTTP/1.1\r\nHost: evil.example\r\n" + base + "\r\n",
		"folded header":       "GET /11 HTTP/1.1\r\n" + base + "X: a\r\n X-Carme-User: evil\r\n\r\n",
		"high bytes in path":  "GET /\xff\xfe HTTP/1.1\r\n" + base + "\r\n",
		"h2c":                 "GET /12 HTTP/1.1\r\n" + base + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
		"te with cl in chunk": "POST /13 HTTP/1.1\r\n" + base + "Transfer-Encoding: chunked\r\n\r\n5;\nxx\r\nhello\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, r := w.raw(host)
			_, _ = io.WriteString(conn, request)
			_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			for { // everything that is answered on this connection
				answer, err := http.ReadResponse(r, nil)
				if err != nil {
					break
				}
				got, _ := io.ReadAll(answer.Body)
				if strings.Contains(string(got), "evil") && answer.StatusCode == 200 && strings.Contains(string(got), "\nX-Carme-User: evil") {
					t.Errorf("a header was smuggled:\n%s", got)
				}
				if strings.Contains(strings.ToLower(string(got)), "upgrade") {
					t.Errorf("an upgrade was passed on:\n%s", got)
				}
			}
		})
	}
	mu.Lock()
	defer mu.Unlock()
	for _, one := range seen {
		if strings.Contains(one, "/smuggled") && !strings.HasPrefix(one, "POST") || strings.Contains(one, "127.0.0.1") || strings.HasPrefix(one, "CONNECT") {
			t.Errorf("the app saw %q", one)
		}
	}
}

func TestAttack_a_space_in_the_path_of_HTTP2_is_no_second_request_line(t *testing.T) {
	for target, want := range map[string]bool{"/a": true, "/a HTTP/1.1": false, "/a\r\nX: y": false, "/\x00": false, "a": false, "//host/x": true, "/%20": true, "/\u00e4": false} {
		r := &http.Request{Method: "GET", RequestURI: target, URL: &url.URL{}}
		if got := wellFormed(r); got != want {
			t.Errorf("%q: %v", target, got)
		}
	}
}

func TestAttack_a_method_of_HTTP2_is_no_second_request_line(t *testing.T) {
	for name, want := range map[string]bool{
		"GET": true, "PROPFIND": true, "VERSION-CONTROL": true, "GET /secret HTTP/1.1 ": false, "GET\t/": false, "": false, "G\u00e4T": false, strings.Repeat("A", 1000): false,
	} {
		r := &http.Request{Method: name, RequestURI: "/", URL: &url.URL{}}
		if got := wellFormed(r); got != want {
			t.Errorf("%.30q: %v", name, got)
		}
	}
}

func TestAttack_an_apps_answer_harms_no_sibling(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		for _, one := range []string{
			"own=1; Path=/", "toss=1; Domain=apps.carme.localhost; Path=/", "toss2=1; path=/;  DOMAIN = .carme.localhost ;Secure", "__Host-carme-app=x; Secure; Path=/", " __host-CARME=x; Secure; Path=/", "=__Host-carme-app=x; Path=/", " = __Host-carme=x", "a=domain; Path=/",
		} {
			h.Add("Set-Cookie", one)
		}
		h.Set("Clear-Site-Data", `"*"`)
		h.Set("Strict-Transport-Security", "max-age=0; includeSubDomains")
		h.Set("Alt-Svc", `h3="evil.example:443"`)
		h.Set("Public-Key-Pins", "x")
		h.Set("Service-Worker-Allowed", "https://elsewhere/")
		h.Set("Nel", "{}")
		h.Set("Connection", "X-Hop")
		h.Set("X-Hop", "1")
		h.Set("Location", r.FormValue("to"))
		h.Set("X-Own", "stays")
		rw.WriteHeader(302)
	}))
	host, cookie := w.session("alice", "a")
	got := w.ask(w.client(true), "GET", host, "/?to=http://127.0.0.1:8888/lab%3Fx=1", cookie, nil)
	want := []string{"own=1; Path=/", "toss=1; Path=/", "toss2=1; path=/;Secure", "a=domain; Path=/"}
	if cookies := got.Header["Set-Cookie"]; strings.Join(cookies, "|") != strings.Join(want, "|") {
		t.Errorf("cookies %q", cookies)
	}
	for _, name := range []string{"Clear-Site-Data", "Alt-Svc", "Public-Key-Pins", "Service-Worker-Allowed", "Nel", "X-Hop"} {
		if got.Header.Get(name) != "" {
			t.Errorf("%s: %s", name, got.Header.Get(name))
		}
	}
	if got.Header.Get("Location") != "/lab?x=1" || got.Header.Get("X-Own") != "stays" || got.Header.Get("Strict-Transport-Security") != "max-age=31536000; includeSubDomains" || got.Header.Get("Referrer-Policy") != "same-origin" {
		t.Errorf("headers %v", got.Header)
	}
	for from, to := range map[string]string{
		"/x": "/x", "https://example.org/": "https://example.org/", "http://" + host + "/a": "/a", "http://localhost:1/a": "/a", "http://10.0.0.1/": "/",
		"http://carme-node1:80/b": "/b", "http://[::1]/c": "/c", "http://localhost//evil.example/": "/",
	} {
		if got := ownLocation(from, host); got != to {
			t.Errorf("%s becomes %s, want %s", from, got, to)
		}
	}
}

func TestAttack_answers_of_ours_carry_the_headers_that_protect_them(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, _ := w.session("alice", "a")
	page := []string{"Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Sec-Fetch-Site: none", "Accept: text/html"}
	answers := map[string]*http.Response{
		"to the portal":        w.ask(w.client(true), "GET", host, "/", "", nil, page...),
		"a refusal":            w.ask(w.client(true), "GET", host, "/", "x", nil, "Sec-Fetch-Site: cross-site"),
		"a page that is none":  w.ask(w.client(true), "GET", host, "/.carme/none", "", nil),
		"a host that is none":  w.ask(w.client(true), "GET", strings.Replace(host, "s-", "x-", 1), "/", "", nil),
		"a bad request":        w.ask(w.client(true), "TRACE", host, "/", "", nil),
		"a nonce that is none": w.ask(w.client(true), "GET", host, pathCome+"?code=x", "", nil, page...),
		"all cookies cleared":  w.ask(w.client(true), "POST", host, pathClear, "", nil, "Origin: https://"+host),
		"the style sheet":      w.ask(w.client(true), "GET", host, pathStyle, "", nil),
	}
	for name, answer := range answers {
		for header, want := range map[string]string{
			"Strict-Transport-Security": "max-age=31536000; includeSubDomains", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Content-Security-Policy": "default-src 'none'", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := answer.Header.Get(header); !strings.HasPrefix(got, want) {
				t.Errorf("%s (%d): %s is %q", name, answer.StatusCode, header, got)
			}
		}
	}
}

func TestServe_takes_only_ciphers_that_seal(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if !slices.Contains(suite.SupportedVersions, tls.VersionTLS12) {
			continue
		}
		good := strings.Contains(suite.Name, "ECDHE") && (strings.Contains(suite.Name, "GCM") || strings.Contains(suite.Name, "CHACHA20"))
		if strings.Contains(suite.Name, "_RSA_") {
			good = false // the test's certificate has an ECDSA key
		}
		conf := &tls.Config{RootCAs: w.roots, ServerName: w.names.Portal, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite.ID}} //nolint:gosec // G402: that they are refused is what is tested
		conn, err := (&tls.Dialer{Config: conf}).DialContext(t.Context(), "tcp", w.addr)
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) != good {
			t.Errorf("%s: %v", suite.Name, err)
		}
	}
}

func TestHandover_goes_by_nonce_and_one_time_code(t *testing.T) {
	for name, names := range layouts {
		t.Run(name, func(t *testing.T) {
			w := newWorldNamed(t, names, http.HandlerFunc(mirror))
			w.clock.Store(int64(24 * time.Hour)) // how long the way in is good is not for this clock to say
			host, _ := w.session("alice", "a")
			label, _ := names.Label(host)
			c := w.client(true)
			page := []string{"Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Sec-Fetch-Site: cross-site", "Accept: text/html"}
			answer := w.ask(c, "GET", host, "/lab/tree?x=1", "", nil, page...)
			to, err := url.Parse(answer.Header.Get("Location"))
			if err != nil || answer.StatusCode != 303 || to.Host != names.authority(names.Portal) || to.Path != "/open" || to.Query().Get("host") != label {
				t.Fatalf("%d to %v", answer.StatusCode, to)
			}
			nonce := answer.Cookies()[0]
			if nonce.Name != nonceCookie || !nonce.Secure || !nonce.HttpOnly || nonce.Path != "/" || nonce.Domain != "" || nonce.SameSite != http.SameSiteLaxMode {
				t.Fatalf("nonce cookie %v", nonce)
			}
			opened, err := w.proxy.backend.(*client.Client).Open(t.Context(), w.backend.Session("alice"), api.Open{Host: label, Nonce: to.Query().Get("n")})
			if err != nil {
				t.Fatal(err)
			}
			come := pathCome + "?code=" + url.QueryEscape(opened.Code)
			// Another browser, with a nonce of its own or none, gets nothing.
			other := w.ask(c, "GET", host, "/", "", nil, page...).Cookies()[0]
			for _, stolen := range []string{"", other.Name + "=" + other.Value} {
				if got := w.ask(c, "GET", host, come, "", nil, append(page, "Cookie: "+stolen)...); got.StatusCode != 403 {
					t.Errorf("code with cookie %q: %d", stolen, got.StatusCode)
				}
			}
			opened, _ = w.proxy.backend.(*client.Client).Open(t.Context(), w.backend.Session("alice"), api.Open{Host: label, Nonce: to.Query().Get("n")})
			come = pathCome + "?code=" + url.QueryEscape(opened.Code)
			answer = w.ask(c, "GET", host, come, "", nil, append(page, "Cookie: "+nonce.Name+"="+nonce.Value)...)
			if answer.StatusCode != 303 || answer.Header.Get("Location") != "/lab/tree?x=1" {
				t.Fatalf("%d to %q: %s", answer.StatusCode, answer.Header.Get("Location"), text(t, answer))
			}
			var app *http.Cookie
			for _, one := range answer.Cookies() {
				if one.Name == appCookie {
					app = one
				}
			}
			if app == nil || !app.Secure || !app.HttpOnly || app.Path != "/" || app.Domain != "" || app.SameSite != http.SameSiteLaxMode || app.MaxAge < 60 || app.MaxAge > 12*60*60 {
				t.Fatalf("app cookie %v", app)
			}
			if got := w.ask(c, "GET", host, "/lab/tree?x=1", app.Value, nil, page...); got.StatusCode != 200 {
				t.Errorf("with the cookie: %d", got.StatusCode)
			}
			if got := w.ask(c, "GET", host, come, "", nil, append(page, "Cookie: "+nonce.Name+"="+nonce.Value)...); got.StatusCode != 403 {
				t.Errorf("the code again: %d", got.StatusCode)
			}
		})
	}
}

func TestAttack_remembered_paths_lead_nowhere_else(t *testing.T) {
	for _, bad := range []string{"//evil.example", "https://evil.example", "/\\evil.example", "", "/.carme/cb?code=1", "/a\r\nX: y", "/\t/evil"} {
		if got := rememberedPath(encode(bad)); got != "/" {
			t.Errorf("%q leads to %q", bad, got)
		}
	}
	if got := rememberedPath(encode("/lab?x=//y")); got != "/lab?x=//y" {
		t.Error(got)
	}
}

func TestAttack_logout_ends_every_stream_and_the_next_request(t *testing.T) {
	for name, kind := range map[string]string{"session": api.RevokeSession, "user": api.RevokeUser, "job": api.RevokeJob, "host": api.RevokeHost} {
		t.Run(name, func(t *testing.T) {
			started := make(chan struct{}, 1)
			w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/slow" {
					mirror(rw, r)
					return
				}
				rw.WriteHeader(200)
				_ = http.NewResponseController(rw).Flush()
				started <- struct{}{}
				<-r.Context().Done()
			}))
			host, cookie := w.session("alice", "a")
			label, _ := w.names.Label(host)
			conn, r, answer := w.socket(host, cookie, "Origin: https://"+host)
			if answer.StatusCode != 101 {
				t.Fatal(answer.StatusCode)
			}
			_ = conn
			slow := w.ask(w.client(true), "GET", host, "/slow", cookie, nil)
			<-started
			value := map[string]string{api.RevokeSession: w.backend.SessionOf(cookie), api.RevokeUser: "alice", api.RevokeJob: "a", api.RevokeHost: label}[kind]
			if kind == api.RevokeJob {
				w.backend.Change("a", func(j *api.Job) { j.Stage = api.StageEnded })
			}
			begun := time.Now()
			w.backend.Revoke(kind, value)
			if _, err := r.ReadByte(); err == nil {
				t.Error("the websocket still talks")
			}
			if _, err := io.ReadAll(slow.Body); err == nil {
				t.Error("the download looks whole")
			}
			eventually(t, "the end of all streams", func() bool { return w.agent.open.Load() == 0 })
			if took := time.Since(begun); took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
			if kind == api.RevokeJob {
				if got := w.ask(w.client(true), "GET", host, "/", cookie, nil); got.StatusCode != 404 {
					t.Errorf("afterwards: %d", got.StatusCode)
				}
			}
		})
	}
}

func TestAttack_a_revocation_while_the_stream_is_dialled_ends_it(t *testing.T) {
	for name, silent := range map[string]bool{"the agent shakes no hands": true, "the agent gives no answer": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, http.HandlerFunc(mirror))
			host, cookie := w.session("alice", "a")
			wait := make(chan struct{})
			w.agent.hold.Store(&wait)
			dialled := func() bool { return w.agent.dials.Load() == 1 }
			if silent {
				w.backend.Addr, dialled = silentAgent(t)
			}
			status := make(chan int, 1)
			go func() {
				status <- w.ask(w.client(true), "PUT", host, "/", cookie, nil, "Origin: https://"+host).StatusCode
			}()
			eventually(t, "the dial", dialled)
			w.backend.Change("a", func(j *api.Job) { j.Stage = api.StageEnded })
			w.backend.Revoke(api.RevokeJob, "a")
			// Above all no 200, by which a page takes for saved what nobody got.
			if got := <-status; got != 404 {
				t.Errorf("it ended with %d", got)
			}
			close(wait)
			eventually(t, "the end of the stream", func() bool { return w.agent.open.Load() == 0 })
		})
	}
}

// silentAgent takes connections and says nothing; dialled tells that it has one.
func silentAgent(t *testing.T) (addr string, dialled func() bool) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	var taken atomic.Bool
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = conn.Close() })
		taken.Store(true)
	}()
	return listener.Addr().String(), taken.Load
}

func TestAttack_a_grant_that_was_revoked_under_way_is_not_used(t *testing.T) {
	table := newTable(nil, time.Now)
	started := time.Now()
	table.revoke(mark{api.RevokeUser, "alice"})
	g := &api.Grant{User: "alice", Expires: started.Add(time.Minute), End: started.Add(time.Hour)}
	if _, err := table.insert(key{"h", "t"}, g, started); err == nil {
		t.Error("it was taken")
	}
	if _, err := table.insert(key{"h", "t"}, g, time.Now().Add(time.Second)); err != nil {
		t.Errorf("one asked for later: %v", err)
	}
}

func TestFault_without_the_backends_heartbeat(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	second, secondCookie := w.session("alice", "b")
	_, r, _ := w.socket(host, cookie, "Origin: https://"+host)
	c := w.client(true)
	if got := w.ask(c, "GET", host, "/", cookie, nil).StatusCode; got != 200 {
		t.Fatal(got)
	}
	w.backend.SetDown(true)
	w.backend.Silence(true)
	w.clock.Store(int64(10 * time.Second))
	eventually(t, "no new ways", func() bool { return w.ask(c, "GET", second, "/", secondCookie, nil).StatusCode == 503 })
	if got := w.ask(c, "GET", host, "/", cookie, nil).StatusCode; got != 200 {
		t.Errorf("the open way after 10 s: %d", got)
	}
	w.clock.Store(int64(70 * time.Second))
	if _, err := r.ReadByte(); err == nil {
		t.Error("the websocket still talks after a minute")
	}
	if got := w.ask(c, "GET", host, "/", cookie, nil).StatusCode; got != 503 {
		t.Errorf("after a minute: %d", got)
	}
}

func TestFault_agents_refusals_are_said_in_words(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	c := w.client(true)
	page := []string{"Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Accept: text/html", "Accept-Language: de"}
	for status, want := range map[status]struct {
		status int
		text   string
	}{
		statusNotListening: {503, "Die Anwendung startet"},
		statusNoJob:        {404, "keine Sitzung"},
		statusBusy:         {503, "Zu viele"},
		statusNotOwner:     {502, "nicht erreichbar"},
	} {
		w.agent.status.Store(int32(status))
		answer := w.ask(c, "GET", host, "/", cookie, nil, page...)
		if got := text(t, answer); answer.StatusCode != want.status || !strings.Contains(got, want.text) {
			t.Errorf("status %d: %d %s", status, answer.StatusCode, got)
		}
		if script := w.ask(c, "GET", host, "/", cookie, nil); script.StatusCode != want.status || strings.Contains(text(t, script), "<html") {
			t.Errorf("status %d: a script gets %d", status, script.StatusCode)
		}
	}
}

func TestFault_an_agent_that_is_started_anew_is_waited_for(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	for name, kill := range map[string]func(){
		"before it answers":             func() { w.agent.cut.Store(2) },
		"before the app answers":        func() { w.agent.drop.Store(1) },
		"one after the other":           func() { w.agent.cut.Store(1); w.agent.drop.Store(1) },
		"before it takes a connection":  func() { w.backend.Addr = w.later(300 * time.Millisecond) },
		"and is back where it was then": func() { w.backend.Addr = w.agent.addr },
	} {
		t.Run(name, func(t *testing.T) {
			w.proxy.table.closeAll()
			kill()
			if got := w.ask(w.client(false), "GET", host, "/", cookie, nil); got.StatusCode != 200 || text(t, got) == "" {
				t.Errorf("the browser gets %d", got.StatusCode)
			}
		})
	}
}

func TestFault_an_agent_that_is_unheard_of_is_given_up(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // a test's
	dialer := newDialer()
	conn, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		option := func(name int) int {
			got, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, name)
			if err != nil {
				t.Error(err)
			}
			return got
		}
		silent := option(tcpUserTimeout)
		if silent != 10000 {
			t.Errorf("it may be silent for %d ms", silent)
		}
		// Linux, net/ipv4/tcp_timer.c, tcp_keepalive_timer: it ends at the first
		// probe due after that time if one before is not answered.
		if second := option(syscall.TCP_KEEPIDLE) + option(syscall.TCP_KEEPINTVL); second*1000 >= silent {
			t.Errorf("one probe that is lost ends it: the second is due after %d s", second)
		}
	}); err != nil {
		t.Error(err)
	}
}

func TestFault_what_changes_something_is_sent_once(t *testing.T) {
	var mu sync.Mutex
	got := 0
	w := newWorld(t, http.HandlerFunc(func(_ http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got++
		panic(http.ErrAbortHandler)
	}))
	host, cookie := w.session("alice", "a")
	for method, want := range map[string]int{"POST": 1, "DELETE": 1, "GET": 2} {
		got = 0
		if answer := w.ask(w.client(true), method, host, "/", cookie, nil, "Sec-Fetch-Site: same-origin"); answer.StatusCode != 502 {
			t.Errorf("%s: %d", method, answer.StatusCode)
		}
		mu.Lock()
		if got != want {
			t.Errorf("%s: the app got it %d times, not %d", method, got, want)
		}
		mu.Unlock()
	}
}

func TestAttack_piled_up_cookies_are_removed_by_name(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	pile := ""
	for i := range 180 {
		pile += fmt.Sprintf("; toss%d=%s", i, strings.Repeat("x", 1000))
	}
	for _, h2 := range []bool{false, true} {
		answer := w.ask(w.client(h2), "GET", host, "/", "", nil, "Cookie: "+appCookie+"="+cookie+pile, "Sec-Fetch-Mode: navigate", "Accept: text/html")
		if answer.StatusCode != 431 || len(answer.Header["Set-Cookie"]) != 360 || !strings.Contains(answer.Header["Set-Cookie"][0], "Max-Age=0") {
			t.Errorf("HTTP/2 %v: %d with %d cookies", h2, answer.StatusCode, len(answer.Header["Set-Cookie"]))
		}
		if got := text(t, answer); !strings.Contains(got, `action="/.carme/clear"`) {
			t.Errorf("no way out in %s", got)
		}
	}
	deep := w.ask(w.client(true), "GET", host, "/lab/tree;x/y", "", nil, "Cookie: "+appCookie+"="+cookie+pile, "Sec-Fetch-Mode: navigate")
	removed := strings.Join(deep.Header["Set-Cookie"], "\n")
	for _, path := range []string{"/", "/lab", "/lab/", "/lab/tree"} {
		if !strings.Contains(removed, "toss7=; Domain=") || !strings.Contains(removed, "; Path="+path+"; ") || len(removed) > removeMax+removeMax/10 {
			t.Errorf("cookies of %s stay, or %d bytes of headers", path, len(removed))
		}
	}
	if got := w.ask(w.client(true), "POST", host, pathClear, "", nil, "Cookie: "+pile); got.Header.Get("Clear-Site-Data") != `"cookies"` {
		t.Errorf("the button under the flood: %d", got.StatusCode)
	}
	if got := w.ask(w.client(true), "POST", host, pathClear, "", nil, "Sec-Fetch-Site: same-site"); got.StatusCode != 403 {
		t.Errorf("a sibling may clear: %d", got.StatusCode)
	}
	if got := w.ask(w.client(true), "POST", host, pathClear, "", nil); got.Header.Get("Clear-Site-Data") != `"cookies"` {
		t.Errorf("clear: %d %v", got.StatusCode, got.Header)
	}
}

func TestForward_uses_connections_again_and_survives_their_end(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	c := w.client(true)
	for range 20 {
		if got := w.ask(c, "GET", host, "/", cookie, nil); got.StatusCode != 200 || text(t, got) == "" {
			t.Fatal(got.StatusCode)
		}
	}
	if got := w.agent.dials.Load(); got != 1 {
		t.Errorf("%d connections for 20 requests", got)
	}
	if w.backend.Grants() != 1 {
		t.Errorf("%d grants", w.backend.Grants())
	}
}

func TestForward_streams_large_bodies_both_ways(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, n)
		if r.FormValue("down") != "" {
			_, _ = io.Copy(rw, io.LimitReader(zeros{}, 20<<20))
		}
	}))
	host, cookie := w.session("alice", "a")
	for _, h2 := range []bool{false, true} {
		for _, body := range []io.Reader{io.LimitReader(zeros{}, 20<<20), strings.NewReader(strings.Repeat("x", 20<<20))} {
			answer := w.ask(w.client(h2), "POST", host, "/", cookie, body, "Origin: https://"+host)
			if got := text(t, answer); got != "20971520" {
				t.Errorf("HTTP/2 %v: the app got %s bytes, status %d", h2, got, answer.StatusCode)
			}
		}
		if n, err := io.Copy(io.Discard, w.ask(w.client(h2), "GET", host, "/?down=1", cookie, nil).Body); err != nil || n != 20<<20+1 {
			t.Errorf("HTTP/2 %v: %d bytes, %v", h2, n, err)
		}
	}
}

// Pieces of all sizes, of known and unknown length, on connections that are used
// again: nothing of what is read ahead or held back is lost, or comes twice.
func TestForward_bodies_of_all_sizes_arrive_as_they_are(t *testing.T) {
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(i ^ i>>8 ^ i>>16)
	}
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		if r.FormValue("whole") != "" {
			rw.Header().Set("Content-Length", strconv.Itoa(n))
		}
		for at := 0; at < n; {
			size := min(n-at, 1+at*7919%(200<<10))
			_, _ = rw.Write(content[at : at+size])
			at += size
		}
	}))
	host, cookie := w.session("alice", "a")
	for _, h2 := range []bool{false, true} {
		client := w.client(h2)
		for _, n := range []int{1, 4095, 4096, 16 << 10, 16<<10 + 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300_000, 3 << 20, 3} {
			for _, whole := range []string{"", "yes"} {
				answer := w.ask(client, "GET", host, fmt.Sprintf("/?n=%d&whole=%s", n, whole), cookie, nil)
				got, err := io.ReadAll(answer.Body)
				if err != nil || !bytes.Equal(got, content[:n]) {
					t.Errorf("HTTP/2 %v, whole %q, of %d bytes %d arrived, the same: %v; %v", h2, whole, n, len(got), bytes.HasPrefix(content, got), err)
				}
			}
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestForward_events_come_at_once(t *testing.T) {
	next := make(chan string)
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case one := <-next:
				fmt.Fprintf(rw, "data: %s\n\n", one)
				_ = http.NewResponseController(rw).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}))
	host, cookie := w.session("alice", "a")
	go func() { next <- "1" }()
	answer := w.ask(w.client(true), "GET", host, "/", cookie, nil)
	for _, want := range []string{"data: 1\n\n", "data: 2\n\n"} {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(answer.Body, got); err != nil || string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
		if want == "data: 1\n\n" {
			next <- "2"
		}
	}
	_ = answer.Body.Close()
	eventually(t, "the end at the app", func() bool { return w.agent.open.Load() == 0 })
}

func TestForward_an_early_answer_ends_the_upload(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(rw).EnableFullDuplex() // or Go's server would wait for the body
		rw.Header().Set("Connection", "close")
		rw.WriteHeader(413)
	}))
	host, cookie := w.session("alice", "a")
	conn, r := w.raw(host)
	_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: "+host+"\r\nOrigin: https://"+host+"\r\nCookie: "+appCookie+"="+cookie+"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	answer, err := http.ReadResponse(r, nil)
	if err != nil || answer.StatusCode != 413 {
		t.Fatalf("%v %v", answer, err)
	}
}

// patience is an answer's connection that keeps the time given to its reader.
type patience struct {
	http.ResponseWriter
	mu   sync.Mutex
	last time.Time
}

func (p *patience) SetReadDeadline(at time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = at
	return nil
}

func (p *patience) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.last.IsZero() && !p.last.After(time.Now())
}

// The goroutine that sends may be between two pieces when nobody waits for them any
// more: a minute for the next one would be a minute without the answer.
func TestForward_a_body_that_nobody_waits_for_gets_no_more_time(t *testing.T) {
	p := &patience{ResponseWriter: httptest.NewRecorder()}
	load := &upload{control: http.NewResponseController(p), sent: make(chan error, 1)}
	if !load.more() || p.over() {
		t.Fatal("the first piece has no time")
	}
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		load.settle()
	}()
	for !p.over() {
		runtime.Gosched()
	}
	if load.more() || !p.over() {
		t.Error("the next piece has time again")
	}
	load.done()
	if !p.over() {
		t.Error("the end takes the limit away")
	}
	load.sent <- nil
	<-settled
}

func TestServe_finishes_requests_and_ends(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		entered <- struct{}{}
		<-leave
		_, _ = io.WriteString(rw, "whole")
	}))
	host, cookie := w.session("alice", "a")
	got := make(chan string, 1)
	go func() { got <- text(t, w.ask(w.client(false), "GET", host, "/", cookie, nil)) }()
	<-entered
	close(leave)
	if one := <-got; one != "whole" {
		t.Error(one)
	}
	w.stop()
	if err := <-w.ended; err != nil {
		t.Error(err)
	}
	w.ended <- nil
}

func TestAttack_logout_closes_many_sessions_at_once(t *testing.T) {
	table := newTable(nil, time.Now)
	const many = 10000
	var mu sync.Mutex
	closed := 0
	for i := range many {
		g := &api.Grant{User: "alice", Session: fmt.Sprint(i), Job: fmt.Sprint(i), Expires: time.Now().Add(time.Minute), End: time.Now().Add(time.Hour)}
		r, err := table.insert(key{fmt.Sprint(i), "t"}, g, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		s := &stream{route: r}
		_ = r.register(s)
		_ = s.hold(closerFunc(func() { mu.Lock(); closed++; mu.Unlock() }))
	}
	begun := time.Now()
	table.revoke(mark{api.RevokeUser, "alice"})
	if took := time.Since(begun); closed != many || took > 2*time.Second {
		t.Errorf("%d of %d closed in %v", closed, many, took)
	}
}

func encode(path string) string { return base64.RawURLEncoding.EncodeToString([]byte(path)) }
