//go:build integration

package integration

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// posture is what Carme must leave alone in Slurm's programs: proc(5) status.
type posture struct{ threads, blocked, ignored, caught string }

// postureOf reads it; the zero value means that there is no such process.
func postureOf(t *testing.T, machine, pid string) posture {
	t.Helper()
	var p posture
	for _, line := range lines(root(t, machine, "cat", "/proc/"+pid+"/status").out) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Threads":
			p.threads = value
		case "SigBlk":
			p.blocked = value
		case "SigIgn":
			p.ignored = value
		case "SigCgt":
			p.caught = value
		}
	}
	return p
}

// pidOf waits for a process of that name with a word on its command line and
// returns the oldest.
func pidOf(t *testing.T, machine, name, word string) string {
	t.Helper()
	var pid string
	eventually(t, 30*time.Second, name+" with "+word+" on "+machine, func() bool {
		pid = root(t, machine, "sh", "-c", "for p in $(pgrep -x "+name+"); do tr '\\0' ' ' </proc/$p/cmdline | grep -qF -- '"+word+"' && echo $p && break; done").out
		return pid != ""
	})
	return pid
}

// mapped is the resident memory of a process, in KB, that belongs to files of
// that name.
func mapped(t *testing.T, machine, pid, file string) int {
	t.Helper()
	out := sh(t, machine, `awk '/^[0-9a-f]+-/ { own = index($0, "`+file+`") } /^Rss:/ && own { n += $2 } END { print n + 0 }' /proc/`+pid+`/smaps`)
	n, err := strconv.Atoi(out)
	if err != nil {
		t.Fatalf("smaps of %s: %q", pid, out)
	}
	return n
}

// programs starts one srun and one sbatch that last, and returns Slurm's programs
// that serve them: machine and pid by name.
func programs(t *testing.T, args ...string) map[string][2]string {
	t.Helper()
	mark := "hazard-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	var ends sync.WaitGroup
	t.Cleanup(func() {
		scancel("-n", mark)
		ends.Wait()
	})
	background := func(command ...string) {
		ends.Go(func() {
			_ = as(t, "alice", login, command...)
		})
	}
	background(append(append([]string{"srun", "-J", mark, "-w", node1, "--time=2"}, args...), "sleep", "50")...)
	background(append(append([]string{"sbatch", "--wait", "-J", mark, "-w", node1, "--time=2", "-o", "/dev/null"}, args...), "--wrap", "sleep 50")...)
	found := map[string][2]string{
		"srun":   {login, pidOf(t, login, "srun", mark)},
		"sbatch": {login, pidOf(t, login, "sbatch", mark)},
		"slurmd": {node1, sh(t, node1, "pgrep -o -x 'slurmd(-wlm)?'")},
	}
	for _, id := range lines(root(t, ctl, "squeue", "-h", "-n", mark, "-o", "%A").ok(t)) {
		kind := "batch"
		if !strings.Contains(root(t, ctl, "scontrol", "show", "job", id).ok(t), "BatchFlag=1") {
			kind = "0"
		}
		found["slurmstepd of "+kind] = [2]string{node1, pidOf(t, node1, "slurmstepd", id+"."+kind)}
		found["slurmstepd of "+kind+"'s extern"] = [2]string{node1, pidOf(t, node1, "slurmstepd", id+".extern")}
	}
	if len(found) != 7 {
		t.Fatalf("not all programs run: %v", found)
	}
	return found
}

// oneMore is the number of threads of an extern step in 26.05 that has adopted a
// process: it has none of its own beside which Carme's could be put, so that
// Slurm's call is used, whose thread watches what was adopted, as for
// pam_slurm_adopt.
func oneMore(t *testing.T, threads string) string {
	t.Helper()
	n, err := strconv.Atoi(threads)
	if err != nil {
		t.Fatalf("%q threads", threads)
	}
	return strconv.Itoa(n + 1)
}

func TestHazard_J16_slurms_programs_keep_threads_and_signals(t *testing.T) {
	want := map[string]posture{}
	t.Run("with a plugin that does nothing", func(t *testing.T) {
		line := "optional " + noop(t, "")
		for _, m := range everywhere {
			plugstack(t, m, line)
		}
		restartSlurmd(t, node1)
		all := programs(t)
		time.Sleep(time.Second) //nolint:forbidigo // start-up threads have ended by then; there is nothing to wait for
		for name, p := range all {
			want[name] = postureOf(t, p[0], p[1])
		}
	})
	root(t, node1, "svc", "restart", "slurmd").ok(t)
	for name, args := range map[string][]string{"plain jobs": nil, "sealed jobs": {"--carme=none"}, "sealed jobs in an image": {"--carme=base"}} {
		t.Run(name, func(t *testing.T) {
			for name, p := range programs(t, args...) {
				wanted := want[name]
				if args != nil && suite() != "trixie" && strings.HasSuffix(name, "extern") {
					wanted.threads = oneMore(t, wanted.threads)
				}
				var got posture
				for end := time.Now().Add(5 * time.Second); got != wanted && time.Now().Before(end); {
					got = postureOf(t, p[0], p[1])
				}
				if got != wanted {
					t.Errorf("%s has %+v, with a plugin that does nothing it is %+v", name, got, wanted)
				}
				if kb := mapped(t, p[0], p[1], "carme"); kb >= 200 {
					t.Errorf("%s holds %d KB of Carme's", name, kb)
				}
				if kb := mapped(t, p[0], p[1], "libcarme.so"); kb != 0 {
					t.Errorf("%s has loaded the Go core", name)
				}
			}
		})
	}
}

func TestHazard_J16_plain_jobs_need_nothing_but_the_plugin_file(t *testing.T) {
	nothingLeft(t, node1)
	const away = "for d in /usr/libexec/carme /usr/lib/carme/libcarme.so /etc/carme/spank.yaml; do mv $d $d.away; done"
	for _, m := range everywhere {
		undo(t, m, strings.Replace(away, "mv $d $d.away", "if [ -e $d.away ]; then mv $d.away $d; fi", 1))
		sh(t, m, away)
	}
	before := sh(t, node1, "ls -la --full-time /run/carme /run/carme/jobs 2>/dev/null || true")
	if out := srun(t, "alice", "-w", node1, "-n2", "echo", "here").ok(t); out != "here\nhere" {
		t.Errorf("srun prints %q", out)
	}
	id := sbatch(t, "alice", "-w", node1, "--wrap", "srun hostname")
	if out := output(t, "alice", id); out != node1 {
		t.Errorf("sbatch prints %q", out)
	}
	if after := sh(t, node1, "ls -la --full-time /run/carme /run/carme/jobs 2>/dev/null || true"); after != before {
		t.Errorf("plain jobs have changed /run/carme:\n%s\nto\n%s", before, after)
	}
	srun(t, "alice", "-w", node1, "--carme=none", "true").fails(t)
	idle(t)
}

// sealed says whether a step's process is in a PID namespace of its own.
func sealed(t *testing.T, node, inode string) bool {
	t.Helper()
	return strings.HasPrefix(inode, "pid:[") && inode != sh(t, node, "readlink /proc/1/ns/pid")
}

func TestHazard_J16_contain_spank_changes_nothing(t *testing.T) {
	slurmConf(t, "SlurmdParameters=config_overrides,contain_spank")
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			out := lines(srun(t, "alice", "-w", node1, "-n2", seal, "readlink", "/proc/self/ns/pid").ok(t))
			if len(out) != 2 || out[0] != out[1] || !sealed(t, node1, out[0]) {
				t.Errorf("tasks are in %q", out)
			}
		})
	}
	srun(t, "alice", "-w", node1, "true").ok(t)
	idle(t)
}

func TestHazard_J16_wait_for_children_ends(t *testing.T) {
	if suite() == "trixie" {
		t.Skip("srun --wait-for-children is new in Slurm 25.05")
	}
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			out := srun(t, "alice", "-w", node1, seal, "--wait-for-children", "sh", "-c", "(sleep 1; echo child) & echo parent").ok(t)
			if out != "parent\nchild" {
				t.Errorf("the step prints %q", out)
			}
		})
	}
	// It waits by SIGCHLD, which no thread may take from it.
	plain := waiting(t, "--no-carme", posture{})
	for name, seal := range seals {
		if got := waiting(t, seal, plain); got != plain {
			t.Errorf("%s the slurmstepd that waits has %+v, of a plain step it is %+v", name, got, plain)
		}
	}
	idle(t)
}

// waiting is what a slurmstepd is like whose step waits for children, as soon as
// it is as wanted.
func waiting(t *testing.T, seal string, want posture) posture {
	t.Helper()
	mark := "hazard-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	var end sync.WaitGroup
	defer end.Wait()
	defer scancel("-n", mark)
	end.Go(func() {
		_ = as(t, "alice", login, "srun", "-J", mark, "-w", node1, "--time=2", seal, "--wait-for-children", "sleep", "52")
	})
	eventually(t, 30*time.Second, "the step's program", func() bool { return root(t, node1, "pgrep", "-fx", "(/usr/bin/)?sleep 52").code == 0 })
	id := root(t, ctl, "squeue", "-h", "-n", mark, "-o", "%A").ok(t)
	pid := pidOf(t, node1, "slurmstepd", id+".0")
	if want == (posture{}) {
		time.Sleep(time.Second) //nolint:forbidigo // start-up threads have ended by then; there is nothing to wait for
		return postureOf(t, node1, pid)
	}
	got := postureOf(t, node1, pid)
	for end := time.Now().Add(5 * time.Second); got != want && time.Now().Before(end); {
		got = postureOf(t, node1, pid)
	}
	return got
}

// With Slurm's own private /tmp, Carme's namespaces are built from Slurm's, whose
// /tmp is the job's.
func TestHazard_J16_slurms_own_private_tmp(t *testing.T) {
	conf := "JobContainerType=job_container/tmpfs"
	if suite() != "trixie" {
		conf = "NamespaceType=namespace/tmpfs" // the same plugin, and the same file
	}
	for _, m := range []string{ctl, node1, node2} {
		place(t, m, "/etc/slurm/job_container.conf", []byte("AutoBasePath=true\nBasePath=/run/carme-test\nDirs=/tmp\n"))
	}
	slurmConf(t, conf)
	// Slurm's plugin, in the extern step, fails to mount its base (_create_ns): right
	// after slurmd was restarted, and in 26.05 for every other job, plain ones too.
	// Such a job runs nothing, and Carme has no word in it.
	eventually(t, 60*time.Second, "a plain job", func() bool { return srun(t, "alice", "-w", node1, "true").code == 0 })
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			var r result
			for range 8 {
				r = srun(t, "alice", "-w", node1, seal, "sh", "-c", "echo $SLURM_JOB_ID >/tmp/mine && readlink /proc/self/ns/pid && srun --overlap sh -c 'readlink /proc/self/ns/pid; cat /tmp/mine'")
				if r.code == 0 || strings.Contains(r.err, "carme: ") {
					break
				}
			}
			if out := lines(r.ok(t)); len(out) != 3 || !sealed(t, node1, out[0]) || out[1] != out[0] {
				t.Errorf("a step and one in it print %q", out)
			}
		})
	}
	idle(t)
	forgotten(t, node1)
	if left := sh(t, node1, "ls /tmp/mine 2>/dev/null || true"); left != "" {
		t.Error("the job wrote to the node's /tmp")
	}
}

// misses counts the jobs for which Slurm could not make namespaces of its own. Now and
// then it cannot (namespace/linux of 26.05: "ns mnt mount failed: Invalid argument"), in
// the extern step, and srun ends without a word.
func misses(t *testing.T) string {
	t.Helper()
	// grep -c fails where it counts none. Of a log that is not there it prints nothing,
	// before and after: then nothing is forgiven.
	return sh(t, node1, "grep -c 'error: _create_ns: ns mnt mount failed' /var/log/testbed/slurmd.log || true")
}

// Slurm's namespace/linux can put slurmstepd itself into a PID namespace, in which
// Carme's cannot be made: the step is refused, and says why.
func TestHazard_J16_J14_slurms_own_namespaces(t *testing.T) {
	if suite() == "trixie" {
		t.Skip("namespace/linux is new in Slurm 25.11")
	}
	for name, c := range map[string]struct {
		flags   string
		refused bool
	}{
		"mounts alone":       {"[CLONE_NEWNS]", false},
		"mounts and numbers": {"[CLONE_NEWNS, CLONE_NEWPID]", true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, node := range []string{node1, node2} {
				undo(t, node, "svc restart slurmd")
			}
			for _, m := range []string{ctl, node1, node2} {
				place(t, m, "/etc/slurm/namespace.yaml", []byte("defaults:\n  auto_base_path: true\n  base_path: /run/carme-test\n  dirs: /tmp\n  clone_ns_flags: "+c.flags+"\n"))
			}
			slurmConf(t, "NamespaceType=namespace/linux")
			for _, node := range []string{node1, node2} {
				restartSlurmd(t, node)
			}
			eventually(t, 40*time.Second, "a plain job", func() bool { return srun(t, "alice", "-w", node1, "true").code == 0 })
			for where, seal := range seals {
				args := []string{"-w", node1, seal, "sh", "-c", "touch /tmp/mine && readlink /proc/self/ns/pid"}
				before := misses(t)
				r := srun(t, "alice", args...)
				for range 3 {
					now := misses(t)
					if r.code == 0 || strings.TrimSpace(r.err) != "" || now == before {
						break
					}
					t.Log("Slurm could not make its own namespaces, by its own log")
					before, r = now, srun(t, "alice", args...)
				}
				if c.refused {
					r.fails(t, "namespace/linux", "namespace/tmpfs")
				} else if r.ok(t); !sealed(t, node1, r.out) {
					t.Errorf("%s: the task ran in %q", where, r.out)
				}
			}
			idle(t)
			forgotten(t, node1)
			if left := sh(t, node1, "ls /tmp/mine 2>/dev/null || true"); left != "" {
				t.Error("the job wrote to the node's /tmp")
			}
		})
	}
}

func TestHazard_J16_a_small_limit_of_processes(t *testing.T) {
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			r := as(t, "alice", login, "sh", "-c", "ulimit -p 60; exec timeout 80 srun -w "+node1+" --time=2 --propagate=NPROC "+seal+" bash -c 'ulimit -u; (echo here)'")
			if r.ok(t) != "60\nhere" {
				t.Errorf("the step prints %q", r.out)
			}
		})
	}
}

// forgotten waits until there are no jobs, and lets what they were submitted with
// become old: of an extern step that could not start, nobody is told of the end,
// and doctor removes that in time.
func forgotten(t *testing.T, node string) { //nolint:unparam // reads better with the node in sight
	t.Helper()
	eventually(t, 40*time.Second, "end of the jobs", func() bool { return root(t, ctl, "squeue", "-h", "-w", node).out == "" })
	sh(t, node, "cd /run/carme/jobs && for d in *; do [ ! -e $d/asked ] || touch -d '2 hours ago' $d; done; carme doctor --clean >/dev/null || true")
}

// A plugin behind Carme in the stack fails on the node, in each callback.
func TestHazard_J16_a_later_plugin_fails(t *testing.T) {
	for _, callback := range []string{"POST_OPT", "USER_INIT", "TASK_INIT"} {
		t.Run(callback, func(t *testing.T) {
			path := noop(t, "-D"+callback+"=-1")
			for _, keyword := range []string{"optional", "required"} {
				plugstack(t, node1, "optional "+plugin+"\n"+keyword+" "+path)
				began := time.Now()
				r := srun(t, "alice", "-w", node1, "--carme=none", "readlink", "/proc/self/ns/pid")
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("%s: the step ends after %v", keyword, took)
				}
				if r.code == 0 && !sealed(t, node1, r.out) {
					t.Errorf("%s: the task ran in %q", keyword, r.out)
				}
				if strings.Contains(r.err, "feature") {
					t.Errorf("%s: no job came to the node: %s", keyword, r.err)
				}
			}
			// Slurm leaves the cgroup of a step that its first callback refused.
			idle(t)
			forgotten(t, node1)
			nothingRuns(t, node1)
		})
	}
}

func TestHazard_J16_fifty_steps_start_at_once(t *testing.T) {
	script := `for i in $(seq 50); do srun -Q --overlap --mem=0 -n1 readlink /proc/self/ns/pid & done; wait`
	id := sbatch(t, "alice", "-w", node1, "--carme=none", "--mem=4000", "--wrap", script)
	out := lines(output(t, "alice", id))
	seen := map[string]int{}
	for _, line := range out {
		seen[line]++
	}
	if len(seen) != 1 || len(out) != 50 || !sealed(t, node1, out[0]) {
		t.Errorf("50 steps ran in %v", seen)
	}
	idle(t)
	nothingLeft(t, node1)
}

func TestHazard_J16_twenty_jobs_start_at_once(t *testing.T) {
	var all sync.WaitGroup
	results := make([]result, 20)
	for i := range results {
		all.Go(func() {
			results[i] = srun(t, "alice", "--carme=none", "--mem=10", "sh", "-c", "echo $CARME_JOB_INSTANCE $(readlink /proc/self/ns/pid)")
		})
	}
	all.Wait()
	// The number of a namespace may come again once its job has ended; the
	// instance is drawn anew for every set-up.
	seen := map[string]bool{}
	for _, r := range results {
		seen[r.ok(t)] = true
	}
	if len(seen) != len(results) {
		t.Errorf("20 jobs were set up %d times", len(seen))
	}
	idle(t)
	for _, n := range []string{node1, node2} {
		nothingLeft(t, n)
	}
}

func TestHazard_J16_sixteen_tasks_share_one_container(t *testing.T) {
	script := `readlink /proc/self/ns/pid; readlink /proc/self/ns/mnt`
	out := lines(srun(t, "alice", "-w", node1, "-n16", "--carme=base", "sh", "-c", script).ok(t))
	seen := map[string]int{}
	for _, line := range out {
		seen[line]++
	}
	if len(out) != 32 || len(seen) != 2 {
		t.Errorf("16 tasks ran in %s", fmt.Sprint(seen))
	}
}
