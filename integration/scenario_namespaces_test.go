//go:build integration

package integration

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestScenario_J2_J4_namespaces_are_shared_by_all_steps_and_tasks_of_a_job_alone(t *testing.T) {
	host := root(t, node1, "bash", "-c", namespaces).ok(t)
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			first := allocate(t, "alice", "-w", node1, "-n4", seal)
			second := allocate(t, "alice", "-w", node1, "-n1", seal)
			seen := lines(first.srun(t, "-n4", "bash", "-c", namespaces).ok(t))
			seen = append(seen, lines(first.srun(t, "-n2", "bash", "-c", namespaces).ok(t))...)
			if slices.Sort(seen); len(seen) != 6 || seen[0] != seen[5] {
				t.Fatalf("tasks and steps of one job are in different namespaces:\n%s", strings.Join(seen, "\n"))
			}
			other := second.srun(t, "bash", "-c", namespaces).ok(t)
			for i, kind := range []string{"pid", "ipc", "uts"} {
				own := strings.Fields(seen[0])[i]
				if own == strings.Fields(host)[i] {
					t.Errorf("the %s namespace is the host's", kind)
				}
				if own == strings.Fields(other)[i] {
					t.Errorf("two jobs share the %s namespace", kind)
				}
			}
			// What one step leaves, the next finds; the other job does not.
			const leave = `echo mine >/tmp/it; echo mine >/var/tmp/it; echo mine >/dev/shm/it; echo mine >$XDG_RUNTIME_DIR/it`
			const look = `cat /tmp/it /var/tmp/it /dev/shm/it $XDG_RUNTIME_DIR/it 2>/dev/null | wc -l`
			first.srun(t, "-n1", "sh", "-c", leave).ok(t)
			if n := first.srun(t, "-n1", "sh", "-c", look).ok(t); n != "4" {
				t.Errorf("a later step finds %s of 4 files", n)
			}
			if n := second.srun(t, "sh", "-c", look).ok(t); n != "0" {
				t.Errorf("another job of the user finds %s of the files", n)
			}
			if found := root(t, node1, "sh", "-c", "ls -d /tmp/it /var/tmp/it /dev/shm/it /run/user/*/it 2>/dev/null"); found.out != "" {
				t.Errorf("the host has them:\n%s", found.out)
			}
			// The other job's processes go on when this one's end.
			root(t, ctl, "scancel", first.id).ok(t)
			awaitState(t, first.id, 20*time.Second, "CANCELLED")
			second.srun(t, "true").ok(t)
		})
	}
}

// neighbour makes one of everything that a process can leave for others, says
// so, and stays.
const neighbour = `
echo secret >/tmp/it-secret; echo secret >/var/tmp/it-secret; echo secret >/dev/shm/it-secret
ipcmk -Q >/dev/null; ipcmk -M 64 >/dev/null; ipcmk -S 1 >/dev/null
exec perl -MSocket -e '
	my $q = "it-secret"; syscall(240, $q, 0102, 0666, 0) >= 0 or die "mq_open: $!";
	socket(S, AF_UNIX, SOCK_STREAM, 0); bind(S, pack("Sa*", AF_UNIX, "\0it-secret")); listen(S, 9);
	$0 = "it-neighbour"; $| = 1; print "up $$\n"; sleep 170'`

// spy looks for what neighbour left and prints what it finds.
const spy = `
ps -eo args | grep '[i]t-neighbour'
ls /tmp /var/tmp /dev/shm /dev/mqueue | grep it-secret
ls -A /run/user | grep -vx "$(id -u)"
ipcs | grep 0x
grep -ao '[i]t-neighbour' /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null
grep mqueue /proc/self/mountinfo | grep -q mqueue || echo no mqueue
true`

func TestScenario_J2_nothing_of_others_is_visible(t *testing.T) {
	script := put(t, "alice", "it-neighbour.sh", "#!/bin/bash\n"+neighbour)
	t.Cleanup(func() {
		cleanUp(node1, "rm -f /tmp/it-secret /var/tmp/it-secret /dev/shm/it-secret /dev/mqueue/it-secret; ipcrm -a")
	})
	for _, args := range [][]string{{}, {"--carme=none"}} {
		id := sbatch(t, "alice", append(append([]string{"-w", node1}, args...), script)...)
		eventually(t, 20*time.Second, "the neighbour", func() bool {
			return strings.HasPrefix(homeFile(t, "alice", "it-"+id+".out"), "up")
		})
	}
	if control := srun(t, "bob", "-w", node1, "bash", "-c", spy).ok(t); strings.Count(control, "secret") < 4 || !strings.Contains(control, "0x") {
		t.Fatalf("a plain job does not see the neighbour, so this test proves nothing:\n%s", control)
	}
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			if found := srun(t, "bob", "-w", node1, seal, "bash", "-c", spy).ok(t); found != "" {
				t.Errorf("a sealed job sees\n%s", found)
			}
		})
	}
	// The same user's other job is hidden as well.
	if found := srun(t, "alice", "-w", node1, "--carme=none", "bash", "-c", spy).ok(t); found != "" {
		t.Errorf("another job of the same user sees\n%s", found)
	}
}

func TestScenario_J2_a_job_sees_its_own_processes_and_cgroups_only(t *testing.T) {
	const look = `
echo "strangers=$(ps -eo user:20,args --no-headers | grep -v "^$USER " | grep -v carme | tr '\n' ';')"
echo "one=$(cat /proc/1/comm) $(ps -o user= -p 1)"
echo "self=$(test -d /proc/$$ && grep -c . /proc/self/status | head -c0; echo yes)"
echo "jobs=$(find /sys/fs/cgroup -maxdepth 6 -name 'job_*' -o -maxdepth 6 -name 's[A-Z0-9]*' -path '*slurm*' | sed 's/.*\///' | sort -u | tr '\n' ' ')"
echo "writable=$(find /sys/fs/cgroup -writable 2>/dev/null | head -3 | tr '\n' ' ')"
echo "slurmd=$(find /sys/fs/cgroup -maxdepth 6 -name slurmd | head -3 | tr '\n' ' ')"
echo "cgroup=$(grep -c . /proc/self/cgroup)"
echo "id=$SLURM_JOB_ID"
`
	neighbour := allocate(t, "alice", "-w", node1, "--carme=none")
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			f := facts(srun(t, "bob", "-w", node1, seal, "bash", "-c", look).ok(t))
			if f["strangers"] != "" {
				t.Errorf("strangers' processes: %s", f["strangers"])
			}
			if f["one"] != "carme-init nobody" {
				t.Errorf("PID 1 is %q", f["one"])
			}
			if f["writable"] != "" {
				t.Errorf("cgroups can be written to: %s", f["writable"])
			}
			if strings.Contains(f["jobs"], "job_"+neighbour.id) || f["slurmd"] != "" || len(strings.Fields(f["jobs"])) != 1 {
				t.Errorf("cgroups of job %s in sight: %s %s", f["id"], f["jobs"], f["slurmd"])
			}
		})
	}
}

func TestScenario_J2_pid_1_reaps_and_nothing_outlives_the_job(t *testing.T) {
	// Orphans: first dead ones, then one in a session of its own that stays.
	const orphans = `
for i in 1 2 3 4 5; do sh -c 'sleep 0.05 &'; done
until [ "$(ps -eo stat,comm --no-headers | grep -c sleep)" = 0 ]; do sleep 0.05; done
ps -eo stat --no-headers | grep Z
setsid sh -c 'setsid sleep 4242 </dev/null >/dev/null 2>&1 &'
echo done`
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			if out := srun(t, "alice", "-w", node1, seal, "bash", "-c", orphans).ok(t); out != "done" {
				t.Errorf("there are zombies:\n%s", out)
			}
			eventually(t, 10*time.Second, "end of what the job left", func() bool {
				return root(t, node1, "pgrep", "-f", "[s]leep 4242").code != 0
			})
		})
	}
}

func TestScenario_J2_host_name_and_inner_numbers(t *testing.T) {
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			out := srun(t, "alice", "-w", node1, seal, "bash", "-c",
				`echo "host=$(hostname)"; echo "pid=$$ $SLURM_TASK_PID"; echo "low=$(( $$ < 200 ))"; hostname evil 2>&1 | grep -c .`).ok(t)
			f := facts(out)
			if pids := strings.Fields(f["pid"]); f["host"] != node1 || pids[0] != pids[1] || f["low"] != "1" {
				t.Errorf("in the job:\n%s", out)
			}
		})
	}
	if host := root(t, node1, "hostname").ok(t); host != node1 {
		t.Errorf("the node is called %s now", host)
	}
}

func TestScenario_J3_private_network_is_loopback_alone(t *testing.T) {
	script := put(t, "alice", "it-neighbour.sh", "#!/bin/bash\n"+neighbour)
	t.Cleanup(func() {
		cleanUp(node1, "rm -f /tmp/it-secret /var/tmp/it-secret /dev/shm/it-secret /dev/mqueue/it-secret; ipcrm -a")
	})
	id := sbatch(t, "alice", "-w", node1, script)
	eventually(t, 20*time.Second, "the neighbour", func() bool {
		return strings.HasPrefix(homeFile(t, "alice", "it-"+id+".out"), "up")
	})
	const look = `
echo "links=$(ip -o link | wc -l) $(ip -o link show lo up | wc -l)"
echo "routes=$(ip route | wc -l)"
echo "listed=$(grep -c '@it-secret' /proc/net/unix)"
perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); print "abstract=", (connect(S, pack("Sa*", AF_UNIX, "\0it-secret")) ? "yes" : "no"), "\n"'
perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0); bind(S, sockaddr_in(0, INADDR_LOOPBACK)); listen(S, 1);
	socket(C, AF_INET, SOCK_STREAM, 0); print "loopback=", (connect(C, getsockname(S)) ? "yes" : "no"), "\n";
	socket(D, AF_INET, SOCK_STREAM, 0); print "slurmd=", (connect(D, sockaddr_in(6818, inet_aton($ARGV[0]))) ? "yes" : "no"), "\n"' "$SLURM_LAUNCH_NODE_IPADDR"
echo "namespace=$(readlink /proc/self/ns/net)"`
	host := root(t, node1, "readlink", "/proc/self/ns/net").ok(t)
	for name, seal := range seals {
		t.Run(name, func(t *testing.T) {
			open := facts(srun(t, "bob", "-w", node1, seal, "bash", "-c", look).ok(t))
			if open["namespace"] != host || open["abstract"] != "yes" || open["routes"] == "0" {
				t.Errorf("by default the network is not the host's: %v", open)
			}
			f := facts(srun(t, "bob", "-w", node1, seal, "--carme-net=private", "bash", "-c", look).ok(t))
			want := map[string]string{"links": "1 1", "routes": "0", "listed": "0", "abstract": "no", "loopback": "yes", "slurmd": "no"}
			for key, value := range want {
				if f[key] != value {
					t.Errorf("%s: %q, not %q", key, f[key], value)
				}
			}
			if f["namespace"] == host {
				t.Error("the network namespace is the host's")
			}
		})
	}
	t.Run("shared by the job's steps", func(t *testing.T) {
		job := allocate(t, "bob", "-w", node1, "-n2", "--carme=none", "--carme-net=private")
		seen := lines(job.srun(t, "-n2", "readlink", "/proc/self/ns/net").ok(t))
		seen = append(seen, job.srun(t, "-n1", "readlink", "/proc/self/ns/net").ok(t))
		if slices.Sort(seen); seen[0] != seen[2] {
			t.Errorf("namespaces %v", seen)
		}
		job.srun(t, "--carme=none", "--carme-net=host", "true").fails(t, "--carme-net", "fixed by the job's first step")
	})
}

func TestScenario_J3_J14_a_step_from_a_private_network_says_why_it_cannot(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			job := allocate(t, "alice", "-w", node1, seal, "--carme-net=private")
			job.srun(t, "srun", "--overlap", "true").fails(t, "--carme-net=private", "use --carme-net=host")
			job.srun(t, "sbatch", "--wrap", "true").fails(t, "use --carme-net=host")
		})
	}
}
