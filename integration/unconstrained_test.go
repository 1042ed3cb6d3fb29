//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// unconstrained makes Slurm let every job of node 1 open every GPU, until the
// test ends. Node 2 keeps Slurm's filter.
func unconstrained(t *testing.T) {
	t.Helper()
	const restart = "/usr/local/lib/testbed/svc restart slurmd"
	t.Cleanup(func() {
		cleanUp(node1, "mv /etc/slurm/cgroup.conf.kept /etc/slurm/cgroup.conf; "+restart)
		nodesIdle(t)
	})
	root(t, node1, "sh", "-c", "cp /etc/slurm/cgroup.conf /etc/slurm/cgroup.conf.kept && sed -i 's/^Include.*/ConstrainDevices=no/' /etc/slurm/cgroup.conf && "+restart).ok(t)
	nodesIdle(t)
	if open := lines(srun(t, "alice", "-w", node1, "--gres=gpu:1", "bash", "-c", openAll).ok(t)); slices.Contains(open, denied) {
		t.Fatalf("Slurm still denies GPUs: %q", open)
	}
}

// nodesIdle waits until no node runs anything and all of them may.
func nodesIdle(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, "idle nodes", func() bool {
		out := root(t, ctl, "sinfo", "-h", "-o", "%T").out
		return strings.Trim(strings.ReplaceAll(out, "idle", ""), "\n") == ""
	})
}

// filtersLeft are Carme's device cgroups on node 1 (cgroup v1).
func filtersLeft(t *testing.T) string {
	t.Helper()
	return root(t, node1, "sh", "-c", "find /sys/fs/cgroup/devices -path '*/carme/job_*' -type d 2>/dev/null | sort").out
}

func noFiltersLeft(t *testing.T) {
	t.Helper()
	eventually(t, 5*time.Second, "end of Carme's device cgroups", func() bool { return filtersLeft(t) == "" })
}

func TestScenario_J6_J5_without_slurms_filter_only_the_jobs_gpus_open(t *testing.T) {
	unconstrained(t)
	cases := map[string]struct {
		gres string
		own  []int
	}{
		"one a100": {"gpu:a100:1", []int{0}},
		"one l40s": {"gpu:l40s:1", []int{2}},
		"mixed":    {"gpu:a100:1,gpu:l40s:1", []int{0, 2}},
		"with MIG": {"gpu:a100:2", []int{0, 1}},
		"all":      {"gpu:4", []int{0, 1, 2, 3}},
		"none":     {"none", nil},
		"silent":   {"", nil},
	}
	for name, c := range cases {
		for where, seal := range seals {
			t.Run(name+" "+where, func(t *testing.T) {
				args := []string{"-w", node1, seal, "bash", "-c", gpuView}
				if c.gres != "" {
					args = append([]string{"--gres=" + c.gres}, args...)
				}
				judge(t, node1, views(t, srun(t, "alice", args...).ok(t))[0], c.own, c.own)
			})
		}
	}
	noFiltersLeft(t)
	idle(t)
}

func TestScenario_J6_J5_without_slurms_filter_steps_share_the_jobs_gpus(t *testing.T) {
	unconstrained(t)
	epilog := put(t, "alice", "j6/epilog", "#!/bin/bash\nexec >~/j6/epilog.out 2>&1\nls /dev | grep '^nvidia[0-9]'\n"+openAll+"\n")
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			job := allocate(t, "alice", "-w", node1, seal, "-n2", "--gres=gpu:a100:1,gpu:l40s:1")
			steps := map[string]struct {
				args []string
				own  []int
			}{
				"a second step": {[]string{"-n1", "bash", "-c", gpuView}, []int{0, 2}},
				"a nested step": {[]string{"-n1", "srun", "--overlap", "-n1", "bash", "-c", gpuView}, []int{0, 2}},
			}
			for name, s := range steps {
				v := views(t, job.srun(t, s.args...).ok(t))[0]
				t.Logf("%s: %v", name, v)
				judge(t, node1, v, s.own, []int{0, 2})
			}
			// The job's filter does not divide the job; Slurm's variable does.
			v := views(t, job.srun(t, "-n1", "--gres=gpu:l40s:1", "bash", "-c", gpuView).ok(t))[0]
			if v["nvidia"] != gpuUUID(node1, 2) || v["cuda"] != "2" {
				t.Errorf("a step with one GPU of two has NVIDIA_VISIBLE_DEVICES=%s, CUDA_VISIBLE_DEVICES=%s", v["nvidia"], v["cuda"])
			}
			if v := views(t, job.srun(t, "-n1", "--gres=none", "bash", "-c", gpuView).ok(t))[0]; v["nvidia"] != "void" {
				t.Errorf("a step without GPUs has NVIDIA_VISIBLE_DEVICES=%s", v["nvidia"])
			}
			job.srun(t, "-n1", "--task-epilog="+epilog, "true").ok(t)
			const unmade = "Permission denied" // openAll would make what is missing
			want := []string{"nvidia0", "nvidia2", allowed, unmade, allowed, unmade}
			eventually(t, 5*time.Second, "the epilog's view "+fmt.Sprint(want), func() bool {
				return slices.Equal(lines(homeFile(t, "alice", "j6/epilog.out")), want)
			})
			scancel(job.id)
		})
	}
	noFiltersLeft(t)
	idle(t)
}

func TestScenario_J6_J5_the_proof_tells_whose_filter_it_is(t *testing.T) {
	// What row J6 claims of cgroup v2 is proved here or nowhere.
	if kind := sh(t, node1, "stat -f -c %T /sys/fs/cgroup"); suite() == "forky" && kind != "cgroup2fs" {
		t.Errorf("Slurm finds %s", kind)
	}
	unconstrained(t)
	for node, want := range map[string]string{node1: `"constrain_devices": false`, node2: `"constrain_devices": true`} {
		out := srun(t, "alice", "-w", node, "--carme=none", "--gres=gpu:1", "cat", "/run/carme/job/proof.json").ok(t)
		if !strings.Contains(strings.ReplaceAll(out, `":`, `": `), want) && !strings.Contains(out, want) {
			t.Errorf("%s: the proof does not say %s:\n%s", node, want, out)
		}
		if own := strings.Contains(out, "a device filter of Carme's own"); own != (node == node1) {
			t.Errorf("%s: the proof tells of a filter of Carme's: %v", node, own)
		}
	}
}

// breakOut tries, as a task, to get at GPUs of others. A line that begins with
// "got" is a success.
const breakOut = `
for i in 0 1 2 3; do
	mknod /tmp/n$i c 195 $i 2>/dev/null && echo "got a device file by mknod"
	unshare -Urm sh -c "mount -t tmpfs none /mnt && mknod /mnt/n$i c 195 $i && exec 3</mnt/n$i" 2>/dev/null && echo "got nvidia$i in a user namespace"
	[ -e /dev/nvidia$i ] && continue
	for p in /proc/[0-9]*/root/dev/nvidia$i; do
		(exec 3<>$p) 2>&1 | grep -q 'No such device' && echo "got $p"
	done
done
for f in $(find /sys/fs/cgroup -name cgroup.procs -o -name 'devices.*' 2>/dev/null); do
	(echo $$ >$f || echo 'c 195:* rwm' >$f) 2>/dev/null && echo "got to write $f"
done
mount -t cgroup -o devices none /mnt 2>/dev/null && echo "got the devices hierarchy"
echo tried
`

// withJobOf opens the node's own device files as root, in the cgroups of a
// user's job: what answers is the filter, not the private /dev.
const withJobOf = `
pid=$(pgrep -u "$1" sleep | head -1)
dir=$(sed -n 's/^[0-9]*:devices:\(.*carme.*\)/\/sys\/fs\/cgroup\/devices\1/p' /proc/$pid/cgroup)
[ -n "$dir" ] || dir=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)
echo $$ >"$dir/cgroup.procs" || exit 1
` + openAll

func TestAttack_J6_J5_without_slurms_filter_no_other_gpu_can_be_reached(t *testing.T) {
	unconstrained(t)
	neighbour := allocate(t, "bob", "-w", node1, "--carme=none", "--gres=gpu:l40s:1")
	plain := allocate(t, "bob", "-w", node1)
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			job := allocate(t, "mallory", "-w", node1, seal, "--gres=gpu:l40s:1")
			if got := job.srun(t, "bash", "-c", breakOut).ok(t); got != "tried" {
				t.Errorf("mallory: %s", got)
			}
			own := ownMinors(views(t, job.srun(t, "bash", "-c", gpuView).ok(t))[0])
			for minor, answer := range lines(root(t, node1, "bash", "-c", withJobOf, "bash", "mallory").ok(t)) {
				if want := map[bool]string{true: allowed, false: denied}[slices.Contains(own, minor)]; answer != want {
					t.Errorf("the kernel answers %q for nvidia%d to the job, which has %v", answer, minor, own)
				}
			}
			scancel(job.id)
			awaitState(t, job.id, 30*time.Second, "CANCELLED")
		})
	}
	if v := views(t, neighbour.srun(t, "bash", "-c", gpuView).ok(t))[0]; !strings.Contains(v["open"], allowed) {
		t.Errorf("the neighbour has lost its GPU: %v", v)
	}
	if open := lines(plain.srun(t, "bash", "-c", openAll).ok(t)); !slices.Equal(open, []string{allowed, allowed, allowed, allowed}) {
		t.Errorf("a plain job opens %q: Carme has changed what is not its own", open)
	}
	scancel(neighbour.id, plain.id)
	noFiltersLeft(t)
	idle(t)
}

func TestFault_J6_a_device_cgroup_does_not_outlive_a_killed_slurmstepd(t *testing.T) {
	if suite() != "trixie" {
		t.Skip("cgroup v1 alone has device cgroups; on v2 the program goes with Slurm's directory")
	}
	unconstrained(t)
	job := allocate(t, "alice", "-w", node1, "--carme=none", "--gres=gpu:1")
	if left := filtersLeft(t); !strings.HasSuffix(left, "/carme/job_"+job.id) {
		t.Fatalf("the job's device cgroup is not there: %q", left)
	}
	root(t, node1, "pkill", "-KILL", "-x", "slurmstepd").ok(t)
	noFiltersLeft(t)
	scancel(job.id)
	nodesIdle(t)
	nothingRuns(t, node1) // and away with what Slurm itself leaves
}
