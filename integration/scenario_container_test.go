//go:build integration

package integration

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestScenario_J7_sif_and_sandbox_run_as_the_user(t *testing.T) {
	const look = `cat /etc/carme-image; id -un; id -u; pwd; test -w ~ && echo home; touch /usr/x 2>/dev/null || echo read-only; grep -c '^slurm:' /etc/passwd`
	for _, image := range []string{"base", "base-dir", "/home/alice/own.sif"} {
		t.Run(image, func(t *testing.T) {
			if strings.HasPrefix(image, "/") {
				as(t, "alice", login, "ln", "-sf", "/opt/carme/images/base.sif", "link.sif").ok(t)
				srun(t, "alice", "--carme=/home/alice/link.sif", "true").fails(t, "leads to /opt/carme/images/base.sif")
				as(t, "alice", login, "cp", "/opt/carme/images/base.sif", "own.sif").ok(t)
				t.Cleanup(func() { cleanUp(login, "rm -f /home/alice/own.sif") })
			}
			for _, node := range []string{node1, node2} {
				uid := as(t, "alice", login, "id", "-u").ok(t)
				got := srun(t, "alice", "-w", node, "--carme="+image, "bash", "-c", look).ok(t)
				if name := srun(t, "alice", "-w", node, "--carme="+image, "sh", "-c", "echo $APPTAINER_NAME ${SINGULARITY_CONTAINER##*/}").ok(t); !strings.HasPrefix(name, "base") && !strings.HasPrefix(name, "own.sif own.sif") {
					t.Errorf("%s: the runtime's variables say %q", node, name)
				}
				if want := "carme testbed image\nalice\n" + uid + "\n/home/alice\nhome\nread-only\n1"; got != want {
					t.Errorf("%s: in the job\n%s\nnot\n%s", node, got, want)
				}
			}
		})
	}
}

func TestScenario_J7_the_container_is_started_once_per_job_and_node(t *testing.T) {
	job := allocate(t, "alice", "-w", node1, "-n8", "--carme=base")
	const hold = `exec sleep 30`
	go as(t, job.user, login, "timeout", "60", "srun", "--jobid="+job.id, "--overlap", "-n8", "sh", "-c", hold)
	go as(t, job.user, login, "timeout", "60", "srun", "--jobid="+job.id, "--overlap", "-n4", "sh", "-c", hold)
	eventually(t, 30*time.Second, "twelve tasks", func() bool {
		return root(t, node1, "pgrep", "-c", "-fx", "sleep 30").out == "12"
	})
	for _, name := range []string{"squashfuse_ll", "carme-hold|hold"} {
		if n := root(t, node1, "pgrep", "-c", "-x", name).out; n != "1" {
			t.Errorf("%s %s run, not one", n, name)
		}
	}
	if n := root(t, node1, "pgrep", "-c", "-f", "Apptainer runtime parent").out; n != "1" {
		t.Errorf("%s containers were started, not one", n)
	}
	// Tasks see one file system, that of the container.
	seen := lines(job.srun(t, "-n4", "readlink", "/proc/self/ns/mnt").ok(t))
	seen = append(seen, job.srun(t, "-n1", "readlink", "/proc/self/ns/mnt").ok(t))
	for _, s := range seen {
		if s != seen[0] {
			t.Errorf("mount namespaces of tasks: %v", seen)
		}
	}
	root(t, ctl, "scancel", job.id).ok(t)
	eventually(t, 10*time.Second, "end of the container", func() bool {
		return root(t, node1, "pgrep", "-x", "squashfuse_ll").code != 0
	})
}

func TestScenario_J7_a_step_may_use_another_image_of_the_job(t *testing.T) {
	job := allocate(t, "alice", "-w", node1, "-n2", "--carme=none")
	const look = `cat /etc/carme-image 2>/dev/null || echo none; readlink /proc/self/ns/pid`
	in := func(args ...string) []string {
		return lines(job.srun(t, append(args, "sh", "-c", look)...).ok(t))
	}
	none, base, dir := in(), in("--carme=base"), in("--carme=base-dir")
	if none[0] != "none" || base[0] != "carme testbed image" || dir[0] != base[0] {
		t.Errorf("images: %v %v %v", none, base, dir)
	}
	if none[1] != base[1] || base[1] != dir[1] {
		t.Errorf("the PID namespace differs: %v %v %v", none, base, dir)
	}
}

func TestScenario_J8_binds_by_policy(t *testing.T) {
	root(t, node1, "sh", "-c", "install -d -o alice -g alice /scratch/alice/it && echo mine >/scratch/alice/it/file && chown alice /scratch/alice/it/file").ok(t)
	cases := map[string]struct {
		args []string
		look string
		want string
	}{
		"read-only into an image":      {[]string{"--carme=base", "--carme-bind=/data/public:/mnt:ro"}, "cat /mnt/hello; touch /mnt/x 2>/dev/null || echo refused", "public data of carme-node1\nrefused"},
		"read-only without an image":   {[]string{"--carme=none", "--carme-bind=/data/public:/tmp/data:ro"}, "cat /tmp/data/hello; touch /tmp/data/x 2>/dev/null || echo refused", "public data of carme-node1\nrefused"},
		"own, writable, into an image": {[]string{"--carme=base", "--carme-bind=/scratch/alice/it:/mnt"}, "cat /mnt/file; echo more >/mnt/new && cat /mnt/new", "mine\nmore"},
		"own, read-only":               {[]string{"--carme=base", "--carme-bind=/scratch/alice/it:/mnt:ro"}, "cat /mnt/file; touch /mnt/new 2>/dev/null || echo refused", "mine\nrefused"},
		"own, in place":                {[]string{"--carme=base", "--carme-bind=/scratch/alice"}, "cat /scratch/alice/it/file", "mine"},
		"a file":                       {[]string{"--carme=base", "--carme-bind=/scratch/alice/it/file:/opt/deep/file"}, "cat /opt/deep/file", "mine"},
		"several":                      {[]string{"--carme=base", "--carme-bind=/scratch/alice/it:/mnt,/data/public:/srv:ro"}, "cat /mnt/file /srv/hello", "mine\npublic data of carme-node1"},
		"none: not in an image":        {[]string{"--carme=base"}, "ls -d /scratch /data 2>/dev/null; true", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			args := append(append([]string{"-w", node1}, c.args...), "bash", "-c", c.look)
			if got := srun(t, "alice", args...).ok(t); got != c.want {
				t.Errorf("prints %q, not %q", got, c.want)
			}
		})
	}
}

func TestScenario_J8_home_work_directory_and_overlay(t *testing.T) {
	root(t, node1, "sh", "-c", "rm -rf /scratch/alice/layer; install -d -o alice -g alice /scratch/alice/layer").ok(t)
	put(t, "alice", "it-home", "here")
	cases := map[string]struct {
		args []string
		look string
		want string
	}{
		"home in an image":         {[]string{"--carme=base"}, "cat ~/it-home; echo $HOME", "here/home/alice"},
		"no home in an image":      {[]string{"--carme=base", "--carme-home=no"}, "ls -A ~ | wc -l; touch ~/x && echo writable; echo $HOME", "0\nwritable\n/home/alice"},
		"no home without an image": {[]string{"--carme=none", "--carme-home=no"}, "ls -A ~ | wc -l; touch ~/x && echo writable; echo $HOME", "0\nwritable\n/home/alice"},
		"work directory, image":    {[]string{"--carme=base", "--carme-workdir=/var"}, "pwd", "/var"},
		"work directory, none":     {[]string{"--carme=none", "--carme-workdir=/var"}, "pwd", "/var"},
		"--chdir":                  {[]string{"--carme=base", "--chdir=/usr"}, "pwd", "/usr"},
		"overlay in memory":        {[]string{"--carme=base", "--carme-overlay=tmpfs"}, "echo new >/usr/it && cat /usr/it", "new"},
		"overlay in a directory":   {[]string{"--carme=base-dir", "--carme-overlay=/scratch/alice/layer"}, "echo new >/usr/it && cat /usr/it", "new"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			args := append(append([]string{"-w", node1}, c.args...), "bash", "-c", c.look)
			if got := srun(t, "alice", args...).ok(t); got != c.want {
				t.Errorf("prints %q, not %q", got, c.want)
			}
		})
	}
	if got := srun(t, "alice", "-w", node1, "--carme=base-dir", "--carme-overlay=/scratch/alice/layer", "cat", "/usr/it").ok(t); got != "new" {
		t.Errorf("the layer lost what was written: %q", got)
	}
	if r := root(t, node1, "ls", "/home/alice/x"); r.code == 0 {
		t.Error("a job without its home wrote to it")
	}
}

// What two containers at a time leave in one directory is undefined (the kernel's
// overlayfs.rst, "Sharing and copying layers").
func TestScenario_J8_a_directory_for_what_is_written_is_one_jobs_at_a_time(t *testing.T) {
	const dir = "/scratch/alice/it-layer"
	root(t, node1, "sh", "-c", "rm -rf "+dir+"; install -d -o alice -g alice "+dir).ok(t)
	with := func(image string) []string {
		return []string{"-w", node1, "--carme=" + image, "--carme-overlay=" + dir}
	}
	write := func(name string) []string {
		return []string{"bash", "-c", "echo new >/usr/" + name + " && ls /usr | grep ^it"}
	}
	first := allocate(t, "alice", with("base-dir")...)
	if got := first.srun(t, write("it1")...).ok(t); got != "it1" {
		t.Errorf("its job finds %q", got)
	}
	srun(t, "alice", append(with("base"), "true")...).fails(t, dir, "in use by job "+first.id+" on carme-node1", "a directory for each job")
	if r := first.srun(t, "--carme=base", "cat", "/usr/it1"); r.code != 0 {
		t.Errorf("another image of its job does not start:\n%s", r.err)
	}
	if got := srun(t, "alice", "-w", node1, "--carme=base-dir", "bash", "-c", "ls /usr | grep -c ^it").out; got != "0" {
		t.Errorf("a job without it finds %q", got)
	}
	scancel(first.id)
	if got := srun(t, "alice", append(with("base-dir"), write("it2")...)...).ok(t); got != "it1\nit2" {
		t.Errorf("the next job finds %q", got)
	}
}

// Slurm says "couldn't chdir to …: going to /tmp instead" where a node has no such
// directory, and runs the task.
func TestScenario_J8_J14_who_starts_where_the_image_shows_nothing_is_told(t *testing.T) {
	const dir = "/scratch/alice/it-start"
	root(t, node1, "install", "-d", "-o", "alice", "-g", "alice", dir).ok(t)
	line := "carme: couldn't chdir to " + dir + " in the container: No such file or directory: going to / instead; show the directory with --carme-bind=" + dir +
		", or choose another one with --carme-workdir=DIR"
	told := func(r result) int {
		t.Helper()
		return strings.Count(r.ok(t)+"\n"+r.err, line)
	}
	at := []string{"-w", node1, "--carme=base", "--chdir=" + dir}
	step := func(args ...string) result { return srun(t, "alice", append(args, "pwd")...) }
	if r := step(append(at, "-n3")...); told(r) != 1 || r.out != "/\n/\n/" {
		t.Errorf("in %q, told %d times:\n%s", r.out, told(r), r.err)
	}
	for name, way := range map[string]string{"shown": "--carme-bind=" + dir, "elsewhere": "--carme-workdir=/var"} {
		want := map[string]string{"shown": dir, "elsewhere": "/var"}[name]
		if r := step(append(at, way)...); told(r) != 0 || r.out != want {
			t.Errorf("%s: in %q, told %d times:\n%s", name, r.out, told(r), r.err)
		}
	}
	id := sbatch(t, "alice", append(at, "-n2", "-o", "/home/alice/it-%j.out", "--wrap", "pwd; srun pwd")...)
	if out := output(t, "alice", id); strings.Count(out, line) != 1 || !strings.HasSuffix(out, "\n/\n/\n/") {
		t.Errorf("a batch job prints\n%s", out)
	}
}

func TestScenario_J7_J8_the_environment_of_an_image(t *testing.T) {
	run := []string{"timeout", "80", "srun", "--time=2", "-w", node1}
	look := []string{"sh", "-c", `echo "$MINE|$LD_PRELOAD|$PYTHONPATH|$HOME|$USER|$APPTAINERENV_EVIL|$EVIL"`}
	env := []string{"MINE=kept", "LD_PRELOAD=", "PYTHONPATH=/host/python", "APPTAINERENV_EVIL=1"}
	got := as(t, "alice", login, prefix(append(append(run[:6:6], "--carme=base"), look...), env...)...).ok(t)
	if want := "kept|||/home/alice|alice||"; got != want {
		t.Errorf("in an image: %q, not %q", got, want)
	}
	got = as(t, "alice", login, prefix(append(append(run[:6:6], "--carme=none"), look...), env...)...).ok(t)
	if want := "kept||/host/python|/home/alice|alice|1|"; got != want {
		t.Errorf("without an image: %q, not %q", got, want)
	}
}

func TestScenario_J7_batch_script_and_submit_directory_are_in_the_image(t *testing.T) {
	as(t, "alice", login, "mkdir", "-p", "it dir").ok(t)
	script := put(t, "alice", "it dir/job.sh", "#!/bin/bash\n#SBATCH --carme=base\necho \"$(pwd)|$SLURM_SUBMIT_DIR|$(head -c 11 \"$0\")|$1\"\ncat /etc/carme-image\nsrun -n2 cat /etc/carme-image\n")
	for _, node := range []string{node1, node2} {
		id := as(t, "alice", login, "sh", "-c", `cd "it dir" && sbatch --parsable --time=2 -n2 -o "$HOME/it-%j.out" -w "$1" "$2" argument`, "sh", node, script).ok(t)
		t.Cleanup(func() { scancel(id) })
		want := "/home/alice/it dir|/home/alice/it dir|#!/bin/bash|argument\n" + strings.Repeat("carme testbed image\n", 3)
		if got := output(t, "alice", id); got+"\n" != want {
			t.Errorf("%s: the script prints\n%s\nnot\n%s", node, got, want)
		}
	}
}

func TestScenario_J13_J4_a_nested_step_joins_its_job_whatever_it_says(t *testing.T) {
	const where = `echo "$(readlink /proc/self/ns/pid) $(test -e /etc/carme-image && echo image)"`
	cases := map[string]string{
		"as it is":             `srun --overlap -n1 bash -c "$0"`,
		"--export=NONE":        `srun --overlap -n1 --export=NONE /bin/bash -c "$0"`,
		"CARME=no":             `CARME=no srun --overlap -n1 bash -c "$0"`,
		"an empty environment": `env -i PATH="$PATH" SLURM_JOB_ID=$SLURM_JOB_ID srun --overlap -n1 bash -c "$0"`,
		"variables unset":      `unset $(env | grep -o "^SLURM_SPANK[^=]*\|^CARME[^=]*\|^_SLURM_SPANK[^=]*"); srun --overlap -n1 bash -c "$0"`,
		"the image again":      `srun --overlap -n1 --carme=base bash -c "$0"`,
	}
	job := allocate(t, "alice", "-N2", "-w", node1+","+node2, "--ntasks-per-node=2", "--carme=base")
	own := job.srun(t, "-N1", "-n1", "-w", node1, "bash", "-c", where).ok(t)
	if !strings.HasSuffix(own, " image") {
		t.Fatalf("a step is not in the image: %s", own)
	}
	there := job.srun(t, "-N1", "-n1", "-w", node1, "srun", "--overlap", "-N1", "-n1", "-w", node2, "bash", "-c", where).ok(t)
	if !strings.HasSuffix(there, " image") {
		t.Fatalf("a nested step on the other node is not in the image: %s", there)
	}
	for name, command := range cases {
		t.Run(name, func(t *testing.T) {
			for node, want := range map[string]string{node1: own, node2: there} {
				nested := strings.Replace(command, "-n1", "-N1 -n1 -w "+node, 1)
				got := job.srun(t, "-N1", "-n1", "-w", node1, "bash", "-c", nested, where).ok(t)
				if got != want {
					t.Errorf("on %s the step is at %q, not %q", node, got, want)
				}
			}
		})
	}
	// --no-carme inside contradicts the job: refused, never obeyed.
	job.srun(t, "-N1", "-n1", "-w", node1, "srun", "--overlap", "-n1", "--no-carme", "true").fails(t, "--no-carme")
	// A shell started from outside lands inside as well.
	if got := job.srun(t, "-N1", "-n1", "-w", node2, "bash", "-c", where).ok(t); got != there {
		t.Errorf("a step from the login node is at %q, not %q", got, there)
	}
}

func TestScenario_J13_the_first_step_on_another_node_is_sealed_too(t *testing.T) {
	// The second node has seen nothing of the job when the step arrives.
	for name, command := range map[string]string{
		"--export=NONE":        `srun -N1 -n1 -w carme-node2 --overlap --export=NONE /bin/bash -c "$0"`,
		"an empty environment": `env -i PATH="$PATH" SLURM_JOB_ID=$SLURM_JOB_ID srun -N1 -n1 -w carme-node2 --overlap /bin/bash -c "$0"`,
	} {
		t.Run(name, func(t *testing.T) {
			for where, seal := range seals {
				job := allocate(t, "alice", "-N2", "-w", node1+","+node2, "--ntasks-per-node=1", seal)
				host := root(t, node2, "readlink", "/proc/self/ns/pid").ok(t)
				got := job.srun(t, "-N1", "-n1", "-w", node1, "bash", "-c", command, "readlink /proc/self/ns/pid").ok(t)
				if got == host || got == "" {
					t.Errorf("%s: the step runs unsealed on %s: %q", where, node2, got)
				}
			}
		})
	}
}

// An option without a value comes to the node as nothing, as an empty text, or as
// the text "(null)", by way of the job's environment: no image is called so.
func TestScenario_J13_J1_an_option_without_a_value_stays_one_in_nested_steps(t *testing.T) {
	const show = pidNS + "; test ! -e /etc/carme-image && echo none"
	const own = `bash -c '` + show + `'`
	for _, option := range []string{"--carme", "--carme="} {
		t.Run(option, func(t *testing.T) {
			script := own + "; srun -N1 -n1 -w " + node1 + " " + own + "; srun -N1 -n1 -w " + node2 + " " + own +
				"; srun -N1 -n1 -w " + node1 + " srun --overlap -N1 -n1 -w " + node2 + " " + own +
				"; srun -N1 -n1 -w " + node1 + " --carme " + own
			id := sbatch(t, "alice", "-N2", "-w", node1+","+node2, "--ntasks-per-node=1", option, "--wrap", script)
			// srun tells of a step that it had to wait for.
			out := slices.DeleteFunc(lines(output(t, "alice", id)), func(l string) bool { return strings.HasPrefix(l, "srun: Step created") })
			if len(out) != 10 {
				t.Fatalf("five programs print\n%s", strings.Join(out, "\n"))
			}
			for i, node := range []string{node1, node1, node2, node2, node1} {
				if ns, image := out[2*i], out[2*i+1]; !sealed(t, node, ns) || image != "none" {
					t.Errorf("program %d on %s runs in %s, image: %s", i+1, node, ns, image)
				}
			}
			if out[0] != out[2] || out[0] != out[8] || out[4] != out[6] {
				t.Errorf("steps of one job on one node are in different namespaces: %q", out)
			}
		})
	}
	if out := as(t, "alice", login, "timeout", "80", "srun", "--time=2", "-w", node1, "--carme=(null)", "bash", "-c", show).ok(t); !strings.HasSuffix(out, "none") {
		t.Errorf("with the text itself: %q", out)
	}
}

func TestScenario_J13_slurm_commands_act_as_the_user_inside(t *testing.T) {
	for where, seal := range seals {
		t.Run(where, func(t *testing.T) {
			job := allocate(t, "alice", "-w", node1, seal)
			in := func(command string) string {
				return job.srun(t, "bash", "-c", command).ok(t)
			}
			if got := in("squeue -h -j $SLURM_JOB_ID -o '%i %u'"); got != job.id+" alice" {
				t.Errorf("squeue: %q", got)
			}
			if got := in("scontrol show job $SLURM_JOB_ID | grep -o 'UserId=[a-z]*'"); got != "UserId=alice" {
				t.Errorf("scontrol: %q", got)
			}
			if got := in("sinfo -h -o %P | sort | head -1; sacct -nX -j $SLURM_JOB_ID -o jobid"); !strings.Contains(got, "debug") || !strings.Contains(got, job.id) {
				t.Errorf("sinfo, sacct: %q", got)
			}
			// A job that a sealed job submits is sealed as well, unless it says no.
			child := in("cd ~; sbatch --parsable --time=2 -o it-%j.out --wrap '" + isSealed + "'")
			t.Cleanup(func() { scancel(child) })
			if got := output(t, "alice", child); got != "yes" {
				t.Errorf("a job submitted from inside is sealed: %q", got)
			}
			other := sbatch(t, "bob", "-w", node1, "--wrap", "sleep 100")
			if r := job.srun(t, "scancel", other); !strings.Contains(r.err, "denied") {
				t.Errorf("cancel another's job: %q %q", r.out, r.err)
			}
			job.srun(t, "sh", "-c", "scancel $SLURM_JOB_ID; sleep 60")
			awaitState(t, job.id, 20*time.Second, "CANCELLED")
		})
	}
}

func TestScenario_J8_a_submit_directory_outside_the_home_is_there_if_policy_allows(t *testing.T) {
	root(t, node1, "sh", "-c", "install -d -o alice -g alice /scratch/alice/it && echo mine >/scratch/alice/it/file").ok(t)
	root(t, login, "install", "-d", "-o", "alice", "-g", "alice", "/scratch/alice/it").ok(t)
	for where, seal := range seals {
		got := as(t, "alice", login, "env", "-C", "/scratch/alice/it", "timeout", "80", "srun", "--time=2", "-w", node1, seal, "sh", "-c", "pwd; cat file").ok(t)
		if got != "/scratch/alice/it\nmine" {
			t.Errorf("%s: %q", where, got)
		}
	}
}
