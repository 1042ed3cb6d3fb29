package reconcile

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/cli/doctor"
)

// program writes a stand-in for carme.
func program(t *testing.T, script string) *SelfTest {
	t.Helper()
	file := filepath.Join(t.TempDir(), "carme")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return &SelfTest{Carme: file, Every: time.Hour, Limit: 10 * time.Second, Log: slog.New(slog.DiscardHandler)}
}

// start runs the self-test until the test ends.
func start(t *testing.T, s *SelfTest) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

func TestSelfTest_takes_what_the_doctor_says(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"a healthy node": {`[ "$*" = "doctor --json --feature" ] && echo '{"ok":true,"findings":[]}'`, ""},
		"a sick node": {
			`echo '{"ok":false,"findings":[{"name":"a","status":"ok"},{"name":"plugin","status":"fail","detail":"is absent","mend":"install it"}]}'; exit 1`,
			"plugin: is absent; install it",
		},
		"no answer":  {`echo "carme: no slurmctld" >&2; exit 1`, "has failed: carme: no slurmctld"},
		"odd answer": {`echo '{"ok":false}'`, "run: carme doctor"},
		"a flood":    {`head -c 3000000 /dev/zero`, "has failed"},
		"not there":  {"", "has failed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := program(t, c.script)
			told := 0
			s.Changed = func() { told++ }
			s.Test(t.Context())
			s.Test(t.Context())
			got := s.Problem()
			if !strings.Contains(got, c.want) || (got == "") != (c.want == "") || strings.Contains(got, "\n") {
				t.Errorf("problem is %q", got)
			}
			if want := min(1, len(c.want)); told != want {
				t.Errorf("told %d times", told)
			}
		})
	}
}

func TestSelfTest_that_hangs_is_not_waited_for_nor_repeated(t *testing.T) {
	s := program(t, "exec sleep 600")
	s.Limit = 100 * time.Millisecond
	began := time.Now()
	s.Test(t.Context())
	if !strings.Contains(s.Problem(), "has not ended") || time.Since(began) > 5*time.Second {
		t.Errorf("problem is %q after %s", s.Problem(), time.Since(began))
	}
	s.enter() // as if not even SIGKILL had ended it
	s.Test(t.Context())
	if !strings.Contains(s.Problem(), "before has not ended") {
		t.Errorf("problem is %q", s.Problem())
	}
}

func TestSelfTest_ends_with_the_agent_and_tells_Slurm_nothing_more(t *testing.T) {
	dir := t.TempDir()
	// The command that tells Slurm is a child of the self-test's.
	s := program(t, `sh -c 'echo up >`+dir+`/up; sleep 0.5; echo told >`+dir+`/told'; echo '{"ok":true}'`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Test(ctx)
	}()
	until(t, "the self-test", func() bool { _, err := os.Stat(dir + "/up"); return err == nil })
	cancel()
	<-ended
	if !s.enter() {
		t.Error("it runs on when the agent has ended")
	}
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	<-timer.C
	if _, err := os.Stat(dir + "/told"); err == nil {
		t.Error("Slurm was told when the agent had ended")
	}
}

// until waits for what another process does.
func until(t *testing.T, what string, yes func() bool) {
	t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(10 * time.Second); !yes(); <-again.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10s", what)
		}
	}
}

func TestSelfTest_that_failed_is_soon_run_again(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "asked")
	s := program(t, `[ -e `+mark+` ] && echo '{"ok":true}' || { >`+mark+`; echo '{"ok":false}'; }`)
	outcome := make(chan string, 10)
	s.Changed = func() { outcome <- s.Problem() }
	start(t, s)
	if problem := <-outcome; problem == "" {
		t.Error("the first one has not failed")
	}
	select {
	case problem := <-outcome:
		if problem != "" {
			t.Errorf("the second one has failed: %s", problem)
		}
	case <-time.After(10 * time.Second):
		t.Error("there is no second one")
	}
}

func TestSelfTest_runs_when_slurmd_has_ended(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	s := program(t, `echo >>`+runs+`; echo '{"ok":true}'`)
	slurmd := exec.CommandContext(t.Context(), "sleep", "600")
	if err := slurmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	s.Slurmd = func() int {
		select {
		case <-ended:
			return 0
		default:
			return slurmd.Process.Pid
		}
	}
	start(t, s)
	count := func() int {
		text, _ := os.ReadFile(runs)
		return len(text)
	}
	until(t, "the first self-test", func() bool { return count() == 1 })
	if err := slurmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = slurmd.Wait()
	close(ended)
	until(t, "another two", func() bool { return count() == 3 })
}

func TestSlurmd_is_no_users_program(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "slurmd")
	before := Slurmd()
	c := exec.CommandContext(t.Context(), file, "600")
	if os.Getuid() == 0 { // else it is a user's anyway
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.WriteFile(file, sleep, 0o755), os.Chmod(filepath.Dir(dir), 0o755), c.Start()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := Slurmd(); got != before {
		t.Errorf("slurmd is %d, not %d", got, before)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
}

func TestSelfTest_runs_when_files_change(t *testing.T) {
	dir := t.TempDir()
	below := filepath.Join(dir, "plugstack.d")
	for _, err := range []error{os.Mkdir(below, 0o700), os.WriteFile(filepath.Join(below, "plugin"), nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := program(t, `[ -s `+below+`/plugin ] && [ -x `+below+`/plugin ] && echo '{"ok":true}' || echo '{"ok":false}'`)
	s.Files = []string{dir, below, "/nowhere"}
	outcome := make(chan string, 10)
	s.Changed = func() { outcome <- s.Problem() }
	start(t, s)
	if first := <-outcome; first == "" {
		t.Error("healthy with an empty plugin")
	}
	// Each change turns the outcome.
	for _, change := range []struct {
		what string
		do   func() error
		good bool
	}{
		{"it is replaced", func() error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "new"), []byte("x"), 0o700), os.Rename(filepath.Join(dir, "new"), filepath.Join(below, "plugin")))
		}, true},
		{"it loses its mode", func() error { return os.Chmod(filepath.Join(below, "plugin"), 0o600) }, false},
		{"it has it again", func() error { return os.Chmod(filepath.Join(below, "plugin"), 0o700) }, true},
		{"it is written over", func() error { return os.WriteFile(filepath.Join(below, "plugin"), nil, 0o600) }, false},
		{"the directory is another one", func() error {
			return errors.Join(os.RemoveAll(below), os.Mkdir(below, 0o700))
		}, false},
		{"the other one is filled", func() error { return os.WriteFile(filepath.Join(below, "plugin"), []byte("x"), 0o700) }, true},
	} {
		if err := change.do(); err != nil {
			t.Fatal(err)
		}
		if change.what == "the directory is another one" {
			continue // nothing to tell, but the next change has to be seen
		}
		select {
		case problem := <-outcome:
			if (problem == "") != change.good {
				t.Errorf("%s: the problem is %q", change.what, problem)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it was not noticed", change.what)
		}
	}
}

func TestLeftovers_are_removed_and_problems_told_once(t *testing.T) {
	var out bytes.Buffer
	var calls atomic.Int32
	l := &Leftovers{Every: time.Millisecond, Log: slog.New(slog.NewTextHandler(&out, nil))}
	ctx, cancel := context.WithCancel(t.Context())
	l.Clean = func(context.Context) ([]string, error) {
		if calls.Add(1) == 3 {
			cancel()
		}
		return []string{"7"}, errors.New("something is mounted")
	}
	l.Run(ctx)
	if strings.Count(out.String(), "mounted") != 1 || !strings.Contains(out.String(), "jobs=7") {
		t.Errorf("logged %s", out.String())
	}
}

// What the doctor cleans is what a lost epilog leaves: also a user's directory
// full of links, of which none is followed.
func TestLeftovers_of_a_user_lead_nowhere(t *testing.T) {
	root := t.TempDir()
	outside := t.TempDir()
	precious := filepath.Join(outside, "precious")
	sess := filepath.Join(root, "run/carme/jobs/7/sess")
	for _, err := range []error{
		os.WriteFile(precious, nil, 0o600),
		os.MkdirAll(filepath.Join(sess, "deep/er"), 0o700),
		os.Symlink(outside, filepath.Join(sess, "link")),
		os.Symlink(precious, filepath.Join(sess, "deep/er/link")),
		os.MkdirAll(filepath.Join(root, "proc/self"), 0o700),
		os.WriteFile(filepath.Join(root, "proc/self/mountinfo"), nil, 0o600),
		os.WriteFile(filepath.Join(root, "run/carme/jobs/7/extern"), []byte("4242 1\n"), 0o600),
		os.MkdirAll(filepath.Join(root, "run/carme/jobs/8"), 0o700),
		os.WriteFile(filepath.Join(root, "run/carme/jobs/8/extern"), []byte("77 99\n"), 0o600),
		os.MkdirAll(filepath.Join(root, "proc/77"), 0o700),
		os.WriteFile(filepath.Join(root, "proc/77/stat"), []byte("77 (slurmstepd) S"+strings.Repeat(" 0", 18)+" 99 0\n"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	removed, err := doctor.Doctor{Root: root, Now: time.Now}.Clean(t.Context())
	if err != nil || len(removed) != 1 || removed[0] != strconv.Itoa(7) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}
