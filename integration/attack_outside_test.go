//go:build integration

package integration

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// pidNS shows the PID namespace that a step is in.
const pidNS = "readlink /proc/self/ns/pid"

var granted = regexp.MustCompile(`Granted job allocation (\d+)`)

// bare is an allocation of alice's on both nodes in which nothing runs: no node
// has heard of it but from slurmctld.
func bare(t *testing.T, args ...string) allocation {
	t.Helper()
	r := as(t, "alice", login, append([]string{"timeout", "60", "salloc", "--no-shell", "--time=3", "-N2", "-w", node1 + "," + node2, "--ntasks-per-node=2"}, args...)...)
	r.ok(t)
	m := granted.FindStringSubmatch(r.err)
	if m == nil {
		t.Fatalf("no allocation: %s", r.err)
	}
	t.Cleanup(func() { scancel(m[1]) })
	return allocation{m[1], "alice"}
}

// on runs a step in the job from the login node, where nothing tells of its
// options; variables are set for srun.
func (a allocation) on(t *testing.T, node string, variables []string, args ...string) result {
	t.Helper()
	command := append([]string{"timeout", "60", "srun", "--jobid=" + a.id, "--overlap", "-N1", "-n1", "-w", node}, args...)
	return as(t, a.user, login, prefix(command, variables...)...)
}

// unmade stops the test if a job is set up on a node.
func (a allocation) unmade(t *testing.T, node string) {
	t.Helper()
	if r := root(t, node, "test", "-e", "/run/carme/jobs/"+a.id+"/anchor.sock"); r.code == 0 {
		t.Fatalf("job %s is set up on %s already", a.id, node)
	}
}

// fresh stops the test unless the job's extern step is all that Slurm has started on
// a node: then the node cannot know the job by a step's options.
func (a allocation) fresh(t *testing.T, node string) {
	t.Helper()
	for _, line := range lines(root(t, ctl, "sacct", "-nP", "-j", a.id, "-o", "JobID,NodeList").ok(t)) {
		step, where, _ := strings.Cut(line, "|")
		if strings.Contains(step, ".") && !strings.HasSuffix(step, ".extern") && where == node {
			t.Fatalf("step %s has run on %s already", step, node)
		}
	}
}

func TestAttack_J18_a_step_from_outside_is_sealed_where_the_job_has_not_run(t *testing.T) {
	outside := map[string]struct {
		variables []string
		args      []string
		refused   bool
	}{
		"as it is":                   {},
		"--export=NONE":              {args: []string{"--export=NONE"}},
		"CARME=no":                   {variables: []string{"CARME=no"}},
		"as if it were a step alone": {variables: []string{"CARME_SCOPE=step", "CARME_JOB_IMAGE=x"}},
		"as if it were a plain job":  {variables: []string{"_SLURM_SPANK_OPTION_carme_carme=no"}, refused: true},
	}
	const show = pidNS + "; cat /etc/carme-image 2>/dev/null || true"
	for name, o := range outside {
		for where, seal := range seals {
			t.Run(name+" "+where, func(t *testing.T) {
				for kind, a := range map[string]allocation{
					"salloc":         bare(t, seal),
					"sbatch -N2":     allocate(t, "alice", "-N2", "-w", node1+","+node2, "--ntasks-per-node=2", seal),
					"sbatch by REST": posted(t, strings.TrimPrefix(seal, "--carme="), 2),
				} {
					node := node2
					if kind == "salloc" {
						node = node1
					}
					a.fresh(t, node)
					r := a.on(t, node, o.variables, append(o.args, "/bin/bash", "-c", show)...)
					if o.refused {
						r.fails(t, "submitted with --carme")
						r = a.on(t, node, nil, "/bin/bash", "-c", show)
					}
					out := lines(r.ok(t))
					if len(out) == 0 || !sealed(t, node, out[0]) {
						t.Errorf("%s: it ran unsealed: %q", kind, out)
					}
					if image := len(out) == 2; image != (seal == "--carme=base") {
						t.Errorf("%s: it is not in the job's image: %q", kind, out)
					}
					// And it shares what the job's own steps have there.
					if again := a.on(t, node, nil, "--carme="+strings.TrimPrefix(seal, "--carme="), "/bin/bash", "-c", pidNS).ok(t); len(out) > 0 && again != out[0] {
						t.Errorf("%s: a step with the job's options is in %q, not %q", kind, again, out)
					}
					scancel(a.id)
				}
			})
		}
	}
	for _, node := range []string{node1, node2} {
		nothingLeft(t, node)
	}
}

func TestAttack_J18_a_step_from_outside_cannot_take_the_seal_off(t *testing.T) {
	a := bare(t, "--carme=base", "--carme-net=private", "--carme-home=no")
	const look = pidNS + "; ip -o link | wc -l; ls -A /home/alice | wc -l"
	a.on(t, node1, nil, "--no-carme", "true").fails(t, "submitted with --carme", "--no-carme")
	if r := a.on(t, node1, nil, "--carme=no", "bash", "-c", pidNS); r.code == 0 && !sealed(t, node1, r.out) {
		t.Errorf("--carme=no takes it off: %s", r.out)
	}
	a.on(t, node1, nil, "--carme=base", "--carme-net=host", "true").fails(t, "--carme-net is fixed by the job's submission (private)")
	a.on(t, node1, nil, "--carme=base", "--carme-home=yes", "true").fails(t, "--carme-home is fixed by the job's submission (no)")
	a.unmade(t, node1)
	for what, args := range map[string][]string{"nothing": nil, "an image": {"--carme=base"}} {
		node := map[string]string{"nothing": node1, "an image": node2}[what]
		a.unmade(t, node)
		out := lines(a.on(t, node, nil, append(args, "bash", "-c", look)...).ok(t))
		if len(out) != 3 || !sealed(t, node, out[0]) || out[1] != "1" || out[2] != "0" {
			t.Errorf("a step that gives %s sees %q, not loopback alone and no home", what, out)
		}
	}
}

// A set-up that fails clears what it made, but not what tells of the job.
func TestAttack_J18_a_failed_set_up_does_not_make_the_job_plain(t *testing.T) {
	root(t, node1, "rm", "-rf", "/scratch/alice/it-later").ok(t)
	a := bare(t, "--carme=none", "--carme-bind=/scratch/alice/it-later:/tmp/x")
	for range 2 {
		a.on(t, node1, nil, "bash", "-c", pidNS).fails(t, "/scratch/alice/it-later")
	}
	root(t, node1, "install", "-d", "-o", "alice", "/scratch/alice/it-later").ok(t)
	if out := a.on(t, node1, nil, "bash", "-c", pidNS).ok(t); !sealed(t, node1, out) {
		t.Errorf("once it can, it runs in %s", out)
	}
}

// Other jobs remove what crashes left behind; a job that waits for its first step
// has left nothing behind.
func TestAttack_J18_a_job_is_remembered_however_long_it_waits(t *testing.T) {
	a := bare(t, "--carme=none")
	dir := "/run/carme/jobs/" + a.id
	root(t, node1, "touch", "-d", "3 hours ago", dir).ok(t)
	srun(t, "alice", "-w", node1, "--carme=none", "--mem=10", "true").ok(t)
	root(t, node1, "carme", "doctor", "--clean")
	a.fresh(t, node1)
	if out := a.on(t, node1, nil, "bash", "-c", pidNS).ok(t); !sealed(t, node1, out) {
		t.Errorf("after three hours it runs in %s", out)
	}
}

func TestScenario_J18_J16_plain_allocations_stay_plain(t *testing.T) {
	for name, args := range map[string][]string{"plain": nil, "on nodes that could": {"-C", "carme"}} {
		t.Run(name, func(t *testing.T) {
			a := bare(t, args...)
			for _, node := range []string{node1, node2} {
				if out := a.on(t, node, nil, "sh", "-c", pidNS).ok(t); out == "" || sealed(t, node, out) {
					t.Errorf("a step on %s runs in %q", node, out)
				}
				if r := root(t, node, "test", "-e", "/run/carme/jobs/"+a.id); r.code == 0 {
					t.Errorf("%s has a directory for it", node)
				}
			}
			// A step that asks is sealed, alone.
			if out := a.on(t, node1, nil, "--carme=none", "sh", "-c", pidNS).ok(t); !sealed(t, node1, out) {
				t.Errorf("a step with --carme runs in %q", out)
			}
			if out := a.on(t, node1, nil, "sh", "-c", pidNS).ok(t); sealed(t, node1, out) {
				t.Errorf("the next one without it runs in %q", out)
			}
		})
	}
}

// A first step from outside, with options, is not the srun whose job ends with it.
func TestScenario_J12_the_job_goes_on_after_a_step_from_outside(t *testing.T) {
	a := bare(t, "--carme=none")
	first := a.on(t, node1, nil, "--carme=none", "sh", "-c", pidNS).ok(t)
	if again := a.on(t, node1, nil, "--carme=none", "sh", "-c", pidNS).ok(t); again != first {
		t.Errorf("the second step is in %s, the first was in %s", again, first)
	}
}

func TestScenario_J12_J18_components_of_a_heterogeneous_job_are_known_too(t *testing.T) {
	id := sbatch(t, "alice", "--carme=none", "-w", node1, ":", "-w", node2, "--wrap", "echo up; exec sleep 170")
	eventually(t, 60*time.Second, "start of job "+id, func() bool { return strings.HasPrefix(homeFile(t, "alice", "it-"+id+".out"), "up") })
	r := as(t, "alice", login, "timeout", "60", "srun", "--jobid="+id, "--het-group=1", "--overlap", "sh", "-c", pidNS)
	if out := r.ok(t); !sealed(t, node2, out) {
		t.Errorf("the second component runs a step in %q", out)
	}
}

// posted submits a job as the portal does.
func posted(t *testing.T, image string, nodes int) allocation {
	t.Helper()
	const option = "_SLURM_SPANK_OPTION_carme_carme="
	reply := postJob(t, map[string]any{
		"script": "#!/bin/sh\necho up\nexec sleep 170\n", "current_working_directory": "/home/alice", "nodes": fmt.Sprint(nodes), "tasks_per_node": 2,
		"time_limit": map[string]any{"set": true, "number": 3}, "standard_output": "/home/alice/it-%j.out", "required_nodes": []string{node1, node2},
		"environment": []string{"PATH=/bin:/usr/bin", option + image}, "spank_environment": []string{option + image},
	})
	if reply.JobID == 0 {
		t.Fatalf("no job: %s", reply.text)
	}
	id := fmt.Sprint(reply.JobID)
	t.Cleanup(func() { scancel(id) })
	eventually(t, 60*time.Second, "start of job "+id, func() bool { return strings.HasPrefix(homeFile(t, "alice", "it-"+id+".out"), "up") })
	return allocation{id, "alice"}
}

// A step without options that slurmd has started just before the job's extern step
// ends finds the job's directory gone by the time it asks.
func TestAttack_J18_a_step_that_comes_after_its_jobs_end_is_not_plain(t *testing.T) {
	plugstack(t, node1, "optional "+besides(t, "testdata/late.c", "")+"\noptional "+plugin)
	a := bare(t, "--carme=none")
	undo(t, node1, "rm -f /run/late /run/late.held")
	sh(t, node1, "rm -f /run/late.held; touch /run/late")
	ended := make(chan result, 1)
	go func() { ended <- a.on(t, node1, nil, "sh", "-c", "echo in $("+pidNS+"); sleep 20") }()
	eventually(t, 60*time.Second, "a step on "+node1, func() bool { return root(t, node1, "test", "-e", "/run/late.held").code == 0 })
	directory := "/run/carme/jobs/" + a.id
	if root(t, node1, "test", "-e", directory).code != 0 {
		t.Fatalf("%s has no %s", node1, directory)
	}
	want := "carme: job " + a.id + " ends on this node"
	if stepd := pidOf(t, node1, "slurmstepd", a.id+".extern"); root(t, node1, "pkill", "-KILL", "-P", stepd).code == 0 {
		eventually(t, 60*time.Second, "end of "+directory, func() bool { return root(t, node1, "test", "-e", directory).code != 0 })
	} else { // since 25.11 nothing sleeps in an extern step, and only its own end ends it
		root(t, node1, "kill", "-KILL", stepd).ok(t)
		want = "carme: the job has no extern step on this node"
	}
	sh(t, node1, "rm /run/late")
	if r := <-ended; r.code == 0 || strings.Contains(r.out, "in pid:") || !strings.Contains(r.err, want) {
		t.Errorf("status %d, stdout %q, stderr %q", r.code, r.out, r.err)
	}
	// One of another job finds nothing of that, nor does it need to.
	srun(t, "alice", "-w", node1, "true").ok(t)
}

// What clears the directory of a job whose extern step was killed takes away what
// tells the node of the job, which Slurm may let live on.
func TestAttack_J18_a_job_whose_extern_step_was_killed_gets_no_plain_step(t *testing.T) {
	down(t, node1, "stop", "carme-agent") // which does as the doctor does
	for who, sweep := range map[string]func(){
		"the anchor":   nil,
		"the doctor":   func() { root(t, node1, "timeout", "60", "carme", "doctor", "--clean").ok(t) },
		"the next job": func() { srun(t, "alice", "-w", node1, "--carme=none", "--mem=10", "true").ok(t) },
	} {
		t.Run("cleared by "+who, func(t *testing.T) {
			a := bare(t, "--carme=none", "--mem=50")
			if out := a.on(t, node1, nil, "bash", "-c", pidNS).ok(t); !sealed(t, node1, out) {
				t.Fatalf("it runs in %s", out)
			}
			doomed := []string{pidOf(t, node1, "slurmstepd", a.id+".extern")}
			if sweep != nil { // and what the anchor would have ended: PID 1, and Slurm's own sleeper, where it has one
				doomed = append(doomed, lines(root(t, node1, "pgrep", "-x", "carme-anchor|carme-init").ok(t))...)
				doomed = append(doomed, lines(root(t, node1, "pgrep", "-fx", "sleep 100000000").out)...)
			}
			// One of them may go with another before its turn.
			if r := root(t, node1, append([]string{"kill", "-KILL"}, doomed...)...); r.code != 0 && !strings.Contains(r.err, "No such process") {
				r.ok(t)
			}
			directory := "/run/carme/jobs/" + a.id
			eventually(t, 30*time.Second, "end of "+directory, func() bool {
				if sweep != nil {
					sweep()
				}
				return !exists(t, node1, directory)
			})
			a.on(t, node1, nil, "bash", "-c", pidNS).fails(t, "job "+a.id+" ends on this node")
			if r := a.on(t, node1, nil, "--carme=none", "bash", "-c", pidNS); r.code == 0 {
				t.Errorf("a step with --carme ran: %s", r.out)
			}
			scancel(a.id)
			nothingRuns(t, node1)
		})
	}
	idle(t)
}
