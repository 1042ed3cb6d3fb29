//go:build integration

package integration

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// missing is what opening a GPU that is not in /dev gives.
const missing = "No such file or directory"

// gpuUUID is how the testbed calls the GPU behind a device file.
func gpuUUID(node string, minor int) string {
	return fmt.Sprintf("GPU-5ca1ab1e-000%s-4000-8000-%012d", node[len(node)-1:], minor)
}

// gpuView prints what a task can see of GPUs as one line of NAME=VALUE; separated
// by "; ", so that the lines of several tasks stay whole.
const gpuView = `
open=$(for i in 0 1 2 3; do if (exec 3</dev/nvidia$i) 2>/tmp/$$; then echo -n open; else sed 's/.*: //' /tmp/$$ | tr '\n' ','; fi; done; rm -f /tmp/$$)
nvml=$(nvidia-smi -L 2>/dev/null | grep '^GPU' | sed 's/.*UUID: \(.*\))/\1/' | sort | tr '\n' ' ')
proc=$(ls /proc/driver/nvidia/gpus 2>/dev/null | tr '\n' ' ')
dev=$(ls /dev | grep '^nvidia[0-9]' | tr '\n' ' ')
made=$(mknod /tmp/gpu3 c 195 3 2>&1 && echo made; rm -f /tmp/gpu3)
shared=$(for f in nvidiactl nvidia-uvm nvidia-uvm-tools; do (exec 3</dev/$f) 2>&1 | sed 's/.*: //'; done | sort -u | tr '\n' ',')
echo "task=$SLURM_PROCID; open=$open; nvml=$nvml; proc=$proc; dev=$dev; cuda=$CUDA_VISIBLE_DEVICES; nvidia=$NVIDIA_VISIBLE_DEVICES; caps=$(ls /dev/nvidia-caps 2>/dev/null | tr '\n' ' '); shared=$shared; made=$made;"
`

// views are the tasks' lines of gpuView, by task.
func views(t *testing.T, text string) []map[string]string {
	t.Helper()
	all := lines(text)
	slices.Sort(all) // "task=0" ...
	var out []map[string]string
	for _, line := range all {
		v := map[string]string{}
		for field := range strings.SplitSeq(line, ";") {
			name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
			v[name] = strings.TrimSpace(value)
		}
		out = append(out, v)
	}
	return out
}

// pciOf are the PCI addresses by minor, in /etc/fakenvml.conf.
var pciOf = []string{"0000:b1:00.0", "0000:17:00.0", "0000:07:00.0", "0000:65:00.0"}

// judge compares what a task sees with what it should have: own are the minors
// of the task, shown those of its job, which are all that may exist.
func judge(t *testing.T, node string, v map[string]string, own, shown []int) {
	t.Helper()
	var open, nvml, proc, dev, nvidia []string
	for minor := range 4 {
		switch {
		case slices.Contains(own, minor):
			open = append(open, allowed)
			nvml = append(nvml, gpuUUID(node, minor))
		case slices.Contains(shown, minor):
			open = append(open, denied)
		default:
			open = append(open, missing)
		}
		if slices.Contains(shown, minor) {
			dev = append(dev, fmt.Sprintf("nvidia%d", minor))
			proc = append(proc, pciOf[minor])
		}
	}
	slices.Sort(proc)
	nvidia = slices.Clone(nvml)
	// Programs use the MIG devices of a GPU that is divided, not itself.
	if i := slices.Index(nvidia, gpuUUID(node, 1)); i >= 0 {
		mig := strings.Replace(gpuUUID(node, 1), "GPU", "MIG", 1)
		mig = mig[:len(mig)-2]
		nvidia = append(slices.Delete(nvidia, i, i+1), mig+"a1", mig+"a2")
		slices.Sort(nvidia)
	}
	if len(own) == 0 {
		nvidia = []string{"void"}
	}
	// The control nodes that all GPUs share come with the first and go with the last.
	shared := missing
	if len(shown) > 0 {
		shared = allowed
	}
	seen := strings.Split(v["nvidia"], ",")
	slices.Sort(seen)
	for name, pair := range map[string][2]string{
		"opening":                {strings.TrimRight(v["open"], ","), strings.Join(open, ",")},
		"NVML":                   {v["nvml"], strings.Join(nvml, " ")},
		"/proc/driver/nvidia":    {v["proc"], strings.Join(proc, " ")},
		"/dev":                   {v["dev"], strings.Join(dev, " ")},
		"opening control nodes":  {v["shared"], shared + ","},
		"NVIDIA_VISIBLE_DEVICES": {strings.Join(seen, ","), strings.Join(nvidia, ",")},
	} {
		if pair[0] != pair[1] {
			t.Errorf("task %s: %s gives %q, not %q", v["task"], name, pair[0], pair[1])
		}
	}
	if strings.Contains(v["made"], "made") {
		t.Errorf("task %s made a device file", v["task"])
	}
}

func TestScenario_J5_J6_only_the_jobs_gpus_exist_and_open(t *testing.T) {
	cases := map[string]struct {
		gres string
		own  []int
	}{
		"one a100": {"gpu:a100:1", []int{0}},
		"one l40s": {"gpu:l40s:1", []int{2}},
		"mixed":    {"gpu:a100:1,gpu:l40s:1", []int{0, 2}},
		"all":      {"gpu:4", []int{0, 1, 2, 3}},
		"none":     {"none", nil},
		"silent":   {"", nil},
	}
	for name, c := range cases {
		for where, seal := range seals {
			for _, node := range []string{node1, node2} {
				t.Run(name+" "+where+" on "+node, func(t *testing.T) {
					args := []string{"-w", node, seal, "bash", "-c", gpuView}
					if c.gres != "" {
						args = append([]string{"--gres=" + c.gres}, args...)
					}
					judge(t, node, views(t, srun(t, "alice", args...).ok(t))[0], c.own, c.own)
				})
			}
		}
	}
}

// ownMinors reads from a plain task's line what Slurm gave it.
func ownMinors(v map[string]string) []int {
	var own []int
	for minor, answer := range strings.Split(strings.TrimRight(v["open"], ","), ",") {
		if answer == allowed {
			own = append(own, minor)
		}
	}
	return own
}

func TestScenario_J5_each_step_and_task_has_what_slurm_gave_it(t *testing.T) {
	cases := map[string][]string{
		"--gpus-per-task":        {"-n2", "--gpus-per-task=1"},
		"--gpus-per-task, typed": {"-n2", "--gpus-per-task=l40s:1"},
		"--gpu-bind=single":      {"-n4", "--gres=gpu:4", "--gpu-bind=single:1"},
		"--gpu-bind=map_gpu":     {"-n2", "--gres=gpu:a100:2", "--gpu-bind=map_gpu:1,0"},
		"shared by two tasks":    {"-n2", "--gres=gpu:l40s:2"},
	}
	for name, args := range cases {
		t.Run(name, func(t *testing.T) {
			args = append([]string{"-w", node1}, args...)
			plain := views(t, srun(t, "alice", append(args, "bash", "-c", gpuView)...).ok(t))
			var shown []int
			for _, v := range plain {
				shown = append(shown, ownMinors(v)...)
			}
			for where, seal := range seals {
				t.Run(where, func(t *testing.T) {
					sealed := views(t, srun(t, "alice", append(slices.Clip(args), seal, "bash", "-c", gpuView)...).ok(t))
					if len(sealed) != len(plain) {
						t.Fatalf("%d tasks, not %d", len(sealed), len(plain))
					}
					for i, v := range sealed {
						judge(t, node1, v, ownMinors(plain[i]), shown)
						if v["cuda"] != plain[i]["cuda"] {
							t.Errorf("task %d: CUDA_VISIBLE_DEVICES is %q, without Carme %q", i, v["cuda"], plain[i]["cuda"])
						}
					}
				})
			}
		})
	}
}

func TestScenario_J5_a_step_with_a_part_of_the_jobs_gpus(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			job := allocate(t, "alice", "-w", node1, "-n4", "--gres=gpu:a100:2,gpu:l40s:1", seal)
			shown := []int{0, 1, 2}
			for gres, own := range map[string][]int{
				"gpu:l40s:1": {2},
				"gpu:a100:2": {0, 1},
				"none":       nil,
			} {
				judge(t, node1, views(t, job.srun(t, "-n1", "--gres="+gres, "bash", "-c", gpuView).ok(t))[0], own, shown)
			}
			judge(t, node1, views(t, job.srun(t, "-n1", "bash", "-c", gpuView).ok(t))[0], shown, shown)
			// A step of the batch script's own kind: started from inside.
			nested := job.srun(t, "-n1", "--gres=none", "srun", "--overlap", "--gres=gpu:l40s:1", "-n1", "bash", "-c", gpuView).ok(t)
			judge(t, node1, views(t, nested)[0], []int{2}, shown)
		})
	}
}

func TestScenario_J5_mig_devices_come_with_their_gpu_and_their_control_does_not(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			look := "nvidia-smi -L; " + gpuView
			both := srun(t, "alice", "-w", node1, "--gres=gpu:a100:2", seal, "bash", "-c", look).ok(t)
			if n := strings.Count(both, "UUID: MIG-"); n != 2 {
				t.Errorf("both a100 have %d MIG devices, not 2:\n%s", n, both)
			}
			first := srun(t, "alice", "-w", node1, "--gres=gpu:a100:1", seal, "bash", "-c", look).ok(t)
			if strings.Contains(first, "UUID: MIG-") {
				t.Errorf("the first a100 shows the MIG devices of the second:\n%s", first)
			}
			for text, want := range map[string]string{both: "nvidia-cap138 nvidia-cap139 nvidia-cap147 nvidia-cap148", first: ""} {
				m := regexp.MustCompile(`caps=([^;]*);`).FindStringSubmatch(text)
				if m == nil || strings.TrimSpace(m[1]) != want {
					t.Errorf("capability files %q, not %q", m, want)
				}
			}
		})
	}
}

func TestScenario_J5_J12_gpus_stay_apart_through_suspend_and_resume(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			job := allocate(t, "alice", "-w", node1, "--gres=gpu:l40s:1", seal)
			judge(t, node1, views(t, job.srun(t, "bash", "-c", gpuView).ok(t))[0], []int{2}, []int{2})
			const count = `i=0; while :; do i=$((i+1)); echo $i >>~/it-count; sleep 0.1; done`
			put(t, "alice", "it-count", "0\n")
			done := make(chan result, 1)
			go func() { done <- job.srun(t, "sh", "-c", count) }()
			now := func() string { return homeFile(t, "alice", "it-count") }
			eventually(t, 20*time.Second, "the count", func() bool { return len(now()) > 1 })
			root(t, ctl, "scontrol", "suspend", job.id).ok(t)
			awaitState(t, job.id, 10*time.Second, "SUSPENDED")
			// Frozen: nothing has been written for as long as twenty rounds take.
			eventually(t, 15*time.Second, "standstill", func() bool {
				return as(t, "alice", login, "sh", "-c", "[ $(($(date +%s) - $(stat -c %Y it-count))) -ge 3 ]").code == 0
			})
			still := now()
			root(t, ctl, "scontrol", "resume", job.id).ok(t)
			eventually(t, 20*time.Second, "the count to go on", func() bool { n := now(); return n != still && n != "" })
			judge(t, node1, views(t, job.srun(t, "bash", "-c", gpuView).ok(t))[0], []int{2}, []int{2})
			root(t, ctl, "scancel", job.id).ok(t)
			<-done
		})
	}
	idle(t)
}

func TestScenario_J5_gpus_of_two_jobs_are_different_and_secret(t *testing.T) {
	first := allocate(t, "alice", "-w", node1, "--gres=gpu:l40s:1", "--carme=base")
	second := allocate(t, "bob", "-w", node1, "--gres=gpu:l40s:1", "--carme=none")
	judge(t, node1, views(t, first.srun(t, "bash", "-c", gpuView).ok(t))[0], []int{2}, []int{2})
	judge(t, node1, views(t, second.srun(t, "bash", "-c", gpuView).ok(t))[0], []int{3}, []int{3})
	// No trace of the other's: neither its UUID nor its address.
	trace := `grep -rs --exclude-dir=host -e 000000000002 -e 0000:07:00.0 /proc/driver /run/carme /proc/self/environ /proc/self/mountinfo /etc/slurm/../../run/carme | head -3`
	if out := second.srun(t, "bash", "-c", trace).out; out != "" {
		t.Errorf("the neighbour's GPU can be read about:\n%s", out)
	}
}

func TestScenario_J5_two_nodes_have_their_own_gpus(t *testing.T) {
	out := srun(t, "alice", "-N2", "-n2", "--ntasks-per-node=1", "--gres=gpu:a100:1", "--carme=base", "bash", "-c", gpuView).ok(t)
	for i, v := range views(t, out) {
		judge(t, []string{node1, node2}[i], v, []int{0}, []int{0})
	}
}
