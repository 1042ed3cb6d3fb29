//go:build integration

package integration

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// where leaves the PID namespace that a batch script runs in as the name of a
// directory: a user's limits may keep it from more. The file of limits shows
// that they hold.
const where = `#!/usr/bin/perl
my $dir = "/home/alice/it-limits/$ENV{SLURM_JOB_ID}"; mkdir $dir;
mkdir "$dir/" . readlink("/proc/self/ns/pid");
open my $f, "<", "/proc/self/limits" or exit 0;
while (<$f>) { s/\s+/ /g; mkdir "$dir/$1" if /^(Max (?:file size|open files|processes|core file size|stack size|address space) \S+)/; }
`

// With any limits of its own a job is sealed or does not run, and the node
// remains as it was.
func TestAttack_J2_J14_tiny_limits_take_no_seal_off(t *testing.T) {
	as(t, "alice", login, "sh", "-c", "rm -rf it-limits; mkdir it-limits").ok(t)
	type job struct{ id, what, seal string }
	var jobs []job
	for what, limits := range map[string][]string{
		"hardly any file": {"NOFILE=4"},
		"few files":       {"NOFILE=16"},
		"no process":      {"NPROC=1"},
		"few addresses":   {"AS=50000000"},
		"no stack":        {"STACK=4096"},
		"small stack":     {"STACK=65536"},
		"all of them":     {"NOFILE=8", "NPROC=1", "FSIZE=0", "AS=50000000", "STACK=131072", "CORE=0", "DATA=1000000", "MEMLOCK=0"},
	} {
		for _, seal := range []string{"", "none", "base"} {
			environment, options := []string{"PATH=/bin:/usr/bin"}, []string{}
			for _, l := range limits {
				environment = append(environment, "SLURM_RLIMIT_"+l, "SLURM_RLIMIT_"+strings.Replace(l, "=", "=U", 1))
			}
			if seal != "" {
				options = append(options, "_SLURM_SPANK_OPTION_carme_carme="+seal)
			}
			reply := postJob(t, map[string]any{
				"script": where, "current_working_directory": "/home/alice", "time_limit": map[string]any{"set": true, "number": 1},
				"standard_output": "/home/alice/it-%j.out", "required_nodes": []string{node1}, "memory_per_node": map[string]any{"set": true, "number": 20},
				"environment": append(environment, options...), "spank_environment": options,
			})
			if reply.JobID == 0 {
				t.Fatalf("no job: %s", reply.text)
			}
			id := fmt.Sprint(reply.JobID)
			t.Cleanup(func() { scancel(id) })
			jobs = append(jobs, job{id, what, seal})
		}
	}
	ran := map[string]int{}
	hold := map[string]string{"few files": "Max open files 16", "no process": "Max processes 1", "few addresses": "Max address space 50000000", "small stack": "Max stack size 65536"}
	for _, j := range jobs {
		awaitState(t, j.id, 90*time.Second, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY")
		seen := lines(as(t, "alice", login, "ls", "it-limits/"+j.id).out)
		for _, name := range seen {
			if !strings.HasPrefix(name, "pid:[") {
				continue
			}
			ran[j.seal]++
			if j.seal != "" && !sealed(t, node1, name) {
				t.Errorf("%s, --carme=%s: it ran unsealed", j.what, j.seal)
			}
		}
		if want := hold[j.what]; want != "" && !slices.Contains(seen, want) {
			t.Errorf("%s, --carme=%s: the limit does not hold: %q", j.what, j.seal, seen)
		}
	}
	t.Logf("of %d limits each ran %v", len(jobs)/3, ran)
	nothingLeft(t, node1)
	idle(t)
}

// srun itself has the limits too, and says in a line what it cannot do with them.
func TestAttack_J14_tiny_limits_of_srun_are_refused_in_a_line_or_do_no_harm(t *testing.T) {
	for limit, words := range map[string]string{"-f 0": "", "-v 200000": "ulimit -v is too low", "-n 12": "ulimit -n is too low", "-S -n 12": "", "-c 0": ""} {
		t.Run(limit, func(t *testing.T) {
			r := as(t, "alice", login, "timeout", "20", "bash", "-c", "ulimit "+limit+"; exec sbatch --parsable --carme=base -w "+node1+" --mem=10 --time=1 -o /dev/null --wrap true")
			if words != "" {
				r.fails(t, words)
				return
			}
			scancel(r.ok(t))
		})
	}
}

func TestFault_J14_who_reads_the_options_is_killed(t *testing.T) {
	const host = "/usr/libexec/carme/carme-host"
	undo(t, login, "mv -f "+host+".away "+host)
	sh(t, login, "mv "+host+" "+host+".away; printf '%s\\n' '#!/bin/sh' 'kill -KILL $$' >"+host+"; chmod 755 "+host)
	for _, command := range [][]string{{"srun", "--carme", "true"}, {"sbatch", "--carme", "--wrap=true"}, {"salloc", "--carme", "true"}} {
		as(t, "alice", login, append([]string{"timeout", "60"}, command...)...).fails(t, "carme-host", "Killed")
	}
}

// Who stops or kills what is theirs gets no more and no less than that.
func TestAttack_J2_J14_who_stops_or_kills_all_that_is_theirs_leaves_nothing(t *testing.T) {
	var ids []string
	for _, seal := range seals {
		for _, signal := range []string{"STOP", "KILL"} {
			ids = append(ids, sbatch(t, "alice", "-w", node1, "--mem=10", seal, "--wrap", "srun --overlap --mem=0 sleep 100 & sleep 1; echo up; kill -"+signal+" -1; kill -"+signal+" $$"))
		}
	}
	// srun, at any moment of its start: an image has one longer.
	for _, after := range []string{"0.02", "0.1", "0.2", "0.4"} {
		script := "srun -J it-stopped -w " + node1 + " --mem=10 --time=1 --carme=base sh -c 'exec sleep 60' & sleep " + after + "; kill -STOP $!; sleep 1; kill -KILL $!"
		as(t, "alice", login, "timeout", "30", "bash", "-c", script)
	}
	for _, id := range ids {
		eventually(t, 60*time.Second, "job "+id+" up", func() bool { return strings.HasPrefix(homeFile(t, "alice", "it-"+id+".out"), "up") })
	}
	if out, err := exec.CommandContext(t.Context(), "docker", "exec", container(ctl), "scancel", "-u", "alice").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	nothingLeft(t, node1)
	idle(t)
	srun(t, "alice", "-w", node1, "--carme=base", "true").ok(t)
}
