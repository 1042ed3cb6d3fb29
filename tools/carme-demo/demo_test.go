package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestSightIsCheckedInBothDirections(t *testing.T) {
	for name, c := range map[string]struct {
		sight  sight
		output string
		status int
		wrong  string // part of the error, empty if all is well
	}{
		"as promised":          {sight{want: []string{"^one$"}, never: []string{"two"}}, "one", 0, ""},
		"missing":              {sight{want: []string{"one"}}, "two", 0, "is missing"},
		"too much":             {sight{never: []string{"bob"}}, "alice bob", 0, "must not be there"},
		"fails":                {sight{}, "", 1, "status 1"},
		"refused, as promised": {sight{fails: true, want: []string{"denied"}}, "denied", 1, ""},
		"not refused":          {sight{fails: true}, "", 0, "must not"},
		"refused for another reason": {
			sight{fails: true, want: []string{"not permitted"}}, "srun: error: no such image", 1, "is missing",
		},
	} {
		err := c.sight.check(c.output, c.status)
		if (err == nil) != (c.wrong == "") || (err != nil && !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v, want %q", name, err, c.wrong)
		}
	}
}

func TestCommandsAreShownAsTheyWouldBeTyped(t *testing.T) {
	got := typed([]string{"srun", "--carme=base", "sh", "-c", "echo 'a' $B", ""})
	if want := `srun --carme=base sh -c 'echo '\''a'\'' $B' ''`; got != want {
		t.Errorf("typed %s, want %s", got, want)
	}
}

// cluster answers like a testbed on which every promise holds, except for the
// command that holds broken.
func cluster(log *[]string, broken string) func(context.Context, io.Writer, string, ...string) (string, int, error) {
	answers := []struct{ part, output string }{
		{"check testbed", "packages: none\n"},
		{"id -u bob", "10002\n"},
		{"pgrep -u bob", "4711\n"},
		{"-1 /dev/nvidia", "/dev/nvidia2\n"},
		{"ps -o", "UID PID COMMAND\n"},
		{"ps -eo", "USER PID COMMAND\nalice 9 ps -eo user,pid,args\n"},
		{"strace", "No such process\n"},
		{"kill -9", "No such process\n"},
		{"mknod", "Operation not permitted\n"},
		{"test -e /dev", strings.Repeat("No such file or directory\n", 3)},
		{"cmdline", ""},
		{notes, strings.Repeat("No such file or directory\n", 2)},
		{"carme-image", "testbed image\nalice\nCUDA_VISIBLE_DEVICES=0 NVIDIA_VISIBLE_DEVICES=GPU-1\n"},
		{"carme proof", "pid  own\nevery check is OK\n"},
		{"mountinfo", "0\n"},
	}
	return func(_ context.Context, w io.Writer, name string, args ...string) (string, int, error) {
		line := strings.Join(append([]string{name}, args...), " ")
		*log = append(*log, line)
		if broken != "" && strings.Contains(line, broken) {
			return "broken", 0, nil
		}
		isSealed := strings.Contains(line, "--carme")
		if !isSealed && strings.Contains(line, "srun") {
			output := "/dev/nvidia0 nvidia1 nvidia2 nvidia3\nbob-notes " + draft
			fmt.Fprint(w, output)
			return output, 0, nil
		}
		for _, a := range answers {
			if strings.Contains(line, a.part) {
				refused := strings.Contains(line, "mallory") || strings.Contains(line, "ps -o ") || (isSealed && strings.Contains(line, readTmp))
				status := 0
				if refused {
					status = 1
				}
				fmt.Fprint(w, a.output)
				return a.output, status, nil
			}
		}
		return "", 0, nil
	}
}

func play(t *testing.T, from int, broken string) (screen string, commands []string, err error) {
	t.Helper()
	var out strings.Builder
	d := &demo{
		out: &out, now: time.Now, run: cluster(&commands, broken), farewell: time.Millisecond,
		listens: "127.0.0.1:0", answers: func(context.Context) error { return nil },
		shareCA: func() (string, error) { return "/src/build/ca.pem", nil },
		cameBy:  func() (sshLogin, bool) { return sshLogin{"alice", "192.0.2.1", "22"}, true },
	}
	err = d.show(t.Context(), from)
	return out.String(), commands, err
}

func TestDemoPlaysThroughAndSendsTheNeighbourHome(t *testing.T) {
	screen, commands, err := play(t, 1, "")
	if err != nil {
		t.Fatalf("%v\n%s", err, screen)
	}
	all := strings.Join(commands, "\n")
	for _, want := range []string{"tools/prepare testbed", "make --no-print-directory testbed", "scancel -u bob", "rm -f " + notes} {
		if !strings.Contains(all, want) {
			t.Errorf("%q was not run:\n%s", want, all)
		}
	}
	for _, want := range []string{"simulated", "make demo-down", "ssh -L 8443:127.0.0.1:8443 alice@192.0.2.1 ", "scp alice@192.0.2.1:/src/build/ca.pem .", "alice@login$ srun -Q -w carme-node1 --carme=base --gres=gpu:1 sh -c 'ls -1 /dev/nvidia[0-9]'"} {
		if !strings.Contains(screen, want) {
			t.Errorf("%q is not on the screen:\n%s", want, screen)
		}
	}
}

func TestDemoFailsAtTheStepThatShowsSomethingElse(t *testing.T) {
	for part, number := range map[string]int{
		"--carme=base --gres=gpu:1 sh -c ls -1 /dev": 4,
		"carme proof": 5,
		"strace -p":   6,
		"mountinfo":   7,
	} {
		_, commands, err := play(t, 3, part)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("make demo FROM=%d", number)) {
			t.Errorf("%s broken: %v, want a way to resume at step %d", part, err, number)
		}
		if last := commands[len(commands)-2]; !strings.Contains(last, "scancel") {
			t.Errorf("%s broken: bob's job stays, the last command but one was %s", part, last)
		}
	}
}

func TestDemoResumes(t *testing.T) {
	_, commands, err := play(t, 5, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		if strings.Contains(c, "make ") || strings.Contains(c, listGPUs) {
			t.Errorf("step 5 ran %s", c)
		}
	}
	if _, _, err := play(t, 99, ""); err == nil {
		t.Error("step 99 was accepted")
	}
}

func TestUnfitMachinesAreToldWhy(t *testing.T) {
	good := machine{freeRAM: needRAM, freeDisk: needDisk, lacks: nothing}
	if err := good.unfit(); err != nil {
		t.Errorf("a good machine is refused: %v", err)
	}
	for why, m := range map[string]machine{
		"memory":    {freeRAM: needRAM - 1, freeDisk: needDisk, lacks: nothing},
		"disk":      {freeRAM: needRAM, freeDisk: needDisk - 1, lacks: nothing},
		"only root": {freeRAM: needRAM, freeDisk: needDisk, lacks: "packages: docker.io"},
	} {
		if err := m.unfit(); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", why, err)
		}
	}
}

func TestProcFilesAreRead(t *testing.T) {
	text := "MemTotal:       2 kB\nMemAvailable:       1024 kB\nPRETTY_NAME=\"Debian\"\n"
	if n, err := kilobytes(field(text, "MemAvailable:")); err != nil || n != 1<<20 {
		t.Errorf("memory %d, %v", n, err)
	}
	if got := field(text, "PRETTY_NAME="); got != "Debian" {
		t.Errorf("system %q", got)
	}
	if _, err := kilobytes(field(text, "Missing:")); err == nil {
		t.Error("a missing field was read")
	}
}

func TestDemoSaysBeforeItBeginsThatItsPortIsTaken(t *testing.T) {
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close() //nolint:errcheck // nothing was sent
	published, status := "Error response from daemon: No such container: carme-login\n", 1
	d := &demo{
		listens: taken.Addr().String(), answers: func(context.Context) error { return errors.New("no portal yet") },
		run: func(context.Context, io.Writer, string, ...string) (string, int, error) {
			return published, status, nil
		},
	}
	if !d.portTaken(t.Context()) {
		t.Error("another program's port is called free")
	}
	published, status = "8443/tcp -> "+d.listens+"\n", 0
	if d.portTaken(t.Context()) {
		t.Error("a demo that broke off before there was a portal is in its own way")
	}
}
