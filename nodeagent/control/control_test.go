package control

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the tests' program be the child.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "child":
			if err := Child(os.Stdin, os.Stdout); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		case "stuck":
			select {}
		case "trace":
			os.Exit(trace())
		case "flood":
			for {
				if _, err := os.Stdout.WriteString(strings.Repeat("x", 4096)); err != nil {
					os.Exit(1)
				}
			}
		}
	}
	os.Exit(m.Run())
}

func newControl(t *testing.T, mode string) *Control {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &Control{Program: self, Args: []string{mode}, Own: true, Limit: 2 * time.Second, Log: slog.New(slog.DiscardHandler)}
}

func TestControl_reads_the_end_of_a_file(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(file, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newControl(t, "child")
	for name, x := range map[string]struct {
		offset int64
		most   int
		want   string
		at     int64
	}{
		"all":            {0, 0, "0123456789", 0},
		"from the third": {2, 3, "234", 2},
		"the last four":  {-4, 0, "6789", 6},
		"more than all":  {-100, 0, "0123456789", 0},
		"behind the end": {50, 0, "", 10},
		"too much":       {0, 1 << 30, "0123456789", 0},
	} {
		t.Run(name, func(t *testing.T) {
			a := c.Do(t.Context(), Request{Op: "tail", UID: 10001, GID: 10001, Path: file, Offset: x.offset, Max: x.most})
			if !a.OK || string(a.Data) != x.want || a.Offset != x.at || a.Size != 10 {
				t.Errorf("got %+v", a)
			}
		})
	}
}

func TestControl_reads_nothing_but_files(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newControl(t, "child")
	for _, path := range []string{fifo, dir, "/dev/zero", filepath.Join(dir, "none"), "/dev/tty"} {
		if a := c.Do(t.Context(), Request{Op: "tail", UID: 10001, GID: 10001, Path: path}); a.OK || a.Error == "" || strings.Contains(a.Error, "exit") {
			t.Errorf("%s: %+v", path, a)
		} else if path == "/dev/zero" && a.Code != "kind" {
			t.Errorf("%s: code %q", path, a.Code)
		}
	}
}

func TestControl_refuses(t *testing.T) {
	c := newControl(t, "child")
	for name, r := range map[string]Request{
		"root":                {Op: "tail", UID: 0, GID: 10001, Path: "/etc/shadow"},
		"a system user":       {Op: "tail", UID: 999, GID: 10001, Path: "/etc/shadow"},
		"no user":             {Op: "tail", UID: 1<<32 - 1, GID: 10001, Path: "/etc/passwd"},
		"no group":            {Op: "tail", UID: 10001, GID: 1<<32 - 1, Path: "/etc/passwd"},
		"root's group":        {Op: "tail", UID: 10001, GID: 0, Path: "/etc/shadow"},
		"root among groups":   {Op: "tail", UID: 10001, GID: 10001, GIDs: []uint32{5, 0}, Path: "/etc/shadow"},
		"a path from here":    {Op: "tail", UID: 10001, GID: 10001, Path: "etc/shadow"},
		"no path":             {Op: "home", UID: 10001, GID: 10001},
		"a path with a NUL":   {Op: "tail", UID: 10001, GID: 10001, Path: "/a\x00b"},
		"a path that is long": {Op: "tail", UID: 10001, GID: 10001, Path: "/" + strings.Repeat("a", 5000)},
		"another request":     {Op: "exec", UID: 10001, GID: 10001, Path: "/bin/sh"},
	} {
		if a := c.Do(t.Context(), r); a.OK || a.Error == "" {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

func TestControl_looks_at_a_home(t *testing.T) {
	c := newControl(t, "child")
	dir := t.TempDir()
	a := c.Do(t.Context(), Request{Op: "home", UID: 10001, GID: 10001, Path: dir})
	if !a.OK || a.Problem != "" || a.TotalMB <= 0 || a.FreeMB > a.TotalMB {
		t.Errorf("got %+v", a)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left %v (%v)", entries, err)
	}
	for path, says := range map[string]string{filepath.Join(dir, "none"): "does not exist", "/proc": "cannot be used|may not|does not exist|read-only|not"} {
		a := c.Do(t.Context(), Request{Op: "home", UID: 10001, GID: 10001, Path: path})
		found := false
		if strings.HasSuffix(path, "/none") && a.Code != "missing" {
			t.Errorf("%s: code %q", path, a.Code)
		}
		for word := range strings.SplitSeq(says, "|") {
			found = found || strings.Contains(a.Problem, word)
		}
		if !a.OK || !found {
			t.Errorf("%s: %+v", path, a)
		}
	}
}

func TestControl_gives_a_stuck_file_system_up(t *testing.T) {
	c := newControl(t, "stuck")
	c.Limit = 200 * time.Millisecond
	began := time.Now()
	a := c.Do(t.Context(), Request{Op: "home", UID: 10001, GID: 10001, Path: "/"})
	if !strings.Contains(a.Problem, "does not answer") || time.Since(began) > 5*time.Second {
		t.Errorf("got %+v after %s", a, time.Since(began))
	}
}

func TestControl_does_not_believe_a_child(t *testing.T) {
	a := newControl(t, "flood").Do(t.Context(), Request{Op: "tail", UID: 10001, GID: 10001, Path: "/"})
	if a.OK || a.Error == "" {
		t.Errorf("got %d bytes", len(a.Data))
	}
}

func TestControl_limits_children_of_one_user(t *testing.T) {
	c := newControl(t, "stuck")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range childrenPerUser {
		if !c.enter(10001) {
			t.Fatal("refused too early")
		}
	}
	if a := c.Do(ctx, Request{Op: "tail", UID: 10001, GID: 10001, Path: "/"}); !strings.Contains(a.Error, "too many") {
		t.Errorf("got %+v", a)
	}
	if !c.enter(10002) {
		t.Error("another user is refused too")
	}
	c.leave(10001)
	if !c.enter(10001) {
		t.Error("a place that is free again is refused")
	}
}

// As root, the child is the user: it may read what the user may, no more.
func TestControl_child_has_the_users_rights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	c := newControl(t, "child")
	c.Own = false
	// It must be reachable for the user.
	dir, err := os.MkdirTemp("/tmp", "carme") //nolint:usetesting // TempDir's parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	secret, shared := filepath.Join(dir, "secret"), filepath.Join(dir, "shared")
	for _, err := range []error{
		os.Chmod(dir, 0o755),
		os.WriteFile(secret, []byte("s"), 0o600), os.WriteFile(shared, []byte("s"), 0o640), os.Chown(shared, 0, 12345),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	req := Request{Op: "tail", UID: 10001, GID: 10001, Path: secret}
	if a := c.Do(t.Context(), req); a.OK || !strings.Contains(a.Error, "may not be opened") {
		t.Errorf("root's file: %+v", a)
	}
	req.Path = shared
	if a := c.Do(t.Context(), req); a.OK {
		t.Errorf("a group's file without the group: %+v", a)
	}
	req.GIDs = []uint32{12345}
	if a := c.Do(t.Context(), req); !a.OK || string(a.Data) != "s" {
		t.Errorf("a group's file with the group: %+v", a)
	}
}

// trace looks, as the user, for another process of this program's into which it may
// look, as who traces one must (ptrace(2), "access mode checking"). It returns 0 when
// it has found one, and 3 when its input ends before.
func trace() int {
	program, err := os.Executable()
	if err != nil {
		return 1
	}
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	for {
		select {
		case <-over:
			return 3
		default:
		}
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return 1
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			if exe, err := os.Readlink("/proc/" + e.Name() + "/exe"); err == nil && exe == program {
				return 0
			}
		}
	}
}

// A child runs outside of all jobs: a user who takes it over has left the job's
// cgroups, and with them its limits and its device filter.
func TestAttack_users_cannot_take_over_the_child_that_reads_for_them(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "carme") //nolint:usetesting // TempDir's parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := newControl(t, "child")
	c.Own = false
	program, err := os.ReadFile(c.Program)
	if err != nil {
		t.Fatal(err)
	}
	c.Program = filepath.Join(dir, "program")
	for _, err := range []error{os.Chmod(dir, 0o755), os.WriteFile(c.Program, program, 0o755), os.Chmod(c.Program, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	attacker := exec.CommandContext(t.Context(), c.Program, "trace")
	attacker.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 10001, Gid: 10001}}
	attacker.Dir = "/"
	in, err := attacker.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := attacker.Start(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if a := c.Do(t.Context(), Request{Op: "home", UID: 10001, GID: 10001, Path: "/"}); !a.OK {
			t.Fatalf("the child answers %+v", a)
		}
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := attacker.Wait(); attacker.ProcessState.ExitCode() != 3 {
		t.Errorf("a process of the user's could look into the agent's child (%v)", err)
	}
}
