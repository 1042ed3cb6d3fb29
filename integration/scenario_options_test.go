//go:build integration

package integration

import (
	"strings"
	"testing"
	"time"
)

// prefix runs a command with further environment variables.
func prefix(command []string, variables ...string) []string {
	return append(append([]string{"env"}, variables...), command...)
}

// isSealed prints yes in a sealed job and no in a plain one.
const isSealed = `[ "$(readlink /proc/self/ns/pid)" = "$(readlink /proc/1/ns/pid 2>/dev/null)" ] || [ -e /run/carme/job/proof.json ] && echo yes || echo no`

func TestScenario_J1_help_of_every_command_lists_the_options(t *testing.T) {
	options := []string{
		"--carme=IMAGE", "--no-carme", "--carme-net=", "--carme-bind=", "--carme-workdir=", "--carme-home=",
		"--carme-overlay=", "--carme-conda=", "--carme-debug",
	}
	for _, command := range []string{"srun", "sbatch", "salloc"} {
		help := as(t, "alice", login, command, "--help").ok(t)
		for _, o := range options {
			if !strings.Contains(help, o) {
				t.Errorf("%s --help does not mention %s", command, o)
			}
		}
	}
}

func TestScenario_J1_list_and_help_are_shown_without_a_job(t *testing.T) {
	eventually(t, 40*time.Second, "the end of the jobs before", func() bool { return queued(t, "alice") == "" })
	for _, command := range []string{"srun", "sbatch", "salloc"} {
		list := as(t, "alice", login, command, "--carme=list").ok(t)
		if !strings.Contains(list, "base") || !strings.Contains(list, "base-dir") || strings.Contains(list, "admins") {
			t.Errorf("%s --carme=list, to a user who is no administrator:\n%s", command, list)
		}
		if help := as(t, "alice", login, command, "--carme=help").ok(t); !strings.Contains(help, "--carme-bind") {
			t.Errorf("%s --carme=help:\n%s", command, help)
		}
	}
	if list := as(t, "carol", login, "srun", "--carme=list").ok(t); !strings.Contains(list, "admins") {
		t.Errorf("an administrator does not see the image of that group:\n%s", list)
	}
	if jobs := queued(t, "alice"); jobs != "" {
		t.Errorf("there are jobs: %s", jobs)
	}
}

func TestScenario_J1_options_come_from_command_line_directive_and_environment(t *testing.T) {
	script := put(t, "alice", "it-directive.sh", "#!/bin/sh\n#SBATCH --carme=base\n#SBATCH --carme-home=no\ncat /etc/carme-image; ls -A /home/alice | wc -l\n")
	run := []string{"timeout", "80", "srun", "--time=2", "bash", "-c", isSealed + "; cat /etc/carme-image 2>/dev/null; true"}
	const image = "yes\ncarme testbed image"
	with := func(option string) []string { return append(run[:4:4], append([]string{option}, run[4:]...)...) }
	cases := map[string]struct {
		command []string
		want    string
	}{
		"nothing":                            {run, "no"},
		"--carme":                            {with("--carme"), "yes"},
		"--carme=none":                       {with("--carme=none"), "yes"},
		"--carme=base":                       {with("--carme=base"), image},
		"--carme=base-dir":                   {with("--carme=base-dir"), image},
		"CARME=base":                         {prefix(run, "CARME=base"), image},
		"CARME=yes":                          {prefix(run, "CARME=yes"), "yes"},
		"CARME=no":                           {prefix(run, "CARME=no"), "no"},
		"CARME=base and --no-carme":          {prefix(with("--no-carme"), "CARME=base"), "no"},
		"CARME=base and --carme=none":        {prefix(with("--carme=none"), "CARME=base"), "yes"},
		"CARME_NET alone":                    {prefix(run, "CARME_NET=private"), "no"},
		"salloc --carme=base":                {[]string{"timeout", "80", "salloc", "--time=2", "--carme=base", "srun", "bash", "-c", run[6]}, image},
		"salloc, and the step asks for none": {[]string{"timeout", "80", "salloc", "--time=2", "--carme=base", "srun", "--carme=none", "bash", "-c", run[6]}, "yes"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := as(t, "alice", login, c.command...).ok(t); got != c.want {
				t.Errorf("prints %q, not %q", got, c.want)
			}
		})
	}
	t.Run("#SBATCH lines", func(t *testing.T) {
		if got := output(t, "alice", sbatch(t, "alice", script)); got != "carme testbed image\n0" {
			t.Errorf("prints %q", got)
		}
		// As with every option, sbatch's command line comes before the script.
		if got := output(t, "alice", sbatch(t, "alice", "--carme=none", "--carme-home=yes", script)); strings.HasPrefix(got, "carme testbed image") || strings.HasSuffix(got, "\n0") {
			t.Errorf("with others on the command line: prints %q", got)
		}
		// As sbatch(1) has it, variables come before the script.
		id := as(t, "alice", login, "env", "CARME=none", "sbatch", "--parsable", "--time=3", "-o", "it-%j.out", script).ok(t)
		t.Cleanup(func() { scancel(id) })
		if got := output(t, "alice", id); strings.HasPrefix(got, "carme testbed image") {
			t.Errorf("with CARME=none: prints %q", got)
		}
		twice := put(t, "alice", "it-twice.sh", "#!/bin/sh\n#SBATCH --carme=base\n#SBATCH --carme=base-dir\ntrue\n")
		as(t, "alice", login, "sbatch", twice).fails(t, "--carme is given 2 times", "#SBATCH lines count")
	})
}

func TestScenario_J1_J14_defaults_of_every_option_come_from_the_environment(t *testing.T) {
	look := `ip -o link | wc -l; pwd; ls -A /home/alice | wc -l; cat /mnt/hello; touch /usr/here && echo written`
	r := as(t, "alice", login, prefix([]string{"timeout", "80", "srun", "--time=2", "sh", "-c", look},
		"CARME=base", "CARME_NET=private", "CARME_WORKDIR=/var", "CARME_HOME=no", "CARME_OVERLAY=tmpfs",
		"CARME_BIND=/data/public:/mnt:ro", "CARME_DEBUG=1")...)
	if got := r.ok(t); !strings.HasPrefix(got, "1\n/var\n0\npublic data of") || !strings.HasSuffix(got, "written") {
		t.Errorf("prints\n%s\n%s", got, r.err)
	}
	if !strings.Contains(r.err, "carme: debug:") || !strings.Contains(r.err, " ms ") {
		t.Errorf("CARME_DEBUG shows no times:\n%s", r.err)
	}
	const environment = "/home/alice/.conda/envs/it-default"
	as(t, "alice", login, "mkdir", "-p", environment+"/conda-meta", environment+"/bin").ok(t)
	undo(t, login, "rm -rf "+environment)
	// The job lasts as long as its app.
	look = `echo $CONDA_PREFIX $CARME_JOB_APP; until [ -S /run/carme/sess/app.sock ]; do sleep 0.1; done; echo listens`
	id := as(t, "alice", login, prefix([]string{"sbatch", "--parsable", "--time=3", "-o", "it-%j.out", "--wrap", look},
		"CARME=base", "CARME_CONDA=it-default", "CARME_APP=terminal")...).ok(t)
	t.Cleanup(func() { scancel(id) })
	want := environment + " terminal\nlistens"
	eventually(t, 40*time.Second, "the app's socket", func() bool { return homeFile(t, "alice", "it-"+id+".out") == want })
}

// What is about the cluster or the node is not to be had inside of a job.
func TestScenario_J1_A2_inside_a_job_one_is_told_where_to_ask(t *testing.T) {
	const ask = `for c in "carme images" "srun --carme=list" "srun --carme=help" "carme doctor"; do $c 2>&1; echo "status $?"; done`
	out := lines(srun(t, "alice", "-w", node1, "--carme=base", "sh", "-c", ask).ok(t))
	if len(out) != 8 {
		t.Fatalf("not one line each:\n%s", strings.Join(out, "\n"))
	}
	for i, words := range []string{"ask outside of the job", "ask outside of the job", "ask outside of the job", "carme proof examines the job"} {
		if line := out[2*i]; !strings.HasPrefix(line, "carme: this is inside isolated job ") && !strings.HasPrefix(line, "carme: this is inside an isolated job") ||
			!strings.Contains(line, words) || out[2*i+1] != "status 1" {
			t.Errorf("%s, %s", line, out[2*i+1])
		}
	}
	out = lines(srun(t, "alice", "-w", node1, "--carme=none", "sh", "-c", ask).ok(t))
	if got := strings.Join(out, "\n"); !strings.Contains(got, "base-dir") || !strings.Contains(got, "--carme-bind") || strings.Count(got, "status 0") != 3 || !strings.Contains(out[len(out)-2], "carme proof examines the job") {
		t.Errorf("with the node's files:\n%s", got)
	}
}

// Who has CARME_NET in ~/.bashrc knows no --carme-net.
func TestScenario_J1_J14_a_bad_default_is_refused_by_the_name_of_its_variable(t *testing.T) {
	here := []string{
		"CARME=x y", "CARME=nosuch", "CARME=/etc/passwd", "CARME=list", "CARME_NET=public", "CARME_BIND=/usr/share", "CARME_BIND=/proc/x:/y", "CARME_WORKDIR=here",
		"CARME_HOME=maybe", "CARME_OVERLAY=ram", "CARME_CONDA=a b", "CARME_APP=nosuch", "CARME_DEBUG=bad",
	}
	onTheNode := []string{"CARME_WORKDIR=/nowhere", "CARME_CONDA=nosuch", "CARME_BIND=/scratch/alice/nothing"}
	for i, bad := range append(here, onTheNode...) {
		name, _, _ := strings.Cut(bad, "=")
		r := as(t, "alice", login, prefix([]string{"timeout", "80", "srun", "--time=2", "true"}, "CARME=base", bad)...)
		r.fails(t, name)
		said := r.err
		if i >= len(here) { // srun's own line may come before it
			_, line, _ := strings.Cut("\n"+said, "\ncarme: ")
			said = "carme: " + line
		}
		if !strings.HasPrefix(said, "carme: "+name) || strings.Contains(r.err, strings.ReplaceAll(strings.ToLower("--"+name), "_", "-")+"=\"") {
			t.Errorf("%s: %s", bad, r.err)
		}
	}
	// What is typed is called by its own name.
	r := as(t, "alice", login, prefix([]string{"srun", "--carme-net=public", "true"}, "CARME=base", "CARME_NET=host")...)
	if r.fails(t, "--carme-net="); strings.Contains(r.err, "CARME_NET") {
		t.Error(r.err)
	}
}

// A site may say which image --carme alone means.
func TestScenario_J1_A4_carme_alone_takes_the_sites_default_image(t *testing.T) {
	const file = "/etc/carme/spank.yaml"
	for _, machine := range everywhere {
		undo(t, machine, "mv "+file+".kept "+file)
		sh(t, machine, "cp -p "+file+" "+file+".kept && echo 'default_image: base' >>"+file)
	}
	look := []string{"bash", "-c", isSealed + "; cat /etc/carme-image 2>/dev/null; true"}
	step := append([]string{"timeout", "80", "srun", "--time=2"}, look...)
	const image = "yes\ncarme testbed image"
	for name, c := range map[string]struct {
		command []string
		want    string
	}{
		"--carme":      {append([]string{"timeout", "80", "srun", "--time=2", "--carme"}, look...), image},
		"CARME=yes":    {prefix(step, "CARME=yes"), image},
		"--carme=none": {append([]string{"timeout", "80", "srun", "--time=2", "--carme=none"}, look...), "yes"},
		"nothing":      {step, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := as(t, "alice", login, c.command...).ok(t); got != c.want {
				t.Errorf("prints %q, not %q", got, c.want)
			}
		})
	}
	t.Run("#SBATCH and a nested step", func(t *testing.T) {
		script := put(t, "alice", "it-default.sh", "#!/bin/sh\n#SBATCH --carme\ncat /etc/carme-image\nsrun cat /etc/carme-image\n")
		if got := output(t, "alice", sbatch(t, "alice", script)); got != "carme testbed image\ncarme testbed image" {
			t.Errorf("prints %q", got)
		}
	})
	if list := as(t, "alice", login, "srun", "--carme=list").ok(t); !strings.Contains(list, "\nbase* ") || !strings.Contains(list, "* used for --carme without a name") {
		t.Errorf("--carme=list does not say which it is:\n%s", list)
	}
}

func TestScenario_J1_J14_bad_values_are_refused_before_anything_is_queued(t *testing.T) {
	cases := map[string]struct {
		args  []string
		words []string
	}{
		"unknown image":               {[]string{"--carme=nosuch"}, []string{"nosuch", "base, base-dir"}},
		"image of another group":      {[]string{"--carme=admins"}, []string{"there is no image"}},
		"image by a path not allowed": {[]string{"--carme=/etc/passwd"}, []string{"not allowed", "/home/mallory"}},
		"image by URI":                {[]string{"--carme=docker://debian"}, []string{"docker://", "--carme=list"}},
		"relative image":              {[]string{"--carme=./x.sif"}, []string{"./x.sif"}},
		"network":                     {[]string{"--carme", "--carme-net=public"}, []string{"public", "host or private"}},
		"network nat":                 {[]string{"--carme", "--carme-net=nat"}, []string{"not available yet"}},
		"home":                        {[]string{"--carme", "--carme-home=maybe"}, []string{"yes or no"}},
		"work directory":              {[]string{"--carme", "--carme-workdir=here"}, []string{"--carme-workdir"}},
		"overlay":                     {[]string{"--carme=base", "--carme-overlay=ram"}, []string{"none, tmpfs or a directory"}},
		"overlay as a side door":      {[]string{"--carme=base", "--carme-overlay=/etc/carme:ro"}, []string{"has no : or ,"}},
		"overlay without an image":    {[]string{"--carme=none", "--carme-overlay=tmpfs"}, []string{"--carme=IMAGE"}},
		"bind not allowed":            {[]string{"--carme", "--carme-bind=/usr/share"}, []string{"/usr/share", "/scratch/mallory"}},
		"bind of another's scratch":   {[]string{"--carme", "--carme-bind=/scratch/alice"}, []string{"not allowed"}},
		"bind writable where ro":      {[]string{"--carme", "--carme-bind=/data/public:/mnt"}, []string{"/data/public:/mnt:ro"}},
		"bind without a source":       {[]string{"--carme", "--carme-bind=:/x"}, []string{"source"}},
		"bind with a bad mode":        {[]string{"--carme", "--carme-bind=/data/public:/mnt:rx"}, []string{"ro"}},
		"empty bind":                  {[]string{"--carme", "--carme-bind="}, []string{"SRC[:DST[:ro]]"}},
		"dots":                        {[]string{"--carme", "--carme-bind=/data/public/../../etc:/mnt:ro"}, []string{"/data/public/../../etc"}},
		"conda":                       {[]string{"--carme", "--carme-conda=a b"}, []string{"--carme-conda"}},
		"option without --carme":      {[]string{"--carme-net=private"}, []string{"no effect without --carme"}},
		"carme and no-carme":          {[]string{"--carme", "--no-carme"}, []string{"--no-carme"}},
		"repeated image":              {[]string{"--carme=base", "--carme=base-dir"}, []string{"2 times", "once"}},
		"repeated network":            {[]string{"--carme", "--carme-net=host", "--carme-net=host"}, []string{"--carme-net", "once"}},
		"repeated bind":               {[]string{"--carme", "--carme-bind=/data/public:/a:ro", "--carme-bind=/data/public:/b:ro"}, []string{"commas"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := as(t, "mallory", login, append(append([]string{"srun"}, c.args...), "true")...)
			r.fails(t, c.words...)
			if r.out != "" || strings.Contains(r.err, "queued") {
				t.Errorf("srun says more:\n%s\n%s", r.out, r.err)
			}
		})
	}
	for _, args := range [][]string{
		{"sbatch", "--carme=nosuch", "--wrap", "true"},
		{"sbatch", "--carme", "--carme-net=nosuch", "--wrap", "true"},
		{"salloc", "--carme", "--carme-bind=/etc", "true"},
	} {
		as(t, "mallory", login, args...).fails(t)
	}
	directive := put(t, "mallory", "it-bad.sh", "#!/bin/sh\n#SBATCH --carme=nosuch\ntrue\n")
	as(t, "mallory", login, "sbatch", directive).fails(t, "nosuch")
	if jobs := root(t, ctl, "sacct", "-nX", "-u", "mallory", "-S", "now-5minutes", "-o", "jobid,jobname,state").out; strings.Contains(jobs, "true") || strings.Contains(jobs, "it-bad") || strings.Contains(jobs, "wrap") {
		t.Errorf("there were jobs:\n%s", jobs)
	}
	if jobs := queued(t, "mallory"); jobs != "" {
		t.Errorf("there are jobs: %s", jobs)
	}
}

func TestScenario_J1_J14_an_image_typed_with_a_space_is_caught(t *testing.T) {
	as(t, "mallory", login, "sh", "-c", "mkdir -p box/.singularity.d; : >own.sif").ok(t)
	for word, hint := range map[string]string{
		"base":            "--carme=base",
		"own.sif":         "--carme=$PWD/own.sif",
		"./box":           "--carme=$PWD/box",
		"docker://debian": "--carme=docker://debian",
	} {
		r := as(t, "mallory", login, "srun", "--carme", word, "true")
		r.fails(t, hint)
	}
	as(t, "mallory", login, "salloc", "--carme", "base").fails(t, "--carme=base")
	as(t, "mallory", login, "sbatch", "--time=1", "--carme", "base").fails(t, "--carme=base")
	// A script's own argument is none of ours.
	script := put(t, "mallory", "it-words.sh", "#!/bin/sh\necho $*\n")
	if got := output(t, "mallory", sbatch(t, "mallory", script, "--carme", "base")); got != "--carme base" {
		t.Errorf("a script with the arguments --carme base prints %q", got)
	}
	// A command that only looks so from afar is run.
	if out := as(t, "mallory", login, "timeout", "80", "srun", "--carme", "echo", "base").ok(t); out != "base" {
		t.Errorf("srun --carme echo base prints %q", out)
	}
}

// Each task may have a command of its own (--multi-prog), and says what is wrong
// with it, as with slurmstepd.
func TestScenario_J14_J7_a_command_that_does_not_run_in_the_image(t *testing.T) {
	as(t, "alice", login, "sh", "-c", "echo true >it-closed.sh; chmod 644 it-closed.sh; echo '#!/usr/bin/lacking' >it-lacking.sh; chmod 755 it-lacking.sh").ok(t)
	for command, c := range map[string]struct {
		words  string
		status int
	}{
		"./it-closed.sh":  {"chmod +x", 13},
		"./it-lacking.sh": {"the interpreter in its first line", 2},
		"./it-nothing.sh": {"check the name", 2},
		"it-nothing":      {"check the name", 2},
	} {
		r := srun(t, "alice", "-w", node1, "--carme=base", command)
		if r.fails(t, "run "+command+" in the container", c.words); r.code != c.status {
			t.Errorf("%s: exit status %d, not slurmstepd's %d", command, r.code, c.status)
		}
	}
}

func TestScenario_J14_a_mistake_seen_on_the_node_is_one_line_and_drains_nothing(t *testing.T) {
	as(t, "alice", login, "sh", "-c", "printf '#!/usr/bin/env run-singularity\\n\\0SIF_MAGIC\\0nonsense' >broken.sif; echo nonsense >text.sif; echo nonsense >closed.sif; chmod 000 closed.sif; rm -f pipe.sif; mkfifo pipe.sif; mkdir -p hollow").ok(t)
	t.Cleanup(func() {
		cleanUp(login, "rm -rf /home/alice/broken.sif /home/alice/text.sif /home/alice/pipe.sif /home/alice/closed.sif /home/alice/hollow")
	})
	root(t, node1, "ln", "-sfn", "/etc", "/scratch/alice/it-link").ok(t)
	cases := map[string]struct {
		args  []string
		words []string
		batch bool
	}{
		"bind of nothing":      {[]string{"--carme", "--carme-bind=/scratch/alice/nothing:/tmp/x"}, []string{"/scratch/alice/nothing", "check the path"}, true},
		"bind through a link":  {[]string{"--carme", "--carme-bind=/scratch/alice/it-link:/tmp/x"}, []string{"leads to /etc"}, false},
		"no work directory":    {[]string{"--carme=none", "--carme-workdir=/nowhere"}, []string{"/nowhere"}, false},
		"none in the image":    {[]string{"--carme=base", "--carme-workdir=/nowhere"}, []string{"/nowhere"}, false},
		"no image file":        {[]string{"--carme=/home/alice/nothing.sif"}, []string{"/home/alice/nothing.sif", "check the path"}, false},
		"broken image":         {[]string{"--carme=/home/alice/broken.sif"}, []string{"broken.sif", "check the image"}, true},
		"unreadable image":     {[]string{"--carme=/home/alice/closed.sif"}, []string{"/home/alice/closed.sif as you: permission denied", "check the path"}, false},
		"image is a pipe":      {[]string{"--carme=/home/alice/pipe.sif"}, []string{"/home/alice/pipe.sif", "neither a file nor a directory"}, false},
		"image is a home":      {[]string{"--carme=/home/alice"}, []string{"/home/alice is no image", "a directory without the root file system", "--carme=list"}, false},
		"image is a text":      {[]string{"--carme=/home/alice/text.sif"}, []string{"/home/alice/text.sif is no image", "a file of another kind", "SIF file"}, false},
		"overlay not writable": {[]string{"--carme=base", "--carme-overlay=/scratch/alice/nothing"}, []string{"/scratch/alice/nothing", "mkdir -p"}, false},
		"no such conda":        {[]string{"--carme=none", "--carme-conda=/home/alice/hollow"}, []string{"no conda environment", "check the path"}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			args := append(append([]string{"-w", node1, "-n4"}, c.args...), "echo", "ran")
			r := srun(t, "alice", args...)
			r.fails(t, c.words...)
			if strings.Contains(r.out, "ran") {
				t.Errorf("a task ran all the same:\n%s", r.out)
			}
			if !c.batch {
				return
			}
			id := sbatch(t, "alice", append(append([]string{"-w", node1}, c.args...), "--wrap", "echo ran")...)
			if out := output(t, "alice", id); !strings.Contains(out, "carme: ") || strings.Contains(out, "ran\n") || state(t, id) != "FAILED" {
				t.Errorf("as a batch job: %s\n%s", state(t, id), out)
			}
		})
	}
	idle(t)
}
