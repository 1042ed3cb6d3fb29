//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"
)

// madeEarly waits until the extern step has set a job up on a node on which no step
// of it has run, and returns the job's PID namespace there, as pidNS prints it.
func madeEarly(t *testing.T, node string, a allocation) string {
	t.Helper()
	if suite() == "forky" {
		t.Skip("since Slurm 25.11 the extern step has no process beside which the anchor could be born; the first step sets the job up")
	}
	a.fresh(t, node)
	var inside string
	eventually(t, 20*time.Second, "set-up of job "+a.id+" on "+node, func() bool {
		inside = root(t, node, "sh", "-c", `[ -e /run/carme/jobs/`+a.id+`/anchor.sock ] && for p in $(pgrep -x carme-init); do readlink /proc/$p/ns/pid; done`).out
		return inside != "" && root(t, node, "test", "-e", "/run/carme/jobs/"+a.id+"/extern").code == 0
	})
	if n := len(lines(inside)); n != 1 {
		t.Fatalf("%d jobs are set up on %s, not one", n, node)
	}
	return lines(inside)[0]
}

// known lets both nodes learn which GPUs they have: the extern step may not ask
// NVML, which a step does once.
func known(t *testing.T) {
	t.Helper()
	srun(t, "alice", "-N2", "--carme=none", "true").ok(t)
	for _, node := range []string{node1, node2} {
		nothingLeft(t, node)
	}
}

// Its cgroups are there some tens of milliseconds before its first step.
func TestScenario_J4_the_extern_step_sets_a_job_up_for_its_first_step(t *testing.T) {
	known(t)
	a := bare(t, "--carme=none", "--carme-net=private")
	for _, node := range []string{node1, node2} {
		want := madeEarly(t, node, a)
		for what, args := range map[string][]string{"with the job's options": {"--carme=none", "--carme-net=private"}, "without any": nil} {
			if got := a.on(t, node, nil, append(args, "bash", "-c", pidNS)...).ok(t); got != want {
				t.Errorf("%s: a step %s is in %s, not in %s", node, what, got, want)
			}
		}
		if links := a.on(t, node, nil, "ip", "-o", "link").ok(t); len(lines(links)) != 1 {
			t.Errorf("%s: not the private network that the job asked for:\n%s", node, links)
		}
	}
	scancel(a.id)
	for _, node := range []string{node1, node2} {
		nothingLeft(t, node)
	}
}

// What the extern step has made is of no use to a first step that asks for other
// things than the submission; of its end nothing is to be seen.
func TestScenario_J4_a_first_step_with_options_of_its_own_gets_them(t *testing.T) {
	known(t)
	a := bare(t, "--carme=none")
	madeEarly(t, node1, a)
	// Numbers of namespaces are given anew at once, those of processes are not.
	early := root(t, node1, "pgrep", "-x", "carme-init").ok(t)
	out := lines(a.on(t, node1, nil, "--carme=none", "--carme-workdir=/var/tmp", "bash", "-c", pidNS+"; pwd").ok(t))
	if len(out) != 2 || !sealed(t, node1, out[0]) || out[1] != "/var/tmp" {
		t.Fatalf("it prints %q", out)
	}
	if now := root(t, node1, "pgrep", "-x", "carme-init").ok(t); len(lines(early)) != 1 || now == early {
		t.Errorf("the job's first process is %s, the extern step had started %s", now, early)
	}
	if got := a.on(t, node1, nil, "bash", "-c", pidNS).ok(t); got != out[0] {
		t.Errorf("the next step is in %s, not in %s", got, out[0])
	}
	if n := len(lines(root(t, node1, "pgrep", "-x", "carme-init").ok(t))); n != 1 {
		t.Errorf("%d sets of namespaces are on the node", n)
	}
	scancel(a.id)
	nothingLeft(t, node1)
}

// A step that is refused takes nothing away from the job.
func TestAttack_J18_a_refused_first_step_leaves_the_job_sealed(t *testing.T) {
	known(t)
	a := bare(t, "--carme=none", "--carme-net=private")
	madeEarly(t, node1, a)
	for range 2 {
		a.on(t, node1, nil, "--carme=none", "--carme-net=host", "true").fails(t, "--carme-net is fixed by the job's submission (private)")
		a.on(t, node1, nil, "--no-carme", "true").fails(t, "--no-carme")
	}
	out := lines(a.on(t, node1, nil, "bash", "-c", pidNS+"; ip -o link").ok(t))
	if len(out) != 2 || !sealed(t, node1, out[0]) {
		t.Errorf("a step without options prints %q", out)
	}
}

// What goes wrong in the extern step, where nobody is told, goes wrong for nobody.
func TestFault_J14_an_early_set_up_that_fails_or_hangs_is_made_again(t *testing.T) {
	const host = "/usr/libexec/carme/carme-host"
	for name, script := range map[string]string{
		"it fails":      "exit 1",
		"it is killed":  "kill -9 $$",
		"it hangs":      "cat <&4 >/dev/null 2>&1 &", // until the job ends
		"it is not run": "exec /nonexistent",
	} {
		t.Run(name, func(t *testing.T) {
			nothingLeft(t, node1)
			undo(t, node1, "mv -f "+host+".away "+host)
			sh(t, node1, "mv "+host+" "+host+".away; printf '%s\\n' '#!/bin/sh' '[ \"$1\" = early ] || exec "+host+".away \"$@\"' '"+script+"' >"+host+"; chmod 755 "+host)
			r := srun(t, "alice", "-w", node1, "--carme=none", "bash", "-c", pidNS)
			if out := r.ok(t); !sealed(t, node1, out) || strings.TrimSpace(r.err) != "" {
				t.Errorf("it runs in %s, and says %q", out, r.err)
			}
			nothingLeft(t, node1)
			idle(t)
		})
	}
}
