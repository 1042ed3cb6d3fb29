//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A sealed job runs on the node's own files or in an image; nearly all that is
// promised holds for both.
var seals = map[string]string{"without an image": "--carme=none", "in an image": "--carme=base"}

// facts reads lines of the form NAME=VALUE; others are left out.
func facts(text string) map[string]string {
	all := map[string]string{}
	for _, line := range lines(text) {
		if name, value, ok := strings.Cut(line, "="); ok {
			all[name] = value
		}
	}
	return all
}

// namespaces prints one line with those of a task, without the user namespace,
// which an image adds, and the mount namespace, which differs by image.
const namespaces = `echo "$(readlink /proc/self/ns/pid /proc/self/ns/ipc /proc/self/ns/uts | tr '\n' ' ')"`

// fails stops the test unless the command failed with one line of Carme's that
// holds each of the words.
func (r result) fails(t *testing.T, words ...string) {
	t.Helper()
	var own []string
	for _, line := range lines(r.err) {
		if text, ok := strings.CutPrefix(line, "carme: "); ok {
			own = append(own, text)
		}
	}
	if r.code == 0 || len(own) != 1 {
		t.Fatalf("%s: exit status %d and %d lines of Carme's, not an error and one line\n%s\n%s", r.cmd, r.code, len(own), r.out, r.err)
	}
	for _, word := range words {
		if !strings.Contains(own[0], word) {
			t.Fatalf("%s: the error does not say %q:\n%s", r.cmd, word, own[0])
		}
	}
}

// sbatch queues a batch job that does not outlive the test and returns its id.
// Its output goes to ~/it-ID.out.
func sbatch(t *testing.T, user string, args ...string) string {
	t.Helper()
	id := as(t, user, login, append([]string{"sbatch", "--parsable", "--time=3", "-o", "it-%j.out"}, args...)...).ok(t)
	t.Cleanup(func() {
		scancel(id)
	})
	return id
}

// scancel ends jobs when a test's own context is over. Those that have ended
// already are no error.
func scancel(args ...string) {
	_ = exec.CommandContext(context.Background(), "docker", append([]string{"exec", container(ctl), "scancel", "-Q"}, args...)...).Run()
}

// state is a job's state in Slurm's words.
func state(t *testing.T, id string) string {
	t.Helper()
	m := regexp.MustCompile(`JobState=(\S+)`).FindStringSubmatch(root(t, ctl, "scontrol", "show", "job", id).out)
	if m == nil {
		return ""
	}
	return m[1]
}

// awaitState waits for one of the states.
func awaitState(t *testing.T, id string, limit time.Duration, states ...string) {
	t.Helper()
	eventually(t, limit, "job "+id+" "+strings.Join(states, " or "), func() bool {
		return slices.Contains(states, state(t, id))
	})
}

// output waits for the end of a batch job and returns what it printed.
func output(t *testing.T, user, id string) string {
	t.Helper()
	awaitState(t, id, 60*time.Second, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
	return homeFile(t, user, "it-"+id+".out")
}

// homeFile reads a file of a user's home, as the user.
func homeFile(t *testing.T, user, name string) string {
	t.Helper()
	return as(t, user, login, "cat", name).out
}

// allocation is a sealed job that waits for its steps.
type allocation struct {
	id, user string
}

// allocate starts a job that does nothing until the test ends. args are
// sbatch's.
func allocate(t *testing.T, user string, args ...string) allocation {
	t.Helper()
	id := sbatch(t, user, append(args, "--wrap", "echo up; exec sleep 170")...)
	eventually(t, 30*time.Second, "start of job "+id, func() bool {
		return strings.HasPrefix(homeFile(t, user, "it-"+id+".out"), "up")
	})
	return allocation{id, user}
}

// srun runs a step in the job, beside others.
func (a allocation) srun(t *testing.T, args ...string) result {
	t.Helper()
	return as(t, a.user, login, append([]string{"timeout", "80", "srun", "--jobid=" + a.id, "--overlap"}, args...)...)
}

// put writes an executable file below a user's home and returns its path.
func put(t *testing.T, user, name, text string) string {
	t.Helper()
	path := "/home/" + user + "/" + name
	as(t, user, login, "sh", "-c", `mkdir -p "$(dirname "$1")" && printf '%s' "$2" >"$1" && chmod 755 "$1"`, "sh", path, text).ok(t)
	return path
}

// session is a command with a terminal or pipe that a test types into.
type session struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	mu   sync.Mutex
	out  bytes.Buffer
	done chan struct{}
}

// interact starts a command as alice on the login node with a terminal
// (script(1)) around it. Jobs of it must be called it-session.
func interact(t *testing.T, command string) *session {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s := &session{t: t, done: make(chan struct{})}
	s.cmd = exec.CommandContext(ctx, "docker", "exec", "-i", container(login),
		"setpriv", "--reuid", "alice", "--regid", "alice", "--init-groups", "env", "-i", "-C", "/home/alice", "HOME=/home/alice",
		"USER=alice", "PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C.UTF-8", "TERM=xterm",
		"timeout", "85", "script", "-qefc", command, "/dev/null")
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in = in
	s.cmd.Stdout, s.cmd.Stderr = s, s
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait() // the status is read by ends
		close(s.done)
	}()
	t.Cleanup(func() {
		scancel("-n", "it-session")
		cancel()
	})
	return s
}

// Write collects what the command prints.
func (s *session) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(b)
}

func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// says waits until the command has printed a text that matches; what came
// before is not looked at again.
func (s *session) says(pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	var found string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("on the terminal:\n%s", s.text())
		}
	}()
	eventually(s.t, 40*time.Second, "output that matches "+pattern, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		at := re.FindIndex(s.out.Bytes())
		if at != nil {
			found = string(s.out.Next(at[1])[at[0]:])
		}
		return at != nil
	})
	return found
}

// types sends text to the command.
func (s *session) types(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		s.t.Fatalf("type %q: %v\n%s", text, err, s.text())
	}
}

// ends waits for the command's end and returns its exit status.
func (s *session) ends() int {
	s.t.Helper()
	select {
	case <-s.done:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(40 * time.Second):
		s.t.Fatalf("no end:\n%s", s.text())
		return -1
	}
}

// idle stops the test if Slurm took a node out of service.
func idle(t *testing.T) {
	t.Helper()
	if out := root(t, ctl, "sinfo", "-Nh", "-o", "%N %T %E").ok(t); strings.Contains(out, "drain") || strings.Contains(out, "down") {
		t.Fatalf("a node is out of service:\n%s", out)
	}
}

// queued are the ids of a user's jobs that have not ended.
func queued(t *testing.T, user string) string {
	t.Helper()
	return root(t, ctl, "squeue", "-h", "-u", user, "-o", "%i %T").ok(t)
}

// same compares two results of one command, without and with Carme: names of
// jobs and tasks may differ.
func same(t *testing.T, plain, sealed result) {
	t.Helper()
	numbers := regexp.MustCompile(`(StepId=|STEP |step |job |JOB )[0-9]+(\.[0-9]+)?|[0-9]{4}-[0-9-]+T[0-9:.]+`)
	waiting := regexp.MustCompile(`(?m)^srun: job \d+ (queued and waiting for|has been allocated) resources\n?`)
	clean := func(text string) string {
		return strings.TrimRight(numbers.ReplaceAllString(waiting.ReplaceAllString(text, ""), "${1}N"), "\n")
	}
	for what, pair := range map[string][2]string{
		"exit status":    {fmt.Sprint(plain.code), fmt.Sprint(sealed.code)},
		"output":         {clean(plain.out), clean(sealed.out)},
		"standard error": {clean(plain.err), clean(sealed.err)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s of %s:\n%s\nas without Carme it would be\n%s", what, sealed.cmd, pair[1], pair[0])
		}
	}
}

// cleanUp runs a command as root on a machine when a test's own context is over.
func cleanUp(machine, command string) {
	_ = exec.CommandContext(context.Background(), "docker", "exec", container(machine), "sh", "-c", command).Run()
}

// background runs a command as a user on a node, beside Slurm, until the test
// ends.
func background(t *testing.T, user, machine string, args ...string) {
	t.Helper()
	command := append([]string{
		"exec", "-d", container(machine), "setpriv", "--reuid", user, "--regid", user, "--init-groups",
		"env", "HOME=/home/" + user, "timeout", "100",
	}, args...)
	run(t, "docker", command...).ok(t)
	last := args[len(args)-1]
	t.Cleanup(func() { cleanUp(machine, "pkill -u "+user+" -f '"+last+"'") })
}
