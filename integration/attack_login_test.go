//go:build integration

package integration

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// in says whether a visitor has a full login.
func (v *visitor) in() bool {
	v.t.Helper()
	r := v.get("/security")
	return r.code == http.StatusOK && strings.Contains(r.body, "/security/totp")
}

func TestAttack_W1_a_password_that_is_none_lets_nobody_in(t *testing.T) {
	forgetAttempts(t)
	cases := map[string]struct{ user, password string }{
		"empty":                     {"alice", ""},
		"empty user":                {"", "alice-pass"},
		"both empty":                {"", ""},
		"a space":                   {"bob", " "},
		"a NUL":                     {"bob", "\x00"},
		"a NUL behind the password": {"bob", "bob-pass\x00"},
		"another case":              {"alice", "Alice-Pass"},
		"another user's":            {"alice", "mallory-pass"},
		"not of Carme's group":      {"dave", "dave-pass"},
		"the service account":       {"reader", "reader-pass"},
		"root":                      {"root", ""},
		"a megabyte":                {"carol", strings.Repeat("a", 1<<20)},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := visit(t, c.user)
			r := v.password(c.user, c.password)
			if r.code < 400 || r.code >= 500 || v.cookie(portalURL, portalCookie) != "" {
				t.Errorf("%s", r)
			}
		})
	}
}

func TestAttack_W1_what_LDAP_reads_as_a_filter_is_a_name(t *testing.T) {
	forgetAttempts(t)
	for _, user := range []string{
		"*", "mal*", "m*y", "*)(uid=mallory", "mallory)(uid=*", "*)(|(uid=*", "nobody)(|(uid=mallory)", "mallory)(objectClass=*",
		"uid=mallory", "uid=mallory,ou=people,dc=carme,dc=test", "mallory,ou=people,dc=carme,dc=test", `\6dallory`, "mallory\x00", "mallory\x00)(uid=alice",
		"mal\nlory", "m\u200ballory", "mallory+uid=alice", "&", "(|(uid=mallory))", `mallory\29`, "..", "../mallory",
	} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			v := visit(t, user)
			if r := v.password(user, "mallory-pass"); r.code != http.StatusUnauthorized || v.cookie(portalURL, portalCookie) != "" {
				t.Errorf("%s", r)
			}
		})
	}
}

func TestAttack_W1_answers_do_not_tell_who_exists(t *testing.T) {
	forgetAttempts(t)
	hidden := regexp.MustCompile(`name="csrf" value="[^"]*"|value="[a-z-]*" autocomplete`)
	var mu sync.Mutex
	texts, took := map[string]string{}, map[string][]time.Duration{}
	cases := map[string]struct{ user, password string }{
		"wrong password": {"alice", "no"}, "nobody": {"nobody-here", "no"}, "not of the group": {"dave", "no"},
		"not of the group, right password": {"dave", "dave-pass"}, "empty password": {"bob", ""},
	}
	for range 3 {
		query(t, "DELETE FROM attempts") // or the third try of one name differs from the first of another
		var all sync.WaitGroup
		for name, c := range cases {
			all.Go(func() {
				v := visit(t, c.user)
				token := v.token("/login")
				start := time.Now()
				r := v.send("POST", "/login", url.Values{"csrf": {token}, "username": {c.user}, "password": {c.password}}.Encode(), formType)
				mu.Lock()
				defer mu.Unlock()
				took[name] = append(took[name], time.Since(start))
				texts[name] = hidden.ReplaceAllString(r.body, "")
				if r.code != http.StatusUnauthorized {
					t.Errorf("%s: %s", name, r)
				}
			})
		}
		all.Wait()
	}
	for name, text := range texts {
		if text != texts["nobody"] {
			t.Errorf("%s reads\n%s\nand nobody\n%s", name, text, texts["nobody"])
		}
		slices.Sort(took[name])
		// The floor is 700 ms, with up to half of it on top by chance.
		if took[name][0] < 650*time.Millisecond || took[name][1] > 1600*time.Millisecond {
			t.Errorf("%s took %v", name, took[name])
		}
	}
}

const slowDown = "too many attempts"

func TestAttack_W1_guessing_a_password_gets_slow_for_the_guesser_alone(t *testing.T) {
	forgetAttempts(t)
	alice := visit(t, "alice").login()
	guesser := visit(t, "mallory")
	tries := 0
	for ; tries < 10; tries++ {
		r := guesser.password("alice", "guess")
		if r.code != http.StatusUnauthorized {
			t.Fatalf("guess %d: %s", tries, r)
		}
		if strings.Contains(r.body, slowDown) {
			break
		}
	}
	if tries > 5 {
		t.Fatalf("%d guesses were looked at", tries)
	}
	// The first delays are short: make this one last as long as the test.
	query(t, "UPDATE attempts SET next_at = next_at + 60000000 WHERE subject = 'user:alice'")
	// The right one is not even looked at now, however one writes the name.
	for _, name := range []string{"alice", "ALICE", " alice", "Alice "} {
		if r := guesser.password(name, "alice-pass"); !strings.Contains(r.body, slowDown) {
			t.Errorf("%q is let through: %s", name, r)
		}
	}
	// A header does not make another source.
	token := guesser.token("/login")
	r := guesser.send("POST", "/login", url.Values{"csrf": {token}, "username": {"alice"}, "password": {"alice-pass"}}.Encode(),
		formType, "X-Forwarded-For: 192.0.2.1", "X-Real-IP: 192.0.2.1", "Forwarded: for=192.0.2.1")
	if !strings.Contains(r.body, slowDown) {
		t.Errorf("with X-Forwarded-For: %s", r)
	}
	restart(t, ctl, "carme-backend")
	if r := guesser.password("alice", "alice-pass"); !strings.Contains(r.body, slowDown) {
		t.Errorf("after a restart: %s", r)
	}
	// Nobody else is held up: not the victim's live session, not her own browser.
	if !alice.in() {
		t.Error("alice's session ended")
	}
	if r := alice.post("/security", "/logout"); r.to() != "/login" {
		t.Fatalf("log out: %s", r)
	}
	if r := alice.password("alice", "alice-pass"); !strings.HasPrefix(r.to(), "/login/factor") {
		t.Errorf("alice on her own browser: %s", r)
	}
	if r := visit(t, "bob").password("bob", "bob-pass"); r.code != http.StatusSeeOther {
		t.Errorf("bob from the same address: %s", r)
	}
}

// restart stops and starts a daemon and waits until the portal answers again.
func restart(t *testing.T, machine, service string) {
	t.Helper()
	root(t, machine, "svc", "restart", service).ok(t)
	v := visit(t, "nobody")
	eventually(t, 30*time.Second, "the portal after a restart of "+service, func() bool {
		r, err := v.try("POST", "/login", url.Values{"csrf": {v.token("/login")}, "username": {"nobody"}, "password": {"x"}}.Encode(), formType)
		return err == nil && r.code == http.StatusUnauthorized
	})
}

func TestAttack_W1_one_source_that_tries_many_names_gets_slow(t *testing.T) {
	forgetAttempts(t)
	alice := visit(t, "alice").login()
	query(t, "DELETE FROM attempts")
	slow := false
	for round := 0; round < 8 && !slow; round++ {
		atOnce(8, func(i int) {
			name := "name" + string(rune('a'+round)) + string(rune('a'+i))
			if r := visit(t, name).password(name, "Winter2026"); strings.Contains(r.body, slowDown) {
				slow = true
			}
		})
	}
	if !slow {
		t.Error("64 names were tried from one address")
	}
	if !alice.in() {
		t.Error("alice's session ended")
	}
	alice.give(portalURL, portalCookie, "")
	if r := alice.password("alice", "alice-pass"); !strings.HasPrefix(r.to(), "/login/factor") {
		t.Errorf("alice on her own browser at that address: %s", r)
	}
}

func TestAttack_W2_guessing_a_code_gets_slow_and_locks_no_owner_out(t *testing.T) {
	forgetAttempts(t)
	alice := visit(t, "alice").login()
	thief := visit(t, "mallory")
	if r := thief.password("alice", "alice-pass"); !strings.HasPrefix(r.to(), "/login/factor") {
		t.Fatalf("the stolen password: %s", r)
	}
	// Guesses come all at once, so that none sees the count of another.
	token := thief.token("/login/factor")
	var mu sync.Mutex
	looked := 0
	atOnce(24, func(i int) {
		guess := "00000" + string(rune('0'+i%10))
		r := thief.send("POST", "/login/factor", url.Values{"csrf": {token}, "code": {guess}}.Encode(), formType)
		mu.Lock()
		defer mu.Unlock()
		if r.code != http.StatusUnauthorized {
			t.Errorf("guess: %s", r)
		}
		if !strings.Contains(r.body, slowDown) {
			looked++
		}
	})
	if looked > 6 {
		t.Errorf("%d guesses were looked at", looked)
	}
	// Another session with the stolen password begins no new count; nor do codes
	// for recovery.
	again := visit(t, "mallory")
	again.password("alice", "alice-pass")
	for _, field := range []string{"code", "recovery"} {
		if r := again.post("/login/factor", "/login/factor", field, "111111"); !strings.Contains(r.body, slowDown) {
			t.Errorf("another session, %s: %s", field, r)
		}
	}
	if !alice.in() {
		t.Error("alice's session ended")
	}
	alice.post("/security", "/logout")
	alice.password("alice", "alice-pass")
	if r := alice.post("/login/factor", "/login/factor", "code", alice.codeAt(time.Now())); r.to() != "/" || !alice.in() {
		t.Errorf("alice on her own browser: %s", r)
	}
}

func TestAttack_W2_a_code_is_good_once_also_for_two_at_the_same_time(t *testing.T) {
	forgetAttempts(t)
	alice := visit(t, "alice").login()
	const many = 6
	var thieves [many]*visitor
	var tokens [many]string
	for i := range thieves {
		thieves[i] = visit(t, "alice")
		thieves[i].password("alice", "alice-pass")
		tokens[i] = thieves[i].token("/login/factor")
	}
	for what, form := range map[string]url.Values{"code": {"code": {alice.codeAt(time.Now())}}, "recovery code": {"recovery": {alice.codes[0]}}} {
		query(t, "DELETE FROM attempts")
		var mu sync.Mutex
		won := 0
		atOnce(2, func(i int) {
			i += 2 * len(what) / len("recovery code") // other sessions for the other kind
			values := url.Values{"csrf": {tokens[i]}}
			maps.Copy(values, form)
			r := thieves[i].send("POST", "/login/factor", values.Encode(), formType)
			mu.Lock()
			defer mu.Unlock()
			if r.to() == "/" {
				won++
			}
		})
		if won != 1 {
			t.Errorf("%d of two came in with one %s", won, what)
		}
		query(t, "DELETE FROM attempts")
		late := thieves[many-1]
		for name, value := range form {
			if r := late.post("/login/factor", "/login/factor", name, value[0]); r.code != http.StatusUnauthorized || late.in() {
				t.Errorf("the %s once more: %s", what, r)
			}
			late = visit(t, "alice")
			late.password("alice", "alice-pass")
			thieves[many-1] = late
		}
	}
}

func TestAttack_W2_codes_of_others_and_of_other_times(t *testing.T) {
	forgetAttempts(t)
	alice, mallory := visit(t, "alice").login(), visit(t, "mallory").login()
	thief := visit(t, "alice")
	thief.password("alice", "alice-pass")
	pending := thief.cookie(portalURL, portalCookie)
	for what, pair := range map[string][2]string{
		"mallory's code":               {"code", mallory.codeAt(time.Now())},
		"mallory's recovery code":      {"recovery", mallory.codes[0]},
		"a code of three minutes ago":  {"code", alice.codeAt(time.Now().Add(-3 * time.Minute))},
		"a code of in two minutes":     {"code", alice.codeAt(time.Now().Add(2 * time.Minute))},
		"the code that alice has used": {"code", alice.codeAt(time.Now().Add(-2 * codeStep))},
		"no code":                      {"code", ""},
		"a recovery code cut short":    {"recovery", alice.codes[0][:20]},
		"a wildcard":                   {"recovery", "%"},
		"SQL":                          {"recovery", "' OR '1'='1"},
	} {
		query(t, "DELETE FROM attempts")
		thief.give(portalURL, portalCookie, pending) // looking at another page has lost it
		if r := thief.post("/login/factor", "/login/factor", pair[0], pair[1]); r.code != http.StatusUnauthorized || thief.in() {
			t.Errorf("%s: %s", what, r)
		}
	}
}

func TestAttack_W2_nothing_is_reached_between_password_and_code(t *testing.T) {
	forgetAttempts(t)
	alice := visit(t, "alice").login()
	half := visit(t, "alice")
	if r := half.password("alice", "alice-pass"); !strings.HasPrefix(r.to(), "/login/factor") {
		t.Fatalf("password: %s", r)
	}
	pending := half.cookie(portalURL, portalCookie)
	token := half.token("/login/factor")
	for _, path := range []string{
		"/", "/jobs", "/jobs/1", "/jobs/1/stop", "/jobs/1/output?offset=0", "/jobs/1/metrics", "/security", "/events", "/fragments/jobs",
		"/fragments/sessions", "/fragments/cluster", "/fragments/jobs/1", "/open?host=s-aaaaaaaaaaaaaaaaaaaaaaaaaa&n=" + strings.Repeat("a", 64), "//security", "/./security", "/security/",
	} {
		half.give(portalURL, portalCookie, pending)
		if r := half.get(path); r.code == http.StatusOK || strings.Contains(r.body, "alice") && !strings.Contains(r.body, `name="username"`) {
			t.Errorf("GET %s: %s", path, r)
		}
	}
	for _, path := range []string{"/jobs", "/script", "/jobs/1/stop", "/security/totp", "/security/totp/confirm", "/security/recovery", "/security/sessions/end", "/login/enrol"} {
		half.give(portalURL, portalCookie, pending)
		r := half.send("POST", path, url.Values{"csrf": {token}, "code": {alice.codeAt(time.Now())}}.Encode(), formType)
		front := path == "/login/enrol" && r.to() == "/" // which is shut, as above
		if r.code < 400 && !front && !strings.HasPrefix(r.to(), "/login") {
			t.Errorf("POST %s: %s", path, r)
		}
	}
	// Enrolment is not open to somebody who has a factor.
	half.give(portalURL, portalCookie, pending)
	if r := half.get("/login/enrol"); shownSecret.MatchString(r.body) {
		t.Errorf("a new secret is shown without the old code: %s", r)
	}
	if !alice.in() {
		t.Error("alice's session ended")
	}
}

func TestAttack_W1_a_session_cannot_be_fixed_beforehand(t *testing.T) {
	forgetAttempts(t)
	visit(t, "alice").login()
	known := strings.Repeat("A", 43)
	v := visit(t, "alice")
	v.secret = "" // not needed: she enrols anew below
	v.give(portalURL, portalCookie, known)
	resetFactor(t, "alice")
	r := v.password("alice", "alice-pass")
	first := v.cookie(portalURL, portalCookie)
	if r.code != http.StatusSeeOther || first == known || first == "" {
		t.Fatalf("after the password the cookie is %q: %s", first, r)
	}
	m := shownSecret.FindStringSubmatch(v.get("/login/enrol").body)
	if m == nil {
		t.Fatal("no secret")
	}
	v.secret = strings.ReplaceAll(m[1], " ", "")
	midStep(t)
	v.post("/login/enrol", "/login/enrol", "code", v.codeAt(time.Now().Add(-codeStep)))
	second := v.cookie(portalURL, portalCookie)
	if second == first || !v.in() {
		t.Errorf("the code did not change the cookie, or did not let in")
	}
	for _, old := range []string{known, first} {
		thief := visit(t, "mallory")
		thief.give(portalURL, portalCookie, old)
		if thief.in() {
			t.Errorf("an old cookie is good")
		}
	}
}

func TestAttack_W1_cookies_and_answers_have_what_protects_them(t *testing.T) {
	forgetAttempts(t)
	v := visit(t, "alice")
	resetFactor(t, "alice")
	var all []string
	note := func(r reply) reply {
		all = append(all, r.header.Values("Set-Cookie")...)
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": "frame-ancestors 'none'",
			"Strict-Transport-Security": "max-age=", "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
			"Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
		} {
			if !strings.Contains(r.header.Get(name), want) {
				t.Errorf("%s is %q in %d %s", name, r.header.Get(name), r.code, r.to())
			}
		}
		return r
	}
	note(v.get("/login"))
	note(v.get("/nothing-here"))
	note(v.password("alice", "wrong"))
	note(v.password("alice", "alice-pass"))
	m := shownSecret.FindStringSubmatch(note(v.get("/login/enrol")).body)
	if m == nil {
		t.Fatal("no secret")
	}
	v.secret = strings.ReplaceAll(m[1], " ", "")
	note(v.post("/login/enrol", "/login/enrol", "code", v.codeAt(time.Now())))
	page := note(v.get("/"))
	note(v.post("/security", "/prefs", "lang", "de", "theme", "dark"))
	note(v.post("/security", "/logout"))
	if len(all) < 6 {
		t.Fatalf("only %d cookies", len(all))
	}
	for _, line := range all {
		for _, want := range []string{"__Host-carme", "Path=/", "HttpOnly", "Secure", "SameSite=Lax"} {
			if !strings.Contains(line, want) {
				t.Errorf("a cookie without %s: %s", want, regexp.MustCompile(`=[^;]*`).ReplaceAllString(line, "=…"))
			}
		}
		if strings.Contains(strings.ToLower(line), "domain") {
			t.Error("a cookie has a domain")
		}
	}
	if strings.Contains(page.body, "<script>") || strings.Contains(page.body, " onclick") || strings.Contains(page.header.Get("Content-Security-Policy"), "unsafe") {
		t.Error("scripts in pages are allowed")
	}
}

func TestAttack_W1_next_leads_to_own_pages_alone(t *testing.T) {
	forgetAttempts(t)
	for _, next := range []string{
		"//evil.example", "https://evil.example", "http:evil.example", `/\evil.example`, `\\evil.example`, "/\t/evil.example", "/%0d%0aLocation:%20//evil.example",
		"javascript:alert(1)", "data:text/html,x", "/..//evil.example", "/.//evil.example", "/%2f/evil.example", "///evil.example", "@evil.example",
		".evil.example", ":443@evil.example", "/\r\nX-Evil: 1", "https:/evil.example", "/login/../..//evil.example", "//evil.example/%2e%2e",
	} {
		t.Run(next, func(t *testing.T) {
			t.Parallel()
			v := visit(t, "bob")
			own := func(where, to string) {
				base, err := url.Parse(portalURL + "/login")
				if err != nil {
					t.Fatal(err)
				}
				target, err := base.Parse(to)
				if err != nil || target.Host != portalHost+":"+portalPort || target.Scheme != "https" {
					t.Errorf("%s leads to %q", where, to)
				}
			}
			r := v.get("/login?next=" + url.QueryEscape(next))
			for _, m := range regexp.MustCompile(`name="next" value="([^"]*)"`).FindAllStringSubmatch(r.body, -1) {
				if strings.HasPrefix(m[1], "/login") { // where the choice of language comes back to
					continue
				}
				own("the form", m[1])
			}
			r = v.post("/login", "/prefs", "lang", "en", "next", next)
			own("prefs", r.to())
			r = v.post("/login", "/prefs", "lang", "en", "next", "/login"+next)
			own("prefs below login", r.to())
			if len(r.header.Values("X-Evil")) > 0 {
				t.Error("a header was smuggled in")
			}
			r = v.post("/login", "/login", "username", "bob", "password", "bob-pass", "next", next)
			own("the password", r.to())
			if after, err := url.Parse(r.to()); err == nil && after.Query().Get("next") != "" {
				own("what comes after", after.Query().Get("next"))
			}
		})
	}
}

func TestAttack_W1_forms_of_other_pages_do_nothing(t *testing.T) {
	forgetAttempts(t)
	alice, mallory := visit(t, "alice").login(), visit(t, "mallory").login()
	job := allocate(t, "alice", "-w", node1)
	eventually(t, 20*time.Second, "alice's job at the portal", func() bool { return alice.get("/jobs/"+job.id).code == http.StatusOK })
	page := "/jobs/" + job.id + "/stop"
	good, foreign := alice.token(page), mallory.token("/security")
	sibling := "https://s-aaaaaaaaaaaaaaaaaaaaaaaaaa." + appsDomain + ":" + portalPort
	cases := map[string]struct {
		csrf    string
		headers []string
	}{
		"no token":                {"", nil},
		"mallory's token":         {foreign, nil},
		"a foreign page":          {good, []string{"Origin: https://evil.example", "Sec-Fetch-Site: cross-site"}},
		"an old browser":          {good, []string{"Origin: https://evil.example"}},
		"a sibling":               {good, []string{"Origin: " + sibling, "Sec-Fetch-Site: same-site"}},
		"a sandboxed page":        {good, []string{"Origin: null"}},
		"the portal without port": {good, []string{"Origin: https://" + portalHost}},
		"the portal in the clear": {good, []string{"Origin: http://" + portalHost + ":" + portalPort}},
	}
	for name, c := range cases {
		for _, path := range []string{page, "/logout", "/prefs", "/jobs", "/security/totp"} {
			r := alice.send("POST", path, url.Values{"csrf": {c.csrf}, "lang": {"de"}}.Encode(), append(c.headers, formType)...)
			if r.code != http.StatusForbidden {
				t.Errorf("%s to %s: %s", name, path, r)
			}
		}
	}
	for _, c := range []struct{ method, path, kind string }{
		{"GET", page + "?csrf=" + url.QueryEscape(good), ""},
		{"GET", "/logout?csrf=" + url.QueryEscape(good), ""},
		{"HEAD", "/logout", ""},
		{"POST", page + "?csrf=" + url.QueryEscape(good), formType},
		{"POST", page, "Content-Type: text/plain"},
		{"POST", page, "Content-Type: application/json"},
		{"PUT", page, formType},
		{"DELETE", "/jobs/" + job.id, formType},
	} {
		body := `{"csrf":"` + good + `"}`
		var headers []string
		if c.kind != "" {
			headers = append(headers, c.kind)
		}
		if r := alice.send(c.method, c.path, body, append(headers, "X-HTTP-Method-Override: POST")...); c.method != "GET" && c.method != "HEAD" && r.code < 400 {
			t.Errorf("%s %s: %s", c.method, c.path, r)
		}
	}
	if !alice.in() {
		t.Error("alice was logged out")
	}
	if s := state(t, job.id); s != "RUNNING" {
		t.Errorf("alice's job is %s", s)
	}
	if r := alice.post(page, page); r.code != http.StatusSeeOther {
		t.Errorf("her own page cannot stop it: %s", r)
	}
}

// ldapmodify changes the directory, and changes it back when the test ends.
func ldapmodify(t *testing.T, change, back string) {
	t.Helper()
	const bind = "ldapmodify -x -ZZ -H ldap://carme-ldap -D cn=admin,dc=carme,dc=test -w admin-pass"
	script := func(ldif string) string {
		return "printf '%b' '" + strings.ReplaceAll(ldif, "\n", `\n`) + "' | LDAPTLS_CACERT=/etc/ssl/testbed-ca.pem " + bind
	}
	undo(t, ctl, script(back))
	sh(t, ctl, script(change))
}

// gone says how long a login and all that was opened with it outlive a change.
func (v *visitor) gone(app opened, socket *line) {
	v.t.Helper()
	start := time.Now()
	eventually(v.t, 75*time.Second, "end of "+v.name+"'s login", func() bool { return !v.in() })
	eventually(v.t, 10*time.Second, "end of "+v.name+"'s way to the app", func() bool {
		r := v.get(app.origin + "/who")
		return !strings.Contains(r.body, "in job")
	})
	if err := socket.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		v.t.Fatal(err)
	}
	if _, err := socket.frame(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		v.t.Errorf("the websocket is open: %v", err)
	}
	v.t.Logf("%s was out after %v", v.name, time.Since(start).Round(time.Second))
}

func TestAttack_W1_W14_a_login_and_its_streams_end_within_70_s_of_leaving_the_group(t *testing.T) {
	forgetAttempts(t)
	mirrors(t)
	v := visit(t, "bob").login()
	app := v.session("mirror")
	v.enter(app.origin + "/")
	socket, _, _ := v.websocket(app, "Origin: "+app.origin)
	const group = "dn: cn=carme-users,ou=groups,dc=carme,dc=test\nchangetype: modify\n"
	ldapmodify(t, group+"delete: memberUid\nmemberUid: bob\n", group+"add: memberUid\nmemberUid: bob\n")
	v.gone(app, socket)
	if r := visit(t, "bob").password("bob", "bob-pass"); r.code != http.StatusUnauthorized {
		t.Errorf("bob logs in again: %s", r)
	}
}

func TestAttack_W1_W14_a_login_and_its_streams_end_when_the_password_is_changed(t *testing.T) {
	forgetAttempts(t)
	mirrors(t)
	undo(t, ctl, "mv /etc/carme/backend.yaml.it /etc/carme/backend.yaml; svc restart carme-backend")
	sh(t, ctl, "cp -a /etc/carme/backend.yaml /etc/carme/backend.yaml.it && sed -i 's/^  people:/&\\n    password_changed: [modifyTimestamp]/' /etc/carme/backend.yaml")
	restart(t, ctl, "carme-backend")
	v := visit(t, "bob").login()
	app := v.session("mirror")
	v.enter(app.origin + "/")
	socket, _, _ := v.websocket(app, "Origin: "+app.origin)
	const change = "dn: uid=bob,ou=people,dc=carme,dc=test\nchangetype: modify\nreplace: userPassword\nuserPassword: "
	ldapmodify(t, change+"another-one\n", change+"bob-pass\n")
	v.gone(app, socket)
}

func TestAttack_W1_W14_a_login_and_its_streams_end_when_the_account_is_removed(t *testing.T) {
	forgetAttempts(t)
	mirrors(t)
	v := visit(t, "bob").login()
	app := v.session("mirror")
	v.enter(app.origin + "/")
	socket, _, _ := v.websocket(app, "Origin: "+app.origin)
	// Renamed: another account, as if bob's had been removed and his name kept.
	const people = ",ou=people,dc=carme,dc=test\nchangetype: modrdn\nnewrdn: uid="
	ldapmodify(t, "dn: uid=bob"+people+"bobby\ndeleteoldrdn: 1\n", "dn: uid=bobby"+people+"bob\ndeleteoldrdn: 1\n")
	v.gone(app, socket)
}

func TestAttack_W1_a_login_ends_with_logout(t *testing.T) {
	forgetAttempts(t)
	v := visit(t, "alice").login()
	old, page := v.cookie(portalURL, portalCookie), v.token("/security")
	v.post("/security", "/logout")
	if v.cookie(portalURL, portalCookie) != "" {
		t.Error("the browser keeps the cookie")
	}
	v.give(portalURL, portalCookie, old)
	if v.in() {
		t.Error("the cookie is good after logging out")
	}
	v.give(portalURL, portalCookie, old)
	if r := v.send("POST", "/jobs", url.Values{"csrf": {page}}.Encode(), formType); r.code < 400 && !strings.HasPrefix(r.to(), "/login") {
		t.Errorf("a form after logging out: %s", r)
	}
}
