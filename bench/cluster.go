package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// The machines that take part; the other node stays idle.
const (
	login = "carme-login"
	node  = "carme-node2" // without TaskProlog and TaskEpilog
	noop  = "/usr/local/lib/carme-bench/noop.so"
)

// cluster is the testbed, reached through docker exec.
type cluster struct{ prefix, suite string }

func fromEnvironment() cluster {
	c := cluster{suite: "trixie"}
	if s := os.Getenv("SLURM_SUITE"); s != "" {
		c.suite = s
	}
	if i := os.Getenv("TESTBED_INSTANCE"); i != "" {
		c.prefix = i + "-"
	}
	return c
}

// docker runs Docker's client. What it printed on both streams is in the error.
func docker(ctx context.Context, in []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var out, problem bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &problem
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run docker %s: %w\n%s%s", strings.Join(args, " "), err, out.Bytes(), problem.Bytes())
	}
	return out.Bytes(), nil
}

// root runs a script as root in a machine.
func (c cluster) root(ctx context.Context, machine, script string) (string, error) {
	out, err := docker(ctx, nil, "exec", c.prefix+machine, "bash", "-c", script)
	return strings.TrimSpace(string(out)), err
}

// shell runs a script in a machine as anybody.
func (c cluster) shell(ctx context.Context, user, machine, script string) (string, error) {
	out, err := docker(ctx, nil, "exec", "-u", user, "-w", "/", c.prefix+machine, "bash", "-c", script)
	return strings.TrimSpace(string(out)), err
}

// address is that of a machine in the testbed's network.
func (c cluster) address(ctx context.Context, machine string) (string, error) {
	out, err := docker(ctx, nil, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", c.prefix+machine)
	return strings.TrimSpace(string(out)), err
}

// user runs a script as a user on the login node.
func (c cluster) user(ctx context.Context, script string) (string, error) {
	out, err := docker(ctx, nil, "exec", "-u", "alice", "-w", "/home/alice", c.prefix+login, "bash", "-c", script)
	return strings.TrimSpace(string(out)), err
}

// placeNoop compiles the plugin that does nothing and puts it where it is
// needed.
func (c cluster) placeNoop(ctx context.Context) error {
	source, err := os.ReadFile("bench/noop/noop.c")
	if err != nil {
		return fmt.Errorf("read the plugin that does nothing (run this from the repository's root): %w", err)
	}
	object, err := docker(ctx, source, "run", "--rm", "-i", "carme-builder:"+c.suite,
		"sh", "-c", "gcc -O2 -fPIC -shared -xc -o /tmp/noop.so - && cat /tmp/noop.so")
	if err != nil {
		return err
	}
	for _, m := range []string{login, node} {
		if _, err := docker(ctx, object, "exec", "-i", c.prefix+m, "sh", "-c", "mkdir -p $(dirname "+noop+") && cat >"+noop); err != nil {
			return err
		}
	}
	return nil
}

// plugins makes Slurm load the plugin that does nothing, or the product, and
// waits until the node's agent has noticed: it takes the feature away or gives it
// back after a self-test, which would run beside what is measured.
func (c cluster) plugins(ctx context.Context, carme bool) error {
	script := "cd /etc/carme && rm -rf plugstack.d && mv plugstack.kept plugstack.d"
	if carme {
		script = "cd /etc/carme && [ ! -d plugstack.kept ] || { " + script + "; }"
	} else {
		script = "cd /etc/carme && [ -d plugstack.kept ] || { cp -a plugstack.d plugstack.kept && rm plugstack.d/*; echo optional " + noop + " >plugstack.d/noop.conf; }"
	}
	for _, m := range []string{login, node} {
		if _, err := c.root(ctx, m, script); err != nil {
			return err
		}
	}
	want, not := "gives it back", "!"
	if !carme {
		want, not = "takes it away", ""
	}
	_, err := c.root(ctx, login, fmt.Sprintf(`for i in {1..600}; do %s [[ ,$(sinfo -h -p debug -n %s -o %%b), == *,carme,* ]] || exit 0; sleep 0.1; done
		echo "the feature carme of %[2]s: no agent %[3]s" >&2; exit 1`, not, node, want))
	return err
}

// idle is shell code that waits until the node has no job, not even one that is
// ending: the next one would have to wait for it. sinfo would not do: who asks it
// often is told of a node that is still "mixed" for up to a minute after a job.
const idle = `for i in {1..600}; do [ -n "$(squeue -h -w ` + node + `)" ] || break; sleep 0.05; done; `

// milliseconds runs a command on the login node and returns how long it took.
func (c cluster) milliseconds(ctx context.Context, prepare, cmd string) (float64, error) {
	out, err := c.user(ctx, prepare+"t0=${EPOCHREALTIME/./}; "+cmd+" >/dev/null || exit 1; echo $((${EPOCHREALTIME/./} - t0))")
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(out)
	if err != nil {
		return 0, fmt.Errorf("read a time: %w", err)
	}
	return float64(n) / 1000, nil
}

// hold starts a job that does nothing and returns its id once it runs.
func (c cluster) hold(ctx context.Context, options string) (string, error) {
	id, err := c.user(ctx, "sbatch --parsable -w "+node+" --mem=4000 -o /dev/null "+options+" --wrap 'exec sleep 900'")
	if err != nil {
		return "", err
	}
	// A first step, so that what is measured is a later one.
	_, err = c.user(ctx, "for i in {1..600}; do [ $(squeue -h -j "+id+" -o %T) != RUNNING ] || exec srun --jobid="+id+" --overlap true; sleep 0.1; done; "+
		"echo job "+id+" does not start: $(squeue -h -j "+id+" -o %r) >&2; exit 1")
	return id, err
}
