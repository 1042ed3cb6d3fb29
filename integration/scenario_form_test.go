//go:build integration

package integration

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// options are the values of a list in the start form.
func (b *browser) options(selector string) []string {
	b.t.Helper()
	return ask[[]string](b, `[...document.querySelectorAll("`+selector+` option")].filter(o => !o.disabled).map(o => o.value)`)
}

// value is what a field of a form holds.
func (b *browser) value(selector string) string {
	b.t.Helper()
	return ask[string](b, `document.querySelector("`+selector+`").value`)
}

// limits gives every user limits until the test ends.
func limits(t *testing.T, yaml string) {
	t.Helper()
	const file = "/etc/carme/backend.yaml"
	undo(t, ctl, "if [ -e "+file+".it ]; then mv "+file+".it "+file+" && svc restart carme-backend; fi")
	sh(t, ctl, "cp -p "+file+" "+file+".it && printf '%s\\n' 'limits: "+yaml+"' >>"+file+" && svc restart carme-backend")
}

func TestScenario_W4_the_form_offers_what_the_cluster_has_and_the_user_may_use(t *testing.T) {
	for user, images := range map[string][]string{"bob": {"base", "base-dir", "lab"}, "carol": {"admins", "base", "base-dir", "lab"}} {
		t.Run(user, func(t *testing.T) {
			b := open(t)
			b.login(user)
			// The test before may have taken an image out a moment ago.
			eventually(t, 15*time.Second, "images "+strings.Join(images, ", "), func() bool {
				b.do(goTo(portalURL+"/"), appears("#image"))
				return slices.Equal(b.options("#image"), images)
			})
			if got := b.options("#gpu_type"); !slices.Equal(got, []string{"", "a100", "l40s"}) {
				t.Errorf("types of GPUs are %q", got)
			}
			// Two of each on each of two nodes.
			text := b.text("#gpu_type")
			for _, want := range []string{`A100 – \d of 4 free`, `L40S – \d of 4 free`} {
				if !regexp.MustCompile(want).MatchString(text) {
					t.Errorf("the types are offered as %q, without %q", text, want)
				}
			}
			b.do(choose("#gpu_type", "l40s"))
			if got := b.options("#gpus"); !slices.Equal(got, []string{"0", "1", "2"}) {
				t.Errorf("numbers of GPUs are %q", got)
			}
			// The partitions end after a day.
			if got := b.options("#minutes"); !slices.Contains(got, "1440") || slices.Contains(got, "2880") {
				t.Errorf("times are %q", got)
			}
			if got := b.options("#partition"); !slices.Equal(got, []string{"", "debug", "low"}) {
				t.Errorf("partitions are %q", got)
			}
			if got := ask[string](b, `document.querySelector("#nodes").max`); got != "2" {
				t.Errorf("at most %s nodes", got)
			}
			// An app brings an image that has it, and the other way round.
			b.do(choose("#image", "base"))
			if got := ask[string](b, `document.querySelector("input[name=app]:checked").value`); got != "terminal" {
				t.Errorf("with an image that has a terminal alone the app is %s", got)
			}
			b.do(click("label[for=app-jupyterlab]"))
			if got := b.value("#image"); got != "lab" {
				t.Errorf("with JupyterLab the image is %s", got)
			}
			b.clean()
		})
	}
}

func TestScenario_W4_a_partition_of_other_groups_is_not_offered(t *testing.T) {
	undo(t, ctl, "scontrol update partitionname=low AllowGroups=ALL")
	sh(t, ctl, "scontrol update partitionname=low AllowGroups=carme-admins")
	low := regexp.MustCompile(`<option[^>]*>low</option>`)
	for user, offered := range map[string]bool{"bob": false, "carol": true} {
		v := visit(t, user).login()
		recovers(t, time.Minute, "what "+user+" is offered", func() bool { return low.MatchString(v.get("/").body) == offered })
	}
}

func TestScenario_W4_the_form_knows_the_limits_of_the_user(t *testing.T) {
	limits(t, "{user: {gpus: 1, nodes: 1, minutes: 90, running: 1, images: [base, lab]}, admin: {}}")
	v := visit(t, "bob")
	recovers(t, time.Minute, "logins", func() bool { r, err := v.try("GET", "/login", ""); return err == nil && r.code == http.StatusOK })
	b := open(t)
	b.login("bob")
	for selector, want := range map[string][]string{"#gpus": {"0", "1"}, "#minutes": {"30", "60", "90"}, "#image": {"base", "lab"}} {
		if got := b.options(selector); !slices.Equal(got, want) {
			t.Errorf("%s offers %q, not %q", selector, got, want)
		}
	}
	if got := ask[string](b, `document.querySelector("#nodes").max`); got != "1" {
		t.Errorf("at most %s nodes", got)
	}
	b.shot("limits")
	b.clean()
	// Who sends more all the same is told at the field.
	v.login()
	r := v.post("/", "/jobs", "id", newID(t), "image", "base", "app", "terminal", "gpus", "2", "nodes", "1", "minutes", "600")
	if r.code != http.StatusUnprocessableEntity || !strings.Contains(fieldProblem(r, "gpus"), "You may ask for 1 at most") || !strings.Contains(fieldProblem(r, "minutes"), "90 minutes at most") {
		t.Errorf("more than allowed: %d, %q, %q", r.code, fieldProblem(r, "gpus"), fieldProblem(r, "minutes"))
	}
	// And a second job beside the first is not offered.
	id := sbatch(t, "bob", "--hold", "--wrap=:")
	recovers(t, 30*time.Second, "the limit on the page", func() bool {
		return strings.Contains(v.get("/").body, "You may have one job at a time")
	})
	scancel(id)
}

// fieldProblem is the message at a field of the start form.
func fieldProblem(r reply, field string) string {
	m := regexp.MustCompile(`(?s)id="` + field + `-problem">(.*?)</p>`).FindStringSubmatch(r.body)
	if m == nil || !strings.Contains(r.body, `aria-describedby="`+field+`-problem"`) && field != "app" {
		return ""
	}
	return m[1]
}

// shared are the settings that make two jobs the same work.
var shared = []string{
	"JobName", "UserId", "GroupId", "QOS", "Account", "TimeLimit", "Partition", "NumNodes", "NumCPUs", "NumTasks", "CPUs/Task", "ReqTRES",
	"MinCPUsNode", "MinMemoryNode", "MinMemoryCPU", "Features", "TresPerNode", "OverSubscribe", "Requeue", "Licenses", "Network", "WorkDir", "StdErr", "StdOut",
}

// settings reads them out of scontrol. The id is left out of file names.
func settings(t *testing.T, id string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, line := range lines(root(t, ctl, "scontrol", "show", "job", id).ok(t)) {
		for _, name := range shared {
			m := regexp.MustCompile(`(?:^|\s)` + regexp.QuoteMeta(name) + `=(.*)$`).FindStringSubmatch(line)
			if m == nil {
				continue
			}
			value := regexp.MustCompile(`\s+[A-Z][A-Za-z/:_]*=.*$`).ReplaceAllString(m[1], "")
			if all[name] = value; strings.HasPrefix(name, "Std") {
				all[name] = strings.ReplaceAll(value, id, "%j")
			}
		}
	}
	return all
}

func TestScenario_W4_the_command_shown_makes_the_same_job_as_the_form(t *testing.T) {
	b := open(t)
	b.login("bob")
	b.do(click("label[for=app-terminal]"), choose("#image", "base"), choose("#gpu_type", "l40s"), choose("#gpus", "2"), choose("#minutes", "120"),
		click("details.more summary"), fill("#name", `my "run" 2`), fill("#cpus", "3"), fill("#memory", "2"), choose("#partition", "debug"))
	b.do(click("#start button[formaction]"))
	script := b.text("#script-text")
	b.shot("command")
	b.do(click("[data-copy=script-text]"))
	eventually(t, 10*time.Second, "the copy, or the text marked for one", func() bool {
		return strings.Contains(b.text("[data-copy=script-text]"), "Copied") || strings.Contains(ask[string](b, "getSelection().toString()"), "#SBATCH")
	})
	b.axe("command")
	b.do(click(startButton), appears("#jobhead"))
	form := b.jobNumber()
	// From another directory than the home, to be hard on it.
	put(t, "bob", "it-shown/job.sh", script+"\n")
	shown := as(t, "bob", login, "sh", "-c", "cd it-shown && sbatch --parsable job.sh").ok(t)
	t.Cleanup(func() { scancel(shown) })
	// Both are sessions with the same app in the same image.
	v := visit(t, "bob").login()
	facts := regexp.MustCompile(`(?s)<dt>Image</dt><dd>base</dd>.*<dt>App</dt><dd>Terminal</dd>`)
	for _, id := range []string{form, shown} {
		v.origin(id)
		if r := v.get("/jobs/" + id); !facts.MatchString(r.body) {
			_, details, _ := strings.Cut(r.body, `id="job-facts"`)
			t.Errorf("the page of job %s does not say image and app: %.600s", id, details)
		}
	}
	one, other := settings(t, form), settings(t, shown)
	for _, name := range shared {
		if one[name] != other[name] {
			t.Errorf("%s is %q by the form and %q by the command", name, one[name], other[name])
		}
	}
	for name, want := range map[string]string{"JobName": `my "run" 2`, "TimeLimit": "02:00:00", "TresPerNode": "gres/gpu:l40s:2", "CPUs/Task": "3", "MinMemoryNode": "2G", "Partition": "debug"} {
		if one[name] != want {
			t.Errorf("%s is %q, not %q", name, one[name], want)
		}
	}
	b.clean()
}

func TestScenario_W4_a_wrong_value_is_refused_at_its_field_and_nothing_typed_is_lost(t *testing.T) {
	b := open(t)
	b.login("bob")
	b.do(click("label[for=app-terminal]"), choose("#image", "base-dir"), choose("#gpu_type", "l40s"), choose("#gpus", "0"), choose("#minutes", "60"), click("details.more summary"),
		fill("#name", "kept name"), fill("#memory", "9000"), fill("#account", "a b"), fill("#qos", "normal"), click(startButton), appears("#account-problem"))
	for field, want := range map[string]string{"memory": "No node has more than", "account": "Letters, digits and ._- only"} {
		if got := b.text("#" + field + "-problem"); !strings.Contains(got, want) {
			t.Errorf("%s: %q", field, got)
		}
	}
	if got := ask[string](b, "document.activeElement.id"); got != "memory" {
		t.Errorf("the focus is at %q, not at the first wrong field", got)
	}
	kept := map[string]string{
		"#image": "base-dir", "#gpu_type": "l40s", "#gpus": "0", "#minutes": "60", "#name": "kept name", "#memory": "9000", "#account": "a b", "#qos": "normal",
		"input[name=app]:checked": "terminal",
	}
	for selector, want := range kept {
		if got := b.value(selector); got != want {
			t.Errorf("%s holds %q, not %q", selector, got, want)
		}
	}
	b.shot("refused")
	b.axe("refused form")
	// Mended, it starts: nothing has to be typed again.
	b.do(chooseText("#memory", "1"), chooseText("#account", ""), click(startButton), appears("#jobhead"))
	id := b.jobNumber()
	if got := settings(t, id); got["JobName"] != "kept name" || got["MinMemoryNode"] != "1G" {
		t.Errorf("the job is %v", got)
	}
	b.forgive() // of the 422
	// Without a browser's own checks, and in German.
	v := visit(t, "bob").login()
	csrf := v.token("/security")
	for name, c := range map[string]struct{ field, value, en, de string }{
		"no number":         {"nodes", "two", "Enter a whole number", "Geben Sie eine ganze Zahl ein"},
		"too many nodes":    {"nodes", "7", "It must be 1 to 2.", "Erlaubt ist 1 bis 2."},
		"too many GPUs":     {"gpus", "3", "no node has more", "mehr hat kein Knoten"},
		"no such GPU":       {"gpu_type", "h100", "The cluster has no such GPU", "Eine solche GPU hat der Cluster nicht"},
		"too long":          {"minutes", "2000", "It must be 1 to 1440.", "Erlaubt ist 1 bis 1440."},
		"a foreign image":   {"image", "admins", "or you may not use it", "oder Sie dürfen es nicht benutzen"},
		"no such partition": {"partition", "secret", "There is no such partition", "Diese Partition gibt es nicht"},
	} {
		t.Run(name, func(t *testing.T) {
			for language, want := range map[string]string{"en": c.en, "de": c.de} {
				r := v.send("POST", "/jobs", formOf(csrf, newID(t), c.field, c.value), formType, "Accept-Language: "+language)
				if r.code != http.StatusUnprocessableEntity || !strings.Contains(fieldProblem(r, c.field), want) {
					t.Errorf("%s: %d %q", language, r.code, fieldProblem(r, c.field))
				}
				if c.field == "nodes" && !strings.Contains(r.body, `value="`+c.value+`"`) {
					t.Error("what was typed is lost")
				}
			}
		})
	}
	// What only Slurm knows is said in its words, above the form.
	undo(t, ctl, "scontrol update partitionname=low State=UP")
	sh(t, ctl, "scontrol update partitionname=low State=DRAIN") // sooner than the portal can know
	r := v.send("POST", "/jobs", formOf(csrf, newID(t), "partition", "low", "name", "kept"), formType, "Accept-Language: de")
	if r.code != http.StatusUnprocessableEntity || !strings.Contains(words(r.body), "Slurm hat den Job abgelehnt: Required partition not available") || !strings.Contains(r.body, `value="kept"`) {
		t.Errorf("a partition that takes no jobs: %d %s", r.code, words(r.body))
	}
}

func TestScenario_W6_a_full_or_unreachable_home_is_named_before_the_start(t *testing.T) {
	for name, c := range map[string]struct{ user, on, off, en, de string }{
		"full": {
			"bob", "mount -t tmpfs -o size=64k,mode=700,uid=$(id -u bob),gid=$(id -g bob) none /home/bob && head -c 100000 /dev/zero >/home/bob/all 2>/dev/null; true",
			"umount -l /home/bob", "Your home directory is full", "Ihr Home-Verzeichnis ist voll",
		},
		"unreachable": {
			"carol", "mkdir -p /tmp/it-home && mksquashfs /tmp/it-home /tmp/it-home.sqfs -quiet -noappend >/dev/null && squashfuse -o allow_other /tmp/it-home.sqfs /home/carol >/dev/null 2>&1 && pkill -STOP -x squashfuse",
			"pkill -KILL -x squashfuse; umount -l /home/carol; rm -rf /tmp/it-home /tmp/it-home.sqfs", "Your home directory cannot be reached", "Ihr Home-Verzeichnis ist nicht erreichbar",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, node := range []string{node1, node2} {
				undo(t, node, "("+c.off+") >/dev/null 2>&1; true")
				sh(t, node, c.on)
			}
			b := open(t)
			b.login(c.user)
			recovers(t, time.Minute, "the warning", func() bool { // what was seen is believed for half a minute
				b.do(goTo(portalURL+"/"), appears("#start"))
				return b.has("#home-problem")
			})
			if got := b.text("#home-problem"); !strings.Contains(got, c.en) {
				t.Errorf("the page says %q", got)
			}
			// Above the form: whoever goes on has seen it.
			if !ask[bool](b, `document.querySelector("#home-problem").getBoundingClientRect().bottom <= document.querySelector("#start").getBoundingClientRect().top`) {
				t.Error("the warning is not above the form")
			}
			b.shot(name)
			b.axe(name)
			b.do(click("button[name=lang][value=de]"), appears("html[lang=de] #home-problem"))
			if got := b.text("#home-problem"); !strings.Contains(got, c.de) {
				t.Errorf("in German the page says %q", got)
			}
			for _, node := range []string{node1, node2} {
				sh(t, node, "("+c.off+") >/dev/null 2>&1; true")
			}
			recovers(t, time.Minute, "a page without the warning", func() bool {
				b.do(goTo(portalURL+"/"), appears("#start"))
				return !b.has("#home-problem")
			})
			b.clean()
		})
	}
}

func TestScenario_W4_what_was_typed_outlives_the_end_of_the_login(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*browser)
		says string
	}{
		"the page hears of it": {func(b *browser) {
			root(b.t, ctl, "carme", "end-logins", "bob").ok(b.t)
			eventually(b.t, 30*time.Second, "the login page", func() bool { return b.has("#username") })
		}, "Your login has ended. Please log in again."},
		"the form is sent without it": {func(b *browser) {
			if _, err := chromedp.Call(b.ctx, network.DeleteCookies, network.DeleteCookiesParams{Name: portalCookie, URL: portalURL}); err != nil {
				b.t.Fatal(err)
			}
			b.do(click(startButton), appears(".empty h1"))
		}, "This form is too old"},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t)
			b.login("bob")
			b.do(click("label[for=app-terminal]"), choose("#minutes", "60"), click("details.more summary"), fill("#name", "half a name"), fill("#memory", "3"))
			c.end(b)
			if got := b.text("main"); !strings.Contains(got, c.says) {
				t.Errorf("the page says %q", got)
			}
			b.login("bob")
			for selector, want := range map[string]string{"#name": "half a name", "#memory": "3", "#minutes": "60", "input[name=app]:checked": "terminal"} {
				if got := b.value(selector); got != want {
					t.Errorf("%s holds %q, not %q", selector, got, want)
				}
			}
			b.do(click("label[for=app-terminal]"), chooseText("#name", "bob's"))
			c.end(b)
			b.login("alice")
			if got := b.value("#name"); got != "" {
				t.Errorf("somebody else finds %q", got)
			}
			b.forgive() // of answers to who is not logged in
			b.clean()
		})
	}
}

// What the form will start is what can be seen of it.
func TestScenario_W4_the_form_hides_nothing(t *testing.T) {
	b := open(t)
	b.login("alice")
	opened := func() bool { return ask[bool](b, "document.querySelector('details.more').open") }
	if opened() {
		t.Error("what few people need is open at first")
	}
	// A wrong value that is folded away.
	_ = ask[string](b, "document.getElementById('nodes').value = '99'")
	b.do(click(startButton))
	eventually(t, 5*time.Second, "the field that is wrong", opened)
	if b.path() != "/" {
		t.Errorf("it was sent: %s", b.path())
	}
	// Who goes elsewhere and comes back.
	b.do(goTo(portalURL+"/"), click("label[for=app-terminal]"))
	_ = ask[string](b, "document.getElementById('nodes').value = '2'")
	b.do(click("nav a[href='/jobs']"), appears("table"), chromedp.NavigateBack(), appears(startButton))
	eventually(t, 5*time.Second, "the button of what was chosen", func() bool { return strings.Contains(b.text(startButton), "Terminal") })
	if nodes := ask[string](b, "document.getElementById('nodes').value"); nodes != "1" && !opened() {
		t.Errorf("%s nodes are hidden", nodes)
	}
	// The limits follow what runs, and with them what is free.
	free := func() string { return regexp.MustCompile(`\d+ of \d+ free`).FindString(b.text("#cluster")) }
	before, all := b.text("#limits"), free()
	id := sbatch(t, "alice", "--carme=base", "--mem=500", "--gres=gpu:a100:1", "--wrap", "sleep 100")
	eventually(t, 30*time.Second, "one more active job with a GPU", func() bool { return regexp.MustCompile(`GPUs in use\s+1\b`).MatchString(b.text("#limits")) })
	if now := free(); all != "4 of 4 free" || now != "3 of 4 free" {
		t.Errorf("of A100 there were %s, and with the job %s", all, now)
	}
	if option := ask[string](b, `document.querySelector("#gpu_type option[value=a100]").textContent`); !strings.Contains(option, "3 of 4 free") {
		t.Errorf("the form says %q", option)
	}
	b.shot("limits")
	scancel(id)
	eventually(t, 30*time.Second, "one less", func() bool { return b.text("#limits") == before && free() == all })
	// A form that is wrong has no command, but says what to change.
	_ = ask[string](b, "document.getElementById('nodes').value = 'two'; document.getElementById('cpus').value = '-1'; document.querySelector('details.more').open = false; ''")
	b.do(click("button[formaction='/script']"), appears("#script [role=alert] a[href='#cpus']"))
	if got := b.text("#script"); !strings.Contains(got, "CPUs per node: It must be 0 or more.") || strings.Contains(got, "#SBATCH") {
		t.Errorf("instead of the command: %q", got)
	}
	b.shot("no-command")
	b.axe("a form without a command")
	b.do(click("#script a[href='#cpus']"))
	eventually(t, 5*time.Second, "the field that is named", opened)
	b.do(chooseText("#cpus", "1"))
	if got := ask[string](b, "document.getElementById('script').textContent"); got != "" {
		t.Errorf("of another form there is still %q", got)
	}
	b.clean()
}
