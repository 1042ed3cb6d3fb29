package core

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
)

// device is a device node of the host.
type device struct {
	Path string // below /dev
	Kind string // one of wire's kinds
	FD   int    // O_PATH, -1 when not held open
	Stat unix.Stat_t
	Own  bool // the job may use it
	// Index is Slurm's number of a GPU of the job; empty if not asked for.
	Index string
}

// major and minor are the device's numbers (makedev(3)).
func (d *device) major() uint32 { return unix.Major(d.Stat.Rdev) }
func (d *device) minor() uint32 { return unix.Minor(d.Stat.Rdev) }

var (
	// controlNames are shared by all GPUs of a node and needed with any.
	controlNames = []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"}
	// basicNames are harmless and belong into every /dev.
	basicNames = []string{"null", "zero", "full", "random", "urandom", "tty", "fuse"}
)

// capsForbidden are the capability files that configure and monitor MIG for
// the whole GPU: nvidia-cap1 and nvidia-cap2 (NVIDIA MIG User Guide, "Device
// Nodes"). They never enter a job.
const capsForbidden = 2

// openDevice opens a character device without following links.
func openDevice(path, kind string) (*device, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open device %s: %w", path, err)
	}
	d := &device{Path: path, Kind: kind, FD: fd}
	if err := unix.Fstat(fd, &d.Stat); err != nil {
		d.close()
		return nil, fmt.Errorf("stat device %s: %w", path, err)
	}
	if d.Stat.Mode&unix.S_IFMT != unix.S_IFCHR {
		d.close()
		return nil, fmt.Errorf("%s is not a character device", path)
	}
	return d, nil
}

func (d *device) close() {
	if d.FD >= 0 {
		unix.Close(d.FD)
		d.FD = -1
	}
}

// numberOf is the number behind prefix in a name that has nothing else.
func numberOf(name, prefix string) (int, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil
}

// numbered returns the devices of dir that prefix and a number name, by number.
func numbered(dir, prefix, kind string, above int) ([]*device, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	type found struct {
		number int
		device *device
	}
	var all []found
	for _, e := range entries {
		n, ok := numberOf(e.Name(), prefix)
		if !ok || n <= above {
			continue
		}
		d, err := openDevice(filepath.Join(dir, e.Name()), kind)
		if err != nil {
			return nil, err
		}
		all = append(all, found{n, d})
	}
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.number, b.number) })
	var devices []*device
	for _, f := range all {
		devices = append(devices, f.device)
	}
	return devices, nil
}

// hostGPUs returns every GPU node of the host and every MIG capability file.
func hostGPUs() (gpus, caps []*device, err error) {
	gpus, err = numbered("/dev", "nvidia", wire.DeviceGPU, -1)
	if err != nil {
		return nil, nil, err
	}
	caps, err = numbered("/dev/nvidia-caps", "nvidia-cap", wire.DeviceCaps, capsForbidden)
	return gpus, caps, err
}

// optional opens those of the named devices that the host has.
func optional(kind string, paths ...string) []*device {
	var devices []*device
	for _, p := range paths {
		if d, err := openDevice(p, kind); err == nil {
			d.Own = true
			devices = append(devices, d)
		}
	}
	return devices
}

// globbed opens the devices that the admin's patterns name.
func globbed(kind string, patterns []string) ([]*device, error) {
	var devices []*device
	for _, p := range patterns {
		paths, err := filepath.Glob(p)
		if err != nil {
			return nil, fmt.Errorf("devices.extra %q: %w", p, err)
		}
		devices = append(devices, optional(kind, paths...)...)
	}
	return devices, nil
}

// inDev prefixes names with /dev/.
func inDev(names []string) []string {
	paths := make([]string, 0, len(names))
	for _, n := range names {
		paths = append(paths, "/dev/"+n)
	}
	return paths
}

// privateDev makes a /dev with the given devices, the host's terminals and
// empty /dev/shm and /dev/mqueue, and mounts it. It must run in the job's
// mount and IPC namespace. shmSize is a tmpfs size, such as "50%".
func privateDev(devices []*device, shmSize string) error {
	dev, err := newFS("tmpfs", unix.MOUNT_ATTR_NOSUID, "mode", "755", "size", "1M")
	if err != nil {
		return fmt.Errorf("/dev: %w", err)
	}
	for _, d := range devices {
		if err := makeNode(dev, d); err != nil {
			unix.Close(dev)
			return err
		}
	}
	links := map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2",
	}
	if err := makePtmx(dev); err != nil {
		unix.Close(dev)
		return err
	}
	for name, to := range links {
		if err := unix.Symlinkat(to, dev, name); err != nil {
			unix.Close(dev)
			return fmt.Errorf("link /dev/%s: %w", name, err)
		}
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if err := unix.Mkdirat(dev, name, 0o755); err != nil {
			unix.Close(dev)
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	// The host's terminals: slurmstepd opens the task's there, and ttyname(3)
	// must find it under the same name.
	pts, err := openTarget("/dev/pts")
	if err != nil {
		unix.Close(dev)
		return err
	}
	defer unix.Close(pts)
	if err := attach(dev, "/dev"); err != nil {
		return err
	}
	if err := bind(pts, "/dev/pts", 0); err != nil {
		return err
	}
	if err := tmpfs("/dev/shm", "1777", shmSize); err != nil {
		return err
	}
	queue, err := newFS("mqueue", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	return attach(queue, "/dev/mqueue")
}

// makePtmx makes /dev/ptmx as the host has it: a node (5:2), which finds the
// devpts beside it, or a link into a devpts that is mounted with ptmxmode.
func makePtmx(dev int) error {
	to, err := os.Readlink("/dev/ptmx")
	if err == nil {
		err = unix.Symlinkat(to, dev, "ptmx")
	} else {
		var d *device
		if d, err = openDevice("/dev/ptmx", wire.DeviceBasic); err == nil {
			defer d.close()
			err = makeNode(dev, d)
		}
	}
	if err != nil {
		return fmt.Errorf("make /dev/ptmx: %w", err)
	}
	return nil
}

// makeNode makes the node of d below the new /dev, with the host's owner and
// permissions.
func makeNode(dev int, d *device) error {
	name, err := filepath.Rel("/dev", d.Path)
	if err != nil {
		return fmt.Errorf("device %s: %w", d.Path, err)
	}
	if dir := filepath.Dir(name); dir != "." {
		if err := unix.Mkdirat(dev, dir, 0o755); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make /dev/%s: %w", dir, err)
		}
	}
	mode := d.Stat.Mode & 0o777
	if err := unix.Mknodat(dev, name, unix.S_IFCHR|mode, int(d.Stat.Rdev)); err != nil { //nolint:gosec // Mknodat wants the number as an int
		return fmt.Errorf("make %s: %w", d.Path, err)
	}
	// mknod(2) is subject to the umask.
	if err := unix.Fchmodat(dev, name, mode, 0); err != nil {
		return fmt.Errorf("set mode of %s: %w", d.Path, err)
	}
	if err := unix.Fchownat(dev, name, int(d.Stat.Uid), int(d.Stat.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner of %s: %w", d.Path, err)
	}
	return nil
}
