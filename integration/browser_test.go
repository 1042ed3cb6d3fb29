//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/pquerna/otp/totp"
)

// The portal's names, as testbed/bin/portal gives them.
const (
	portalHost = "portal.carme.localhost"
	appsDomain = "apps.carme.localhost"
	portalPort = "8443"
	portalURL  = "https://" + portalHost + ":" + portalPort
)

// screens is where pictures of pages are kept.
const screens = "../test-output/screens"

// browser is one Chromium with a profile of its own: one person at one machine.
type browser struct {
	t     *testing.T
	ctx   context.Context
	close context.CancelFunc // ends it as a closed window does

	mu       sync.Mutex
	problems []string // what the console and the content policy complained about
	foreign  []string // requests to hosts that are not the portal's or an app's
}

// address is where a machine's container is, as this machine reaches it.
func address(t *testing.T, machine string) string {
	t.Helper()
	r := run(t, "docker", "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container(machine))
	return r.ok(t)
}

// trusted makes a home directory whose user trusts the CA of the testbed's
// portal, as the command that the demo prints does it.
func trusted(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	db := filepath.Join(home, ".pki/nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(home, "ca.pem")
	if err := os.WriteFile(ca, []byte(root(t, login, "cat", "/etc/carme/web-ca/ca.pem").ok(t)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "certutil", "-N", "-d", "sql:"+db, "--empty-password").ok(t)
	run(t, "certutil", "-A", "-d", "sql:"+db, "-t", "C,,", "-n", "carme", "-i", ca).ok(t)
	return home
}

// open starts a browser. Options are further flags of Chromium.
func open(t *testing.T, options ...chromedp.ExecAllocatorOption) *browser {
	t.Helper()
	if _, err := exec.LookPath("chromium"); err != nil {
		t.Fatal("chromium is missing; run: tools/prepare testbed")
	}
	all := append([]chromedp.ExecAllocatorOption{
		chromedp.ExecPath("chromium"), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.NoSandbox,
		chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.Env("HOME=" + trusted(t)),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("force-prefers-reduced-motion", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("host-resolver-rules", "MAP *.localhost "+address(t, login)),
		chromedp.WindowSize(1280, 900),
	}, options...)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), all...)
	t.Cleanup(cancel)
	b := &browser{t: t}
	tab, cancel := chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b.ctx, b.close = tab, cancel
	if err := chromedp.Do(tab); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	b.watch(tab)
	return b
}

// watch notes what goes wrong in a tab, and who is asked for what.
func (b *browser) watch(tab context.Context) {
	b.t.Helper()
	for _, enable := range []func() error{
		func() error { _, err := chromedp.Call(tab, log.Enable, cdp.Empty{}); return err },
		func() error { _, err := chromedp.Call(tab, network.Enable, network.EnableParams{}); return err },
		func() error { _, err := chromedp.Call(tab, cdpruntime.Enable, cdp.Empty{}); return err },
		func() error { return chromedp.Listen(tab, b.note) },
	} {
		if err := enable(); err != nil {
			b.t.Fatal(err)
		}
	}
}

// note is told of every event of a tab.
func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *page.EventJavascriptDialogOpening:
		// An app that asks whether to leave it: yes. Not here, where events wait.
		go func() {
			if _, err := chromedp.Call(b.ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true}); err != nil && b.ctx.Err() == nil {
				b.mu.Lock()
				b.problems = append(b.problems, "dialog: "+err.Error())
				b.mu.Unlock()
			}
		}()
	case *log.EventEntryAdded:
		if u, err := url.Parse(e.Entry.URL); err == nil && strings.HasSuffix(u.Hostname(), "."+appsDomain) && e.Entry.Source == log.EntrySourceNetwork {
			return // what an app asks itself for is its own affair
		}
		if strings.Contains(e.Entry.Text, "ERR_NETWORK_CHANGED") {
			return // as in goTo: it is asked again
		}
		if e.Entry.Level == log.EntryLevelError || strings.Contains(e.Entry.Text, "Content Security Policy") {
			b.problems = append(b.problems, e.Entry.URL+": "+e.Entry.Text)
		}
	case *cdpruntime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += ": " + e.ExceptionDetails.Exception.Description
		}
		b.problems = append(b.problems, text)
	case *network.EventRequestWillBeSent:
		u, err := url.Parse(e.Request.URL)
		if err != nil || u.Scheme == "data" || u.Scheme == "blob" || u.Scheme == "about" {
			return
		}
		if host := u.Hostname(); host != portalHost && !strings.HasSuffix(host, "."+appsDomain) {
			b.foreign = append(b.foreign, e.Request.URL)
		}
	}
}

// step is one thing that a person does.
type step = chromedp.Action[chromedp.Void]

// goTo opens an address. Chromium drops all connections when an interface of the
// machine comes or goes, as those of other containers do, and then a person
// would press reload.
func goTo(url string) step {
	return func(ctx context.Context, tab *chromedp.Target) (chromedp.Void, error) {
		none, err := chromedp.Navigate(url)(ctx, tab)
		for n := 0; n < 3 && err != nil && strings.Contains(err.Error(), "ERR_NETWORK_CHANGED"); n++ {
			none, err = chromedp.Navigate(url)(ctx, tab)
		}
		return none, err
	}
}

func fill(selector, text string) step { return chromedp.SendKeys(chromedp.CSS(selector), text) }
func send(selector string) step       { return chromedp.Submit(chromedp.CSS(selector)) }
func click(selector string) step      { return chromedp.Click(chromedp.CSS(selector)) }
func appears(selector string) step    { return chromedp.WaitVisible(chromedp.CSS(selector)) }

// choose takes one of a list.
func choose(selector, value string) step {
	return func(ctx context.Context, tab *chromedp.Target) (chromedp.Void, error) {
		set := fmt.Sprintf("(() => { const s = document.querySelector(%q); s.value = %q; s.dispatchEvent(new Event('change', {bubbles: true})); return s.value })()", selector, value)
		got, err := chromedp.Evaluate[string](set)(ctx, tab)
		if err == nil && got != value {
			err = fmt.Errorf("%s has no %s", selector, value)
		}
		return chromedp.Void{}, err
	}
}

// do runs steps, a minute at most, and stops the test with a picture.
func (b *browser) do(steps ...step) {
	b.t.Helper()
	b.within(time.Minute, steps...)
}

func (b *browser) within(limit time.Duration, steps ...step) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, limit)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		again, stop := context.WithTimeout(b.ctx, 10*time.Second)
		defer stop()
		text, lost := chromedp.Run(again, chromedp.Evaluate[string]("location.href + '\\n' + (document.body ? document.body.innerText : '')"))
		b.shot("failed")
		b.t.Fatalf("%v (%v)\nthe page says:\n%.2000s\n%s", err, lost, text, strings.Join(b.problems, "\n"))
	}
}

// ask runs one expression of JavaScript in the page, and awaits its promise.
func ask[T any](b *browser, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.shot("failed")
		b.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// shot keeps a picture of the page.
func (b *browser) shot(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Logf("no picture of %s: %v", name, err)
		return
	}
	if err := os.MkdirAll(screens, 0o755); err != nil {
		b.t.Fatal(err)
	}
	file := filepath.Join(screens, strings.ReplaceAll(b.t.Name(), "/", "-")+"-"+name+".png")
	if err := os.WriteFile(file, png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// text is what an element says.
func (b *browser) text(selector string) string {
	b.t.Helper()
	b.do(appears(selector))
	return ask[string](b, fmt.Sprintf("document.querySelector(%q).innerText", selector))
}

// path is where the browser is.
func (b *browser) path() string {
	b.t.Helper()
	return strings.TrimPrefix(ask[string](b, "location.href"), portalURL)
}

// has reports whether the page has such an element now.
func (b *browser) has(selector string) bool {
	b.t.Helper()
	return ask[bool](b, fmt.Sprintf("document.querySelector(%q) !== null", selector))
}

// clean fails the test if something complained: the console, the content
// policy, or a request that left for elsewhere.
func (b *browser) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.problems {
		b.t.Errorf("the browser complains: %s", p)
	}
	for _, f := range b.foreign {
		b.t.Errorf("a request went to %s", f)
	}
}

// forgive drops complaints that a test has brought about on purpose.
func (b *browser) forgive() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = nil
}

// resetFactor takes a user's second factor away, as an admin on the head node
// does, so that the next login enrols anew.
func resetFactor(t *testing.T, user string) {
	t.Helper()
	resetFactorOn(t, ctl, user)
}

func resetFactorOn(t *testing.T, machine, user string) {
	t.Helper()
	status := sh(t, machine, "curl -s -o /dev/null -w '%{http_code}' -X DELETE --unix-socket /run/carme-backend/admin.sock http://backend/v1/users/"+user+"/factors")
	if status != "204" && status != "200" && status != "404" { // 404: they have never been here
		t.Fatalf("take %s's factor away: %s", user, status)
	}
}

// code is the one-time code of now. One that was used is not taken again, so
// callers that log in twice wait for the next.
func code(t *testing.T, secret string) string {
	t.Helper()
	c, err := totp.GenerateCode(secret, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// password fills in the first page of a login.
func (b *browser) password(user, password string) {
	b.t.Helper()
	b.do(goTo(portalURL+"/login"), fill("#username", user), fill("#password", password), send("#password"))
}

// enrol logs a user in for the first time.
func (b *browser) enrol(user string) {
	b.t.Helper()
	resetFactor(b.t, user)
	b.password(user, user+"-pass")
	secret := strings.ReplaceAll(b.text("#secret"), " ", "")
	b.do(fill("#code", code(b.t, secret)), send("#code"), appears(".codes"))
}

// login is enrol and on to the dashboard.
func (b *browser) login(user string) {
	b.t.Helper()
	b.enrol(user)
	b.do(goTo(portalURL+"/"), appears("#start"))
}

// keys types text as a keyboard does: one event per key, whose character
// Chromium makes itself. chromedp.KeyEvent sends the character once more, and
// xterm.js takes both.
func (b *browser) keys(text string) {
	b.t.Helper()
	for _, c := range text {
		for _, kind := range []input.DispatchKeyEventType{input.DispatchKeyEventTypeKeyDown, input.DispatchKeyEventTypeKeyUp} {
			event := input.DispatchKeyEventParams{Type: kind, Key: string(c)}
			if kind == input.DispatchKeyEventTypeKeyDown {
				event.Text = string(c)
			}
			if _, err := chromedp.Call(b.ctx, input.DispatchKeyEvent, event); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// dark makes the browser prefer dark pages.
func (b *browser) dark() {
	b.t.Helper()
	b.colours("dark")
}

// colours makes the browser prefer light or dark pages.
func (b *browser) colours(scheme string) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// axe runs axe-core on the page and fails the test for what it finds.
func (b *browser) axe(name string) {
	b.t.Helper()
	source, err := os.ReadFile("../portal/web/assets/node_modules/axe-core/axe.min.js")
	if err != nil {
		b.t.Fatalf("axe-core is missing (%v); run: make assets", err)
	}
	// In a world of its own, so that the page's content policy stays as it is.
	tree, err := chromedp.Call(b.ctx, page.GetFrameTree, cdp.Empty{})
	if err != nil {
		b.t.Fatal(err)
	}
	world, err := chromedp.Call(b.ctx, page.CreateIsolatedWorld, page.CreateIsolatedWorldParams{FrameID: tree.FrameTree.Frame.ID})
	if err != nil {
		b.t.Fatal(err)
	}
	// Colours that are on their way to others have any contrast.
	const run = `Promise.allSettled(document.getAnimations().filter(a => a.effect.getTiming().iterations !== Infinity).map(a => a.finished)).then(() =>
		axe.run(document, {resultTypes: ["violations"]})).then(r => JSON.stringify(
		r.violations.map(v => v.id + ": " + v.help + " (" + v.nodes.map(n => n.target.join(" ")).join(", ") + ")")))`
	yes := true
	var found string
	for _, text := range []string{string(source), run} {
		answer, err := chromedp.Call(b.ctx, cdpruntime.Evaluate, cdpruntime.EvaluateParams{
			Expression: text, ContextID: world.ExecutionContextID, AwaitPromise: &yes, ReturnByValue: &yes,
		})
		if err != nil || answer.ExceptionDetails != nil {
			b.t.Fatalf("run axe: %v, %v", err, answer.ExceptionDetails)
		}
		if text == run {
			if err := json.Unmarshal(answer.Result.Value, &found); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	var violations []string
	if err := json.Unmarshal([]byte(found), &violations); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range violations {
		b.t.Errorf("%s: axe: %s", name, v)
	}
}

// chooseText replaces what a field holds.
func chooseText(selector, text string) step {
	return func(ctx context.Context, tab *chromedp.Target) (chromedp.Void, error) {
		if _, err := chromedp.Evaluate[bool](fmt.Sprintf("document.querySelector(%q).value = '', true", selector))(ctx, tab); err != nil || text == "" {
			return chromedp.Void{}, err
		}
		return fill(selector, text)(ctx, tab)
	}
}
