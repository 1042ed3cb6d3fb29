// Package filter makes a device filter of Carme's own, for nodes on which Slurm
// has none (docs/adr/0005). It is a program of its own, carme-filter, because
// its libraries are larger than the rest of the core: each job's set-up and each
// srun would pay for relocating and starting them.
package filter

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Verbs of the program's command line, before the devices as MAJOR:MINOR.
const (
	// Attach puts one program on the cgroup (version 2) open as descriptor
	// DirFD. It holds for all that is and will be below it, and goes with it.
	Attach = "attach"
	// Create PATH makes a cgroup in the devices hierarchy of version 1.
	Create = "create"
)

// DirFD is the program's descriptor of a directory.
const DirFD = 3

// root is where cgroups are mounted (cgroups(7)).
const root = "/sys/fs/cgroup"

var errUsage = errors.New("usage: carme-filter (attach or create PATH) and devices as MAJOR:MINOR")

// Run does what the arguments say.
func Run(args []string) error {
	switch {
	case len(args) > 1 && args[0] == Attach:
		list, err := rules(args[1:])
		if err != nil {
			return err
		}
		return attach(list)
	case len(args) > 2 && args[0] == Create:
		list, err := rules(args[2:])
		if err != nil {
			return err
		}
		return create(args[1], list)
	}
	return errUsage
}

// rules close the devices and leave everything else as it is.
func rules(devices []string) ([]specs.LinuxDeviceCgroup, error) {
	list := make([]specs.LinuxDeviceCgroup, 0, len(devices))
	for _, d := range devices {
		first, second, _ := strings.Cut(d, ":")
		major, err := strconv.ParseInt(first, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read the device %q: %w", d, err)
		}
		minor, err := strconv.ParseInt(second, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read the device %q: %w", d, err)
		}
		// Negative ones mean all devices.
		if major < 0 || minor < 0 {
			return nil, fmt.Errorf("read the device %q: a negative number", d)
		}
		list = append(list, specs.LinuxDeviceCgroup{Allow: false, Type: "c", Access: "rwm", Major: &major, Minor: &minor})
	}
	return list, nil
}

func attach(closed []specs.LinuxDeviceCgroup) error {
	all := int64(-1)
	everything := specs.LinuxDeviceCgroup{Allow: true, Type: "a", Access: "rwm", Major: &all, Minor: &all}
	// The last rule that matches decides.
	program, licence, err := cgroup2.DeviceFilter(append([]specs.LinuxDeviceCgroup{everything}, closed...))
	if err != nil {
		return fmt.Errorf("make the program: %w", err)
	}
	if _, err := cgroup2.LoadAttachCgroupDeviceFilter(program, licence, DirFD); err != nil {
		return fmt.Errorf("attach the program: %w", err)
	}
	return nil
}

func create(path string, closed []specs.LinuxDeviceCgroup) error {
	controller := func() ([]cgroup1.Subsystem, error) {
		return []cgroup1.Subsystem{cgroup1.NewDevices(root)}, nil
	}
	_, err := cgroup1.New(cgroup1.StaticPath(path), &specs.LinuxResources{Devices: closed}, cgroup1.WithHierarchy(controller))
	return err
}

// Main is the program: one line on standard error says what went wrong.
func Main() int {
	if err := Run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
