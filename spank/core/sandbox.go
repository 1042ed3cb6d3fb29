package core

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/policy"
	"github.com/carme-hpc/carme/spank/request"
)

// Where things lie inside a job.
const (
	runDir    = "/run/carme"
	jobView   = "/run/carme/job"  // what the job may know of itself
	bindsView = "/run/carme/bind" // sources of binds, for the container
	holdView  = "/run/carme/hold" // the container's first program
	slurmView = "/run/carme/slurm"
	// What the runtime is given as the image: a place for a directory and one
	// for a file. Each container has its own mount there, made by the anchor
	// (spank/cshim/anchor/container.c).
	imageDirView  = "/run/carme/image"
	imageFileView = "/run/carme/image.sif"
	// sessionView runs an app (cmd/carme-session); spank/cshim/task.c has the
	// path too.
	sessionView    = "/run/carme/session"
	sessionProgram = "/usr/libexec/carme/carme-session"
	commands       = "/run/carme/bin"      // Slurm's, for the container's PATH
	hostView       = "/run/carme/host/usr" // the node's /usr, for the same
)

// helpers are the programs that a job needs inside, by where it sees them.
var helpers = map[string]string{
	holdView:           "/usr/libexec/carme/carme-hold",
	"/run/carme/enter": "/usr/libexec/carme/carme-enter",
	slurmView:          "/usr/libexec/carme/carme-slurm",
}

// slurmCommands are those of the node that a job may want, in an image too.
var slurmCommands = []string{
	"carme", "sacct", "salloc", "sattach", "sbatch", "sbcast", "scancel", "scontrol", "sdiag", "sinfo", "sprio", "squeue",
	"srun", "sshare", "sstat", "strigger",
}

// sandbox is a job's namespaces while they are made. Its methods run on one
// locked thread, which is inside them; the rest of the process stays outside.
type sandbox struct {
	job    *job
	hostNS map[string]uint64 // inodes of the host's namespaces
	ns     map[string]int    // open namespaces of the job, for the anchor
	procFD int               // the host's /proc/driver, -1 without
	mounts []wire.ProofMount
}

// note records a mount for the proof.
func (s *sandbox) note(kind, target, source, options string) {
	s.mounts = append(s.mounts, wire.ProofMount{Target: target, Source: source, Kind: kind, Options: options})
}

// namespaceKinds in the order of proof and anchor.
var namespaceKinds = []string{"mnt", "ipc", "uts", "net"}

func nsInode(kind string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/"+kind, &st); err != nil {
		return 0, fmt.Errorf("look at namespace %s: %w", kind, err)
	}
	return st.Ino, nil
}

// unshare leaves the host's namespaces, all but PID, which the anchor makes.
func (s *sandbox) unshare() error {
	for _, kind := range append([]string{"pid"}, namespaceKinds...) {
		inode, err := nsInode(kind)
		if err != nil {
			return err
		}
		s.hostNS[kind] = inode
	}
	if s.job.slurmNS {
		// Slurm's own mounts of the job (job_container/tmpfs,
		// namespace/tmpfs) are what ours build upon.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("leave the process's root directory: %w", err)
		}
		if err := unix.Setns(slurmNSFD, unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("join Slurm's mount namespace of the job: %w", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	kinds := namespaceKinds[:3]
	if s.job.plan.Request.Net == request.NetPrivate {
		handle, err := netns.New()
		if err != nil {
			return fmt.Errorf("create a network namespace: %w", err)
		}
		if err := handle.Close(); err != nil {
			return fmt.Errorf("close a network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		kinds = namespaceKinds
	}
	for _, kind := range kinds {
		fd, err := unix.Open("/proc/thread-self/ns/"+kind, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open namespace %s: %w", kind, err)
		}
		s.ns[kind] = fd
	}
	// Slave, not private: home directories that the host mounts later
	// (autofs) must appear inside, and nothing of ours outside.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach mounts from the host's: %w", err)
	}
	return nil
}

// loopbackUp sets the flag IFF_UP of lo (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket for lo: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("name lo: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("read flags of lo: %w", err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// build makes everything but /proc.
func (s *sandbox) build() error {
	if err := s.unshare(); err != nil {
		return err
	}
	// Sources are opened before anything is covered.
	s.procFD = -1
	if isDir("/proc/driver/nvidia") {
		fd, err := openTarget("/proc/driver")
		if err != nil {
			return err
		}
		s.procFD = fd
	}
	steps := []func() error{s.devices, s.temporaries, s.ownRun, s.cgroups, s.sysfs, s.binds, s.home}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (s *sandbox) devices() error {
	shown := []*device{}
	for _, d := range s.job.devices {
		if d.Own {
			shown = append(shown, d)
		}
	}
	s.note(wire.MountPrivate, "/dev", "tmpfs", "")
	s.note(wire.MountPrivate, "/dev/shm", "tmpfs", "size="+s.job.plan.Site.Tmp.Size)
	s.note(wire.MountPrivate, "/dev/mqueue", "mqueue", "")
	s.note(wire.MountSystem, "/dev/pts", "/dev/pts", "")
	return privateDev(shown, s.job.plan.Site.Tmp.Size)
}

func (s *sandbox) temporaries() error {
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		if !isDir(dir) {
			continue // a link to the other, as some sites have it
		}
		if s.job.slurmNS && dir == "/tmp" {
			continue // private by Slurm, and the site chose its disk
		}
		if err := tmpfs(dir, "1777", s.job.plan.Site.Tmp.Size); err != nil {
			return err
		}
		s.note(wire.MountPrivate, dir, "tmpfs", "size="+s.job.plan.Site.Tmp.Size)
	}
	if err := os.MkdirAll("/run/user", 0o755); err != nil {
		return fmt.Errorf("make /run/user: %w", err)
	}
	if err := tmpfs("/run/user", "755", s.job.plan.Site.Tmp.Size); err != nil {
		return err
	}
	s.note(wire.MountPrivate, "/run/user", "tmpfs", "")
	own := runtimeDir(s.job.person)
	if err := os.Mkdir(own, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", own, err)
	}
	if err := os.Chown(own, int(s.job.person.UID), int(s.job.person.GID)); err != nil {
		return fmt.Errorf("give %s to the user: %w", own, err)
	}
	return nil
}

// runtimeDir is XDG_RUNTIME_DIR of the job's user.
func runtimeDir(p person) string {
	return "/run/user/" + strconv.FormatUint(uint64(p.UID), 10)
}

// ownRun covers /run/carme, which names all jobs of the node, by what this job
// may see: its own record, PMIx's directory, sources of binds.
func (s *sandbox) ownRun() error {
	pmix, err := openTarget(s.job.pmixDir())
	if err != nil {
		return err
	}
	defer unix.Close(pmix)
	programs := map[string]int{}
	defer closeAll(programs)
	for view, path := range s.job.helpers() {
		if programs[view], err = openTarget(path); err != nil {
			return err
		}
	}
	session, err := s.job.openSessionDir()
	if err != nil {
		return err
	}
	defer unix.Close(session)
	if err := tmpfs(runDir, "755", "16M"); err != nil {
		return err
	}
	s.note(wire.MountPrivate, runDir, "tmpfs", "ro")
	for _, dir := range []string{jobView, bindsView, imageDirView, s.job.pmixDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	if err := os.WriteFile(imageFileView, nil, 0o444); err != nil {
		return fmt.Errorf("make %s: %w", imageFileView, err)
	}
	if err := bind(pmix, s.job.pmixDir(), 0); err != nil {
		return err
	}
	s.note(wire.MountSystem, s.job.pmixDir(), s.job.pmixDir(), "")
	if err := s.showSession(session); err != nil {
		return err
	}
	for view, fd := range programs {
		if err := os.WriteFile(view, nil, 0o555); err != nil {
			return fmt.Errorf("make %s: %w", view, err)
		}
		if err := bind(fd, view, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	if err := s.names(); err != nil {
		return err
	}
	return s.slurm()
}

// slurm makes Slurm's commands available to a container, whatever it holds
// (spank/cshim/anchor/slurm.c).
func (s *sandbox) slurm() error {
	for _, dir := range []string{commands, hostView} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	for _, name := range slurmCommands {
		if err := os.Symlink("../slurm", filepath.Join(commands, name)); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	usr, err := openTarget("/usr")
	if err != nil {
		return err
	}
	defer unix.Close(usr)
	s.note(wire.MountSystem, hostView, "/usr", "ro")
	return bind(usr, hostView, unix.MOUNT_ATTR_RDONLY)
}

func (s *sandbox) cgroups() error {
	s.note(wire.MountHidden, cgroupRoot, "tmpfs", "ro")
	for _, d := range s.job.cgroups {
		s.note(wire.MountSystem, d.Mount+d.Path, d.Mount+d.Path, "ro")
	}
	return narrowCgroups(s.job.cgroups)
}

// pciDevices holds a link per device into /sys/devices.
const pciDevices = "/sys/bus/pci/devices"

// sysfs covers the directories of GPUs that are not the job's.
func (s *sandbox) sysfs() error {
	for _, g := range s.job.gpus {
		if g.device.Own || g.PCI == "" {
			continue
		}
		link, err := os.Readlink(filepath.Join(pciDevices, g.PCI))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find GPU %s in sysfs: %w", g.PCI, err)
		}
		dir := filepath.Join(pciDevices, link)
		if err := tmpfs(dir, "555", "4k"); err != nil {
			return err
		}
		if err := remountReadOnly(dir); err != nil {
			return err
		}
		s.note(wire.MountHidden, dir, "tmpfs", "ro")
	}
	return nil
}

// nvidiaProc is the driver's directory in /proc.
const nvidiaProc = "/proc/driver/nvidia"

// proc narrows the driver's files in the job's /proc, once PID 1 has mounted
// it, to the job's GPUs.
func (s *sandbox) proc() error {
	if s.procFD < 0 {
		return nil
	}
	// The driver's files are in every instance of procfs, unless the node is
	// itself a container and has them by a mount.
	if !isDir(nvidiaProc) {
		if err := bind(s.procFD, "/proc/driver", 0); err != nil {
			return err
		}
	}
	own := map[string]bool{"mig": true}
	for _, g := range s.job.gpus {
		if g.device.Own {
			own[g.PCI] = true
			own["gpu"+strconv.FormatUint(uint64(g.device.minor()), 10)] = true
		}
	}
	keep := func(name string) bool { return own[name] }
	for _, dir := range []string{"gpus", "capabilities"} {
		path := filepath.Join(nvidiaProc, dir)
		if !isDir(path) {
			continue
		}
		if err := narrow(path, keep); err != nil {
			return err
		}
		s.note(wire.MountHidden, path, "tmpfs", "ro")
	}
	return nil
}

// home covers the home directory where it is not wanted.
func (s *sandbox) home() error {
	if s.job.plan.Request.Home == request.Yes || s.job.person.Home == "" {
		return nil
	}
	mnt := s.ns["mnt"]
	var target int
	err := asUser(mnt, s.job.person, func() (err error) {
		target, err = unix.Open(s.job.person.Home, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the home directory %s: %w", s.job.person.Home, err)
	}
	defer unix.Close(target)
	// Who could place a link would choose what is covered, for root's code
	// in the job too; and some homes are "/" or a directory of the system.
	if !s.job.person.owns(target) {
		return fmt.Errorf("--carme-home=no: the home directory %s is not yours, so that it cannot be covered; use --carme-home=yes", s.job.person.Home)
	}
	fd, err := newFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode", "700", "size", s.job.plan.Site.Tmp.Size,
		"uid", strconv.FormatUint(uint64(s.job.person.UID), 10), "gid", strconv.FormatUint(uint64(s.job.person.GID), 10))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	s.note(wire.MountPrivate, s.job.person.Home, "tmpfs", "size="+s.job.plan.Site.Tmp.Size)
	return attachAt(fd, target)
}

// binds opens what is to be seen, the user's own as the user, and mounts it: for
// a container at a fixed place from which the runtime takes it, without one at
// its destination.
func (s *sandbox) binds() error {
	for i, b := range s.job.plan.Binds {
		source, err := s.bindSource(i, b)
		if !b.Own && errors.Is(err, unix.ENOENT) || i == s.job.submitBind && err != nil {
			continue // a default that this node does not have
		}
		if err != nil {
			return fmt.Errorf("--carme-bind: open %s: %w; check the path and its permissions", b.Src, err)
		}
		err = s.bindOne(i, b, source)
		unix.Close(source)
		if err != nil {
			return err
		}
	}
	return nil
}

// bindSource opens the source of a bind.
func (s *sandbox) bindSource(i int, b policy.Bind) (fd int, err error) {
	open := func() error {
		fd, err = unix.Openat2(unix.AT_FDCWD, b.Src, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
		})
		return err
	}
	if b.Own || i == s.job.submitBind {
		return fd, asUser(s.ns["mnt"], s.job.person, open)
	}
	return fd, open()
}

// pathOf is where an open file lies.
func pathOf(fd int) (string, error) {
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

// mayShow judges where the directory of submission, which the user's environment
// names, really lies: neither in a part of the system (the host's /proc is still
// there when binds are made) nor in a home that is not wanted.
func (s *sandbox) mayShow(actual string) bool {
	if request.CheckSource(actual) != nil {
		return false
	}
	if s.job.plan.Request.Home == request.Yes {
		return true
	}
	home := -1
	err := asUser(s.ns["mnt"], s.job.person, func() (err error) {
		home, err = unix.Open(s.job.person.Home, unix.O_PATH|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return true
	}
	defer unix.Close(home)
	path, err := pathOf(home)
	return err == nil && !inside(actual, path)
}

func (s *sandbox) bindOne(i int, b policy.Bind, source int) error {
	actual, err := pathOf(source)
	if err != nil {
		return fmt.Errorf("--carme-bind: resolve %s: %w", b.Src, err)
	}
	if i == s.job.submitBind && !s.mayShow(actual) {
		return nil
	}
	readOnly, err := s.job.mayBind(actual, b)
	if err != nil {
		return err
	}
	tree, err := cloneTree(source)
	if err != nil {
		return fmt.Errorf("--carme-bind: %s: %w", b.Src, err)
	}
	defer unix.Close(tree)
	if readOnly {
		if err := setAttrs(tree, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	target, err := s.bindTarget(i, b, source)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := attachAt(tree, target); err != nil {
		return fmt.Errorf("--carme-bind: %s: %w", b.Dst, err)
	}
	view := b.Dst
	if s.job.plan.Image != nil {
		view = bindView(i)
	}
	s.job.sources[place(b)] = view + ":" + b.Dst
	s.noteBind(b, readOnly)
	return nil
}

func (s *sandbox) noteBind(b policy.Bind, readOnly bool) {
	options := ""
	if readOnly {
		options = "ro"
	}
	s.note(wire.MountBind, b.Dst, b.Src, options)
}

// bindView is where the i-th bind's source lies for the runtime.
func bindView(i int) string { return filepath.Join(bindsView, strconv.Itoa(i)) }

// bindTarget opens the place of the i-th bind.
func (s *sandbox) bindTarget(i int, b policy.Bind, source int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return -1, fmt.Errorf("--carme-bind: stat %s: %w", b.Src, err)
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if s.job.plan.Image == nil {
		return s.hostTarget(b, dir)
	}
	views, err := openTarget(bindsView)
	if err != nil {
		return -1, err
	}
	defer unix.Close(views)
	if err := placeholder(views, strconv.Itoa(i), dir); err != nil {
		return -1, err
	}
	return openTarget(bindView(i))
}

// hostTarget opens the place of a bind in a job without an image. The host's
// own tree is what such a job sees, and root's code looks things up in it
// (name services), so a user may cover only what is theirs, what is private to
// the job, or a path by itself.
func (s *sandbox) hostTarget(b policy.Bind, dir bool) (int, error) {
	if !b.Own {
		return openTarget(b.Dst)
	}
	private := strings.HasPrefix(b.Dst, "/tmp/") || strings.HasPrefix(b.Dst, "/var/tmp/")
	target := -1
	err := asUser(s.ns["mnt"], s.job.person, func() error {
		if private {
			if err := makePlace(b.Dst, dir); err != nil {
				return err
			}
		}
		var err error
		target, err = openTarget(b.Dst)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("--carme-bind: place %s: %w; without an image it must exist in the job", b.Dst, err)
	}
	if !s.job.person.owns(target) && b.Src != b.Dst {
		unix.Close(target)
		return -1, fmt.Errorf("--carme-bind: %s is not yours; without an image choose a directory of your own or one below /tmp", b.Dst)
	}
	return target, nil
}

// makePlace makes an empty directory or file, with its parents.
func makePlace(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// seal writes the proof where the job sees it, and the options, which a nested
// srun takes up (spank/cshim/options.c), and makes /run/carme read-only.
func (s *sandbox) seal(proof []byte) error {
	if err := os.WriteFile(filepath.Join(jobView, "options"), s.job.optionLines(), 0o444); err != nil {
		return fmt.Errorf("write the options: %w", err)
	}
	if err := os.WriteFile(filepath.Join(jobView, proofName), proof, 0o444); err != nil {
		return fmt.Errorf("write the proof: %w", err)
	}
	return remountReadOnly(runDir)
}

// onThread runs f on a thread of its own that ends with it, because f leaves
// the process's namespaces.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
