package core

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2"
	"golang.org/x/sys/unix"
)

func TestRulesCloseNothingButTheDevices(t *testing.T) {
	d := &device{Path: "/dev/nvidia3", Stat: unix.Stat_t{Rdev: unix.Mkdev(195, 3)}}
	list := rules([]*device{d})
	if len(list) != 1 || list[0].Allow || list[0].Access != "rwm" || *list[0].Major != 195 || *list[0].Minor != 3 {
		t.Fatalf("rules are %+v", list)
	}
	if _, _, err := cgroup2.DeviceFilter(list); err != nil {
		t.Fatal(err)
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
