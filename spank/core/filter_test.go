package core

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTheFiltersProgramSaysWhatWentWrong(t *testing.T) {
	cases := map[string]struct{ script, want string }{
		"it went well":       {"exit 0", ""},
		"it says why":        {"echo no such cgroup >&2; exit 1", "no such cgroup"},
		"it says nothing":    {"exit 3", "exit status 3"},
		"it is killed":       {"kill -9 $$", "killed"},
		"no environment":     {`[ -z "$HOME$USER" ]`, ""},
		"the directory is 3": {"[ -d /proc/self/fd/3 ]", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir, err := os.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close() //nolint:errcheck // nothing was written
			err = runProgram(dir, []string{"/bin/sh", "-c", c.script})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("it gives %v, want %q", err, c.want)
			}
		})
	}
	if err := runProgram(nil, []string{"/nowhere/carme-filter"}); err == nil || !strings.Contains(err.Error(), "reinstall") {
		t.Errorf("a missing program gives %v", err)
	}
}

func TestTheDevicesHierarchyIsFound(t *testing.T) {
	cases := map[string]struct {
		lines, want string
		found       bool
	}{
		"its own":     {"5:devices:/system.slice/slurmd.service\n0::/", "/system.slice/slurmd.service", true},
		"with others": {"5:cpu,devices:/a", "/a", true},
		"v2 alone":    {"0::/system.slice/x", "", false},
		"a name":      {"5:name=devices:/a", "", false},
		"broken":      {"devices", "", false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got, ok := devicesCgroup(strings.Split(c.lines, "\n")); got != c.want || ok != c.found {
				t.Errorf("%q is at %q, %v; want %q, %v", c.lines, got, ok, c.want, c.found)
			}
		})
	}
}

func TestDeviceCgroupsOfEndedJobsAreSwept(t *testing.T) {
	dir, jobs := t.TempDir(), t.TempDir()
	for _, d := range []string{dir + "/job_1", dir + "/job_2", dir + "/job_3/busy", dir + "/other", jobs + "/2"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sweepFilters(dir, jobs)
	sweepFilters(filepath.Join(dir, "nowhere"), jobs)
	for name, kept := range map[string]bool{"job_1": false, "job_2": true, "job_3": true, "other": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != kept {
			t.Errorf("%s is kept: %v, want %v", name, err == nil, kept)
		}
	}
}
