//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"
)

// A set-up that breaks behind the start of PID 1 must leave nothing that the
// next step could join: mounts are missing there. A directory where the proof is
// to be written breaks it.
func TestFault_J18_nobody_joins_a_job_that_is_sealed_off_by_half(t *testing.T) {
	a := allocate(t, "alice", "-w", node1, "--gres=gpu:1")
	root(t, node1, "mkdir", "-p", "-m", "700", "/run/carme/jobs").ok(t)
	root(t, node1, "mkdir", "-p", "/run/carme/jobs/"+a.id+"/proof.json").ok(t)
	a.srun(t, "--carme=none", "true").fails(t, "proof")
	if left := root(t, node1, "ls", "/run/carme/jobs/"+a.id).out; left != "" {
		t.Errorf("the set-up that failed has left %q", left)
	}
	out := a.srun(t, "--carme=none", "sh", "-c", `ls /run/carme/job; grep " /run/carme " /proc/self/mountinfo`).ok(t)
	for _, want := range []string{"proof.json", "options", "/run/carme ro,"} {
		if !strings.Contains(out, want) {
			t.Errorf("the next step is in a job that lacks %q:\n%s", want, out)
		}
	}
}

func TestScenario_J15_the_admin_reads_the_proof_on_the_node(t *testing.T) {
	a := allocate(t, "alice", "-w", node1, "--carme=none")
	if out := root(t, node1, "carme", "proof", a.id).ok(t); !strings.Contains(out, "job "+a.id+" of alice") {
		t.Errorf("carme proof %s:\n%s", a.id, out)
	}
}

func TestScenario_J8_binds_are_there_in_a_second_image_too(t *testing.T) {
	as(t, "alice", node1, "touch", "/scratch/alice/bound").ok(t)
	a := allocate(t, "alice", "-w", node1, "--carme=base", "--carme-bind=/scratch/alice:/mnt/s")
	for _, image := range []string{"base", "base-dir"} {
		if out := a.srun(t, "--carme="+image, "ls", "/mnt/s").ok(t); !strings.Contains(out, "bound") {
			t.Errorf("in %s /mnt/s has %q", image, out)
		}
	}
}

func TestAttack_J2_an_epilog_of_the_user_gets_no_privileges(t *testing.T) {
	script := put(t, "alice", "ra-epilog", "#!/bin/sh\ngrep NoNewPrivs /proc/self/status > /home/alice/ra-epilog.out\n")
	srun(t, "alice", "-w", node1, "--carme=none", "--task-epilog="+script, "true").ok(t)
	if out := homeFile(t, "alice", "ra-epilog.out"); !strings.HasSuffix(out, "1") {
		t.Errorf("the epilog has %q", out)
	}
}

// Slurm's own slurmstepd must end well too: it takes its socket along.
func TestFault_J16_the_extern_step_of_a_sealed_job_ends_in_order(t *testing.T) {
	const left = `ls -d /var/spool/slurmd/*.4294967292 /run/carme/jobs/* 2>&1 | grep -v "No such"`
	before := root(t, node1, "sh", "-c", left).out
	for range 5 {
		srun(t, "alice", "-w", node1, "--carme=none", "true").ok(t)
	}
	eventually(t, 5*time.Second, "end of all that the jobs had", func() bool {
		return root(t, node1, "sh", "-c", left).out == before
	})
}
