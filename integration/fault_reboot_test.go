//go:build integration

package integration

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// reboots takes a node's power away and gives it back: its processes, mounts and
// /run are gone, its disk stays. What survives is a directory that is there again
// when the node comes up, as on a site that keeps it on a disk; "" for none.
func reboots(t *testing.T, node, survives string) {
	t.Helper()
	if survives != "" {
		sh(t, node, "rm -rf /var/tmp/it-survives && cp -a "+survives+" /var/tmp/it-survives")
	}
	began := time.Now()
	t.Cleanup(func() { run(t, "docker", "start", container(node)) }) // which it is, unless this fails halfway
	run(t, "docker", "kill", container(node)).ok(t)
	run(t, "docker", "start", container(node)).ok(t)
	if survives != "" {
		sh(t, node, "[ ! -e /run/testbed-up ] && mkdir -p $(dirname "+survives+") && mv /var/tmp/it-survives "+survives)
	}
	eventually(t, time.Minute, "the boot of "+node, func() bool { return exists(t, node, "/run/testbed-up") })
	t.Logf("%s was away for %v", node, time.Since(began).Round(100*time.Millisecond))
}

// serves says whether Slurm gives jobs to a node.
func serves(t *testing.T, node string) bool {
	t.Helper()
	state := root(t, ctl, "sinfo", "-h", "-N", "-p", "debug", "-n", node, "-o", "%T").ok(t)
	return state == "idle" || state == "mixed" || state == "allocated"
}

func TestFault_J14_A9_A15_W7_nodes_reboot_under_their_jobs(t *testing.T) {
	forgetAttempts(t)
	v := visit(t, "alice").login()
	nodes := map[string]struct{ survives, app string }{
		node1: {"", "jupyterlab"},
		node2: {"/run/carme", "terminal"},
	}
	jobs, apps := map[string][]string{}, map[string]opened{}
	for node, c := range nodes {
		batch := func(args ...string) string {
			return sbatch(t, "bob", append([]string{"--no-requeue", "--time=30", "-w", node}, args...)...)
		}
		jobs[node] = []string{batch("--wrap", "echo up; exec sleep 600"), batch("--carme=base", "--wrap", "echo up; srun --overlap sleep 600")}
		apps[node] = v.session(c.app, "--no-requeue", "--time=30", "--mem=1000", "-w", node)
		if r := v.enter(apps[node].origin + "/"); r.code != http.StatusOK {
			t.Fatalf("the app before: %s", r)
		}
	}
	for node, ids := range jobs {
		for _, id := range append(ids, apps[node].job) {
			// Slurm takes a batch job that its node does not know for one that is about
			// to start until this age (BatchStartTimeout and MessageTimeout).
			eventually(t, time.Minute, "an old job "+id, func() bool {
				age, err := time.ParseDuration(strings.Replace(root(t, ctl, "squeue", "-h", "-j", id, "-o", "%M").ok(t), ":", "m", 1) + "s")
				return err == nil && age > 21*time.Second
			})
		}
		for _, id := range ids {
			if out := homeFile(t, "bob", "it-"+id+".out"); out != "up" {
				t.Fatalf("job %s says %q", id, out)
			}
		}
	}
	for node, c := range nodes {
		reboots(t, node, c.survives)
	}
	for node := range nodes {
		t.Run(node, func(t *testing.T) {
			app := apps[node]
			recovers(t, 2*time.Minute, "the node, for Slurm", func() bool { return serves(t, node) })
			turns(t, node, true)
			for _, id := range append(jobs[node], app.job) {
				awaitState(t, id, time.Minute, "NODE_FAIL")
			}
			// The agent looks every ten seconds.
			recovers(t, 30*time.Second, "an end of what survived", func() bool { return root(t, node, "ls", "-A", "/run/carme/jobs").ok(t) == "" })
			nothingLeft(t, node)
			var told string
			recovers(t, time.Minute, "the end in words on the session's page", func() bool {
				_, body, _ := strings.Cut(v.get("/jobs/"+app.job).body, `id="jobhead"`)
				told = words(body)
				return told != "" && !strings.Contains(body, app.origin)
			})
			if told != "Its node failed. Start it again." {
				t.Errorf("the page says %q", told)
			}
			if r := v.get(app.origin + "/"); r.code != http.StatusNotFound || !strings.Contains(r.body, "There is no session here") {
				t.Errorf("the app afterwards: %s", r)
			}
			again := v.session("terminal", "-w", node)
			if r := v.enter(again.origin + "/"); r.code != http.StatusOK {
				t.Errorf("a new session there: %s", r)
			}
			scancel(again.job)
			for _, seal := range seals {
				srun(t, "alice", "-w", node, "--gres=gpu:1", seal, "nvidia-smi", "-L").ok(t)
			}
			nothingLeft(t, node)
		})
	}
	idle(t)
}
