//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The machines of the testbed, and its two nodes.
const (
	ctl   = "carme-ctl"
	login = "carme-login"
	node1 = "carme-node1" // has a TaskProlog and a TaskEpilog
	node2 = "carme-node2" // has homes that root cannot read
)

// patience is how long one command may take before the test gives up on it: a
// Slurm step that cannot start would keep srun waiting for minutes.
const patience = 90 * time.Second

// suite is the Debian release, and with it the Slurm release, under test.
func suite() string {
	if s := os.Getenv("SLURM_SUITE"); s != "" {
		return s
	}
	return "trixie"
}

// result is how a command ended. Both streams come without their last newline.
type result struct {
	out, err string
	code     int
	cmd      string
}

// container is the name of a machine's container: that of the machine, unless
// TESTBED_INSTANCE says that another cluster is meant.
func container(machine string) string {
	if instance := os.Getenv("TESTBED_INSTANCE"); instance != "" {
		return instance + "-" + machine
	}
	return machine
}

func run(t *testing.T, name string, args ...string) result {
	t.Helper()
	// Clean-up functions run commands too, after the test's own context has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	var out, err bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &err
	r := result{cmd: strings.Join(args, " ")}
	failure := cmd.Run()
	r.out, r.err = strings.TrimRight(out.String(), "\n"), strings.TrimRight(err.String(), "\n")
	var exit *exec.ExitError
	switch {
	case failure == nil:
	case ctx.Err() != nil:
		t.Fatalf("%s: no end after %v\n%s%s", r.cmd, patience, r.out, r.err)
	case errors.As(failure, &exit):
		r.code = exit.ExitCode()
	default:
		t.Fatalf("%s: %v", r.cmd, failure)
	}
	return r
}

// root runs a command as root in a machine.
func root(t *testing.T, machine string, args ...string) result {
	t.Helper()
	return run(t, "docker", append([]string{"exec", container(machine)}, args...)...)
}

// as runs a command as a user in a machine, in that user's home. Nodes know
// users by LDAP alone, which docker exec -u does not ask, hence setpriv.
func as(t *testing.T, user, machine string, args ...string) result {
	t.Helper()
	return root(t, machine, append([]string{
		"setpriv", "--reuid", user, "--regid", user, "--init-groups",
		"env", "-i", "-C", "/home/" + user, "HOME=/home/" + user, "USER=" + user, "LOGNAME=" + user, "SHELL=/bin/bash",
		"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8",
	}, args...)...)
}

// srun runs srun on the login node. The time limit makes Slurm itself end what
// hangs, so that one bad test does not hold its node.
func srun(t *testing.T, user string, args ...string) result {
	t.Helper()
	return as(t, user, login, append([]string{"timeout", "80", "srun", "--time=2"}, args...)...)
}

// ok stops the test unless the command ended well, and returns its output.
func (r result) ok(t *testing.T) string {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("%s: exit status %d\n%s\n%s", r.cmd, r.code, r.out, r.err)
	}
	return r.out
}

// lines splits text and drops empty lines.
func lines(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\n"); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// eventually asks again until the answer is yes, for things that another process
// does in its own time.
func eventually(t *testing.T, limit time.Duration, what string, yes func() bool) {
	t.Helper()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(limit); !yes(); <-again.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}
