package core

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// filterDir holds the device cgroups of Carme's own, below slurmd's
// (spank/cshim/filter.c).
const filterDir = "carme"

// rules close the devices and leave everything else as it is.
func rules(foreign []*device) []specs.LinuxDeviceCgroup {
	number := func(n int64) *int64 { return &n }
	var list []specs.LinuxDeviceCgroup
	for _, d := range foreign {
		list = append(list, specs.LinuxDeviceCgroup{
			Allow: false, Type: "c", Access: "rwm",
			Major: number(int64(d.major())), Minor: number(int64(d.minor())),
		})
	}
	return list
}

// attachFilter closes devices to the job by a filter of Carme's own. It is for
// nodes on which Slurm has none: where it has, ours would replace it (v2).
func (j *job) attachFilter(anchor anchorConn, lines []string, foreign []*device) error {
	if j.cgroupV == 2 {
		return j.attachProgram(rules(foreign))
	}
	return j.enterDevices(anchor, lines, rules(foreign))
}

// attachProgram puts one program on the job's directory. It holds for all that
// is and will be below it, and goes with the directory.
func (j *job) attachProgram(closed []specs.LinuxDeviceCgroup) error {
	any64 := int64(-1)
	everything := specs.LinuxDeviceCgroup{Allow: true, Type: "a", Access: "rwm", Major: &any64, Minor: &any64}
	// The last rule that matches decides.
	program, licence, err := cgroup2.DeviceFilter(append([]specs.LinuxDeviceCgroup{everything}, closed...))
	if err != nil {
		return fmt.Errorf("make the job's device filter: %w", err)
	}
	path := j.cgroups[0].Mount + j.cgroups[0].Path
	dir, err := unix.Open(path, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the job's cgroup %s: %w", path, err)
	}
	defer unix.Close(dir)
	if _, err := cgroup2.LoadAttachCgroupDeviceFilter(program, licence, dir); err != nil {
		return fmt.Errorf("attach the job's device filter: %w; the admin may set ConstrainDevices=yes in cgroup.conf instead", err)
	}
	return nil
}

// enterDevices makes a device cgroup for the job, since Slurm has made none,
// and sends the anchor into it; tasks follow (spank/cshim/filter.c).
func (j *job) enterDevices(anchor anchorConn, lines []string, closed []specs.LinuxDeviceCgroup) error {
	above, ok := devicesCgroup(lines)
	if !ok {
		return errors.New("this node has no device cgroup; the admin must mount the devices controller and set ConstrainDevices=yes in cgroup.conf")
	}
	parent := filepath.Join(above, filterDir)
	sweepFilters(filepath.Join(cgroupRoot, string(cgroup1.Devices), parent), jobsDir)
	name := "job_" + strconv.FormatUint(uint64(j.id), 10)
	// One of an earlier job with this id would still deny what that one had not.
	if err := unix.Rmdir(filepath.Join(cgroupRoot, string(cgroup1.Devices), parent, name)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the device cgroup that an earlier job has left: %w", err)
	}
	controller := func() ([]cgroup1.Subsystem, error) {
		return []cgroup1.Subsystem{cgroup1.NewDevices(cgroupRoot)}, nil
	}
	_, err := cgroup1.New(cgroup1.StaticPath(filepath.Join(parent, name)),
		&specs.LinuxResources{Devices: closed}, cgroup1.WithHierarchy(controller))
	if err != nil {
		return fmt.Errorf("make the job's device cgroup: %w", err)
	}
	dir, err := unix.Open(filepath.Join(cgroupRoot, string(cgroup1.Devices), parent), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the device cgroups: %w", err)
	}
	defer unix.Close(dir)
	procs, err := unix.Openat(dir, name+"/cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the job's device cgroup: %w", err)
	}
	defer unix.Close(procs)
	enter := ofType("filter")
	enter.Add("name", name)
	_, err = anchor.call("filtered", enter, procs, dir)
	return err
}

// devicesCgroup finds the place of a process in the v1 devices hierarchy in
// the lines of its /proc/PID/cgroup.
func devicesCgroup(lines []string) (string, bool) {
	for _, line := range lines {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			if controller == string(cgroup1.Devices) {
				return parts[2], true
			}
		}
	}
	return "", false
}

// sweepFilters removes the device cgroups of jobs that are no more, which only
// a crash of the anchor and of slurmstepd leaves. The kernel keeps those that
// are in use.
func sweepFilters(dir, jobs string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // there was none yet
	}
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), "job_")
		if !ok || !e.IsDir() {
			continue
		}
		if _, err := os.Lstat(filepath.Join(jobs, id)); errors.Is(err, os.ErrNotExist) {
			_ = unix.Rmdir(filepath.Join(dir, e.Name())) // in use, or gone by another's hand
		}
	}
}
