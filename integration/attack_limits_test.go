//go:build integration

package integration

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// limited gives the role of users these limits until the test ends.
func limited(t *testing.T, limits string) {
	t.Helper()
	const file = "/etc/carme/backend.yaml"
	undo(t, ctl, "mv "+file+".kept "+file+" && svc restart carme-backend")
	sh(t, ctl, "cp -p "+file+" "+file+".kept && printf '\\nlimits:\\n  user: "+limits+"\\n' >>"+file+" && svc restart carme-backend")
}

func TestAttack_A4_W4_limits_of_a_role_hold_in_the_form_and_against_made_up_requests(t *testing.T) {
	limited(t, "{nodes: 1, gpus: 1, running: 2, minutes: 60, images: [base]}")
	v := visit(t, "alice").login()
	eventually(t, 30*time.Second, "the page with its form", func() bool { return strings.Contains(v.get("/").body, `id="start"`) })
	page := v.get("/").body
	if strings.Contains(page, `<option value="lab"`) || strings.Contains(page, `<option value="240"`) || strings.Contains(page, ">2</option>") {
		t.Error("the form offers what is beyond the limits")
	}
	csrf := v.token("/security")
	jobs := func() []string { return lines(root(t, ctl, "squeue", "-h", "-u", "alice", "-o", "%i").ok(t)) }
	for what, pairs := range map[string][]string{
		"nodes": {"nodes", "2"}, "GPUs": {"gpus", "2"}, "time": {"minutes", "61"}, "image": {"image", "lab", "app", "jupyterlab"},
		"GPUs over nodes": {"nodes", "2", "gpus", "1"}, "no number": {"gpus", "-1"}, "a huge number": {"nodes", "9223372036854775807"},
		"an overflow": {"gpus", "4294967297"}, "two kinds": {"gpu_type", "a100,gpu:l40s:2"}, "an image by path": {"image", "/images/lab.sif"},
	} {
		r, err := v.form(newID(t), csrf, pairs...)
		if err != nil || r.code < 400 || r.code >= 500 {
			t.Errorf("%s: %v, %s", what, err, r)
		}
		if left := jobs(); len(left) > 0 {
			t.Fatalf("%s: jobs %v", what, left)
		}
	}
	// Ten at once, of which two may run.
	var mu sync.Mutex
	var all sync.WaitGroup
	taken := 0
	for range 10 {
		id := newID(t)
		all.Go(func() {
			r, err := v.form(id, csrf)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && r.code == http.StatusSeeOther {
				taken++
			}
		})
	}
	all.Wait()
	if n := len(jobs()); taken != 2 || n != 2 {
		t.Errorf("%d were taken, %d jobs are there", taken, n)
	}
	if page := v.get("/").body; !strings.Contains(page, "You have as many jobs as you may, running or queued: 2.") {
		t.Error("the form does not say that no more may run")
	}
	// A job that is cancelled before it is set up leaves what its Prolog noted.
	for _, id := range jobs() {
		eventually(t, 60*time.Second, "set-up of job "+id, func() bool {
			return slices.ContainsFunc([]string{node1, node2}, func(node string) bool {
				return root(t, node, "test", "-S", "/run/carme/jobs/"+id+"/anchor.sock").code == 0
			})
		})
	}
	root(t, ctl, "scancel", "-u", "alice").ok(t)
	nothingLeft(t, node1)
	nothingLeft(t, node2)
}
