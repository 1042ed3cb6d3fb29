//go:build integration

package integration

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// remains lists what a node holds of sealed jobs: one line each. Slurm 24.11 can
// lose a race with its own X11 forwarding, in plain jobs too: it is the user for a
// moment when it should remove a cgroup as root, and says so in its log.
const remains = `
ls -A /run/carme/jobs 2>/dev/null | sed 's/^/directory /'
pgrep -ax carme-anchor; pgrep -ax carme-init; pgrep -ax carme-hold; pgrep -ax carme-host; pgrep -x 'apptainer|starter.*' | sed 's/^/runtime /'
grep -h carme/jobs /proc/self/mountinfo
for p in /proc/[0-9]*; do readlink $p/ns/pid $p/ns/net; done 2>/dev/null | sort -u | grep -vxF -e "$(readlink /proc/1/ns/pid)" -e "$(readlink /proc/1/ns/net)" | sed 's/^/namespace /'
find /sys/fs/cgroup -type d -name 'job_*' 2>/dev/null | while read -r d; do
	grep -qF "[${d##*job_}.extern] error: Unable to move pid" /var/log/testbed/slurmd.log || echo "cgroup $d"
done
pgrep -fax 'sleep 100000000'
`

// swept removes what a slurmstepd that was killed leaves of its own: Slurm never
// removes the cgroups of such a step, not those of plain jobs either. They must
// be empty. The script goes before remains.
const swept = `
for i in 1 2 3 4 5; do find /sys/fs/cgroup -depth -type d -path '*/job_*' -exec rmdir {} + 2>/dev/null; done
`

// nothingLeft waits until the node's jobs are gone for slurmctld, and then at
// most a second until nothing of them is left on the node.
func nothingLeft(t *testing.T, node string) {
	t.Helper()
	eventually(t, 40*time.Second, node+" without jobs", func() bool {
		return root(t, ctl, "squeue", "-h", "-w", node, "-t", "R,CG,S").ok(t) == ""
	})
	leaves(t, node, remains)
}

// nothingRuns is nothingLeft after a slurmstepd was killed.
func nothingRuns(t *testing.T, node string) {
	t.Helper()
	eventually(t, 40*time.Second, node+" without jobs", func() bool {
		return root(t, ctl, "squeue", "-h", "-w", node, "-t", "R,CG,S").ok(t) == ""
	})
	leaves(t, node, swept+remains)
}

// found are the lines that leaves has reported: what one test left behind is told
// once, with its story, and not again by each test after it.
var found = map[string]bool{} //nolint:gochecknoglobals // of the cluster, which the tests share

// leaves waits at most a second until a script prints nothing on a node.
func leaves(t *testing.T, node, script string) {
	t.Helper()
	for end := time.Now().Add(time.Second); ; {
		began := time.Now()
		left := slices.DeleteFunc(lines(root(t, node, "sh", "-c", script).out), func(line string) bool { return line == "" || found[node+line] })
		if len(left) == 0 {
			return
		}
		if began.Before(end) {
			continue
		}
		if left = slices.DeleteFunc(left, func(line string) bool { return slurmsOwn(t, node, line) }); len(left) == 0 {
			return
		}
		for _, line := range left {
			found[node+line] = true
			if _, at, is := strings.Cut(line, "/job_"); is {
				id, _, _ := strings.Cut(at, "/")
				t.Logf("job %s: %s\n%s", id, root(t, ctl, "sacct", "-nPXj", id, "-o", "user,jobname,state,start,end,submitline").out,
					root(t, node, "sh", "-c", "grep -F '["+id+".' /var/log/testbed/slurmd.log | grep -Ev 'SPANK|: init: |spank: '").out)
			}
		}
		t.Fatalf("%s still has after a second:\n%s", node, strings.Join(left, "\n"))
	}
}

// slurmsOwn reports whether what is left is an empty cgroup, with empty ones in it, of
// which Slurm's log says that Slurm was not allowed to remove it, and removes it. The
// slurmstepd of each extern step ends X11 forwarding as the user, with all its threads,
// while another one removes the job's freezer cgroups (slurmstepd/mgr.c,
// _shutdown_x11_forward); about one job of 300 leaves one on a busy machine.
func slurmsOwn(t *testing.T, node, line string) bool {
	t.Helper()
	dir, is := strings.CutPrefix(line, "cgroup ")
	// It, or what is in it: Slurm tries from below, and not again.
	said := `grep -F -e '.extern] error: Unable to rmdir(` + dir + `)' -e '.extern] error: Unable to rmdir(` + dir + `/' /var/log/testbed/slurmd.log | grep -q 'unexpected error: Permission denied'`
	if !is || root(t, node, "sh", "-c", said).code != 0 {
		return false
	}
	t.Logf("Slurm could not remove %s, by its own log", dir)
	return root(t, node, "find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").code == 0
}

func TestFault_J14_nothing_is_left_a_second_after_the_job(t *testing.T) {
	ends := map[string][]string{
		"ends":              {"true"},
		"fails":             {"false"},
		"leaves processes":  {"sh", "-c", "for i in 1 2 3; do setsid sleep 600 & done; (setsid sh -c 'trap : TERM; sleep 600' &) ; exit 0"},
		"leaves mounts":     {"sh", "-c", "unshare -Urm sh -c 'mount -t tmpfs x /tmp; sleep 600' & sleep 0.3"},
		"has a network":     {"--carme-net=private", "sh", "-c", "setsid sleep 600 & ip link show lo >/dev/null"},
		"has files in /tmp": {"sh", "-c", "mkdir -p /tmp/a/b/c; touch /tmp/a/b/c/d /dev/shm/x; ln -s /etc /tmp/link"},
	}
	for name, command := range ends {
		for kind, seal := range seals {
			t.Run(name+" "+kind, func(t *testing.T) {
				_ = srun(t, "alice", append([]string{"-w", node1, seal}, command...)...)
				nothingLeft(t, node1)
			})
		}
	}
	idle(t)
}

// hold starts a sealed job with one further step that lasts, on node 1.
func hold(t *testing.T, seal string) allocation {
	t.Helper()
	id := sbatch(t, "alice", "-w", node1, seal, "--wrap", "srun --overlap sleep 171 & echo up; exec sleep 170")
	eventually(t, 40*time.Second, "steps of job "+id, func() bool {
		return root(t, node1, "pgrep", "-fx", "(/usr/bin/)?sleep 17[01]").code == 0 &&
			len(lines(root(t, node1, "pgrep", "-fx", "(/usr/bin/)?sleep 17[01]").out)) == 2
	})
	return allocation{id, "alice"}
}

// stepd is the pid of a step's slurmstepd on node 1.
func (a allocation) stepd(t *testing.T, step string) string {
	t.Helper()
	return pidOf(t, node1, "slurmstepd", a.id+"."+step)
}

func TestFault_J14_slurmstepd_is_killed(t *testing.T) {
	cases := map[string][]string{
		"of the step":         {"0"},
		"of the batch script": {"batch"},
		"of the extern step":  {"extern"},
		"of all":              {"extern", "0", "batch"},
	}
	for name, steps := range cases {
		t.Run(name, func(t *testing.T) {
			a := hold(t, "--carme=base")
			var pids []string
			for _, s := range steps {
				pids = append(pids, a.stepd(t, s))
			}
			root(t, node1, append([]string{"kill", "-KILL"}, pids...)...).ok(t)
			if name == "of the step" {
				eventually(t, 5*time.Second, "end of the step's processes", func() bool {
					return root(t, node1, "pgrep", "-fx", "(/usr/bin/)?sleep 171").code != 0
				})
				if r := a.srun(t, "readlink", "/proc/self/ns/pid"); r.code != 0 || !sealed(t, node1, r.out) {
					t.Errorf("a later step: %d %s %s", r.code, r.out, r.err)
				}
			}
			if name == "of the extern step" || name == "of all" {
				leavesProcesses(t)
			}
			root(t, ctl, "scancel", a.id).ok(t)
			nothingRuns(t, node1)
			idle(t)
		})
	}
}

// leavesProcesses waits until no process of a sealed job runs on node 1: Slurm
// may need longer to see that the job is gone.
func leavesProcesses(t *testing.T) {
	t.Helper()
	eventually(t, 5*time.Second, "end of the job's processes", func() bool {
		return root(t, node1, "pgrep", "-fx", "(/usr/bin/)?sleep 17[01]|carme-(anchor|init|hold)").code != 0
	})
}

// Steps of one job on both nodes, whose slurmstepd are killed at some moment
// between their start and their end: a hundred, however long that takes.
func TestFault_J14_a_hundred_sigkills_at_any_moment_leave_nothing(t *testing.T) {
	const wanted = 100
	id := sbatch(t, "alice", "--time=10", "-N2", "-w", node1+","+node2, "--ntasks-per-node=1", "--carme=none", "--mem=4000", "--wrap", "echo up; exec sleep 500")
	eventually(t, 30*time.Second, "start of job "+id, func() bool { return homeFile(t, "alice", "it-"+id+".out") == "up" })
	// srun itself may wait long for a step that is gone; new ones take over. One
	// whose launch failed exits with 255, at which xargs would stop.
	steps := "seq 999 | timeout -s KILL 60 xargs -P10 -I{} sh -c 'timeout -s KILL 3 srun -Q --jobid=" + id + " --overlap --mem=0 -N2 -n2 sleep 0.5; true'"
	killer := `end=$(($(date +%s) + 20)); n=0
while [ $n -lt ` + strconv.Itoa(wanted/2) + ` ] && [ $(date +%s) -lt $end ]; do
	for p in $(pgrep -f '^slurmstepd: \[` + id + `\.[0-9]' | shuf -n3); do
		# Its tasks are called the same until they become programs.
		[ "$(cat /proc/$(ps -o ppid= -p $p | tr -d ' ')/comm 2>/dev/null)" = slurmstepd ] || { kill -KILL $p 2>/dev/null && n=$((n + 1)); }
	done
	sleep 0.$(shuf -i 0-2 -n1)$(shuf -i 0-9 -n1)
done; echo $n`
	var all sync.WaitGroup
	var killed atomic.Int32
	end := make(chan struct{})
	all.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
				_ = as(t, "alice", login, "sh", "-c", steps)
			}
		}
	})
	stop := sync.OnceFunc(func() {
		close(end)
		cleanUp(login, "pkill -KILL -u alice xargs; pkill -KILL -u alice srun")
		all.Wait()
	})
	t.Cleanup(stop)
	began := time.Now()
	eventually(t, 5*time.Minute, "a hundred SIGKILLs", func() bool {
		var both sync.WaitGroup
		for _, node := range []string{node1, node2} {
			both.Go(func() {
				if n, err := strconv.Atoi(root(t, node, "bash", "-c", killer).out); err == nil {
					killed.Add(int32(n)) //nolint:gosec // a hundred
				}
			})
		}
		both.Wait()
		return killed.Load() >= wanted
	})
	t.Logf("%d slurmstepd killed in %v", killed.Load(), time.Since(began).Round(time.Second))
	stop()
	root(t, ctl, "scancel", id).ok(t)
	for _, node := range []string{node1, node2} {
		eventually(t, 60*time.Second, node+" without jobs", func() bool {
			return root(t, ctl, "squeue", "-h", "-w", node).ok(t) == ""
		})
		srun(t, "alice", "-w", node, "--carme=none", "true").ok(t)
		nothingRuns(t, node)
	}
	idle(t)
}

func TestFault_J14_slurmd_restarts_during_a_job(t *testing.T) {
	a := hold(t, "--carme=base")
	restartSlurmd(t, node1)
	var r result
	eventually(t, 40*time.Second, "a step after the restart", func() bool {
		r = a.srun(t, "readlink", "/proc/self/ns/pid")
		return r.code == 0
	})
	if first := sh(t, node1, "readlink /proc/$(pgrep -fx '(/usr/bin/)?sleep 170')/ns/pid"); r.out != first {
		t.Errorf("the step ran in %s, the job is in %s", r.out, first)
	}
	root(t, ctl, "scancel", a.id).ok(t)
	nothingLeft(t, node1)
	idle(t)
}

func TestFault_J14_J18_without_its_anchor_a_job_gets_no_further_step(t *testing.T) {
	for name, process := range map[string]string{"anchor": "carme-anchor", "PID 1": "carme-init"} {
		t.Run(name, func(t *testing.T) {
			a := hold(t, "--carme=none")
			root(t, node1, "pkill", "-KILL", "-x", process).ok(t)
			if process == "carme-init" {
				leavesProcesses(t)
			}
			if r := a.srun(t, "true"); r.code == 0 {
				t.Error("a further step ran")
			}
			root(t, ctl, "scancel", a.id).ok(t)
			nothingLeft(t, node1)
			idle(t)
		})
	}
}

// The lock of its --carme-overlay goes with the job, however it ends.
func TestFault_J8_J14_a_killed_job_leaves_its_overlay_to_the_next(t *testing.T) {
	const dir = "/scratch/alice/it-layer-killed"
	root(t, node1, "sh", "-c", "rm -rf "+dir+"; install -d -o alice -g alice "+dir).ok(t)
	with := []string{"-w", node1, "--carme=base-dir", "--carme-overlay=" + dir}
	for name, kill := range map[string]string{"slurmstepd": "pkill -KILL -f '[s]lurmstepd: .[0-9]+[.]extern'", "anchor": "pkill -KILL -x carme-anchor"} {
		a := allocate(t, "alice", with...)
		srun(t, "alice", append(with, "true")...).fails(t, "in use by job "+a.id)
		sh(t, node1, kill)
		scancel(a.id)
		if r := srun(t, "alice", append(with, "true")...); r.code != 0 {
			t.Errorf("%s: the next job is told %s", name, r.err)
		}
	}
	nothingRuns(t, node1)
	idle(t)
}

// Many short steps in one sealed job: none is delayed, none drains the node.
func TestFault_J14_J16_a_thousand_steps_in_one_job(t *testing.T) {
	if suite() != "trixie" {
		t.Skip("it takes minutes; SLURM_SUITE=trixie runs it")
	}
	script := `seq 1000 | xargs -P8 -I{} srun -Q --overlap --mem=0 -n1 sh -c 'echo done'`
	began := time.Now()
	id := sbatch(t, "alice", "-w", node1, "--carme=none", "--mem=4000", "--time=10", "--wrap", script)
	awaitState(t, id, 5*time.Minute, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
	if n := strings.Count(homeFile(t, "alice", "it-"+id+".out"), "done"); n != 1000 {
		t.Errorf("%d of 1000 steps ran", n)
	}
	t.Logf("1000 steps in %v", time.Since(began).Round(time.Second))
	nothingLeft(t, node1)
	idle(t)
}

// What a crash left behind goes when a job needs its place.
func TestFault_J14_leftovers_of_a_crash_are_removed(t *testing.T) {
	next := root(t, ctl, "sh", "-c", "scontrol show config | sed -n 's/^NEXT_JOB_ID *= //p'").ok(t)
	undo(t, node1, "rm -rf /run/carme/jobs/"+next)
	sh(t, node1, "mkdir -p -m 700 /run/carme/jobs/"+next+"/pmix && cd /run/carme/jobs/"+next+" && echo '1 1' >extern && : >anchor.sock && echo old >proof.json")
	r := srun(t, "alice", "-w", node1, "--carme=none", "sh", "-c", "echo $SLURM_JOB_ID; readlink /proc/self/ns/pid")
	out := lines(r.ok(t))
	if len(out) != 2 || out[0] != next || !sealed(t, node1, out[1]) {
		t.Errorf("job %s: %q", next, out)
	}
	nothingLeft(t, node1)
	next = root(t, ctl, "sh", "-c", "scontrol show config | sed -n 's/^NEXT_JOB_ID *= //p'").ok(t)
	undo(t, node1, "rm -rf /run/carme/jobs/"+next)
	sh(t, node1, "mkdir -p -m 700 /run/carme/jobs/"+next+" && echo '1 1' >/run/carme/jobs/"+next+"/extern")
	if out := lines(srun(t, "alice", "-w", node1, "sh", "-c", "echo $SLURM_JOB_ID; readlink /proc/self/ns/pid").ok(t)); len(out) != 2 || out[0] != next || sealed(t, node1, out[1]) {
		t.Errorf("plain job %s: %q", next, out)
	}
	nothingLeft(t, node1)
}

// leftover makes what a job of a node that crashed and booted leaves: of its extern
// step there is but a note.
func leftover(t *testing.T, node string) (dir string) {
	t.Helper()
	dir = "/run/carme/jobs/4294901760"
	undo(t, node, "rm -rf "+dir)
	sh(t, node, "mkdir -p -m 700 "+dir+"/pmix/deep/er && cd "+dir+" && echo '1 1' >extern && echo old >proof.json && : >anchor.sock && touch -d '3 hours ago' .")
	return dir
}

// It never has an extern step, whose end would clear its directory; the agent asks
// Slurm.
func TestFault_J14_J18_a_job_cancelled_in_its_prolog_leaves_nothing(t *testing.T) {
	const prolog = "/etc/slurm/carme_prolog"
	undo(t, node1, "mv "+prolog+".kept "+prolog)
	sh(t, node1, "cp -p "+prolog+" "+prolog+".kept && cp -p "+prolog+" "+prolog+".slow && sed -i 's/^exit 0/sleep 5/' "+prolog+".slow && mv "+prolog+".slow "+prolog)
	id := sbatch(t, "alice", "-w", node1, "--carme=none", "--mem=10", "--wrap", "echo ran")
	dir := "/run/carme/jobs/" + id
	eventually(t, 30*time.Second, "what its Prolog notes", func() bool { return exists(t, node1, dir+"/asked") })
	root(t, ctl, "scancel", id).ok(t)
	awaitState(t, id, 60*time.Second, "CANCELLED")
	eventually(t, 40*time.Second, "the end of "+dir, func() bool { return !exists(t, node1, dir) })
	if exists(t, node1, dir+"/extern") || homeFile(t, "alice", "it-"+id+".out") != "" {
		t.Error("it ran")
	}
	idle(t)
}

func exists(t *testing.T, node, path string) bool {
	t.Helper()
	return root(t, node, "test", "-e", path).code == 0
}

// What a crash or a boot left of other jobs goes with the next job's start, and by
// hand where no job comes; what runs stays.
func TestFault_J14_A2_leftovers_of_other_jobs_are_removed(t *testing.T) {
	down(t, node1, "stop", "carme-agent") // it looks every ten seconds
	a := allocate(t, "alice", "-w", node1, "--carme=none", "--mem=10")
	dir := leftover(t, node1)
	srun(t, "alice", "-w", node1, "--carme=none", "--mem=10", "true").ok(t)
	if exists(t, node1, dir) {
		t.Error("the next job's start has not removed it")
	}
	_ = leftover(t, node1)
	if r := root(t, node1, "timeout", "60", "carme", "doctor"); r.code != 0 || !strings.Contains(r.out, "of ended jobs: 4294901760") || !strings.Contains(r.out, "-> carme doctor --clean") {
		t.Errorf("doctor ends with %d:\n%s", r.code, r.out)
	}
	if out := root(t, node1, "timeout", "60", "carme", "doctor", "--clean").ok(t); exists(t, node1, dir) || !strings.Contains(out, "ready for srun --carme") {
		t.Errorf("doctor --clean:\n%s", out)
	}
	if out := a.srun(t, "readlink", "/proc/self/ns/pid").ok(t); !sealed(t, node1, out) {
		t.Errorf("a step of the job that ran meanwhile is in %q", out)
	}
	scancel(a.id)
	nothingLeft(t, node1)
}

func TestFault_J14_a_job_runs_out_of_memory(t *testing.T) {
	// A host with both versions of cgroups has the memory controller in the first.
	if root(t, node1, "grep", "-qx", "ConstrainRAMSpace=yes", "/etc/slurm/cgroup.conf").code != 0 {
		t.Skip("this cluster's Slurm bounds no job's memory (testbed/machine/cgroups)")
	}
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			r := srun(t, "alice", "-w", node1, seal, "--mem=50", "sh", "-c", "head -c 300m /dev/zero | tail -c 299m >/dev/null")
			if r.code == 0 {
				t.Error("the task got its memory")
			}
			nothingLeft(t, node1)
			idle(t)
		})
	}
}

// digger is a program of a user's that makes one directory in the other, from its
// working directory on, and tells when it is deep down.
const digger = `for (my $n = 0; ; $n++) { mkdir "d", 0700; chdir "d" or sleep 600; if ($n == 30000) { open my $f, ">", "/tmp/it-deep"; } }`

// A descriptor of a directory can be handed to a process of another job, which fills
// the directory while it is removed. Nothing waits for that to end: neither the node
// for its next job, nor that job.
func TestAttack_J14_who_keeps_a_jobs_directory_open_does_not_keep_the_node(t *testing.T) {
	id := sbatch(t, "alice", "-w", node1, "--carme=base", "--carme-app=terminal", "--mem=500", "--wrap", "sleep 600")
	dir := "/run/carme/jobs/" + id
	eventually(t, 40*time.Second, "the session's directory", func() bool { return root(t, node1, "test", "-e", dir+"/sess/status").code == 0 })
	undo(t, node1, "pkill -KILL -fx 'perl -e for.*'; rm -f /tmp/it-deep; until rm -rf "+dir+" 2>/dev/null; do :; done")
	sh(t, node1, "rm -f /tmp/it-deep; cd "+dir+"/sess && setsid setpriv --reuid alice --regid alice --clear-groups perl -e '"+digger+"' >/dev/null 2>&1 </dev/null &")
	eventually(t, time.Minute, "a deep directory", func() bool { return root(t, node1, "test", "-e", "/tmp/it-deep").code == 0 })
	root(t, ctl, "scancel", id).ok(t)
	// Slurm gives a node up that takes a minute (UnkillableStepTimeout).
	eventually(t, 45*time.Second, "the end of job "+id, func() bool { return root(t, ctl, "squeue", "-h", "-j", id).out == "" })
	sh(t, node1, "pkill -STOP -fx 'perl -e for.*'") // else what is to be cleaned up grows and grows
	idle(t)
	srun(t, "bob", "-w", node1, "--carme=none", "true").ok(t)
	// It is known to be a leftover, and is removed bit by bit.
	sh(t, node1, "test -s "+dir+"/extern")
}

// What users can write to on a node, outside of their homes, is on a file system of
// its own where one is mounted (packaging/systemd/run-carme-jobs.mount).
func TestAttack_J14_users_fill_the_jobs_own_file_system_and_not_run(t *testing.T) {
	const jobs = "/run/carme/jobs"
	eventually(t, time.Minute, "no job on "+node2, func() bool { return strings.TrimSpace(root(t, node2, "ls", jobs).out) == "" })
	undo(t, node2, "umount -l "+jobs)
	sh(t, node2, "mount -t tmpfs -o mode=0700,size=8m,nr_inodes=400,nosuid,nodev,noexec tmpfs "+jobs)
	id := sbatch(t, "alice", "-w", node2, "--carme=base", "--carme-app=terminal", "--mem=500", "--wrap",
		"dd if=/dev/zero of=/run/carme/sess/big bs=1M count=64; cd /run/carme/sess; for i in $(seq 1000); do echo -n >$i; done; sleep 600")
	used := func() string {
		return strings.Join(strings.Fields(root(t, node2, "sh", "-c", "df --output=pcent,ipcent "+jobs+" | tail -1").out), " ")
	}
	eventually(t, 40*time.Second, "a full file system", func() bool { return used() == "100% 100%" })
	srun(t, "bob", "-w", node2, "true").ok(t)
	srun(t, "bob", "-w", node2, "--carme=none", "true").fails(t, "No space left on device")
	idle(t)
	root(t, ctl, "scancel", id).ok(t)
	eventually(t, 30*time.Second, "room for the next one", func() bool { return srun(t, "bob", "-w", node2, "--carme=none", "true").code == 0 })
	eventually(t, time.Second, "an empty file system", func() bool { return root(t, node2, "ls", jobs).out == "" })
	idle(t)
}
