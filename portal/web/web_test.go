package web

import (
	"html"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
	"github.com/carme-hpc/carme/portal/client/clienttest"
)

// browser is a person's, with cookies, in front of the pages.
type browser struct {
	t        *testing.T
	backend  *clienttest.Backend
	server   *httptest.Server
	client   *http.Client
	stopping chan struct{}
	log      *lockedBuffer
	wrong    atomic.Int64 // by how much the portal's clock is
}

// lockedBuffer is a log that several goroutines write to.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

const testLabel = "s-aaaaaaaaaaaaaaaaaaaaaaaaaa"

func newBrowser(t *testing.T) *browser {
	t.Helper()
	b := &browser{t: t, backend: clienttest.New(), stopping: make(chan struct{}), log: &lockedBuffer{}}
	rest := httptest.NewServer(b.backend)
	pages, err := New(Options{
		Backend: client.New(rest.URL, &http.Transport{}), AppsPattern: "https://*.apps.example", Log: slog.New(slog.NewTextHandler(b.log, nil)), Now: b.now, Bare: true, Stopping: b.stopping,
		AppOrigin: func(label string) (string, bool) {
			return "https://" + label + ".apps.example", strings.HasPrefix(label, "s-")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.server = httptest.NewTLSServer(pages)
	t.Cleanup(func() {
		b.server.CloseClientConnections()
		b.server.Close()
		rest.CloseClientConnections()
		rest.Close()
	})
	b.fresh()
	return b
}

func (b *browser) now() time.Time { return time.Now().Add(time.Duration(b.wrong.Load())) }

// fresh forgets all cookies.
func (b *browser) fresh() {
	jar, _ := cookiejar.New(nil)
	b.client = b.server.Client()
	b.client.Jar = jar
	b.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
}

func (b *browser) do(r *http.Request) (*http.Response, string) {
	b.t.Helper()
	answer, err := b.client.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // it was read
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer, string(data)
}

func (b *browser) get(path string, headers ...string) (*http.Response, string) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, b.server.URL+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	return b.do(r)
}

var formToken = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// post sends a form as it is on the page at from.
func (b *browser) post(from, path string, fields url.Values, headers ...string) (*http.Response, string) {
	b.t.Helper()
	if fields == nil {
		fields = url.Values{}
	}
	if from != "" {
		_, page := b.get(from)
		if m := formToken.FindStringSubmatch(page); m != nil {
			fields.Set("csrf", m[1])
		}
	}
	r, err := http.NewRequestWithContext(b.t.Context(), http.MethodPost, b.server.URL+path, strings.NewReader(fields.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	return b.do(r)
}

func (b *browser) login() {
	b.t.Helper()
	b.post("/login", "/login", url.Values{"username": {"alice"}, "password": {clienttest.Password}})
	answer, _ := b.post("/login/factor", "/login/factor", url.Values{"code": {"123 456"}})
	if answer.StatusCode != 303 || answer.Header.Get("Location") != "/" {
		b.t.Fatalf("login: %d to %q", answer.StatusCode, answer.Header.Get("Location"))
	}
}

func TestLogin_leads_through_both_factors_and_back_to_where_one_came_from(t *testing.T) {
	b := newBrowser(t)
	answer, _ := b.get("/jobs")
	if answer.Header.Get("Location") != "/login?next=%2Fjobs" {
		t.Fatal(answer.Header.Get("Location"))
	}
	answer, _ = b.post("/login", "/login", url.Values{"username": {"alice"}, "password": {clienttest.Password}, "next": {"/jobs"}})
	if got := answer.Header.Get("Location"); got != "/login/factor?next=%2Fjobs" {
		t.Fatal(got)
	}
	pending := answer.Cookies()[0]
	answer, _ = b.post("/login/factor", "/login/factor", url.Values{"code": {"123456"}, "next": {"/jobs"}})
	if got := answer.Header.Get("Location"); got != "/jobs" {
		t.Fatal(got)
	}
	for _, c := range answer.Cookies() {
		if !strings.HasPrefix(c.Name, "__Host-carme") || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.Domain != "" {
			t.Errorf("cookie %v", c)
		}
		if c.Name == cookieSession && c.Value == pending.Value {
			t.Error("the session's value stayed the same over a step")
		}
	}
	if answer, page := b.get("/jobs"); answer.StatusCode != 200 || !strings.Contains(page, "Alice Example") {
		t.Errorf("%d", answer.StatusCode)
	}
}

func TestEnrolment_shows_secret_then_recovery_codes_once(t *testing.T) {
	b := newBrowser(t)
	b.post("/login", "/login", url.Values{"username": {"carol"}, "password": {clienttest.Password}})
	if _, page := b.get("/login/enrol"); !strings.Contains(page, clienttest.Secret) {
		t.Error("no secret")
	}
	const app = "otpauth://totp/Carme:carol?secret=" + clienttest.Secret
	answer, page := b.post("/login/enrol", "/login/enrol", url.Values{"code": {"000000"}, "secret": {clienttest.Secret}, "uri": {app}})
	if answer.StatusCode != 401 || !strings.Contains(page, `id="secret">JBSW Y3DP EHPK`) || !strings.Contains(page, `<a href="`+app+`"`) {
		t.Errorf("wrong code: %d", answer.StatusCode)
	}
	if _, page := b.post("/login/enrol", "/login/enrol", url.Values{"code": {"000000"}, "uri": {"javascript:alert(1)"}}); strings.Contains(page, "javascript:alert") {
		t.Error("the form's own address of the authenticator app is a link")
	}
	_, page = b.post("/login/enrol", "/login/enrol", url.Values{"code": {"123456"}})
	if strings.Count(page, "<li>") != 10 {
		t.Errorf("no ten codes in %s", page)
	}
	if answer, _ := b.get("/"); answer.StatusCode != 200 {
		t.Errorf("afterwards: %d", answer.StatusCode)
	}
}

func TestRecovery_codes_are_not_lost_by_a_choice_of_colours(t *testing.T) {
	b := newBrowser(t)
	b.post("/login", "/login", url.Values{"username": {"carol"}, "password": {clienttest.Password}})
	const choice = `action="/prefs"`
	if _, page := b.get("/login/enrol"); !strings.Contains(page, choice) {
		t.Error("no choice before")
	}
	if _, page := b.post("/login/enrol", "/login/enrol", url.Values{"code": {"123456"}}); strings.Count(page, "<li>") != 10 || strings.Contains(page, choice) {
		t.Error("the codes' page can be left by a choice of colours")
	}
	if _, page := b.post("/security", "/security/recovery", url.Values{"code": {"123456"}}); strings.Count(page, "<li>") != 10 || strings.Contains(page, choice) {
		t.Error("the page of new codes can be left by a choice of colours")
	}
}

func TestLogin_a_choice_of_language_after_a_wrong_code_stays_at_the_step(t *testing.T) {
	for name, c := range map[string]struct {
		user, path string
		form       url.Values
		want       string
	}{
		"code":          {"alice", "/login/factor", url.Values{"code": {"000000"}, "next": {"/jobs"}}, "/login/factor?next=%2Fjobs"},
		"recovery code": {"alice", "/login/factor", url.Values{"recovery": {"zzzz"}}, "/login/factor?recovery=1"},
		"enrolment":     {"carol", "/login/enrol", url.Values{"code": {"000000"}, "secret": {clienttest.Secret}}, "/login/enrol"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBrowser(t)
			b.post("/login", "/login", url.Values{"username": {c.user}, "password": {clienttest.Password}})
			answer, page := b.post(c.path, c.path, c.form)
			m := regexp.MustCompile(`action="/prefs">.*\s*.*name="next" value="([^"]*)"`).FindStringSubmatch(page)
			if answer.StatusCode != http.StatusUnauthorized || m == nil {
				t.Fatalf("%d %s", answer.StatusCode, page)
			}
			answer, _ = b.post(c.path, "/prefs", url.Values{"next": {html.UnescapeString(m[1])}, "lang": {"de"}})
			if got := answer.Header.Get("Location"); got != c.want {
				t.Fatalf("leads to %s, not %s", got, c.want)
			}
			if answer, page := b.get(c.want); answer.StatusCode != http.StatusOK || !strings.Contains(page, `lang="de"`) {
				t.Errorf("%d", answer.StatusCode)
			}
		})
	}
}

func TestRecovery_a_wrong_code_has_no_next_one_to_wait_for(t *testing.T) {
	b := newBrowser(t)
	b.post("/login", "/login", url.Values{"username": {"alice"}, "password": {clienttest.Password}})
	if _, page := b.post("/login/factor", "/login/factor", url.Values{"recovery": {"zzzz"}}); !strings.Contains(page, "This recovery code is wrong") || strings.Contains(page, "next one") {
		t.Error(page)
	}
	if _, page := b.post("/login/factor", "/login/factor", url.Values{"code": {"000000"}}); !strings.Contains(page, "wait for the next one.") {
		t.Error(page)
	}
}

func TestLogin_that_has_ended_is_said(t *testing.T) {
	b := newBrowser(t)
	b.login()
	_, page := b.get("/")
	form := url.Values{"csrf": {formToken.FindStringSubmatch(page)[1]}, "id": {newUUID()}, "image": {"base"}, "app": {"jupyterlab"}}
	b.backend.EndLogins("alice")
	answer, _ := b.post("", "/jobs", form)
	to := answer.Header.Get("Location")
	if to != "/login?ended=1" {
		t.Fatalf("a form sent after the end leads to %q", to)
	}
	if _, page := b.get(to); !strings.Contains(page, "Your login has ended.") {
		t.Error(page)
	}
	if answer, _ := b.get("/jobs"); answer.Header.Get("Location") != "/login?next=%2Fjobs" {
		t.Errorf("a visitor is led to %s", answer.Header.Get("Location"))
	}
}

func TestError_says_try_again_only_where_that_asks_for_the_same(t *testing.T) {
	b := newBrowser(t)
	b.login()
	form := url.Values{}
	_, page := b.get("/security")
	form.Set("csrf", formToken.FindStringSubmatch(page)[1])
	b.backend.SetDown(true)
	if _, page := b.get("/jobs?x=1"); !strings.Contains(page, `href="/jobs?x=1">Try again<`) {
		t.Error(page)
	}
	if _, page := b.post("", "/security/recovery", form); !strings.Contains(page, `href="/">To the dashboard<`) || strings.Contains(page, ">Try again<") {
		t.Error(page)
	}
}

func TestOutput_that_is_long_begins_with_a_whole_line_and_says_so(t *testing.T) {
	b := newBrowser(t)
	id := b.backend.Add(api.Job{User: "alice", Name: "x", Stage: api.StageEnded, State: "COMPLETED", Started: time.Now(), Detail: &api.JobDetail{Output: "/home/alice/it.out"}})
	b.login()
	const hint = `id="output-end">This is the end of the file; see /home/alice/it.out for all of it.`
	if _, page := b.get("/jobs/" + id); strings.Contains(page, hint) {
		t.Error("a short output is called the end of one")
	}
	b.backend.Output = strings.Repeat("a line of the output\n", 10000)
	_, page := b.get("/jobs/" + id)
	if !strings.Contains(page, hint) || !regexp.MustCompile(`id="output"[^>]*>a line of the output\n`).MatchString(page) {
		t.Errorf("%.300s", page[strings.Index(page, `id="output`):])
	}
	b.backend.Output = strings.Repeat("x", 100000) + "\n"
	if _, page := b.get("/jobs/" + id); !strings.Contains(page, "xxxxx") {
		t.Error("of one line nothing is left")
	}
}

func TestSecurity_who_has_lost_the_telephone_sets_up_another_with_a_recovery_code(t *testing.T) {
	b := newBrowser(t)
	b.login()
	for code, want := range map[string]int{clienttest.Recovery: http.StatusOK, " " + clienttest.Recovery + " ": http.StatusOK, clienttest.Code: http.StatusOK, "zzzz-zzzz": http.StatusUnprocessableEntity} {
		answer, page := b.post("/security", "/security/totp", url.Values{"code": {code}})
		if answer.StatusCode != want || strings.Contains(page, `id="secret"`) != (want == http.StatusOK) {
			t.Errorf("%q: %d", code, answer.StatusCode)
		}
	}
	_, page := b.get("/security")
	field := regexp.MustCompile(`<input[^>]*id="totp-code"[^>]*>`).FindString(page)
	if most, err := strconv.Atoi(regexp.MustCompile(`maxlength="(\d+)"`).FindStringSubmatch(field)[1]); err != nil || most < 32 || strings.Contains(field, "numeric") {
		t.Errorf("a recovery code cannot be typed into %s", field)
	}
}

func TestAttack_second_factor_is_not_skipped_by_going_to_a_page(t *testing.T) {
	for user, step := range map[string]string{"alice": "pending", "carol": "enrolment"} {
		for _, path := range []string{"/", "/jobs", "/security", "/open?host=" + testLabel + "&n=" + strings.Repeat("a", 64), "/events", "/fragments/jobs"} {
			b := newBrowser(t)
			b.post("/login", "/login", url.Values{"username": {user}, "password": {clienttest.Password}})
			if answer, page := b.get(path); answer.StatusCode == 200 || strings.Contains(page, "Example") {
				t.Errorf("%s, %s: %d", step, path, answer.StatusCode)
			}
		}
	}
}

func TestAttack_next_leads_to_own_pages_only(t *testing.T) {
	for _, bad := range []string{
		"https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)", "/\t/evil.example", "/a\r\nSet-Cookie: x=1", "", "evil",
		"/login?next=/", "http:evil", "/" + strings.Repeat("a", 3000), "///evil.example", "/%09//x y",
	} {
		if got := nextPath(bad); got != "/" {
			t.Errorf("%q leads to %q", bad, got)
		}
	}
	for _, good := range []string{"/", "/jobs", "/jobs/12?stream=err", "/open?host=s-a&n=b"} {
		if got := nextPath(good); got != good {
			t.Errorf("%q leads to %q", good, got)
		}
	}
}

func TestAttack_a_link_to_a_step_of_the_login_logs_nobody_out(t *testing.T) {
	b := newBrowser(t)
	b.login()
	for _, path := range []string{"/login/enrol", "/login/enrol?next=/jobs", "/login/enrol?next=//evil.example"} {
		answer, _ := b.get(path)
		if to := answer.Header.Get("Location"); answer.StatusCode != http.StatusSeeOther || to != "/" && to != "/jobs" {
			t.Errorf("%s: %d to %q", path, answer.StatusCode, to)
		}
	}
	if answer, _ := b.post("/", "/login/factor", url.Values{"code": {"123456"}}); answer.StatusCode != http.StatusSeeOther {
		t.Errorf("the step that is over: %d", answer.StatusCode)
	}
	if answer, _ := b.get("/"); answer.StatusCode != http.StatusOK {
		t.Errorf("the login is gone: %d", answer.StatusCode)
	}
}

// The logo, a bookmark or a second tab lead to other pages while somebody looks for the
// code on the telephone.
func TestLogin_that_is_not_complete_goes_on_where_it_was(t *testing.T) {
	for user, page := range map[string]string{"alice": "/login/factor", "carol": "/login/enrol"} {
		b := newBrowser(t)
		b.post("/login", "/login", url.Values{"username": {user}, "password": {clienttest.Password}})
		for path, want := range map[string]string{"/": page, "/jobs": page + "?next=%2Fjobs", "/security": page + "?next=%2Fsecurity"} {
			if answer, _ := b.get(path); answer.StatusCode != http.StatusSeeOther || answer.Header.Get("Location") != want {
				t.Errorf("%s, %s: %d to %q", user, path, answer.StatusCode, answer.Header.Get("Location"))
			}
		}
		if answer, _ := b.get("/events"); answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s's events: %d", user, answer.StatusCode)
		}
	}
	b := newBrowser(t)
	b.post("/login", "/login", url.Values{"username": {"alice"}, "password": {clienttest.Password}})
	b.get("/jobs")
	if answer, _ := b.post("/login/factor", "/login/factor", url.Values{"code": {"123456"}}); answer.Header.Get("Location") != "/" {
		t.Errorf("the code afterwards: %d to %q", answer.StatusCode, answer.Header.Get("Location"))
	}
}

func TestAttack_a_choice_of_colours_leads_back_to_own_pages_only(t *testing.T) {
	b := newBrowser(t)
	for next, want := range map[string]string{
		"/login?next=/jobs": "/login?next=/jobs", "/login/../\\evil.example": "/", "/login\\..\\..\\\\evil.example": "/", "//evil.example/login": "/", "/events": "/", "/jobs": "/jobs",
	} {
		if answer, _ := b.post("/login", "/prefs", url.Values{"theme": {"dark"}, "next": {next}}); answer.Header.Get("Location") != want {
			t.Errorf("%q leads to %q", next, answer.Header.Get("Location"))
		}
	}
}

func TestAttack_forms_of_other_pages_do_nothing(t *testing.T) {
	b := newBrowser(t)
	b.login()
	for name, headers := range map[string][]string{
		"cross-site":     {"Sec-Fetch-Site: cross-site"},
		"sibling":        {"Sec-Fetch-Site: same-site"},
		"foreign origin": {"Origin: https://evil.example"},
		"null origin":    {"Origin: null"},
		"in the clear":   {"Origin: " + strings.Replace(b.server.URL, "https", "http", 1)},
	} {
		if answer, _ := b.post("/", "/logout", nil, headers...); answer.StatusCode != 403 {
			t.Errorf("%s: %d", name, answer.StatusCode)
		}
	}
	for name, token := range map[string]string{"missing": "", "wrong": "x"} {
		if answer, _ := b.post("", "/logout", url.Values{"csrf": {token}}); answer.StatusCode != 403 {
			t.Errorf("%s token: %d", name, answer.StatusCode)
		}
	}
	for _, path := range []string{"/logout", "/script", "/security/totp", "/prefs"} {
		if answer, _ := b.get(path); answer.StatusCode != 404 && answer.StatusCode != 405 {
			t.Errorf("GET %s: %d", path, answer.StatusCode)
		}
	}
	other := newBrowser(t)
	_, page := other.get("/login")
	token := formToken.FindStringSubmatch(page)[1]
	if answer, _ := b.post("", "/logout", url.Values{"csrf": {token}}); answer.StatusCode != 403 {
		t.Errorf("another browser's token: %d", answer.StatusCode)
	}
	if answer, _ := b.get("/"); answer.StatusCode != 200 {
		t.Error("the session has ended")
	}
}

func TestAttack_answers_carry_the_headers_that_protect_them(t *testing.T) {
	b := newBrowser(t)
	for _, path := range []string{"/login", "/nothing", "/healthz", "/jobs"} {
		answer, _ := b.get(path)
		policy := answer.Header.Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", path, policy)
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Strict-Transport-Security": "max-age=31536000", "Cache-Control": "no-store", "Cross-Origin-Opener-Policy": "same-origin"} {
			if got := answer.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q", path, name, got)
			}
		}
	}
}

// The backend says for how long a cookie is good; a portal whose clock is wrong
// keeps it for as long.
func TestFault_a_portal_whose_clock_is_wrong_lets_people_log_in(t *testing.T) {
	for name, off := range map[string]time.Duration{"a day ahead": 24 * time.Hour, "a day behind": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			b := newBrowser(t)
			b.wrong.Store(int64(off))
			answer, _ := b.post("/login", "/login", url.Values{"username": {"alice"}, "password": {clienttest.Password}})
			for _, c := range answer.Cookies() {
				if c.Name == cookieSession && (c.MaxAge < 60 || c.MaxAge > 12*60*60) {
					t.Errorf("the login is kept for %d s", c.MaxAge)
				}
			}
			b.login()
			if answer, _ := b.get("/jobs"); answer.StatusCode != http.StatusOK {
				t.Errorf("/jobs: %d", answer.StatusCode)
			}
		})
	}
}

func TestAttack_a_new_login_ends_the_one_before(t *testing.T) {
	b := newBrowser(t)
	b.login()
	at, err := url.Parse(b.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	var before string
	for _, one := range b.client.Jar.Cookies(at) {
		if one.Name == cookieSession {
			before = one.Value
		}
	}
	b.login()
	b.fresh()
	if answer, _ := b.get("/jobs", "Cookie: "+cookieSession+"="+before); answer.StatusCode != 303 {
		t.Errorf("the session of the login before: %d", answer.StatusCode)
	}
}

func TestAssets_are_named_with_their_charset(t *testing.T) {
	for name, want := range map[string]string{"logo-1.svg": "image/svg+xml; charset=utf-8", "app-1.css": "text/css; charset=utf-8", "app-1.js": "text/javascript; charset=utf-8"} {
		if got := kindOf(name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
}

func TestAttack_forms_of_strangers_do_not_fill_the_log(t *testing.T) {
	b := newBrowser(t)
	for range 50 {
		b.post("", "/login", url.Values{"username": {"alice"}})
		b.post("", "/login", nil, "Origin: https://evil.example")
	}
	if n := strings.Count(b.log.String(), "form: "); n == 0 || n > 10 {
		t.Errorf("%d lines for 100 forms", n)
	}
}

func TestAttack_names_with_markup_stay_text(t *testing.T) {
	b := newBrowser(t)
	b.login()
	bad := `"><script>alert(1)</script><img src=x onerror=alert(1)>`
	b.backend.Add(api.Job{ID: "7", User: "alice", Name: bad, Image: bad, App: bad, Partition: bad, Reason: bad, Stage: api.StageQueued, Carme: true, End: bad, Problem: bad, Nodes: []string{bad}, Detail: &api.JobDetail{Output: bad, Log: []api.Event{{Text: bad}}}})
	for _, path := range []string{"/", "/jobs", "/jobs/7", "/jobs/7/stop", "/fragments/jobs/7"} {
		if answer, page := b.get(path); answer.StatusCode != 200 || strings.Contains(page, "<script>alert") || strings.Contains(page, "<img src=x") {
			t.Errorf("%s: %d with markup", path, answer.StatusCode)
		}
	}
}

func TestStart_the_same_form_twice_is_one_job(t *testing.T) {
	b := newBrowser(t)
	b.login()
	_, page := b.get("/")
	id := regexp.MustCompile(`name="id" value="([0-9a-f-]{36})"`).FindStringSubmatch(page)[1]
	form := url.Values{"id": {id}, "image": {"base"}, "app": {"jupyterlab"}, "gpus": {"1"}, "nodes": {"1"}, "minutes": {"60"}}
	first, _ := b.post("/", "/jobs", form)
	second, _ := b.post("/", "/jobs", form)
	if first.StatusCode != 303 || first.Header.Get("Location") != "/jobs/"+id || second.Header.Get("Location") != first.Header.Get("Location") {
		t.Errorf("%d %q, %q", first.StatusCode, first.Header.Get("Location"), second.Header.Get("Location"))
	}
	if _, page := b.get("/jobs"); strings.Count(page, `<tr id="job-`) != 1 {
		t.Error("not one job")
	}
	form.Set("id", "")
	form.Set("gpus", "9")
	if answer, page := b.post("/", "/jobs", form); answer.StatusCode != 422 || !strings.Contains(page, "at most 8 over all nodes") {
		t.Errorf("too many GPUs: %d", answer.StatusCode)
	}
	form.Set("nodes", "many")
	form.Set("name", "kept")
	if _, page := b.post("/", "/jobs", form); !strings.Contains(page, "Enter a whole number.") || !strings.Contains(page, "at most 8 over all nodes") {
		t.Error("not all that is wrong is said at once")
	}
	form.Set("gpus", "1")
	if answer, page := b.post("/", "/jobs", form); answer.StatusCode != 422 || !strings.Contains(page, `id="nodes-problem">Enter a whole number.`) ||
		!strings.Contains(page, `aria-invalid="true" aria-describedby="nodes-problem" autofocus`) || !strings.Contains(page, `value="many"`) || !strings.Contains(page, `value="kept"`) {
		t.Errorf("no number: %d", answer.StatusCode)
	}
	if answer, _ := b.post("/jobs/"+id+"/stop", "/jobs/"+id+"/stop", nil); answer.StatusCode != 303 || answer.Header.Get("Location") != "/jobs/"+id+"?done=stop" {
		t.Errorf("stop: %d to %s", answer.StatusCode, answer.Header.Get("Location"))
	}
}

func TestDescriptions_of_the_site_are_in_the_language_of_the_page(t *testing.T) {
	b := newBrowser(t)
	b.login()
	for language, want := range map[string][]string{
		"en": {"A shell in the job", "Notebooks, terminals and files", `"PyTorch 2.9, CUDA 12.8"`},
		"de": {"Eine Shell im Job", "Notebooks, terminals and files", `"PyTorch 2.9 mit CUDA 12.8"`},
	} {
		_, page := b.get("/", "Accept-Language: "+language)
		for _, text := range want {
			if !strings.Contains(page, text) {
				t.Errorf("the page in %s lacks %q", language, text)
			}
		}
	}
}

func TestAttack_other_peoples_jobs_are_not_found(t *testing.T) {
	b := newBrowser(t)
	b.backend.Add(api.Job{ID: "9", User: "bob", Name: "secret", Stage: api.StageReady, Host: testLabel, Carme: true})
	b.login()
	for _, path := range []string{"/jobs/9", "/jobs/9/stop", "/fragments/jobs/9", "/jobs/9/output?offset=0", "/jobs/9/metrics", "/open?host=" + testLabel + "&n=" + strings.Repeat("a", 64)} {
		if answer, page := b.get(path); answer.StatusCode != 404 || strings.Contains(page, "secret") {
			t.Errorf("%s: %d", path, answer.StatusCode)
		}
	}
}

func TestOpen_leads_to_the_sessions_own_host_only(t *testing.T) {
	b := newBrowser(t)
	b.backend.Add(api.Job{ID: "9", User: "alice", Stage: api.StageReady, Host: testLabel, Carme: true})
	b.login()
	nonce := strings.Repeat("ab", 32)
	answer, _ := b.get("/open?host=" + testLabel + "&n=" + nonce)
	if got := answer.Header.Get("Location"); !strings.HasPrefix(got, "https://"+testLabel+".apps.example/.carme/cb?code=") {
		t.Errorf("%d to %q", answer.StatusCode, got)
	}
	for _, bad := range []string{"/open", "/open?host=evil.example&n=" + nonce, "/open?host=" + testLabel + "&n=short", "/open?host=" + testLabel + "&n=" + strings.Repeat("Z", 64)} {
		if answer, _ := b.get(bad); answer.StatusCode != 404 {
			t.Errorf("%s: %d", bad, answer.StatusCode)
		}
	}
}

func TestFragments_are_sent_once(t *testing.T) {
	b := newBrowser(t)
	b.login()
	answer, _ := b.get("/fragments/jobs")
	tag := answer.Header.Get("ETag")
	if got := answer.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("the browser's cache may have it: %q", got)
	}
	if answer, body := b.get("/fragments/jobs", "If-None-Match: "+tag); tag == "" || answer.StatusCode != 304 || body != "" {
		t.Errorf("%d with %q", answer.StatusCode, tag)
	}
}

func TestFault_backend_away_is_said_and_the_login_stays(t *testing.T) {
	b := newBrowser(t)
	b.login()
	b.backend.SetDown(true)
	if answer, page := b.get("/", "Accept-Language: de"); answer.StatusCode != 503 || !strings.Contains(page, "Der Cluster antwortet nicht") {
		t.Errorf("%d", answer.StatusCode)
	}
	b.backend.SetDown(false)
	if answer, _ := b.get("/"); answer.StatusCode != 200 {
		t.Errorf("afterwards: %d", answer.StatusCode)
	}
}

func TestFault_a_mistake_in_the_sites_configuration_is_said_and_the_rest_stays(t *testing.T) {
	b := newBrowser(t)
	b.login()
	b.backend.Misconfigured = true
	answer, page := b.get("/", "Accept-Language: de")
	if answer.StatusCode != 200 || !strings.Contains(page, "ist ein Fehler, und bis er behoben ist") || strings.Contains(page, `id="start"`) {
		t.Errorf("%d %s", answer.StatusCode, page)
	}
	if answer, _ := b.get("/jobs"); answer.StatusCode != 200 {
		t.Errorf("the table: %d", answer.StatusCode)
	}
}

func TestEvents_end_with_the_login(t *testing.T) {
	b := newBrowser(t)
	b.login()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, b.server.URL+"/events", nil)
	stream, err := b.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close() //nolint:errcheck // it was read
	if got := stream.Header.Get("Content-Type"); got != "text/event-stream; charset=utf-8" {
		t.Fatal(got)
	}
	if answer, _ := b.post("/", "/logout", nil); answer.StatusCode != 303 {
		t.Fatalf("logout: %d", answer.StatusCode)
	}
	all, err := io.ReadAll(stream.Body)
	if err != nil || !strings.Contains(string(all), "event: logout") {
		t.Errorf("%q, %v", all, err)
	}
}

func TestBanner_says_how_old_the_jobs_are_in_the_readers_language(t *testing.T) {
	all, err := loadCatalogues()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		lang string
		jobs api.Jobs
		want string
	}{
		{"de", api.Jobs{Problem: "Slurm does not answer", Age: 7}, "seit 7 Sekunden"},
		{"en", api.Jobs{Problem: "Slurm does not answer", Age: 7}, "for 7 seconds"},
		{"en", api.Jobs{Problem: "Slurm does not answer"}, "does not answer"},
		{"en", api.Jobs{Age: 60}, "for 1 minute"},
	} {
		if got := stale(all[c.lang], c.jobs.Age, c.jobs.Problem, c.jobs.ProblemCode); !strings.Contains(got, c.want) {
			t.Errorf("%+v: %q", c.jobs, got)
		}
	}
	if got := stale(all["en"], 5, "", ""); got != "" {
		t.Errorf("a fresh one: %q", got)
	}
}

func TestEvents_end_with_the_portal(t *testing.T) {
	b := newBrowser(t)
	b.login()
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, b.server.URL+"/events", nil)
	stream, err := b.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close() //nolint:errcheck // it was read
	close(b.stopping)
	if _, err := io.ReadAll(stream.Body); err != nil {
		t.Error(err)
	}
}

func TestStage_of_a_sealed_job_without_an_app_is_that_it_runs(t *testing.T) {
	all, err := loadCatalogues()
	if err != nil {
		t.Fatal(err)
	}
	job := api.Job{Carme: true, State: "RUNNING", Stage: api.StageAllocated}
	if got := stageText(all["en"], job); got != "Running" || stageKind(job) != "ok" {
		t.Errorf("%q, %q", got, stageKind(job))
	}
	job.App = "terminal"
	if got := stageText(all["en"], job); got == "Running" || stageKind(job) != "busy" {
		t.Errorf("with an app: %q, %q", got, stageKind(job))
	}
}

func TestTexts_are_complete_in_every_language(t *testing.T) {
	all, err := loadCatalogues()
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	mention := regexp.MustCompile(`(?:\bt|text\(c,|texts\.text\(|text\() ?"([a-z][a-z0-9_.]+)"`)
	names, _ := fs.Glob(templateFiles, "templates/*.html")
	for _, name := range names {
		data, _ := fs.ReadFile(templateFiles, name)
		for _, m := range mention.FindAllStringSubmatch(string(data), -1) {
			used[m[1]] = true
		}
	}
	holes := regexp.MustCompile(`\{\d\}`)
	for lang, texts := range all {
		for key := range used {
			if texts[key] == "" {
				t.Errorf("%s: %q is used and missing", lang, key)
			}
		}
		for key, text := range all["en"] {
			if texts[key] == "" {
				t.Errorf("%s: %q is missing", lang, key)
			}
			if a, b := len(holes.FindAllString(text, -1)), len(holes.FindAllString(texts[key], -1)); a != b {
				t.Errorf("%s: %q has %d places for arguments, English has %d", lang, key, b, a)
			}
		}
		if len(texts) != len(all["en"]) {
			t.Errorf("%s has %d texts, English has %d", lang, len(texts), len(all["en"]))
		}
	}
}

func TestStart_an_app_without_its_image_gets_one_that_has_it(t *testing.T) {
	b := newBrowser(t)
	b.login()
	form := url.Values{"id": {newUUID()}, "image": {"base"}, "app": {"code-server"}, "gpus": {"1"}, "nodes": {"1"}, "minutes": {"60"}}
	answer, _ := b.post("/", "/jobs", form)
	if answer.StatusCode != http.StatusSeeOther {
		t.Fatalf("%d", answer.StatusCode)
	}
	if _, page := b.get(answer.Header.Get("Location")); !strings.Contains(page, "<dd>pytorch</dd>") {
		t.Error("not in the image that has the app")
	}
}

func TestReason_is_said_for_whole_families_of_slurms_words(t *testing.T) {
	all, err := loadCatalogues()
	if err != nil {
		t.Fatal(err)
	}
	for word, want := range map[string]string{
		"Priority": "as soon as it is its turn", "AssocGrpGRES": "at one of its limits (AssocGrpGRES)", "QOSMaxJobsPerUserLimit": "quality of service",
		"ReqNodeNotAvail, UnavailableNodes:n[1-3]": "reserved or down", "PartitionTimeLimit": "more time than its partition", "Cleaning": "Slurm says: Cleaning",
	} {
		if got := reason(all["en"], word); !strings.Contains(got, want) {
			t.Errorf("%s: %q", word, got)
		}
	}
}

func TestTiming_tells_limit_and_length(t *testing.T) {
	all, err := loadCatalogues()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 2, 10, 0, 0, 0, time.UTC)
	runs := timingOf(all["en"], api.Job{Stage: api.StageReady, Started: start, Minutes: 60}, start.Add(15*time.Minute))
	if !runs.Running || runs.Used != 25 || !runs.Till.Equal(start.Add(time.Hour)) {
		t.Errorf("%+v", runs)
	}
	for took, want := range map[time.Duration]string{0: "1 second", time.Second: "1 second", 42 * time.Second: "42 seconds", 119 * time.Second: "2 minutes", 90 * time.Minute: "1 h 30 min"} {
		if got := timingOf(all["en"], api.Job{Stage: api.StageEnded, Started: start, Ended: start.Add(took)}, start); got.Took != want || got.Running {
			t.Errorf("%v: %+v", took, got)
		}
	}
}

func TestJob_what_waits_of_an_array_keeps_its_address(t *testing.T) {
	for id, want := range map[string]string{"12": "12", "12_3": "12_3", "12_[4-9%2]": "12"} {
		if got := jobRef(api.Job{ID: id, Intent: "x"}); got != want {
			t.Errorf("%s: %s", id, got)
		}
	}
}

func TestJob_its_page_says_how_old_it_is(t *testing.T) {
	b := newBrowser(t)
	id := b.backend.Add(api.Job{User: "alice", Name: "x", Stage: api.StageAllocated, State: "RUNNING", Detail: &api.JobDetail{Age: 40, Problem: "Slurm does not answer", ProblemCode: "problem.slurm"}})
	b.login()
	for _, path := range []string{"/jobs/" + id, "/fragments/jobs/" + id} {
		if _, page := b.get(path); !strings.Contains(page, "Slurm has not answered for 40 seconds") {
			t.Errorf("%s does not say so", path)
		}
	}
	b.backend.Change(id, func(j *api.Job) { j.Detail.Age, j.Detail.Problem, j.Detail.ProblemCode = 1, "", "" })
	if _, page := b.get("/jobs/" + id); strings.Contains(page, "has not answered") {
		t.Error("a fresh page is called old")
	}
}

func TestJob_its_fragment_is_all_of_the_page_that_changes(t *testing.T) {
	b := newBrowser(t)
	b.login()
	answer, _ := b.post("/", "/jobs", url.Values{"id": {newUUID()}, "image": {"base"}, "app": {"jupyterlab"}, "gpus": {"1"}, "nodes": {"1"}, "minutes": {"60"}})
	at := answer.Header.Get("Location")
	if _, page := b.get("/fragments" + at); !strings.Contains(page, "PENDING") || strings.Contains(page, `id="open-app"`) {
		t.Error("before its start")
	}
	for range 4 {
		b.backend.Advance(strings.TrimPrefix(at, "/jobs/"))
	}
	_, page := b.get("/fragments" + at)
	for _, want := range []string{"RUNNING", `id="job-devices"`, `id="open-app"`, `id="job-plots" data-keep`, `id="job-output" data-keep`, "JupyterLab is ready"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q when the app is ready", want)
		}
	}
}

func TestTexts_there_is_one_for_everything_that_the_backend_says_by_a_code(t *testing.T) {
	all, err := loadCatalogues()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../backend/jobs/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	codes := map[string]int{"problem.slurm": 0, "conflict.setup": 0, "limit.nodes": 1, "limit.gpus": 1, "limit.minutes": 1, "limit.running": 2}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`say\("([a-z._]+)", (.*)`).FindAllStringSubmatch(string(data), -1) {
			codes[m[1]] = strings.Count(m[2], "%s")
		}
	}
	if len(codes) < 20 {
		t.Fatalf("only %d codes", len(codes))
	}
	for lang, texts := range all {
		for code, args := range codes {
			if got := strings.Count(texts["said."+code], "{"); texts["said."+code] == "" || got != args {
				t.Errorf("%s: %q says %q, with %d arguments for %d", lang, code, texts["said."+code], got, args)
			}
		}
	}
	if got := said(all["de"], "end.exit", []string{"3"}, "It ended"); got != "Er endete mit Exit-Code 3. Die Fehlerausgabe sagt vielleicht, warum." {
		t.Error(got)
	}
	if got := said(all["de"], "end.younger", nil, "In English."); got != "In English." {
		t.Error(got)
	}
}

// The program parses a page when it is asked for first: too late to find a mistake.
func TestPages_can_be_made_in_every_language(t *testing.T) {
	texts, err := loadCatalogues()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{texts: texts, assets: &assets{}}
	if err := s.loadTemplates(); err != nil {
		t.Fatal(err)
	}
	if len(s.pages) < 2*len(texts) {
		t.Fatalf("%d pages in %d languages", len(s.pages), len(texts))
	}
	for name, parse := range s.pages {
		if parsed, err := parse(); err != nil || parsed.Lookup("main") == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestScript_of_a_form_that_is_wrong_says_what_is_wrong_with_which_field(t *testing.T) {
	b := newBrowser(t)
	b.login()
	form := url.Values{"image": {"base"}, "app": {"jupyterlab"}, "minutes": {"60"}, "gpus": {"0"}, "nodes": {"two"}, "cpus": {"-1"}}
	answer, page := b.post("/", "/script", form, "HX-Request: true")
	for _, want := range []string{`<a href="#nodes">Nodes</a>: Enter a whole number.`, `<a href="#cpus">CPUs per node</a>: It must be 0 or more.`} {
		if answer.StatusCode != http.StatusOK || !strings.Contains(page, want) {
			t.Errorf("%d, no %q in %s", answer.StatusCode, want, page)
		}
	}
	if strings.Contains(page, "#SBATCH") {
		t.Error("there is a script, of another form")
	}
	answer, page = b.post("/", "/script", form)
	if answer.StatusCode != http.StatusUnprocessableEntity || !strings.Contains(page, `value="two"`) || !strings.Contains(page, `id="nodes-problem">Enter a whole number.`) {
		t.Errorf("without scripts: %d %s", answer.StatusCode, page)
	}
	form.Set("nodes", "1")
	form.Set("cpus", "")
	if answer, page = b.post("/", "/script", form, "HX-Request: true"); answer.StatusCode != http.StatusOK || !strings.Contains(page, "#SBATCH") {
		t.Errorf("a good one: %d %s", answer.StatusCode, page)
	}
}

func TestSecurity_all_other_logins_end_at_once_and_half_ones_are_called_so(t *testing.T) {
	b := newBrowser(t)
	b.login()
	if _, page := b.get("/security"); strings.Contains(page, "everywhere else") {
		t.Error("there is nowhere else")
	}
	mine := b.client.Jar
	for _, half := range []bool{false, true} {
		b.fresh()
		if half {
			b.post("/login", "/login", url.Values{"username": {"alice"}, "password": {clienttest.Password}})
		} else {
			b.login()
		}
	}
	b.client.Jar = mine
	_, page := b.get("/security")
	if strings.Count(page, "/end\"><input") != 2+1 || strings.Count(page, "password entered, code missing") != 1 {
		t.Errorf("%s", page)
	}
	answer, _ := b.post("/security", "/security/sessions/end", nil)
	if to := answer.Header.Get("Location"); to != "/security?done=others" {
		t.Fatal(to)
	}
	if _, page = b.get("/security?done=others"); !strings.Contains(page, "All other logins have ended.") || strings.Contains(page, "/end\"><input") {
		t.Errorf("%s", page)
	}
}

func TestRecovery_codes_say_whose_they_are_and_a_reload_where_to_get_others(t *testing.T) {
	b := newBrowser(t)
	b.post("/login", "/login", url.Values{"username": {"carol"}, "password": {clienttest.Password}})
	_, page := b.get("/login/enrol")
	form := url.Values{"code": {clienttest.Code}, "secret": {clienttest.Secret}, "csrf": {formToken.FindStringSubmatch(page)[1]}}
	if _, page = b.post("", "/login/enrol", form); strings.Count(page, "<li>") != 10 || !strings.Contains(page, "For carol at "+strings.TrimPrefix(b.server.URL, "https://")) {
		t.Fatalf("%s", page)
	}
	answer, page := b.post("", "/login/enrol", form)
	if answer.StatusCode != http.StatusForbidden || !strings.Contains(page, "The recovery codes were shown once") || strings.Contains(page, "Nothing was done") {
		t.Errorf("%d %s", answer.StatusCode, page)
	}
}

func TestPages_answer_HEAD_and_name_what_they_take(t *testing.T) {
	b := newBrowser(t)
	ask := func(method, path string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, b.server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := b.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if method == http.MethodHead && (err != nil || len(body) > 0) {
			t.Errorf("%s: %q %v", path, body, err)
		}
		return answer
	}
	if a := ask(http.MethodHead, "/login"); a.StatusCode != http.StatusOK {
		t.Errorf("HEAD /login: %d", a.StatusCode)
	}
	if a := ask(http.MethodHead, "/"); a.StatusCode != http.StatusSeeOther {
		t.Errorf("HEAD /: %d", a.StatusCode)
	}
	if a := ask(http.MethodPut, "/login"); a.StatusCode != http.StatusMethodNotAllowed || !strings.Contains(a.Header.Get("Allow"), "POST") {
		t.Errorf("PUT /login: %d, %q", a.StatusCode, a.Header.Get("Allow"))
	}
	if a := ask(http.MethodGet, "/robots.txt"); a.StatusCode != http.StatusOK {
		t.Errorf("robots: %d", a.StatusCode)
	}
}

func TestPage_that_is_not_there_still_has_the_way_back_for_who_is_logged_in(t *testing.T) {
	b := newBrowser(t)
	if answer, page := b.get("/nothing"); answer.StatusCode != http.StatusNotFound || strings.Contains(page, `action="/logout"`) {
		t.Errorf("a stranger: %d", answer.StatusCode)
	}
	b.login()
	if answer, page := b.get("/nothing"); answer.StatusCode != http.StatusNotFound || !strings.Contains(page, `action="/logout"`) || !strings.Contains(page, `href="/jobs"`) {
		t.Errorf("%d %s", answer.StatusCode, page)
	}
}

func TestSessions_of_one_name_are_told_apart(t *testing.T) {
	b := newBrowser(t)
	var ids []string
	for range 2 {
		ids = append(ids, b.backend.Add(api.Job{User: "alice", App: "jupyterlab", Carme: true, Stage: api.StageAllocated, State: "RUNNING", Started: time.Now(), Detail: &api.JobDetail{}}))
	}
	b.login()
	_, page := b.get("/")
	for _, id := range ids {
		for _, want := range []string{"Job " + id + " · ", `aria-label="Stop JupyterLab, job ` + id + `"`, `data-text="Job ` + id + ` and everything`} {
			if !strings.Contains(page, want) {
				t.Errorf("no %q", want)
			}
		}
	}
}

func TestJobs_that_have_not_ended_come_first(t *testing.T) {
	b := newBrowser(t)
	live := b.backend.Add(api.Job{User: "alice", Name: "live", Stage: api.StageQueued, State: "PENDING", Detail: &api.JobDetail{}})
	over := b.backend.Add(api.Job{User: "alice", Name: "over", Stage: api.StageEnded, State: "COMPLETED", Detail: &api.JobDetail{}})
	b.login()
	_, page := b.get("/jobs")
	first, last := strings.Index(page, `href="/jobs/`+live+`"`), strings.Index(page, `href="/jobs/`+over+`"`)
	if first < 0 || last < first {
		t.Errorf("at %d and %d", first, last)
	}
}

func TestForm_asks_for_no_more_CPUs_than_a_node_has(t *testing.T) {
	b := newBrowser(t)
	b.login()
	if _, page := b.get("/"); !regexp.MustCompile(`id="cpus"[^>]* max="64"`).MatchString(page) {
		t.Error(regexp.MustCompile(`<input[^>]*id="cpus"[^>]*>`).FindString(page))
	}
}

func TestJob_that_waits_says_when_it_is_expected_to_start_unless_that_is_over(t *testing.T) {
	b := newBrowser(t)
	add := func(at time.Time) string {
		return b.backend.Add(api.Job{User: "alice", Name: "x", Stage: api.StageQueued, State: "PENDING", Reason: "Resources", Expected: at, Detail: &api.JobDetail{}})
	}
	soon, late, never := add(time.Now().Add(time.Hour)), add(time.Now().Add(-time.Hour)), add(time.Time{})
	b.login()
	for id, want := range map[string]bool{soon: true, late: false, never: false} {
		if _, page := b.get("/jobs/" + id); strings.Contains(page, "Slurm expects to start it at <time") != want {
			t.Errorf("%s: %v", id, !want)
		}
	}
	if _, page := b.get("/jobs"); strings.Count(page, "Slurm expects to start it at <time") != 1 {
		t.Error("the table says it of another one")
	}
}

func TestStop_is_said_until_the_job_has_ended(t *testing.T) {
	b := newBrowser(t)
	live := b.backend.Add(api.Job{User: "alice", Name: "x", Stage: api.StageReady, State: "RUNNING", Started: time.Now(), Detail: &api.JobDetail{}})
	over := b.backend.Add(api.Job{User: "alice", Name: "x", Stage: api.StageEnded, State: "CANCELLED", Started: time.Now(), Detail: &api.JobDetail{}})
	b.login()
	for path, want := range map[string]bool{"/jobs/" + live + "?done=stop": true, "/jobs/" + live: false, "/fragments/jobs/" + live: false, "/jobs/" + over + "?done=stop": false} {
		if _, page := b.get(path); strings.Contains(page, `id="job-stopping"`) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
}

func TestStop_of_a_whole_array_asks_and_ends_all_of_its_tasks(t *testing.T) {
	b := newBrowser(t)
	for _, id := range []string{"500_1", "500_2", "500_[3-9]"} {
		b.backend.Add(api.Job{ID: id, User: "alice", Name: "x", Stage: api.StageAllocated, State: "RUNNING", Detail: &api.JobDetail{}})
	}
	other := b.backend.Add(api.Job{User: "alice", Name: "x", Stage: api.StageAllocated, State: "RUNNING", Detail: &api.JobDetail{}})
	b.login()
	if _, page := b.get("/jobs/" + other); strings.Contains(page, "stop-array") {
		t.Error("a job of no array can be stopped as one")
	}
	if _, page := b.get("/jobs/500_1"); !strings.Contains(page, `href="/jobs/500_1/stop?array=all">Stop the whole array<`) {
		t.Error(page)
	}
	if _, page := b.get("/jobs/500_1/stop?array=all"); !strings.Contains(page, "Stop all tasks of array 500?") || !strings.Contains(page, `name="array" value="all"`) {
		t.Error(page)
	}
	if answer, _ := b.post("/jobs/500_1/stop?array=all", "/jobs/500_1/stop", url.Values{"array": {"all"}}); answer.StatusCode != http.StatusSeeOther {
		t.Errorf("%d", answer.StatusCode)
	}
	for id, want := range map[string]bool{"500_1": false, "500_2": false, other: true} {
		if _, page := b.get("/jobs/" + id); strings.Contains(page, `id="stop-job"`) != want {
			t.Errorf("%s lives: %v", id, !want)
		}
	}
}

func TestJob_that_ended_before_it_began_says_so(t *testing.T) {
	b := newBrowser(t)
	b.backend.Add(api.Job{User: "alice", Name: "x", Stage: api.StageEnded, State: "CANCELLED", Minutes: 10, Ended: time.Now(), Detail: &api.JobDetail{}})
	b.login()
	if _, page := b.get("/jobs"); !strings.Contains(page, "did not start") || strings.Contains(page, "asks for") {
		t.Error(page)
	}
}
