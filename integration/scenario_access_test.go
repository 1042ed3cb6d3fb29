//go:build integration

package integration

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// cookies are those of the portal in the browser.
func (b *browser) cookies() []*network.Cookie {
	b.t.Helper()
	got, err := chromedp.Call(b.ctx, network.GetCookies, network.GetCookiesParams{URLs: []string{portalURL}})
	if err != nil {
		b.t.Fatal(err)
	}
	return got.Cookies
}

// scripts lets the pages' own run, or not.
func (b *browser) scripts(on bool) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on}); err != nil {
		b.t.Fatal(err)
	}
}

func TestScenario_W19_all_that_matters_works_without_JavaScript(t *testing.T) {
	b := open(t)
	b.scripts(false)
	b.enrol("bob") // login and enrolment
	b.do(click("a.btn-primary"), appears("#start"))
	if ask[bool](b, "document.documentElement.classList.contains('is-live')") {
		t.Fatal("scripts run")
	}
	// Show the command: a page of its own.
	b.do(click("label[for=app-terminal]"), click("#start button[formaction]"), appears("#script-text"))
	if text := b.text("#script-text"); !strings.Contains(text, "#SBATCH --carme-app=terminal") {
		t.Errorf("the command is %q", text)
	}
	// Start, by a form that keeps what was typed if it is refused.
	b.do(goTo(portalURL+"/"), click("label[for=app-terminal]"), click("details.more summary"), fill("#name", "it-nojs"), fill("#account", "a b"),
		click(startButton), appears("#account-problem"))
	if got := b.value("#name"); got != "it-nojs" {
		t.Errorf("the name is %q", got)
	}
	b.forgive() // of the 422
	b.do(chooseText("#account", ""), click(startButton), appears("#jobhead"))
	id := b.jobNumber()
	eventually(t, 3*time.Minute, "the way in", func() bool {
		b.do(goTo(portalURL+"/jobs/"+id), appears("#jobhead"))
		return b.has(ready)
	})
	b.shot("job")
	b.do(goTo(portalURL+"/jobs"), appears("#jobtable tbody"))
	if row := b.row(id); !strings.Contains(row, "it-nojs") || !strings.Contains(row, "Ready") || !strings.Contains(row, "Open") {
		t.Errorf("its row says %q", row)
	}
	b.shot("table")
	// The session itself is entered; what is in it is the app's.
	tab := b.follows(click("#open-" + id))
	eventually(t, time.Minute, "the session's host", func() bool {
		return strings.HasSuffix(ask[string](tab, "location.hostname"), "."+appsDomain)
	})
	// Stop asks first.
	b.do(click("#stop-"+id), appears("form button.btn-danger"))
	if s := state(t, id); s != "RUNNING" {
		t.Errorf("before the answer the job is %s", s)
	}
	b.do(click("form button.btn-danger"), appears("#jobhead"))
	awaitState(t, id, 30*time.Second, "CANCELLED")
	b.do(click("form[action='/logout'] button"), appears("#username"))
	if at := b.path(); at != "/login" {
		t.Errorf("who logs out comes to %s", at)
	}
	b.clean()
}

// shiftF6 leads out of a terminal.
const shiftF6 = "Shift+F6"

// strokes are keys that are more than a character, with their number.
//
//nolint:gochecknoglobals // a constant that Go cannot write
var strokes = map[string]input.DispatchKeyEventParams{
	kb.Tab: {Key: "Tab", WindowsVirtualKeyCode: 9}, kb.Enter: {Key: "Enter", WindowsVirtualKeyCode: 13, Text: "\r"},
	shiftF6:   {Key: "F6", WindowsVirtualKeyCode: 117, Modifiers: 8},
	kb.Escape: {Key: "Escape", WindowsVirtualKeyCode: 27}, kb.ArrowDown: {Key: "ArrowDown", WindowsVirtualKeyCode: 40},
}

// press types named keys and texts, one stroke each, as a keyboard does (keys).
func (b *browser) press(all ...string) {
	b.t.Helper()
	for _, text := range all {
		key, ok := strokes[text]
		if !ok {
			b.keys(text)
			continue
		}
		key.Code = key.Key
		for _, key.Type = range []input.DispatchKeyEventType{input.DispatchKeyEventTypeKeyDown, input.DispatchKeyEventTypeKeyUp} {
			if key.Type == input.DispatchKeyEventTypeKeyUp {
				key.Text = ""
			} else if key.Text == "" {
				key.Type = input.DispatchKeyEventTypeRawKeyDown
			}
			if _, err := chromedp.Call(b.ctx, input.DispatchKeyEvent, key); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// focus is what the focus is on, and whether a person sees that.
const focus = `(() => {
	const e = document.activeElement;
	if (!e || e === document.body) return {what: "", seen: true};
	const marked = (x) => { const s = x && getComputedStyle(x); return !!s && s.outlineStyle === "solid" && parseFloat(s.outlineWidth) >= 2 };
	const box = (e.type === "radio" && e.nextElementSibling || e).getBoundingClientRect();
	const there = box.width > 0 && box.height > 0 && box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight;
	return {what: e.id || e.className + " " + (e.getAttribute("href") ?? e.getAttribute("name") ?? e.tagName), seen: there && (marked(e) || e.type === "radio" && marked(e.nextElementSibling) || e.id === "main")};
})()`

type focused struct {
	What string `json:"what"`
	Seen bool   `json:"seen"`
}

// tabTo goes on with Tab until an element has the focus, and fails the test for
// each on the way whose focus cannot be seen.
func (b *browser) tabTo(selector string) {
	b.t.Helper()
	var way []string
	for range 60 {
		b.press(kb.Tab)
		at := ask[focused](b, focus)
		way = append(way, at.What)
		for end := time.Now().Add(3 * time.Second); !at.Seen && time.Now().Before(end); { // pages glide
			at = ask[focused](b, focus)
		}
		if !at.Seen {
			b.shot("unseen")
			b.t.Errorf("the focus on %q is not seen", at.What)
		}
		if ask[bool](b, "document.activeElement.matches('"+selector+"')") {
			return
		}
	}
	b.shot("failed")
	b.t.Fatalf("Tab never comes to %s, only to %q", selector, way)
}

func TestScenario_W19_from_login_to_a_job_by_keyboard_alone(t *testing.T) {
	resetFactor(t, "bob")
	b := open(t)
	b.do(goTo(portalURL+"/login"), appears("#username"))
	b.press("bob", kb.Tab, "bob-pass", kb.Enter) // the first field has the focus
	b.do(appears("#secret"))
	secret := strings.ReplaceAll(b.text("#secret"), " ", "")
	midStep(t)
	b.press(code(t, secret), kb.Enter)
	b.do(appears(".codes"))
	b.tabTo("a.btn-primary")
	b.press(kb.Enter)
	b.do(appears("#start"))
	// The first stop is the way past the menu.
	b.tabTo(".skip")
	b.shot("skip")
	b.press(kb.Enter)
	if got := ask[string](b, "document.activeElement.id"); got != "main" {
		t.Errorf("after the skip link the focus is on %q", got)
	}
	b.tabTo("input[name=app]")
	for range 5 { // to the terminal, with the arrows, as radio buttons go
		if ask[bool](b, "document.activeElement.id === 'app-terminal'") {
			break
		}
		b.press(kb.ArrowDown)
	}
	if got := ask[string](b, `document.querySelector("input[name=app]:checked").value`); got != "terminal" {
		t.Fatalf("the arrows have chosen %s", got)
	}
	b.shot("app")
	b.tabTo("details.more summary")
	b.press(kb.Enter)
	b.tabTo("#name")
	b.press("by keyboard")
	b.tabTo(startButton)
	b.shot("start")
	b.press(kb.Enter)
	b.do(appears("#jobhead"))
	id := b.jobNumber()
	if got := settings(t, id)["JobName"]; got != "by keyboard" {
		t.Errorf("the job is called %q", got)
	}
	b.within(3*time.Minute, appears(ready))
	// Into the session, and the stop with its question: the safe answer has the
	// focus, Escape leaves.
	b.tabTo(ready)
	b.do(goTo(portalURL+"/jobs/"+id), appears("#stop-job"))
	b.tabTo("#stop-job")
	b.press(kb.Enter)
	b.do(appears("#stop-dialog[open]"))
	if !ask[bool](b, "document.activeElement.matches('#stop-dialog [data-close]')") {
		t.Error("the focus is not on the answer that does no harm")
	}
	b.shot("dialog")
	b.press(kb.Escape)
	if b.has("#stop-dialog[open]") {
		t.Error("Escape does not close the question")
	}
	if got := ask[string](b, "document.activeElement.id"); got != "stop-job" {
		t.Errorf("afterwards the focus is on %q", got)
	}
	b.press(kb.Enter)
	b.do(appears("#stop-dialog[open]"))
	b.press(kb.Tab)
	for range 3 {
		if ask[bool](b, "document.activeElement.matches('#stop-dialog .btn-danger')") {
			break
		}
		b.press(kb.Tab)
	}
	b.press(kb.Enter)
	awaitState(t, id, 30*time.Second, "CANCELLED")
	b.clean()
}

// size makes the window another size, with a finger for a mouse below a tablet's.
func (b *browser) size(width, height int64) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600})
	if err != nil {
		b.t.Fatal(err)
	}
}

// fits fails the test for what is wider than the window, and for what is too
// small to be hit with a finger (WCAG 2.2, 2.5.8: 24 by 24).
func (b *browser) fits(name string) {
	b.t.Helper()
	if over := ask[int](b, "document.documentElement.scrollWidth - document.documentElement.clientWidth"); over > 0 {
		b.t.Errorf("%s is %d pixels too wide: %v", name, over, ask[[]string](b,
			`[...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map(e => e.tagName + "." + e.className + "#" + e.id)`))
	}
	for _, small := range ask[[]string](b, `[...document.querySelectorAll("a[href], button, input:not([type=hidden]):not([type=radio]), select, summary")].filter(e => {
		const r = (e.closest("label") ?? e).getBoundingClientRect(), s = getComputedStyle(e);
		if (r.width === 0 || s.visibility === "hidden" || r.right < 0) return false;
		if (e.tagName === "A" && s.display === "inline") return false; // a link in a sentence
		return r.width < 24 || r.height < 24 }).map(e => (e.id || e.className || e.tagName) + " " + e.innerText.slice(0, 20))`) {
		b.t.Errorf("%s: %s is too small to be hit", name, small)
	}
}

func TestScenario_W19_every_page_for_screen_readers_in_all_sizes_and_colours(t *testing.T) {
	b := open(t)
	// What has ended, what runs and what waits.
	ended := plain(t, "it-over", "--mem=100", "--wrap=echo said; exit 3")
	waits := plain(t, "it-waits", "--hold", "--array=1-3", "--wrap=true")
	session := sbatch(t, "bob", "-J", "it-session", "--time=20", "--carme=base", "--carme-app=terminal", "--gres=gpu:l40s:1", "--mem=500", "--wrap=:")
	awaitState(t, ended, time.Minute, "FAILED")

	look := func(name, selector string, to ...step) {
		b.do(append(to, appears(selector))...)
		for _, scheme := range []string{"light", "dark"} {
			b.colours(scheme)
			for size, width := range map[string]int64{"phone": 390, "laptop": 1280, "wide": 1920} {
				b.size(width, 900)
				b.fits(name + " on a " + size)
				b.shot(name + "-" + scheme + "-" + size)
			}
			b.axe(name + ", " + scheme)
			b.size(390, 900)
			b.axe(name + ", " + scheme + " on a phone")
			b.size(1280, 900)
		}
	}
	resetFactor(t, "bob")
	look("login", "#username", goTo(portalURL+"/login"))
	b.do(fill("#username", "bob"), fill("#password", "bob-pass"), send("#password"))
	look("enrol", "#secret")
	secret := strings.ReplaceAll(b.text("#secret"), " ", "")
	midStep(t)
	b.do(fill("#code", code(t, secret)), send("#code"))
	look("codes", ".codes")
	look("dashboard", "#start", goTo(portalURL+"/"))
	look("advanced", "#script-text", click("details.more summary"), click("#start button[formaction]"))
	look("security", "#totp-code", goTo(portalURL+"/security"))
	b.do(goTo(portalURL + "/jobs/" + session))
	b.within(2*time.Minute, appears(ready))
	look("job-ready", ready)
	look("job-ended", "#job-end", goTo(portalURL+"/jobs/"+ended))
	look("job-waiting", "#job-reason", goTo(portalURL+"/jobs/"+waits))
	look("stop", "form button.btn-danger", goTo(portalURL+"/jobs/"+session+"/stop"))
	look("jobs", "#jobtable tbody", goTo(portalURL+"/jobs"))
	look("sessions", "#sessions .session", goTo(portalURL+"/"))
	look("not-found", ".empty h1", goTo(portalURL+"/jobs/999999999"))
	// A form that is too old, sent without the page's scripts.
	b.do(goTo(portalURL+"/security"), appears("#totp-code"))
	ask[bool](b, `(() => { for (const e of document.querySelectorAll("input[name=csrf]")) e.value = "old"; return true })()`)
	look("forbidden", ".empty h1", fill("#totp-code", "123456"), send("#totp-code"))
	if got := b.text(".empty h1"); got != "This form is too old" {
		t.Errorf("the page is headed %q", got)
	}
	up := down(t, ctl, "kill", "carme-backend")
	look("away", ".empty h1", goTo(portalURL+"/jobs"))
	up()
	b.forgive() // of answers that are errors
	// The second factor, and the login once more with a code.
	v := visit(t, "bob")
	recovers(t, time.Minute, "logins", func() bool { r, err := v.try("GET", "/jobs", ""); return err == nil && r.code == http.StatusSeeOther })
	b.do(goTo(portalURL+"/jobs"), click("form[action='/logout'] button"), fill("#username", "bob"), fill("#password", "bob-pass"), send("#password"))
	look("factor", "#code")
	look("recovery", "#recovery", click("a[href*=recovery]"))
	b.clean()
}

func TestFault_W5_W6_a_page_says_how_old_it_is_and_becomes_fresh_by_itself(t *testing.T) {
	id := plain(t, "it-kept", "--mem=100", "--wrap=exec sleep 600")
	other := plain(t, "it-other", "--mem=100", "--wrap=exec sleep 600")
	for _, job := range []string{id, other} {
		awaitState(t, job, time.Minute, "RUNNING")
		remembered(t, job) // a slurmctld that dies before it has saved a start takes the job for one that waits
	}
	b := open(t)
	b.login("bob")
	table := b.attach()
	b.do(goTo(portalURL+"/jobs/"+id), appears("#jobhead"))
	table.do(goTo(portalURL+"/jobs"), appears("#jobtable"))
	both := []*browser{b, table}
	for _, tab := range both {
		tab.mark()
	}
	up := down(t, ctl, "kill", "slurmctld")
	for _, tab := range both {
		recovers(t, 90*time.Second, "a page that says how old it is", func() bool { return tab.has("#stale") })
		age := tab.text("#stale")
		if !regexp.MustCompile(`^Slurm has not answered for \d+ (seconds?|minutes?)\. What you see is from then\.$`).MatchString(strings.TrimSpace(age)) {
			t.Errorf("it says %q", age)
		}
		eventually(t, 90*time.Second, "another age", func() bool { return tab.has("#stale") && tab.text("#stale") != age })
	}
	b.shot("stale")
	b.axe("stale")
	if got := b.text("#jobhead .state"); got != "Running" {
		t.Errorf("meanwhile the job is shown as %s", got)
	}
	up()
	for _, tab := range both {
		recovers(t, 90*time.Second, "a fresh page", func() bool { return !tab.has("#stale") })
		tab.stayed()
	}

	up = down(t, ctl, "kill", "carme-backend")
	for _, tab := range both {
		recovers(t, time.Minute, "a page that says that it is cut off", func() bool {
			return !ask[bool](tab, `document.querySelector("#offline").hidden`)
		})
		if got := tab.text("#offline"); !regexp.MustCompile(`The connection is lost; your jobs go on\..*What you see is from .*\d:\d\d`).MatchString(got) {
			t.Errorf("it says %q", got)
		}
	}
	b.shot("offline")
	b.axe("offline")
	// What happens meanwhile is on the page afterwards.
	scancel(id)
	awaitState(t, id, time.Minute, "CANCELLED")
	up()
	for _, tab := range both {
		recovers(t, time.Minute, "a connected page", func() bool { return ask[bool](tab, `document.querySelector("#offline").hidden`) })
	}
	recovers(t, time.Minute, "the end of the job on its page", func() bool { return b.has("#job-end") })
	recovers(t, time.Minute, "the end of the job in the table", func() bool { return strings.Contains(table.row(id), "It was cancelled") })
	if !strings.Contains(table.row(other), "Running") {
		t.Errorf("the other job: %q", table.row(other))
	}
	for _, tab := range both {
		tab.stayed()
		tab.forgive() // of what was asked meanwhile
	}
}
