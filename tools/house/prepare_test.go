package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// prepare runs tools/prepare with nothing but these commands in its PATH.
func prepare(t *testing.T, commands []string, args ...string) (output string, err error) {
	t.Helper()
	bin := t.TempDir()
	for _, name := range commands {
		found, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(found, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "tools/prepare"), args...)
	cmd.Env = []string{"PATH=" + bin}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var always = []string{"bash", "dirname", "grep", "sed"}

func TestPrepareNamesThePackageOfEachMissingCommand(t *testing.T) {
	out, err := prepare(t, always, "check", "testbed")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first, _, _ := strings.Cut(out, "\n")
	// dockerd and iptables live in sbin, which prepare looks into by itself.
	for _, want := range []string{"gcc", "make", "git", "docker.io", "mmdebstrap"} {
		if strings.Count(" "+first+" ", " "+want+" ") != 1 {
			t.Errorf("%s is not named once in %q", want, first)
		}
	}
	if strings.Contains(first, "shellcheck") {
		t.Errorf("the testbed needs no linter, but %q", first)
	}
}

func TestPrepareAsksOnlyForWhatIsMissing(t *testing.T) {
	out, err := prepare(t, append([]string{"make", "git"}, always...), "check", "unit")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.Contains(out, "make") || strings.Contains(out, "git") || !strings.Contains(out, "gcc") {
		t.Errorf("only gcc is missing, but %q", out)
	}
}

func TestPrepareRefusesUnknownModes(t *testing.T) {
	for _, args := range [][]string{nil, {"everything"}, {"check"}, {"check", "everything"}} {
		if out, err := prepare(t, always, args...); err == nil || !strings.Contains(out, "usage") {
			t.Errorf("prepare %v: %v, %q", args, err, out)
		}
	}
}
