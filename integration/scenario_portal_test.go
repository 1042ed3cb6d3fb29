//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

func TestScenario_W1_W2_a_first_login_enrols_a_second_factor(t *testing.T) {
	b := open(t)
	b.do(goTo(portalURL + "/"))
	if at := b.path(); at != "/login" {
		t.Errorf("a visitor is led to %s", at)
	}
	b.shot("login")
	b.axe("login")
	resetFactor(t, "alice")
	b.password("alice", "alice-pass")
	b.do(appears("#secret"))
	if !ask[bool](b, `document.querySelector('img[src^="data:image/png"]')?.naturalWidth >= 200`) {
		t.Error("there is no picture to scan")
	}
	b.shot("enrol")
	b.axe("enrolment")
	b.enrol("alice")
	b.shot("recovery")
	b.axe("recovery codes")
	if got := b.text("#kept"); !strings.HasPrefix(got, "For alice at "+strings.TrimPrefix(portalURL, "https://")) {
		t.Errorf("the codes are %.60q", got)
	}
	dir := t.TempDir()
	yes := cdpbrowser.SetDownloadBehaviorParams{Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir} //nolint:misspell // their name
	if _, err := chromedp.Call(b.ctx, cdpbrowser.SetDownloadBehavior, yes); err != nil {
		t.Fatal(err)
	}
	b.do(click("[data-download]"))
	eventually(t, 20*time.Second, "a file with the codes", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "carme-recovery-codes.txt"))
		return err == nil && len(regexp.MustCompile(`(?m)^[a-z2-7]{5}-[a-z2-7-]+$`).FindAllString(string(text), -1)) == 10 && strings.HasPrefix(string(text), "For alice at ")
	})
	b.do(goTo(portalURL+"/"), appears("#start"))
	b.shot("dashboard")
	b.axe("dashboard")
	b.clean()
}

func TestScenario_W2_all_other_logins_end_by_one_button(t *testing.T) {
	b := open(t)
	other := visit(t, "alice").login()
	b.password("alice", "alice-pass")
	b.do(appears("a[href*='recovery=1']"), click("a[href*='recovery=1']"), fill("#recovery", other.codes[0]), send("#recovery"), appears("#start"))
	half := visit(t, "alice")
	half.password("alice", "alice-pass")
	b.do(goTo(portalURL+"/security"), appears("form[action='/security/sessions/end']"))
	if got := b.text("main"); !strings.Contains(got, "password entered, code missing") {
		t.Errorf("nothing is said of a login that has shown the password alone: %s", got)
	}
	b.shot("before")
	b.axe("security with other logins")
	b.do(click("form[action='/security/sessions/end'] button"), appears(".notice.is-ok"))
	if r := other.get("/jobs"); !strings.HasPrefix(r.to(), "/login") {
		t.Errorf("another login lives on: %d to %q", r.code, r.to())
	}
	if r := half.get("/"); !strings.HasPrefix(r.to(), "/login") || strings.HasPrefix(r.to(), "/login/factor") {
		t.Errorf("the half login goes on: %d to %q", r.code, r.to())
	}
	if got := b.text("main"); strings.Contains(got, "code missing") || strings.Contains(got, "Log out there") {
		t.Errorf("afterwards: %s", got)
	}
	b.do(chromedp.Reload(), appears("#own-title"))
	if b.has(".notice.is-ok") {
		t.Error("what was done is said again")
	}
	b.clean()
}

// ready is the way into an app on a job's page.
const ready = `#jobhead a[href*="` + appsDomain + `"]`

// jobNumber is that of the job whose page is open.
func (b *browser) jobNumber() string {
	b.t.Helper()
	id := regexp.MustCompile(`Job ([0-9]+)`).FindStringSubmatch(b.text("#jobhead p"))
	if id == nil {
		b.t.Fatalf("the page names no job: %s", b.text("#jobhead p"))
	}
	b.t.Cleanup(func() { scancel(id[1]) })
	return id[1]
}

// startButton is the one that starts a session; the form has another.
const startButton = "#start button.btn-primary"

// startLab starts JupyterLab from the dashboard, waits until it is ready, and
// returns its address and the job's number. It chooses nothing: JupyterLab in an
// image that has it is what the form begins with.
func (b *browser) startLab() (app, job string) {
	b.t.Helper()
	// What an earlier session left would be opened again.
	as(b.t, "alice", login, "sh", "-c", "rm -rf .jupyter .ipynb_checkpoints *.ipynb").ok(b.t)
	b.do(goTo(portalURL+"/"), click(startButton), appears("#jobhead"))
	b.within(3*time.Minute, appears(ready))
	app = ask[string](b, "document.querySelector('"+ready+"').href")
	return app, b.jobNumber()
}

// notebook opens a new notebook, or the one of that name.
func (b *browser) notebook(app, name string) {
	b.t.Helper()
	if name != "" {
		b.do(goTo(app + "lab/tree/" + name))
	} else {
		b.do(goTo(app))
		b.within(2*time.Minute, click(`.jp-LauncherCard[data-category="Notebook"]`))
	}
	b.within(2*time.Minute, appears(".jp-Notebook .cm-content"))
	// The page calls a kernel idle before there is one; the server knows.
	idle := regexp.MustCompile(`^\[\{[^{}]*"execution_state": ?"idle", ?"connections": ?[1-9][^{}]*\}\]$`)
	kernels := ""
	defer func() {
		if b.t.Failed() {
			b.shot("kernel")
			b.t.Logf("its kernels: %s", kernels)
		}
	}()
	eventually(b.t, 2*time.Minute, "an idle kernel", func() bool {
		kernels = ask[string](b, "fetch('/api/kernels').then(r => r.text())")
		return idle.MatchString(kernels)
	})
}

// cell runs one line of Python in the open notebook and returns what it prints.
func (b *browser) cell(line string) string {
	b.t.Helper()
	b.do(click(".jp-Notebook .cm-content"), chromedp.KeyEvent(line), chromedp.KeyEvent(kb.Enter, chromedp.KeyModifiers(chromedp.ModifierShift)))
	return b.text(".jp-Notebook .jp-OutputArea-output pre")
}

// gpusOf are the GPUs that Slurm has given to a job, by UUID, and its node.
func gpusOf(t *testing.T, job string) (uuids []string, node string) {
	t.Helper()
	shown := root(t, ctl, "scontrol", "-d", "show", "job", job).ok(t)
	m := regexp.MustCompile(`Nodes=(\S+) .*GRES=gpu\S*\(IDX:([0-9,-]+)\)`).FindStringSubmatch(shown)
	if m == nil {
		t.Fatalf("Slurm gave job %s no GPU:\n%s", job, shown)
	}
	for part := range strings.SplitSeq(m[2], ",") {
		from, to, many := strings.Cut(part, "-")
		if !many {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil {
			t.Fatalf("indexes %q", m[2])
		}
		for i := first; i <= last; i++ {
			uuids = append(uuids, gpuUUID(m[1], i))
		}
	}
	return uuids, m[1]
}

// follows does something that opens a tab, and returns that.
func (b *browser) follows(do step) *browser {
	b.t.Helper()
	opened := chromedp.WaitNewTarget(b.ctx, func(info *target.Info) bool { return info.URL != "" && info.URL != "about:blank" })
	b.do(do)
	select {
	case id := <-opened:
		return b.attach(chromedp.WithTargetID(id))
	case <-time.After(time.Minute):
		b.shot("failed")
		b.t.Fatal("no tab opens")
		return nil
	}
}

// attach is another tab of the same browser: a new one without options.
func (b *browser) attach(options ...chromedp.ContextOption) *browser {
	b.t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx, options...)
	b.t.Cleanup(cancel)
	tab := &browser{t: b.t, ctx: ctx, close: cancel}
	if err := chromedp.Do(ctx); err != nil {
		b.t.Fatalf("attach to a tab: %v", err)
	}
	tab.watch(ctx)
	return tab
}

func TestScenario_W3_two_clicks_from_the_dashboard_to_JupyterLab(t *testing.T) {
	b := open(t)
	b.login("bob")
	as(t, "bob", login, "sh", "-c", "rm -rf .jupyter .ipynb_checkpoints *.ipynb").ok(t)
	b.shot("dashboard")
	b.do(click(startButton), appears("#jobhead")) // one
	id := b.jobNumber()
	b.shot("starting")
	b.within(3*time.Minute, appears(ready))
	lab := b.follows(click(ready)) // two
	lab.within(3*time.Minute, appears(".jp-Launcher"))
	lab.shot("lab")
	if at := ask[string](lab, "location.hostname"); !strings.HasSuffix(at, "."+appsDomain) {
		t.Errorf("JupyterLab is at %s", at)
	}
	// What nobody chose is what people most likely want: one GPU, one node, hours.
	shown := root(t, ctl, "scontrol", "show", "job", id).ok(t)
	for _, want := range []string{"JobName=jupyterlab", "UserId=bob(", "NumNodes=1 ", "TresPerNode=gres/gpu:1", "TimeLimit=04:00:00"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the job lacks %s:\n%s", want, shown)
		}
	}
	b.clean()
}

func TestScenario_W3_W5_W14_a_day_in_JupyterLab(t *testing.T) {
	b := open(t)
	b.login("alice")
	app, job := b.startLab()
	b.shot("ready")
	b.axe("job")
	b.notebook(app, "")
	out := b.cell(`import subprocess, socket; word = "kept"; print(subprocess.getoutput("nvidia-smi -L"), socket.gethostname())`)
	b.shot("lab")
	uuids, node := gpusOf(t, job)
	if strings.Count("\n"+out, "\nGPU ") != len(uuids) || !strings.Contains(out, node) {
		t.Errorf("the cell prints %q; Slurm gave %v on %s", out, uuids, node)
	}
	for _, u := range uuids {
		if !strings.Contains(out, u) {
			t.Errorf("the cell does not see %s: %q", u, out)
		}
	}
	// The browser goes away and another one comes: the kernel is still there.
	b.clean()
	b.close()
	again := open(t)
	again.login("alice")
	again.do(goTo(portalURL + "/jobs"))
	again.shot("jobs")
	again.axe("jobs")
	again.notebook(app, "Untitled.ipynb")
	if kept := again.cell("print(word)"); kept != "kept\n" {
		t.Errorf("after coming back it prints %q", kept)
	}
	again.do(goTo(portalURL+"/jobs/"+job+"/stop"), appears("form button.btn-danger"))
	again.shot("stop")
	again.axe("stop")
	again.do(click("form button.btn-danger"), appears("#jobhead"))
	awaitState(t, job, 30*time.Second, "CANCELLED")
	again.clean()
}

func TestScenario_W19_pages_in_German_and_dark(t *testing.T) {
	b := open(t, chromedp.Flag("accept-lang", "de"), chromedp.WindowSize(390, 844))
	b.dark()
	b.do(goTo(portalURL + "/login"))
	if title := b.text("h1"); title != "Anmelden" {
		t.Errorf("the page is headed %q", title)
	}
	b.axe("login")
	b.login("bob")
	b.shot("dashboard")
	b.axe("dashboard")
	for _, page := range []string{"/jobs", "/security"} {
		b.do(goTo(portalURL+page), appears("h1"))
		b.shot(strings.TrimPrefix(page, "/"))
		b.axe(page)
	}
	// Whoever has dark pages from the system is offered light ones.
	b.do(click("button[name=theme][value=light]"), appears("html[data-bs-theme=light]"))
	b.clean()
}

func TestScenario_W13_W14_a_terminal_for_each_of_two_users(t *testing.T) {
	users := map[string]*browser{"alice": open(t), "bob": open(t)}
	for user, b := range users {
		b.login(user)
		b.do(click("label[for=app-terminal]"), click(startButton), appears("#jobhead"))
		b.within(3*time.Minute, appears(ready))
		b.jobNumber()
		b.do(goTo(ask[string](b, "document.querySelector('"+ready+"').href")), appears(".xterm-helper-textarea"))
		eventually(t, time.Minute, "a prompt for "+user, func() bool {
			return b.text("#state") == "Connected" && strings.TrimSpace(b.text(".xterm-rows")) != ""
		})
		b.do(click(".xterm-screen"))
		b.keys("id -un; echo $CARME_JOB_APP-$((40+2))")
		b.do(chromedp.KeyEvent(kb.Enter))
		eventually(t, time.Minute, "the shell's answer to "+user, func() bool {
			screen := b.text(".xterm-rows")
			return strings.Contains(screen, "terminal-42") && strings.Contains(screen, user)
		})
		b.shot(user)
		if title := ask[string](b, "document.title"); !strings.Contains(title, "Job ") {
			t.Errorf("the terminal is called %q", title)
		}
		// Every key is the shell's but the one that leads out.
		b.press(kb.Tab)
		if !b.has(".xterm-helper-textarea:focus") {
			t.Error("Tab is not the shell's")
		}
		b.press(shiftF6)
		if !b.has("#reader:focus") {
			t.Error("there is no way out of the terminal by keyboard")
		}
		b.press(kb.Enter)
		b.do(appears("#reader[aria-pressed=true]"), appears(".xterm-accessibility"))
		b.axe("a terminal")
		b.clean()
	}
	// A terminal whose session has ended says so by itself, also where the shell has
	// ended before.
	b := users["bob"]
	b.do(click(".xterm-screen"))
	b.keys("exit")
	b.press(kb.Enter)
	eventually(t, time.Minute, "the end of bob's shell", func() bool { return strings.HasPrefix(b.text("#state"), "The shell has ended.") })
	for user, b := range users {
		scancel("-u", user)
		b.within(time.Minute, appears("body:not([data-job]) h1")) // of the portal's page
		if got := b.text("h1"); got != "There is no session here" {
			t.Errorf("%s's terminal has become %q", user, got)
		}
		b.shot("ended-" + user)
	}
}

func TestScenario_W3_W14_a_session_from_the_command_line_is_in_the_portal(t *testing.T) {
	id := sbatch(t, "bob", "--carme=base", "--carme-app=terminal", "--mem=500", "--wrap=:")
	t.Cleanup(func() { root(t, ctl, "scancel", id) })
	b := open(t)
	b.login("bob")
	b.do(goTo(portalURL + "/jobs/" + id))
	b.within(2*time.Minute, appears(ready))
	b.do(goTo(ask[string](b, "document.querySelector('"+ready+"').href")), appears(".xterm-helper-textarea"))
	b.clean()
}
