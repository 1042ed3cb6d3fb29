//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// kinds are the ways to start a program on node 1: each prints the PID namespace
// of what it started, if it started anything.
func kinds(t *testing.T, options ...string) map[string]func() result {
	t.Helper()
	const show = "readlink /proc/self/ns/pid"
	return map[string]func() result{
		"srun": func() result {
			return srun(t, "alice", append(append([]string{"-w", node1}, options...), "sh", "-c", show)...)
		},
		"sbatch": func() result {
			const out = "matrix.out"
			as(t, "alice", login, "rm", "-f", out).ok(t)
			r := as(t, "alice", login, append(append([]string{"timeout", "60", "sbatch", "--wait", "--time=1", "--no-requeue", "-w", node1, "-o", out}, options...), "--wrap", show)...)
			text := homeFile(t, "alice", out)
			// Both streams of the script are in one file.
			for _, line := range lines(text) {
				if strings.HasPrefix(line, "pid:[") {
					r.out = line
					return r
				}
			}
			r.out, r.err = "", strings.TrimSpace(r.err+"\n"+text)
			return r
		},
		"step in an allocation": func() result {
			r := as(t, "alice", login, append(append([]string{"timeout", "60", "salloc", "-Q", "--time=1", "-w", node1}, options...), "srun", "sh", "-c", show)...)
			return r
		},
	}
}

// broken are the states in which a node can have the plugin. Each is a script
// for root that brings it about.
func broken(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{
		"absent":            "rm " + plugin,
		"for another Slurm": "cat " + pluginDir + "/other.so >" + plugin,
		"unreadable":        "chmod 0 " + plugin,
		"rubbish":           "echo rubbish >" + plugin,
		"empty":             ": >" + plugin,
	}
}

// breaking puts a machine's plugin into a state until the test ends.
func breaking(t *testing.T, machine, script string) {
	t.Helper()
	unwatched(t, machine)
	undo(t, machine, fmt.Sprintf("if [ -e %[1]s.kept ]; then rm -f %[1]s && mv %[1]s.kept %[1]s; fi", plugin))
	// In place, never the file that running steps have mapped.
	sh(t, machine, fmt.Sprintf("cp -a %[1]s %[1]s.new && mv %[1]s %[1]s.kept && mv %[1]s.new %[1]s && { %[2]s; }", plugin, script))
}

// plainWorks runs a plain program in each way on node 1.
func plainWorks(t *testing.T) {
	t.Helper()
	for kind, start := range kinds(t) {
		if r := start(); r.code != 0 || sealed(t, node1, r.out) || r.out == "" {
			t.Errorf("plain %s: exit status %d, %q, %s", kind, r.code, r.out, r.err)
		}
	}
}

// neverUnsealed starts sealed programs on node 1 in each way: they run sealed, or not.
func neverUnsealed(t *testing.T) {
	t.Helper()
	for kind, start := range kinds(t, "--carme=none") {
		r := start()
		if r.out != "" && !sealed(t, node1, r.out) {
			t.Errorf("%s with --carme ran unsealed in %s", kind, r.out)
		}
		if r.out == "" && r.code == 0 {
			t.Errorf("%s with --carme printed nothing and succeeded", kind)
		}
	}
}

func TestFault_A14_J18_the_plugin_is_broken_on_every_machine(t *testing.T) {
	other := forAnotherSlurm(t)
	for _, m := range everywhere {
		place(t, m, pluginDir+"/other.so", other)
	}
	for state, script := range broken(t) {
		t.Run(state, func(t *testing.T) {
			for _, m := range everywhere {
				breaking(t, m, script)
			}
			plainWorks(t)
			neverUnsealed(t)
			idle(t)
		})
	}
}

func TestFault_A14_slurmd_starts_with_a_broken_plugin(t *testing.T) {
	place(t, node2, pluginDir+"/other.so", forAnotherSlurm(t))
	for state, script := range broken(t) {
		t.Run(state, func(t *testing.T) {
			undo(t, node2, "svc restart slurmd")
			breaking(t, node2, script)
			root(t, node2, "svc", "restart", "slurmd").ok(t)
			if r := srun(t, "alice", "-w", node2, "true"); r.code != 0 {
				t.Errorf("plain srun: %s", r.err)
			}
		})
	}
	idle(t)
}

// The plugin is broken on a node alone: srun and sbatch take --carme, and what
// keeps the job away is the node's feature, which "carme doctor --feature", run
// by contrib/slurm/health_check, takes from such a node.
func TestFault_J18_A14_the_plugin_is_broken_on_one_node(t *testing.T) {
	place(t, node1, pluginDir+"/other.so", forAnotherSlurm(t))
	for state, script := range broken(t) {
		if state == "unreadable" {
			continue // root reads it all the same
		}
		t.Run(state, func(t *testing.T) {
			breaking(t, node1, script)
			const feature = "scontrol update NodeName=" + node1 + " AvailableFeatures=%[1]s ActiveFeatures=%[1]s"
			undo(t, ctl, fmt.Sprintf(feature, "carme"))
			if r := root(t, node1, "timeout", "60", "carme", "doctor", "--feature"); r.code == 0 {
				t.Errorf("doctor finds nothing wrong:\n%s", r.out)
			}
			plainWorks(t)
			for kind, start := range map[string][]string{
				"srun":   {"timeout", "60", "srun", "--time=1", "-w", node1, "--carme=none", "readlink", "/proc/self/ns/pid"},
				"sbatch": {"sbatch", "-w", node1, "--carme=none", "--wrap", "true"},
				"salloc": {"timeout", "60", "salloc", "-w", node1, "--carme=none", "srun", "readlink", "/proc/self/ns/pid"},
			} {
				if r := as(t, "alice", login, start...); r.code == 0 {
					t.Errorf("%s on that node: %s", kind, r.out)
				}
			}
			if out := srun(t, "alice", "--carme=none", "hostname").ok(t); out != node2 {
				t.Errorf("without a wish the job ran on %s", out)
			}
			idle(t)
		})
	}
}

// A site that writes "required" gets the same from a plugin that is sound.
func TestFault_A14_J18_the_keyword_required_changes_nothing(t *testing.T) {
	for _, m := range everywhere {
		plugstack(t, m, "required "+plugin)
	}
	plainWorks(t)
	neverUnsealed(t)
	if out := srun(t, "alice", "-w", node1, "--carme=none", "readlink", "/proc/self/ns/pid").ok(t); !sealed(t, node1, out) {
		t.Errorf("a sealed step runs in %s", out)
	}
	srun(t, "alice", "-w", node1, "--carme=none", "--carme-bind=/nowhere/at/all", "true").fails(t)
	sh(t, node1, "touch /etc/carme/disabled")
	undo(t, node1, "rm -f /etc/carme/disabled")
	plainWorks(t)
	neverUnsealed(t)
	idle(t)
}

// Whoever writes "required" all the same, against what doctor says, loses plain
// jobs with a plugin that breaks; sealed ones never run unsealed.
func TestFault_J18_A2_the_keyword_required_with_a_broken_plugin(t *testing.T) {
	undo(t, ctl, "scontrol update NodeName="+node1+" State=RESUME 2>/dev/null || true")
	undo(t, node1, "svc restart slurmd")
	const line = "/etc/carme/plugstack.d/carme.conf"
	unwatched(t, node1)
	undo(t, node1, "sed -i s/^required/optional/ "+line)
	sh(t, node1, "sed -i s/^optional/required/ "+line)
	if r := root(t, node1, "timeout", "60", "carme", "doctor"); r.code == 0 || !strings.Contains(r.out, "optional") {
		t.Errorf("doctor has nothing to say of it:\n%s", r.out)
	}
	place(t, node1, pluginDir+"/other.so", forAnotherSlurm(t))
	for state, script := range broken(t) {
		if state == "unreadable" {
			continue // root reads it all the same
		}
		t.Run(state, func(t *testing.T) {
			breaking(t, node1, script)
			r := as(t, "alice", login, "timeout", "30", "srun", "--time=1", "-w", node1, "--carme=none", "readlink", "/proc/self/ns/pid")
			if r.code == 0 || strings.HasPrefix(r.out, "pid:") {
				t.Errorf("with --carme: %d, ran in %q", r.code, r.out)
			}
		})
	}
	// Their extern steps could not start (docs/limits.md).
	forgotten(t, node1)
}

// Without an agent, and in the moments before it has taken the node's feature away,
// the node itself says why it runs nothing sealed.
func TestFault_J18_A13_A14_the_kill_switch(t *testing.T) {
	up := down(t, node1, "stop", "carme-agent")
	// Whatever the tests before have left: nobody else changes it now.
	root(t, ctl, "scontrol", "update", "NodeName="+node1, "AvailableFeatures=carme", "ActiveFeatures=carme").ok(t)
	a := allocate(t, "alice", "-w", node1, "--carme=none")
	undo(t, node1, "rm -f /etc/carme/disabled")
	sh(t, node1, "touch /etc/carme/disabled")
	plainWorks(t)
	for kind, start := range kinds(t, "--carme=none", "--mem=10") {
		t.Run(kind, func(t *testing.T) {
			r := start()
			if r.out != "" {
				t.Errorf("it ran in %q", r.out)
			}
			r.fails(t, "Carme is switched off on this node (/etc/carme/disabled)", "run without --carme, or ask the admin")
		})
	}
	step := func() {
		t.Helper()
		if r := a.srun(t, "readlink", "/proc/self/ns/pid"); r.code != 0 || !sealed(t, node1, r.out) {
			t.Errorf("a further step of a running job: %d %s %s", r.code, r.out, r.err)
		}
	}
	step()
	up()
	turns(t, node1, false)
	for _, command := range [][]string{{"srun", "true"}, {"salloc", "true"}, {"sbatch", "--wrap", "true"}} {
		as(t, "alice", login, append([]string{"timeout", "30", command[0], "-w", node1, "--carme=none", "--mem=10"}, command[1:]...)...).
			fails(t, "--carme jobs run on "+node2+" only", node1+" cannot seal jobs off")
	}
	step()
	idle(t)
	root(t, ctl, "scancel", a.id).ok(t)
	sh(t, node1, "rm /etc/carme/disabled")
	turns(t, node1, true)
	nothingLeft(t, node1)
}

func TestFault_J18_each_element_of_an_array_is_sealed_or_does_not_run(t *testing.T) {
	// The kernel gives the number of a namespace that is gone to the next one.
	const script = "echo $CARME_JOB_INSTANCE $(readlink /proc/self/ns/pid)"
	as(t, "alice", login, "sh", "-c", "rm -f array-*.out").ok(t)
	id := sbatch(t, "alice", "--carme=none", "--array=1-6", "--mem=10", "-o", "array-%a.out", "--wrap", script)
	eventually(t, 60*time.Second, "end of the array", func() bool {
		return root(t, ctl, "squeue", "-h", "-j", id).out == ""
	})
	out := lines(as(t, "alice", login, "sh", "-c", "cat array-*.out").ok(t))
	seen := map[string]bool{}
	for _, line := range out {
		_, ns, _ := strings.Cut(line, " ")
		if seen[line] || !sealed(t, node1, ns) || !sealed(t, node2, ns) {
			t.Errorf("an element ran in %q", line)
		}
		seen[line] = true
	}
	if len(out) != 6 {
		t.Errorf("%d of 6 elements ran", len(out))
	}
	idle(t)
}
