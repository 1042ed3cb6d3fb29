package core

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// filterDir holds the device cgroups of Carme's own, below slurmd's
// (spank/cshim/filter.c).
const filterDir = "carme"

// filterProgram makes the filter (spank/filter).
const filterProgram = "/usr/libexec/carme/carme-filter"

// devicesController is the name of the hierarchy of version 1.
const devicesController = "devices"

// runFilter lets the program do what verb says, with dir as its directory if it
// is not nil.
func runFilter(dir *os.File, foreign []*device, verb ...string) error {
	argv := append([]string{filterProgram}, verb...)
	for _, d := range foreign {
		argv = append(argv, fmt.Sprintf("%d:%d", d.major(), d.minor()))
	}
	return runProgram(dir, argv)
}

// runProgram runs a program of root's, without an environment. What it prints on
// standard error when it fails is the error.
func runProgram(dir *os.File, argv []string) error {
	read, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	defer read.Close() //nolint:errcheck // nothing was written
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		write.Close() //nolint:errcheck // nothing was written
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer null.Close() //nolint:errcheck // nothing was written
	files := []*os.File{null, null, write}
	if dir != nil {
		files = append(files, dir)
	}
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Dir: "/", Env: []string{}, Files: files})
	write.Close() //nolint:errcheck // the program's end is its own
	if err != nil {
		return fmt.Errorf("run %s: %w; ask the admin to reinstall Carme on this node", argv[0], err)
	}
	text, readErr := io.ReadAll(io.LimitReader(read, 4096))
	state, err := p.Wait()
	if err != nil {
		return fmt.Errorf("wait for %s: %w", argv[0], err)
	}
	if state.Success() && readErr == nil {
		return nil
	}
	if why := strings.TrimSpace(string(text)); why != "" {
		return errors.New(why)
	}
	return fmt.Errorf("%s: %s", argv[0], state)
}

// attachFilter closes devices to the job by a filter of Carme's own. It is for
// nodes on which Slurm has none: where it has, ours would replace it (v2).
func (j *job) attachFilter(anchor anchorConn, lines []string, foreign []*device) error {
	if j.cgroupV == 2 {
		return j.attachProgram(foreign)
	}
	return j.enterDevices(anchor, lines, foreign)
}

// attachProgram puts one program on the job's directory.
func (j *job) attachProgram(foreign []*device) error {
	path := j.cgroups[0].Mount + j.cgroups[0].Path
	fd, err := unix.Open(path, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the job's cgroup %s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close() //nolint:errcheck // nothing was written
	if err := runFilter(dir, foreign, "attach"); err != nil {
		return fmt.Errorf("attach the job's device filter: %w; the admin may set ConstrainDevices=yes in cgroup.conf instead", err)
	}
	return nil
}

// enterDevices makes a device cgroup for the job, since Slurm has made none,
// and sends the anchor into it; tasks follow (spank/cshim/filter.c).
func (j *job) enterDevices(anchor anchorConn, lines []string, foreign []*device) error {
	above, ok := devicesCgroup(lines)
	if !ok {
		return errors.New("this node has no device cgroup; the admin must mount the devices controller and set ConstrainDevices=yes in cgroup.conf")
	}
	parent := filepath.Join(above, filterDir)
	sweepFilters(filepath.Join(cgroupRoot, devicesController, parent), jobsDir)
	name := "job_" + strconv.FormatUint(uint64(j.id), 10)
	// One of an earlier job with this id would still deny what that one had not.
	if err := unix.Rmdir(filepath.Join(cgroupRoot, devicesController, parent, name)); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the device cgroup that an earlier job has left: %w", err)
	}
	if err := runFilter(nil, foreign, "create", filepath.Join(parent, name)); err != nil {
		return fmt.Errorf("make the job's device cgroup: %w", err)
	}
	dir, err := unix.Open(filepath.Join(cgroupRoot, devicesController, parent), unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
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
			if controller == devicesController {
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
