package web

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/carme-hpc/carme/internal/wire/api"
)

var (
	jobField  = regexp.MustCompile(`name="id" value="([^"]+)"`)
	jobFormat = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// enter makes the browser one that is logged in.
func (b *browser) enter(name string) {
	b.t.Helper()
	b.fresh()
	at, err := url.Parse(b.server.URL)
	if err != nil {
		b.t.Fatal(err)
	}
	b.client.Jar.SetCookies(at, []*http.Cookie{{Name: cookieSession, Value: b.backend.Session(name), Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode}})
}

func TestDashboard_that_is_kept_has_forms_of_its_own_each_time(t *testing.T) {
	b := newBrowser(t)
	seen := map[string]bool{}
	sent := map[string]bool{}
	for range 3 {
		b.enter("alice")
		for range 2 {
			_, page := b.get("/")
			token, id := formToken.FindAllStringSubmatch(page, -1), jobField.FindStringSubmatch(page)
			if len(token) < 3 || id == nil || !jobFormat.MatchString(id[1]) {
				t.Fatalf("tokens %v, id %v", token, id)
			}
			for _, one := range token {
				if one[1] != token[0][1] || strings.HasPrefix(one[1], "csrf-") {
					t.Errorf("a form has the token %q, another %q", one[1], token[0][1])
				}
			}
			sent[token[0][1]] = true
			if seen[id[1]] {
				t.Errorf("two pages start the same job %s", id[1])
			}
			seen[id[1]] = true
		}
		if answer, text := b.post("/", "/jobs", url.Values{"id": {newUUID()}, "image": {"base"}, "app": {"terminal"}, "gpus": {"1"}, "nodes": {"1"}, "minutes": {"60"}}); answer.StatusCode != http.StatusSeeOther {
			t.Errorf("the form of a kept page: %d %s", answer.StatusCode, text)
		}
	}
	if len(sent) != 3 {
		t.Errorf("three sessions have %d tokens", len(sent))
	}
}

func TestAttack_a_kept_dashboard_is_shown_to_nobody_else(t *testing.T) {
	b := newBrowser(t)
	b.backend.Add(api.Job{Intent: "0190a0a0-0000-7000-8000-000000000001", Name: "secret plan", User: "alice", Carme: true, App: "terminal", Stage: api.StageReady, State: "RUNNING"})
	for range 2 {
		b.enter("alice")
		if _, page := b.get("/"); !strings.Contains(page, "secret plan") || !strings.Contains(page, "Alice Example") {
			t.Fatal("alice does not see her session")
		}
		b.enter("bob")
		if _, page := b.get("/"); strings.Contains(page, "secret plan") || strings.Contains(page, "Alice") || !strings.Contains(page, "Bob Example") {
			t.Error("bob sees alice's dashboard")
		}
	}
	b.enter("alice")
	b.get("/")
	b.backend.EndLogins("alice")
	if answer, page := b.get("/"); answer.StatusCode != http.StatusSeeOther || strings.Contains(page, "secret plan") {
		t.Errorf("after the end of the login: %d", answer.StatusCode)
	}
}

func TestDashboard_that_is_kept_changes_with_what_it_shows_and_how(t *testing.T) {
	b := newBrowser(t)
	b.enter("alice")
	b.get("/")
	id := b.backend.Add(api.Job{Intent: "0190a0a0-0000-7000-8000-000000000001", Name: "first", User: "alice", Carme: true, App: "terminal", Stage: api.StageReady, State: "RUNNING"})
	if _, page := b.get("/"); !strings.Contains(page, "first") {
		t.Error("a new session is not shown")
	}
	b.backend.Change(id, func(j *api.Job) { j.Stage = api.StageEnded })
	if _, page := b.get("/"); strings.Contains(page, "first") {
		t.Error("an ended session is shown")
	}
	if _, page := b.get("/", "Accept-Language: de"); !strings.Contains(page, `<html lang="de"`) {
		t.Error("German is asked for and not shown")
	}
	if _, page := b.get("/", "Cookie: "+cookieTheme+"=dark"); !strings.Contains(page, `data-theme="dark"`) {
		t.Error("dark is asked for and not shown")
	}
	if _, page := b.get("/", "Accept-Language: en"); !strings.Contains(page, `<html lang="en"`) || !strings.Contains(page, `data-theme="auto"`) {
		t.Error("the first language and colours do not come back")
	}
	if _, page := b.get("/?x=y"); !strings.Contains(page, `value="/?x=y"`) {
		t.Error("the way back leads elsewhere")
	}
}
