//go:build integration

package integration

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// Tests of faults say how long it took until all was well again; they do not
// fail for it, short of the time after which a person would ask for help.

// recovers waits until the answer is yes and logs how long that took.
func recovers(t *testing.T, limit time.Duration, what string, yes func() bool) {
	t.Helper()
	start := time.Now()
	eventually(t, limit, what, yes)
	t.Logf("recovery: %s after %v", what, time.Since(start).Round(10*time.Millisecond))
}

// kept waits while nothing must change, and stops the test as soon as it does.
func kept(t *testing.T, span time.Duration, what string, still func() bool) {
	t.Helper()
	end := time.Now().Add(span)
	eventually(t, span+time.Minute, what, func() bool {
		if !still() {
			t.Fatalf("%s: no longer, %v before the end", what, time.Until(end).Round(time.Second))
		}
		return time.Now().After(end)
	})
}

// mirrored is alice's login with a session of the mirror that she has entered.
func mirrored(t *testing.T) (*visitor, opened) {
	t.Helper()
	const user = "alice"
	forgetAttempts(t)
	mirrors(t)
	v := visit(t, user).login()
	put(t, user, "it-mirror.py", mirror)
	id := sbatch(t, user, "--time=15", "-w", node1, "--carme=lab", "--carme-app=mirror", "--wrap", "true")
	app := opened{user, id, v.origin(id)}
	if r := v.enter(app.origin + "/who"); !v.answers(app) {
		t.Fatalf("%s's own app: %s", user, r)
	}
	return v, app
}

// answers says whether the visitor gets through to the app now, without a login.
func (v *visitor) answers(app opened) bool {
	v.t.Helper()
	r, err := v.try("GET", app.origin+"/who", "")
	return err == nil && r.code == http.StatusOK && r.body == app.user+" in job "+app.job
}

// loggedIn says whether the portal's pages know the visitor without a login.
func (v *visitor) loggedIn() bool {
	v.t.Helper()
	r, err := v.try("GET", "/jobs", "")
	return err == nil && r.code == http.StatusOK
}

// dialled opens a connection to the portal for a host, nil if that fails.
func (v *visitor) dialled(host string) *line {
	v.t.Helper()
	name, _, _ := strings.Cut(host, ":")
	conf := v.conf.Clone()
	conf.ServerName, conf.NextProtos = name, []string{"http/1.1"}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}
	conn, err := dialer.DialContext(v.t.Context(), "tcp", v.at)
	if err != nil {
		return nil
	}
	v.t.Cleanup(func() { _ = conn.Close() })
	return &line{conn, bufio.NewReader(conn)}
}

// socket opens a websocket to the app; nil if that fails for whatever reason.
func (v *visitor) socket(app opened) *line {
	v.t.Helper()
	l := v.dialled(app.host())
	if l == nil {
		return nil
	}
	res := l.ask(handshake(app.host(), "Origin: "+app.origin, "Cookie: "+appCookie+"="+v.cookie(app.origin, appCookie)))
	if res == nil || res.code != http.StatusSwitchingProtocols {
		return nil
	}
	if text, err := l.frame(); err != nil || !strings.Contains(text, "secret of "+app.user) {
		return nil
	}
	return l
}

// serial is the number of the portal's certificate.
func (l *line) serial() string {
	secure, ok := l.Conn.(*tls.Conn)
	if !ok {
		return ""
	}
	return secure.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// watches keeps a page's stream of events open, as a tab in a browser does, for
// as long as it lasts.
func (v *visitor) watches() {
	v.t.Helper()
	l := v.dialled(portalHost)
	if l == nil {
		v.t.Fatal("no connection to the portal")
	}
	if err := l.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		v.t.Fatal(err)
	}
	if _, err := io.WriteString(l, "GET /events HTTP/1.1\r\nHost: "+portalHost+":"+portalPort+"\r\nAccept: text/event-stream\r\nCookie: "+
		portalCookie+"="+v.cookie(portalURL, portalCookie)+"\r\n\r\n"); err != nil {
		v.t.Fatal(err)
	}
	if first, err := l.in.ReadString('\n'); err != nil || !strings.Contains(first, " 200 ") {
		v.t.Fatalf("no stream of events: %q, %v", first, err)
	}
}

// live says whether a websocket is open: nothing comes on it, and no end.
func (l *line) live() bool {
	if err := l.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return false
	}
	_, err := l.in.Peek(1)
	late, ok := err.(net.Error) //nolint:errorlint // what a connection returns
	return ok && late.Timeout()
}

// load asks an app for the same page again and again, from some places at once,
// each over connections of its own.
type load struct {
	v    *visitor
	app  opened
	stop chan struct{}
	all  sync.WaitGroup

	mu      sync.Mutex
	good    int
	bad     map[string]int
	last    time.Time
	longest time.Duration // without a good answer
	slowest time.Duration
}

func (v *visitor) load(app opened, places int) *load {
	v.t.Helper()
	l := &load{v: v, app: app, stop: make(chan struct{}), bad: map[string]int{}, last: time.Now()}
	cookie := appCookie + "=" + v.cookie(app.origin, appCookie)
	at, conf := net.JoinHostPort(address(v.t, login), portalPort), webTLS(v.t)
	for range places {
		transport := &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c := conf.Clone()
				c.ServerName, _, _ = strings.Cut(app.host(), ":")
				return (&tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: c}).DialContext(ctx, "tcp", at)
			},
		}
		v.t.Cleanup(transport.CloseIdleConnections)
		client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
		l.all.Go(func() { l.run(client, cookie) })
	}
	v.t.Cleanup(l.end)
	return l
}

func (l *load) run(client *http.Client, cookie string) {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-again.C:
		}
		start := time.Now()
		problem := l.one(client, cookie)
		l.mu.Lock()
		now := time.Now()
		if problem == "" {
			l.good++
			l.longest, l.last = max(l.longest, now.Sub(l.last)), now
			l.slowest = max(l.slowest, now.Sub(start))
		} else {
			l.bad[problem]++
		}
		l.mu.Unlock()
	}
}

func (l *load) one(client *http.Client, cookie string) string {
	req, err := http.NewRequestWithContext(l.v.t.Context(), http.MethodGet, l.app.origin+"/who", http.NoBody)
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Cookie", cookie)
	res, err := client.Do(req)
	if err != nil {
		text := err.Error()
		return text[strings.LastIndex(text, ": ")+1:]
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	switch {
	case err != nil:
		return err.Error()
	case res.StatusCode != http.StatusOK:
		return fmt.Sprintf("%d %.40s", res.StatusCode, body)
	case string(body) != l.app.user+" in job "+l.app.job:
		return "another answer"
	}
	return ""
}

// answers is how many good ones there were so far.
func (l *load) answers() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.good
}

// flows waits until the load is being answered.
func (l *load) flows() {
	l.v.t.Helper()
	from := l.answers()
	eventually(l.v.t, 30*time.Second, "answers under load", func() bool { return l.answers() > from+20 })
}

func (l *load) end() {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.all.Wait()
}

// report ends the load and returns how many requests went wrong.
func (l *load) report(what string) int {
	l.v.t.Helper()
	l.end()
	wrong := 0
	for _, n := range l.bad {
		wrong += n
	}
	l.v.t.Logf("load: %s: %d good answers, the slowest after %v, at most %v without one; %d others: %v",
		what, l.good, l.slowest.Round(time.Millisecond), l.longest.Round(time.Millisecond), wrong, l.bad)
	return wrong
}

// freeze stops a process where it is, as a machine does that swaps or a file
// system that hangs, until the test ends.
func freeze(t *testing.T, machine, pattern string) (thaw func()) {
	t.Helper()
	undo(t, machine, "pkill -CONT -f '"+pattern+"' || true")
	root(t, machine, "pkill", "-STOP", "-f", pattern).ok(t)
	return func() {
		t.Helper()
		root(t, machine, "pkill", "-CONT", "-f", pattern).ok(t)
	}
}

// down takes daemons away, and starts them at the latest when the test ends.
func down(t *testing.T, machine, verb string, services ...string) (up func()) {
	t.Helper()
	start := append([]string{"svc", "start"}, services...)
	undo(t, machine, strings.Join(start, " "))
	root(t, machine, append([]string{"svc", verb}, services...)...).ok(t)
	return func() {
		t.Helper()
		root(t, machine, start...).ok(t)
	}
}

// form sends the start form with the dashboard's own defaults, as two clicks do;
// pairs of name and value replace them. It does not fail: what came is returned.
func (v *visitor) form(id, csrf string, pairs ...string) (reply, error) {
	v.t.Helper()
	return v.try("POST", "/jobs", formOf(csrf, id, pairs...), formType)
}

// formOf is a start form as it is sent.
func formOf(csrf, id string, pairs ...string) string {
	form := url.Values{"csrf": {csrf}, "id": {id}, "image": {"base"}, "app": {"terminal"}, "gpus": {"0"}, "nodes": {"1"}, "minutes": {"30"}}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	return form.Encode()
}

// fault is what happens to a daemon.
type fault struct{ machine, kind, service string }

const (
	killed  = "is killed"
	frozen  = "hangs"
	foreign = "shows a certificate that nobody vouches for"
)

// strike brings it about, and returns what mends it.
func (f fault) strike(t *testing.T) (mend func()) {
	t.Helper()
	switch f.kind {
	case killed:
		return down(t, f.machine, "kill", f.service)
	case frozen:
		return freeze(t, f.machine, "^"+f.service)
	}
	return foreignDirectory(t)
}

// newID is that of a start form.
func newID(t *testing.T) string {
	t.Helper()
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(id))
}
