package house

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestVulnSaysWhatItKnows runs tools/vuln with a govulncheck that only plays one.
func TestVulnSaysWhatItKnows(t *testing.T) {
	versions, err := os.ReadFile(filepath.Join(root, "tools/versions"))
	if err != nil {
		t.Fatal(err)
	}
	_, version, ok := strings.Cut(string(versions), "\nGOVULNCHECK=")
	if !ok {
		t.Fatal("tools/versions does not pin govulncheck")
	}
	script, err := os.ReadFile(filepath.Join(root, "tools/vuln"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		plays  string
		status int
		says   string
	}{
		"no hole":          {"exit 0", 0, "no known hole"},
		"a hole":           {"echo GO-2026-0001; exit 3", 1, "a known hole"},
		"no database":      {"echo 'govulncheck: fetching vulnerabilities: no such host' >&2; exit 1", 75, "NOT CHECKED"},
		"something else":   {"echo 'no Go files' >&2; exit 1", 1, "failed with status 1"},
		"killed by memory": {"exit 137", 1, "failed with status 137"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := t.TempDir()
			files := map[string]string{
				"tools/vuln": string(script), "tools/versions": string(versions),
				"build/bin/govulncheck@" + strings.TrimSpace(version): "#!/bin/sh\n" + c.plays + "\n",
			}
			for name, text := range files {
				file := filepath.Join(tree, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			out, err := exec.CommandContext(t.Context(), filepath.Join(tree, "tools/vuln")).CombinedOutput()
			status := 0
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				status = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if status != c.status || !strings.Contains(string(out), c.says) {
				t.Errorf("status %d, %s", status, out)
			}
		})
	}
}
