package filter

import (
	"errors"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2"
)

func TestRulesCloseNothingButTheDevices(t *testing.T) {
	list, err := rules([]string{"195:3"})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Allow || list[0].Access != "rwm" || *list[0].Major != 195 || *list[0].Minor != 3 {
		t.Fatalf("rules are %+v", list)
	}
	if _, _, err := cgroup2.DeviceFilter(list); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsNoDeviceIsRefused(t *testing.T) {
	for _, d := range []string{"", "195", "195:", ":3", "195:-1", "-1:3", "a:b", "195:3:4", "99999999999:1"} {
		if list, err := rules([]string{"195:0", d}); err == nil {
			t.Errorf("%q gives %+v", d, list)
		}
	}
}

func TestWithoutDevicesNothingIsDone(t *testing.T) {
	for _, args := range [][]string{nil, {"attach"}, {"create"}, {"create", "/carme/job_1"}, {"remove", "195:3"}} {
		if err := Run(args); !errors.Is(err, errUsage) {
			t.Errorf("%q gives %v", args, err)
		}
	}
}
