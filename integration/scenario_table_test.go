//go:build integration

package integration

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// row is what a job's row says in the open table, "" if there is none.
func (b *browser) row(id string) string {
	b.t.Helper()
	return ask[string](b, fmt.Sprintf(`(() => { for (const r of document.querySelectorAll("#jobtable tbody tr")) if (r.querySelector(".num").innerText.trim() === %q) return r.innerText; return "" })()`, id))
}

// mark leaves something in the page that a reload takes away.
func (b *browser) mark() {
	b.t.Helper()
	ask[bool](b, "window.itStayed = true")
}

// stayed fails the test if the page was loaded again since the mark.
func (b *browser) stayed() {
	b.t.Helper()
	if !ask[bool](b, "window.itStayed === true") {
		b.t.Error("the page was loaded again")
	}
}

// plain submits a job of bob's without Carme that does not outlive the test.
func plain(t *testing.T, name string, args ...string) string {
	t.Helper()
	return sbatch(t, "bob", append([]string{"-J", name, "--time=10"}, args...)...)
}

func TestScenario_W5_the_table_has_every_job_of_mine_and_nobody_elses(t *testing.T) {
	const sleep = "--wrap=exec sleep 170"
	good := plain(t, "it-good", "--wrap=true")
	bad := plain(t, "it-bad", "--wrap=exit 3")
	for _, id := range []string{good, bad} {
		awaitState(t, id, time.Minute, "COMPLETED", "FAILED")
	}
	runs := plain(t, "it-runs", "--mem=100", sleep)
	array := plain(t, "it-array", "--mem=100", "--array=1-4%2", sleep)
	held := plain(t, "it-held", "--hold", sleep)
	after := plain(t, "it-after", "--dependency=afterok:"+runs, sleep)
	later := plain(t, "it-later", "--begin=now+1hour", sleep)
	// More memory than is left while the first runs.
	queue := plain(t, "it-queue", "-N2", "--mem=15950", sleep)
	hers := sbatch(t, "alice", "-J", "it-hers", "--mem=100", "--wrap=exec sleep 170")
	session := sbatch(t, "bob", "-J", "it-session", "--carme=base", "--carme-app=terminal", "--mem=500", "--wrap=:")
	awaitState(t, runs, time.Minute, "RUNNING")
	awaitState(t, hers, time.Minute, "RUNNING")

	b := open(t, chromedp.WindowSize(1440, 1000))
	b.login("bob")
	b.do(goTo(portalURL+"/jobs"), appears("#jobtable tbody"))
	b.mark()
	at := `[0-9]{1,2}:[0-9]{2}`
	for _, c := range []struct{ id, name, says string }{
		{good, "it-good", `Ended\s+It finished without an error\.[\s\S]*took \d+ seconds?`},
		{bad, "it-bad", `Failed\s+It ended with exit code 3\.[\s\S]*took \d+ seconds?`},
		{runs, "it-runs", `Running[\s\S]*carme-node[12][\s\S]*since .*` + at + `[\s\S]*ends by .*` + at},
		{array + "_1", "it-array", `Running`},
		{array + "_2", "it-array", `Running`},
		{array + "_[3-4%2]", "it-array", `Queued\s+As many tasks of its array run as you allowed at once\.`},
		{held, "it-held", `Queued\s+You hold it back`},
		{after, "it-after", `Queued\s+It waits for another job\.`},
		{later, "it-later", `Queued\s+It waits for the time that was set for it\. Slurm expects to start it at .*` + at + `.*\.[\s\S]*asks for 10 minutes`},
		{queue, "it-queue", `Queued\s+(It waits until enough|Other jobs come first)`},
		{session, "it-session", `base[\s\S]*Ready[\s\S]*Open`},
	} {
		re := regexp.MustCompile(c.says)
		last := ""
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s: %q", c.name, last)
			}
		})
		eventually(t, 2*time.Minute, "the row of "+c.name+" that says "+c.says, func() bool {
			last = b.row(c.id)
			return strings.Contains(last, c.name) && re.MatchString(last)
		})
		if !regexp.MustCompile(at).MatchString(last) {
			t.Errorf("the row of %s has no time: %q", c.name, last)
		}
	}
	if b.row(hers) != "" || strings.Contains(b.text("#jobtable"), "it-hers") {
		t.Error("alice's job is in bob's table")
	}
	b.stayed()
	b.shot("table")
	b.axe("table")

	// Each has a page, what of the array waits too, and alice's has none.
	for id, heading := range map[string]string{array: "it-array", array + "_1": "it-array", held: "it-held", good: "it-good"} {
		b.do(goTo(portalURL + "/jobs/" + id))
		if got := b.text("h1"); got != heading {
			t.Errorf("the page of job %s is headed %q", id, got)
		}
	}
	b.do(goTo(portalURL + "/jobs/" + array))
	if got := b.text("#job-reason"); !strings.Contains(got, "As many tasks of its array") {
		t.Errorf("the array waits because %q", got)
	}
	b.do(goTo(portalURL + "/jobs/" + hers))
	if got := b.text("h1"); got != "There is nothing here" {
		t.Errorf("the page of alice's job is headed %q", got)
	}
	b.forgive() // of the 404

	// To stop one task stops that one; to stop what waits stops none that runs.
	tasks := func() []string {
		out := lines(root(t, ctl, "squeue", "-h", "-j", array, "-o", "%i %T").out)
		slices.Sort(out)
		return out
	}
	defer func() {
		if t.Failed() {
			t.Logf("of the array there are %q", tasks())
		}
	}()
	for _, c := range []struct {
		page string
		left []string
	}{{array, []string{array + "_1 RUNNING", array + "_2 RUNNING"}}, {array + "_1", []string{array + "_2 RUNNING"}}} {
		b.do(goTo(portalURL+"/jobs/"+c.page+"/stop"), click("form button.btn-danger"), appears("#jobhead"))
		eventually(t, 30*time.Second, "an end of what was stopped, and of no more", func() bool { return slices.Equal(tasks(), c.left) })
	}
	// And all of one at once.
	scancel(queue) // nothing starts before it
	all := plain(t, "it-all", "--mem=100", "--array=1-3%1", "--wrap=exec sleep 170")
	awaitState(t, all+"_1", time.Minute, "RUNNING")
	b.do(goTo(portalURL+"/jobs/"+all+"_1"), click("#stop-array"), appears("form button.btn-danger"))
	b.shot("whole-array")
	b.axe("the question about an array")
	b.do(click("form button.btn-danger"), appears("#jobhead"))
	eventually(t, 30*time.Second, "an end of all tasks", func() bool { return root(t, ctl, "squeue", "-h", "-j", all).out == "" })
	b.clean()
}

func TestScenario_W5_ten_open_tabs_follow_a_job_without_reload(t *testing.T) {
	b := open(t)
	b.login("bob")
	tabs := []*browser{b}
	for range 9 {
		tabs = append(tabs, b.attach())
	}
	for _, tab := range tabs {
		tab.do(goTo(portalURL+"/jobs"), appears("#jobtable"))
		tab.mark()
		if got := ask[string](tab, `performance.getEntriesByType("navigation")[0].nextHopProtocol`); got != "h2" {
			t.Errorf("the page came by %s", got)
		}
	}
	// Ten streams would be more than HTTP/1.1 has connections for; one more page
	// comes all the same.
	eventually(t, 30*time.Second, "streams of events", func() bool {
		return ask[bool](b, `document.querySelector("#offline").hidden`)
	})
	id := plain(t, "it-followed", "--hold", "--wrap=exec sleep 170")
	follow := func(what, says string) {
		start := time.Now()
		for i, tab := range tabs {
			eventually(t, time.Minute, fmt.Sprintf("%s in tab %d", what, i), func() bool { return strings.Contains(tab.row(id), says) })
		}
		t.Logf("%s was in all ten tabs after %v", what, time.Since(start).Round(100*time.Millisecond))
	}
	follow("a new job", "You hold it back")
	root(t, ctl, "scontrol", "release", id).ok(t)
	follow("its start", "Running")
	scancel(id)
	follow("its end", "It was cancelled.")
	for _, tab := range tabs {
		tab.stayed()
		tab.clean()
	}
}
