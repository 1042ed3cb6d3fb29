package api_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/store"
)

func (w *world) try(name, password, device, source string) (int, wire.Error) {
	w.t.Helper()
	return w.ask(w.portal, "POST", "/v1/login", "", wire.Login{Username: name, Password: password, Device: device, Source: source}, nil)
}

func TestLogin_refuses(t *testing.T) {
	w := newWorld(t)
	for name, in := range map[string]wire.Login{
		"an empty password":   {Username: "alice"},
		"a wrong password":    {Username: "alice", Password: "x"},
		"an unknown name":     {Username: "nobody", Password: "x"},
		"an empty name":       {Password: "x"},
		"a filter":            {Username: "*)(uid=alice", Password: "alice-pass"},
		"a wildcard":          {Username: "*", Password: "alice-pass"},
		"a NUL in the name":   {Username: "alice\x00", Password: "alice-pass"},
		"a megabyte of names": {Username: string(make([]byte, 60<<10)), Password: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			in.Source = "192.0.2.7"
			status, e := w.ask(w.portal, "POST", "/v1/login", "", in, nil)
			if in.Username == string(make([]byte, 60<<10)) && status == http.StatusRequestEntityTooLarge {
				return
			}
			if status != http.StatusUnauthorized || e.Code != "login_refused" || e.Message != "Name or password is wrong, or you may not log in here." {
				t.Errorf("status %d, %+v", status, e)
			}
		})
	}
	w.t = t
	if status, _ := w.ask(w.bare, "POST", "/v1/login", "", wire.Login{Username: "alice", Password: "alice-pass"}, nil); status != http.StatusForbidden {
		t.Errorf("without a portal's certificate: %d", status)
	}
	if status, _ := w.ask(w.node, "POST", "/v1/login", "", wire.Login{Username: "alice", Password: "alice-pass"}, nil); status != http.StatusForbidden {
		t.Errorf("with a node's certificate: %d", status)
	}
}

func TestLogin_slows_guesses_down_whatever_the_name_and_after_a_restart(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"alice", "nobody"} {
		var slow wire.Error
		n := 0
		for ; n < 10 && slow.Code != "slow_down"; n++ {
			_, slow = w.try(name, "wrong", "", "192.0.2.8")
		}
		if n != 4 || slow.RetryAfter < 1 {
			t.Errorf("%s: %d attempts, then %+v", name, n, slow)
		}
	}
	w.stop()
	w.start()
	if status, _ := w.try("alice", "alice-pass", "", "192.0.2.9"); status != http.StatusTooManyRequests {
		t.Errorf("after a restart: %d", status)
	}
	w.clock.add(-24 * time.Hour)
	if _, e := w.try("alice", "alice-pass", "", "192.0.2.9"); e.RetryAfter > 15*60 {
		t.Errorf("a clock put back makes wait for %d s", e.RetryAfter)
	}
	w.clock.add(24*time.Hour + 15*time.Minute)
	if status, e := w.try("alice", "alice-pass", "", "192.0.2.9"); status != http.StatusOK {
		t.Errorf("after the wait: %d %+v", status, e)
	}
}

func TestLogin_lets_few_guesses_at_once_through(t *testing.T) {
	w := newWorld(t)
	var tried atomic.Int32
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if status, _ := w.try("alice", "wrong", "", "192.0.2.10"); status == http.StatusUnauthorized {
				tried.Add(1)
			}
		})
	}
	wg.Wait()
	if n := tried.Load(); n > 3 {
		t.Errorf("%d passwords were looked at", n)
	}
}

func TestLogin_does_not_lock_the_owner_out_of_a_known_browser(t *testing.T) {
	w := newWorld(t)
	_, secret := w.login("alice")
	a := w.password("alice")
	w.clock.add(30 * time.Second)
	var full wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login/factor", a.Token, wire.Factor{Code: w.code(secret), Source: "192.0.2.1"}, &full)
	for range 6 {
		w.try("alice", "wrong", "", "203.0.113.5")
	}
	if status, _ := w.try("alice", "alice-pass", "", "203.0.113.5"); status != http.StatusTooManyRequests {
		t.Errorf("the attacker: %d", status)
	}
	if status, e := w.try("alice", "alice-pass", full.Device, "192.0.2.1"); status != http.StatusOK {
		t.Errorf("the owner: %d %+v", status, e)
	}
	if status, _ := w.try("bob", "wrong", full.Device, "203.0.113.6"); status != http.StatusUnauthorized {
		t.Errorf("another's device: %d", status)
	}
}

func TestFactor_takes_a_code_once_also_from_two_at_once(t *testing.T) {
	w := newWorld(t)
	_, secret := w.login("alice")
	w.clock.add(time.Minute)
	var tokens []string
	for range 3 {
		tokens = append(tokens, w.password("alice").Token)
	}
	code := w.code(secret)
	var passed atomic.Int32
	var wg sync.WaitGroup
	for _, tok := range tokens {
		wg.Go(func() {
			if status, _ := w.ask(w.portal, "POST", "/v1/login/factor", tok, wire.Factor{Code: code, Source: "192.0.2.1"}, nil); status == http.StatusOK {
				passed.Add(1)
			}
		})
	}
	wg.Wait()
	if n := passed.Load(); n != 1 {
		t.Errorf("%d logins with one code", n)
	}
}

func TestFactor_refuses(t *testing.T) {
	w := newWorld(t)
	_, alices := w.login("alice")
	_, bobs := w.login("bob")
	w.clock.add(time.Minute)
	a := w.password("alice")
	for name, in := range map[string]wire.Factor{
		"another user's code": {Code: w.code(bobs)}, "no code": {}, "a short code": {Code: "123"},
	} {
		if status, e := w.ask(w.portal, "POST", "/v1/login/factor", a.Token, in, nil); status != http.StatusUnauthorized || e.Code != "factor_refused" {
			t.Errorf("%s: %d %+v", name, status, e)
		}
	}
	if _, e := w.ask(w.portal, "POST", "/v1/login/factor", a.Token, wire.Factor{Code: w.code(alices)}, nil); e.Code != "slow_down" {
		t.Errorf("after three failures: %+v", e)
	}
	for _, path := range []string{"/v1/me", "/v1/jobs", "/v1/offer", "/v1/events", "/v1/cluster"} {
		if status, e := w.ask(w.portal, "GET", path, a.Token, nil, nil); status != http.StatusUnauthorized || e.Code != "no_session" || e.Step != wire.SessionPending {
			t.Errorf("%s without a second factor: %d %+v", path, status, e)
		}
	}
	if status, _ := w.ask(w.portal, "POST", "/v1/login/enrol", a.Token, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a second enrolment: %d", status)
	}
}

func TestFactor_takes_a_recovery_code_once(t *testing.T) {
	w := newWorld(t)
	a := w.password("alice")
	var e wire.Enrolment
	w.must(w.portal, "POST", "/v1/login/enrol", a.Token, nil, &e)
	var again wire.Enrolment
	w.must(w.portal, "POST", "/v1/login/enrol", a.Token, nil, &again)
	if again.Secret != e.Secret || len(e.QR) < 100 {
		t.Error("the page loaded twice shows two secrets, or no picture")
	}
	var b wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login/enrol/confirm", a.Token, wire.Confirm{Code: w.code(e.Secret)}, &b)
	for i, want := range []int{http.StatusOK, http.StatusUnauthorized} {
		p := w.password("alice")
		if status, _ := w.ask(w.portal, "POST", "/v1/login/factor", p.Token, wire.Factor{Recovery: b.RecoveryCodes[3]}, nil); status != want {
			t.Errorf("use %d: %d", i+1, status)
		}
	}
	var me wire.Me
	w.must(w.portal, "GET", "/v1/me", b.Token, nil, &me)
	if me.RecoveryLeft != 9 || me.TOTPSince.IsZero() || !me.Session.Current {
		t.Errorf("me is %+v", me)
	}
}

func TestAttack_a_secret_being_set_up_is_shown_to_its_own_login_alone(t *testing.T) {
	w := newWorld(t)
	thief, owner := w.password("alice"), w.password("alice")
	var copied, own wire.Enrolment
	w.must(w.portal, "POST", "/v1/login/enrol", thief.Token, nil, &copied)
	w.must(w.portal, "POST", "/v1/login/enrol", owner.Token, nil, &own)
	if copied.Secret == own.Secret {
		t.Fatal("whoever has the password sees the secret that the owner sets up")
	}
	if status, e := w.ask(w.portal, "POST", "/v1/login/enrol/confirm", thief.Token, wire.Confirm{Code: w.code(copied.Secret)}, nil); status != http.StatusConflict {
		t.Errorf("the secret that was replaced: %d %+v", status, e)
	}
	var done wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login/enrol/confirm", owner.Token, wire.Confirm{Code: w.code(own.Secret)}, &done)
	if status, e := w.ask(w.portal, "POST", "/v1/login/enrol/confirm", thief.Token, wire.Confirm{Code: w.code(copied.Secret)}, nil); status != http.StatusConflict {
		t.Errorf("a second enrolment: %d %+v", status, e)
	}
}

func TestSession_has_another_token_after_each_step(t *testing.T) {
	w := newWorld(t)
	_, secret := w.login("alice")
	w.clock.add(time.Minute)
	p := w.password("alice")
	var f wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login/factor", p.Token, wire.Factor{Code: w.code(secret)}, &f)
	if f.Token == p.Token {
		t.Error("the token stayed")
	}
	if status, _ := w.ask(w.portal, "GET", "/v1/me", p.Token, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("the pending token is a full one: %d", status)
	}
	w.must(w.portal, "POST", "/v1/logout", f.Token, nil, nil)
	if status, _ := w.ask(w.portal, "GET", "/v1/me", f.Token, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("after the logout: %d", status)
	}
}

func TestSession_ends_when_the_directory_no_longer_lets_in(t *testing.T) {
	for name, change := range map[string]func(*people){
		"the group is left":    func(p *people) { delete(p.all, "alice") },
		"the uid is another":   func(p *people) { a := p.all["alice"]; a.UID = 10099; p.all["alice"] = a },
		"the password changed": func(p *people) { a := p.all["alice"]; a.Stamp = "2"; p.all["alice"] = a },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tok, _ := w.login("alice")
			if err := w.auth.Recheck(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.must(w.portal, "GET", "/v1/me", tok, nil, nil)
			next := w.revocations()
			w.dir.mu.Lock()
			change(w.dir)
			w.dir.mu.Unlock()
			if err := w.auth.Recheck(t.Context()); err != nil {
				t.Fatal(err)
			}
			if status, _ := w.ask(w.portal, "GET", "/v1/me", tok, nil, nil); status != http.StatusUnauthorized {
				t.Errorf("the session lives: %d", status)
			}
			if r := next(); r.Kind != wire.RevokeSession {
				t.Errorf("told %+v", r)
			}
		})
	}
}

func TestAttack_a_login_after_a_change_of_password_ends_those_from_before(t *testing.T) {
	w := newWorld(t)
	stolen, _ := w.login("alice")
	next := w.revocations()
	w.dir.mu.Lock()
	a := w.dir.all["alice"]
	a.Stamp = "2"
	w.dir.all["alice"] = a
	w.dir.mu.Unlock()
	again := w.password("alice") // sooner than the directory is asked again
	if status, _ := w.ask(w.portal, "GET", "/v1/me", stolen, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a session of the old password lives: %d", status)
	}
	if r := next(); r.Kind != wire.RevokeSession {
		t.Errorf("told %+v", r)
	}
	if err := w.auth.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, e := w.ask(w.portal, "POST", "/v1/login/factor", again.Token, wire.Factor{Code: "000000"}, nil); e.Code != "factor_refused" {
		t.Errorf("the new login ended too: %d %+v", status, e)
	}
}

func TestFault_a_login_with_the_new_password_outlives_the_look_for_changes(t *testing.T) {
	w := newWorld(t)
	w.login("alice")
	var fresh wire.LoginAnswer
	w.dir.mu.Lock()
	w.dir.before = func() { // she changes it and logs in while the directory is being asked
		w.dir.mu.Lock()
		a := w.dir.all["alice"]
		a.Stamp = "2"
		w.dir.all["alice"] = a
		w.dir.mu.Unlock()
		fresh = w.password("alice")
	}
	w.dir.mu.Unlock()
	if err := w.auth.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, e := w.ask(w.portal, "POST", "/v1/login/factor", fresh.Token, wire.Factor{Code: "000000"}, nil); e.Code != "factor_refused" {
		t.Errorf("her login ended: %+v", e)
	}
}

func TestSession_outlives_a_directory_that_is_down_and_logins_do_not(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.dir.down = true
	if err := w.auth.Recheck(t.Context()); err == nil {
		t.Error("nothing was said")
	}
	w.must(w.portal, "GET", "/v1/me", tok, nil, nil)
	for range 5 { // a directory that is down is no failure of the user's
		if status, e := w.try("bob", "bob-pass", "", "192.0.2.1"); status != http.StatusServiceUnavailable || e.Code != "unavailable" {
			t.Errorf("login: %d %+v", status, e)
		}
	}
	w.dir.down = false
	w.password("bob")
}

func TestFactor_is_asked_once_a_day_on_a_device_where_policy_says_so(t *testing.T) {
	w := newWorld(t)
	w.auth.Rules.FactorEvery = 24 * time.Hour
	a := w.password("alice")
	var e wire.Enrolment
	w.must(w.portal, "POST", "/v1/login/enrol", a.Token, nil, &e)
	var b, c wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login/enrol/confirm", a.Token, wire.Confirm{Code: w.code(e.Secret)}, &b)
	w.must(w.portal, "POST", "/v1/login", "", wire.Login{Username: "alice", Password: "alice-pass", Device: b.Device}, &c)
	if c.State != wire.SessionFull {
		t.Errorf("state is %s", c.State)
	}
	w.clock.add(25 * time.Hour)
	w.must(w.portal, "POST", "/v1/login", "", wire.Login{Username: "alice", Password: "alice-pass", Device: b.Device}, &c)
	if c.State != wire.SessionPending {
		t.Errorf("a day later the state is %s", c.State)
	}
}

func TestSession_ends_for_want_of_use_though_a_page_stays_open(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	idle := w.auth.Rules.IdleLife
	for range 3 { // somebody is there
		w.clock.add(idle - time.Minute)
		w.must(w.portal, "GET", "/v1/me", tok, nil, nil)
	}
	w.clock.add(idle - time.Minute)
	for _, path := range []string{"/v1/jobs", "/v1/cluster"} { // what an open page asks for
		w.must(w.portal, "GET", path, tok, nil, nil)
	}
	w.clock.add(2 * time.Minute)
	if status, e := w.ask(w.portal, "GET", "/v1/jobs", tok, nil, nil); status != http.StatusUnauthorized || e.Code != "no_session" {
		t.Errorf("a login that nobody used: %d %+v", status, e)
	}
}

func TestSession_ends_after_its_longest_time_whatever_its_use(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	hour := 0
	for ; hour < 20; hour++ {
		if status, _ := w.ask(w.portal, "GET", "/v1/me", tok, nil, nil); status == http.StatusUnauthorized {
			break
		}
		w.clock.add(time.Hour)
	}
	if hour != 12 {
		t.Errorf("it ended after %d hours", hour)
	}
}

func TestReplaced_factor_ends_other_sessions(t *testing.T) {
	w := newWorld(t)
	old, secret := w.login("alice")
	w.clock.add(time.Minute)
	p := w.password("alice")
	var f wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login/factor", p.Token, wire.Factor{Code: w.code(secret)}, &f)
	w.clock.add(time.Minute)
	var e wire.Enrolment
	w.must(w.portal, "POST", "/v1/me/factors/totp", f.Token, wire.Confirm{Code: w.code(secret)}, &e)
	w.must(w.portal, "POST", "/v1/me/factors/totp/confirm", f.Token, wire.Confirm{Code: w.code(e.Secret)}, nil)
	w.must(w.portal, "GET", "/v1/me", f.Token, nil, nil)
	if status, _ := w.ask(w.portal, "GET", "/v1/me", old, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("the other session lives: %d", status)
	}
}

func TestSessions_all_others_end_at_once_half_ones_and_those_of_nobody_else(t *testing.T) {
	w := newWorld(t)
	first, secret := w.login("alice")
	w.clock.add(time.Minute)
	var here wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login/factor", w.password("alice").Token, wire.Factor{Code: w.code(secret)}, &here)
	half := w.password("alice").Token
	bob, _ := w.login("bob")
	next := w.revocations()
	w.must(w.portal, "DELETE", "/v1/me/sessions", here.Token, nil, nil)
	for range 2 {
		if r := next(); r.Kind != wire.RevokeSession {
			t.Errorf("portals were told %+v", r)
		}
	}
	for name, c := range map[string]struct {
		token string
		want  int
	}{"the first": {first, http.StatusUnauthorized}, "this one": {here.Token, http.StatusOK}, "bob's": {bob, http.StatusOK}} {
		if status, _ := w.ask(w.portal, "GET", "/v1/me", c.token, nil, nil); status != c.want {
			t.Errorf("%s: %d", name, status)
		}
	}
	w.clock.add(time.Minute)
	if status, _ := w.ask(w.portal, "POST", "/v1/login/factor", half, wire.Factor{Code: w.code(secret)}, nil); status != http.StatusUnauthorized {
		t.Errorf("the half login goes on: %d", status)
	}
	if status, _ := w.ask(w.portal, "DELETE", "/v1/me/sessions", w.password("alice").Token, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a half login ends others: %d", status)
	}
}

func TestAttack_what_is_refused_is_in_the_log(t *testing.T) {
	w := newWorld(t)
	alice, _ := w.login("alice")
	bob, _ := w.login("bob")
	job := w.submit(bob)
	w.ask(w.portal, "GET", "/v1/audit", alice, nil, nil)
	w.ask(w.portal, "DELETE", "/v1/jobs/"+job.ID, alice, nil, nil)
	w.ask(w.node, "POST", "/v1/grants", "", wire.GrantRequest{}, nil)
	w.ask(w.bare, "POST", "/v1/login", "", wire.Login{}, nil)
	for range 5 {
		w.try("mallory", "guess", "", "192.0.2.66")
	}
	old := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}} //nolint:gosec // what must not get through
	if conn, err := old.DialContext(t.Context(), "tcp", strings.TrimPrefix(w.addr, "https://")); err == nil {
		_ = conn.Close()
		t.Error("TLS 1.2 is good enough")
	}
	for name, words := range map[string][]string{
		"a user at an admin's path":     {"request refused", "GET /v1/audit", "code=forbidden", "who=alice"},
		"a user at another's job":       {"request refused", "DELETE /v1/jobs/{id}", "code=not_found", "who=alice"},
		"a node that plays a portal":    {"request refused", "POST /v1/grants", "who=carme://node/n1"},
		"somebody without certificate":  {"request refused", "POST /v1/login", `who=""`},
		"guesses that come too early":   {"attempt too early", "name:"},
		"a handshake that goes nowhere": {"connection failed", "TLS handshake error"},
	} {
		if !w.log.comes(words...) {
			t.Errorf("%s: no line with %q", name, words)
		}
	}
	sum := sha256.Sum256([]byte("mallory"))
	if w.log.has(hex.EncodeToString(sum[:])) {
		t.Error("the log has the whole hash of what was typed as a name")
	}
	if w.log.has(bob) || w.log.has(alice) || w.log.has("alice-pass") {
		t.Error("the log has a token or a password")
	}
}

func TestAdmin_paths_are_for_admins(t *testing.T) {
	w := newWorld(t)
	alice, _ := w.login("alice")
	carol, _ := w.login("carol")
	for _, c := range []struct{ method, path string }{{"GET", "/v1/audit"}, {"GET", "/v1/audit/verify"}, {"GET", "/v1/health"}, {"DELETE", "/v1/users/alice/factors"}} {
		if status, _ := w.ask(w.portal, c.method, c.path, alice, nil, nil); status != http.StatusForbidden {
			t.Errorf("%s %s as a user: %d", c.method, c.path, status)
		}
		if status, e := w.ask(w.portal, c.method, c.path, carol, nil, nil); status >= 300 {
			t.Errorf("%s %s as an admin: %d %+v", c.method, c.path, status, e)
		}
	}
	if status, _ := w.ask(w.portal, "GET", "/v1/me", alice, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("alice's session lives after the reset: %d", status)
	}
	bob, _ := w.login("bob")
	if status, _ := w.ask(w.portal, "DELETE", "/v1/users/carol/sessions", bob, nil, nil); status != http.StatusForbidden {
		t.Errorf("a user ends an admin's logins: %d", status)
	}
	next := w.revocations()
	w.must(w.portal, "DELETE", "/v1/users/bob/sessions", carol, nil, nil)
	if r := next(); r.Kind != wire.RevokeSession {
		t.Errorf("portals were told %+v", r)
	}
	if status, _ := w.ask(w.portal, "GET", "/v1/me", bob, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("bob's session lives: %d", status)
	}
	if b := w.password("bob"); b.State != wire.SessionPending {
		t.Errorf("bob's factor is gone: %s", b.State)
	}
	if status, _ := w.ask(w.portal, "DELETE", "/v1/users/nobody/sessions", carol, nil, nil); status != http.StatusNotFound {
		t.Errorf("nobody's logins: %d", status)
	}
	if a := w.password("alice"); a.State != wire.SessionEnrol {
		t.Errorf("state is %s", a.State)
	}
}

// Clocks are set: a machine starts with a battery that is empty, somebody mends the
// hour, a snapshot is put back.

func TestFault_a_clock_that_is_put_back_locks_nobody_out(t *testing.T) {
	for name, back := range map[string]time.Duration{"an hour": time.Hour, "a year": 365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, secret := w.login("alice")
			// Both have failed before: one without having to wait, one with.
			w.try("bob", "wrong", "", "192.0.2.20")
			for range 4 {
				w.try("alice", "wrong", "", "192.0.2.21")
			}
			w.clock.add(-back)
			if status, e := w.try("bob", "bob-pass", "", "192.0.2.20"); status != http.StatusOK {
				t.Errorf("somebody who had one failure: %d %+v", status, e)
			}
			if status, e := w.try("alice", "alice-pass", "", "192.0.2.22"); status != http.StatusTooManyRequests || e.RetryAfter > 4 {
				t.Errorf("somebody who had to wait two seconds: %d %+v", status, e)
			}
			w.clock.add(4 * time.Second)
			var a wire.LoginAnswer
			w.must(w.portal, "POST", "/v1/login", "", wire.Login{Username: "alice", Password: "alice-pass", Source: "192.0.2.22"}, &a)
			// Steps before the last one that was spent are spent too.
			if status, e := w.ask(w.portal, "POST", "/v1/login/factor", a.Token, wire.Factor{Code: w.code(secret), Source: "192.0.2.22"}, nil); status != http.StatusUnauthorized || e.Code != "factor_refused" {
				t.Errorf("a code of a step that has passed: %d %+v", status, e)
			}
			w.clock.add(back + time.Minute)
			a = w.password("alice")
			if status, e := w.ask(w.portal, "POST", "/v1/login/factor", a.Token, wire.Factor{Code: w.code(secret), Source: "192.0.2.22"}, nil); status != http.StatusOK {
				t.Errorf("a code of now, with the clock right again: %d %+v", status, e)
			}
		})
	}
}

func TestFault_no_code_is_good_twice_however_the_clock_is_set(t *testing.T) {
	w := newWorld(t)
	_, secret := w.login("alice")
	w.clock.add(time.Hour)
	code, spent := w.code(secret), w.clock.now()
	for i, jump := range []time.Duration{0, 0, -time.Hour, time.Hour, 24 * time.Hour, -24 * time.Hour, -20 * time.Second, 20 * time.Second} {
		w.clock.add(jump)
		w.clean()
		a := w.password("alice")
		status, e := w.ask(w.portal, "POST", "/v1/login/factor", a.Token, wire.Factor{Code: code, Source: "192.0.2.1"}, nil)
		if want := i == 0; (status == http.StatusOK) != want {
			t.Errorf("use %d, %v after the first: %d %+v", i+1, w.clock.now().Sub(spent).Round(time.Second), status, e)
		}
	}
}

func TestFault_a_clock_that_was_ahead_costs_no_more_than_a_factor_set_up_anew(t *testing.T) {
	w := newWorld(t)
	w.clock.add(30 * 24 * time.Hour)
	_, _ = w.login("alice") // by a phone that was as wrong
	w.clock.add(-30 * 24 * time.Hour)
	if err := w.auth.ResetFactors(t.Context(), "carol", "alice"); err != nil {
		t.Fatal(err)
	}
	_, secret := w.login("alice")
	w.clock.add(time.Minute)
	a := w.password("alice")
	w.must(w.portal, "POST", "/v1/login/factor", a.Token, wire.Factor{Code: w.code(secret), Source: "192.0.2.1"}, nil)
}

func TestFault_a_clock_that_is_put_back_prolongs_no_login(t *testing.T) {
	w := newWorld(t)
	w.auth.Rules.FactorEvery = 24 * time.Hour
	tok, _ := w.login("alice")
	pending := w.password("bob")
	var known string
	{
		a := w.password("carol")
		var e wire.Enrolment
		w.must(w.portal, "POST", "/v1/login/enrol", a.Token, nil, &e)
		var b wire.LoginAnswer
		w.must(w.portal, "POST", "/v1/login/enrol/confirm", a.Token, wire.Confirm{Code: w.code(e.Secret)}, &b)
		known = b.Device
	}
	w.clock.add(-30 * 24 * time.Hour)
	recheck := func() {
		t.Helper()
		if err := w.auth.Recheck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	recheck()
	w.must(w.portal, "GET", "/v1/me", tok, nil, nil) // it is nobody's fault
	// When the code was shown is not known any more.
	var c wire.LoginAnswer
	w.must(w.portal, "POST", "/v1/login", "", wire.Login{Username: "carol", Password: "carol-pass", Device: known}, &c)
	if c.State != wire.SessionPending {
		t.Errorf("on a browser of a time to come the state is %s", c.State)
	}
	w.clock.add(11 * time.Minute)
	if status, _ := w.ask(w.portal, "POST", "/v1/login/enrol", pending.Token, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a login between two steps, after its time: %d", status)
	}
	for hours := 0.2; hours < 12; hours++ {
		recheck()
		w.must(w.portal, "GET", "/v1/me", tok, nil, nil)
		w.clock.add(time.Hour)
	}
	w.clock.add(time.Minute)
	if status, _ := w.ask(w.portal, "GET", "/v1/me", tok, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("after its longest time: %d", status)
	}
	// Unused ones end as early as ever.
	idle := w.again("alice")
	w.clock.add(-24 * time.Hour)
	recheck()
	w.clock.add(w.auth.Rules.IdleLife + 2*time.Minute)
	if status, _ := w.ask(w.portal, "GET", "/v1/me", idle, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a login that nobody used: %d", status)
	}
}

// A clock that is wrong for a while ends logins only if somebody looked then, as
// the backend does once a minute: those that have run out are gone for good.
func TestFault_a_clock_that_is_put_forward_lets_nobody_in_again(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.clock.add(10 * time.Second) // as NTP does
	w.must(w.portal, "GET", "/v1/me", tok, nil, nil)
	w.clock.add(24 * time.Hour)
	if status, _ := w.ask(w.portal, "GET", "/v1/me", tok, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a day later: %d", status)
	}
	if err := w.auth.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.clock.add(-24 * time.Hour)
	if status, _ := w.ask(w.portal, "GET", "/v1/me", tok, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a login that had ended is back: %d", status)
	}
}

// clean lets everybody try again at once.
func (w *world) clean() {
	w.t.Helper()
	err := w.db.Write(w.t.Context(), func(tx store.Tx) error {
		_, err := store.Exec(w.t.Context(), tx, "DELETE FROM attempts")
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// again logs somebody in whose factor an admin has taken away.
func (w *world) again(name string) string {
	w.t.Helper()
	if err := w.auth.ResetFactors(w.t.Context(), "carol", name); err != nil {
		w.t.Fatal(err)
	}
	tok, _ := w.login(name)
	return tok
}

// hold keeps every writer out of the database, as a backup by hand may do.
func (w *world) hold() (release func()) {
	w.t.Helper()
	held, free, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- w.db.Write(context.WithoutCancel(w.t.Context()), func(store.Tx) error {
			close(held)
			<-free
			return nil
		})
	}()
	<-held
	return sync.OnceFunc(func() {
		close(free)
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

func TestFault_a_database_that_takes_no_writes_shuts_nobody_out_who_is_in(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	job := w.session(tok)
	nonce := "the nonce of the browser"
	var opened wire.Opened
	w.must(w.portal, "POST", "/v1/open", tok, wire.Open{Host: job.Host, Nonce: sha(nonce)}, &opened)
	var red wire.Redeemed
	w.must(w.portal, "POST", "/v1/redeem", "", wire.Redeem{Host: job.Host, Code: opened.Code, Nonce: nonce}, &red)
	w.clock.add(2 * time.Minute) // its use is due to be stored
	release := w.hold()
	defer release()
	start := time.Now()
	for range 3 {
		w.must(w.portal, "GET", "/v1/me", tok, nil, nil)
		w.must(w.portal, "GET", "/v1/jobs/"+job.ID, tok, nil, nil)
	}
	w.report(w.slurm.next, 10001, instance)
	w.must(w.portal, "POST", "/v1/grants", "", wire.GrantRequest{Host: job.Host, Token: red.Token}, nil)
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("seven answers took %v", took)
	}
	release()
	w.eventually("its use to be stored", func() bool {
		var me wire.Me
		w.must(w.portal, "GET", "/v1/me", tok, nil, &me)
		return w.clock.now().Sub(me.Session.Seen) < time.Minute
	})
}
