//go:build integration

package integration

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// plugin is where the product's C plugin lies, pluginDir where tests put others.
const (
	plugin    = "/usr/lib/carme/spank_carme.so"
	pluginDir = "/usr/local/lib/carme-test"
)

// everywhere are the machines on which plugins are loaded.
var everywhere = []string{login, node1, node2}

// undo runs a shell script as root in a machine when a test's own context is
// over. A test that puts back what it changed does so here.
func undo(t *testing.T, machine, script string) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "docker", "exec", container(machine), "sh", "-c", script).CombinedOutput(); err != nil {
			t.Errorf("%s: put things back: %v\n%s", machine, err, out)
		}
	})
}

// sh runs a shell script as root in a machine.
func sh(t *testing.T, machine, script string) string {
	t.Helper()
	return root(t, machine, "sh", "-c", script).ok(t)
}

// pipe runs a command of Docker's with a standard input and returns its output.
func pipe(t *testing.T, in []byte, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, err bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &err
	if failure := cmd.Run(); failure != nil {
		t.Fatalf("docker: %v\n%s", failure, err.String())
	}
	return out.Bytes()
}

// place writes a file on a machine until the test ends.
func place(t *testing.T, machine, path string, content []byte) {
	t.Helper()
	undo(t, machine, "rm -f "+path)
	pipe(t, content, "exec", "-i", container(machine), "sh", "-c", "mkdir -p "+filepath.Dir(path)+" && cat >"+path)
}

// noop is the plugin that does nothing.
func noop(t *testing.T, flags string) string {
	t.Helper()
	return besides(t, "../bench/noop/noop.c", flags)
}

// besides compiles another plugin against this Slurm and places it everywhere.
func besides(t *testing.T, file, flags string) string {
	t.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	object := pipe(t, source, "run", "--rm", "-i", "carme-builder:"+suite(),
		"sh", "-c", "gcc -O2 -fPIC -shared "+flags+" -xc -o /tmp/plugin.so - && cat /tmp/plugin.so")
	path := pluginDir + "/" + strings.TrimSuffix(filepath.Base(file), ".c") + ".so"
	for _, m := range everywhere {
		place(t, m, path, object)
	}
	return path
}

// forAnotherSlurm is the product's plugin as if built for another release.
func forAnotherSlurm(t *testing.T) []byte {
	t.Helper()
	object := pipe(t, nil, "exec", container(node1), "cat", plugin)
	file, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		if s.Name == "plugin_version" {
			section := file.Sections[s.Section]
			binary.LittleEndian.PutUint32(object[section.Offset+s.Value-section.Addr:], 0x140b00) // 20.11
			return object
		}
	}
	t.Fatal("the plugin has no plugin_version")
	return nil
}

// unwatched stops a node's agent until the test ends. It would take the node's
// feature away, so that no sealed job arrived where the test means to see one, and
// give it back in the middle of the next test.
func unwatched(t *testing.T, machine string) {
	t.Helper()
	if root(t, machine, "pgrep", "-x", "carme-agent").code != 0 {
		return
	}
	eventually(t, 60*time.Second, "the feature of "+machine, func() bool { return fit(t, machine) })
	down(t, machine, "stop", "carme-agent")
}

// plugstack replaces what Slurm loads on a machine until the test ends: one line
// in the directory that Slurm's plugstack.conf includes.
func plugstack(t *testing.T, machine, line string) {
	t.Helper()
	const dir, kept = "/etc/carme/plugstack.d", "/etc/carme/plugstack.kept"
	unwatched(t, machine)
	undo(t, machine, fmt.Sprintf("if [ -d %[2]s ]; then rm -rf %[1]s && mv %[2]s %[1]s; fi", dir, kept))
	sh(t, machine, fmt.Sprintf("[ -d %[2]s ] || cp -a %[1]s %[2]s; rm -f %[1]s/*; printf '%%s\\n' '%[3]s' >%[1]s/carme.conf", dir, kept, line))
}

// slurmConf appends lines to slurm.conf on every machine and makes the daemons
// read it, until the test ends.
func slurmConf(t *testing.T, text string) {
	t.Helper()
	all := []string{ctl, login, node1, node2}
	t.Cleanup(func() {
		// Registered first, so that it runs last: the files are back by then.
		// A context of its own: the test's is over in a cleanup.
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = exec.CommandContext(ctx, "docker", "exec", container(ctl), "scontrol", "reconfigure").Run()
		awaitNodes(ctx, t)
	})
	for _, m := range all {
		undo(t, m, "if [ -e /etc/slurm/slurm.conf.kept ]; then cat /etc/slurm/slurm.conf.kept >/etc/slurm/slurm.conf; rm /etc/slurm/slurm.conf.kept; fi")
		sh(t, m, "cp /etc/slurm/slurm.conf /etc/slurm/slurm.conf.kept; printf '%s\\n' '"+text+"' >>/etc/slurm/slurm.conf")
	}
	root(t, ctl, "scontrol", "reconfigure").ok(t)
	awaitNodes(t.Context(), t)
}

// awaitNodes waits until both nodes take jobs.
func awaitNodes(ctx context.Context, t *testing.T) {
	t.Helper()
	eventually(t, 40*time.Second, "both nodes idle", func() bool {
		out, err := exec.CommandContext(ctx, "docker", "exec", container(ctl), "sinfo", "-h", "-p", "debug", "-o", "%D %T").Output()
		return err == nil && string(bytes.TrimSpace(out)) == "2 idle"
	})
}

// restartSlurmd restarts a node's slurmd, now and when the test is over.
func restartSlurmd(t *testing.T, node string) {
	t.Helper()
	root(t, node, "svc", "restart", "slurmd").ok(t)
}
