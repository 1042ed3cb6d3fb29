package core

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/spank/request"
)

const (
	// overlayLock is a file in the directory of an overlay that whoever writes to it has
	// locked.
	overlayLock = "carme.lock"
	// overlayHeldKey is in the anchor's answer if the job has locked its overlay.
	overlayHeldKey = "overlay.lock"
	// overlayLast is how long the job before, whose end Slurm has told of already, may take
	// to let it go.
	overlayLast = 3 * time.Second
	overlayLook = 50 * time.Millisecond
	// overlayUserMax bounds what is read of the file, in bytes.
	overlayUserMax = 300
)

// takeOverlay looks at the directory of the overlay as the user, and locks it: what two
// containers at a time leave in one is undefined (the kernel's overlayfs.rst). Apptainer
// would take an image's file too, and its own directories in it (upper, work) as links
// to others. The lock is the anchor's to keep until the job's end.
func (j *job) takeOverlay(mnt int) error {
	dir := j.plan.Request.Overlay
	if j.plan.Image == nil || !strings.HasPrefix(dir, "/") {
		return nil
	}
	err := asUser(mnt, j.person, func() (err error) {
		j.overlay, err = overlayDir(dir, j.overlayUser())
		return err
	})
	used, inUse := errors.AsType[overlayInUseError](err)
	switch {
	case inUse:
		return fmt.Errorf("--carme-overlay: %s is %w; name a directory for each job, and for each node that sees the same one", request.Quote(dir), used)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("--carme-overlay: %s does not exist; make it, with mkdir -p", request.Quote(dir))
	case err != nil:
		return fmt.Errorf("--carme-overlay: %s cannot take what is written to the image: %w; name a directory of your own", request.Quote(dir), err)
	}
	return nil
}

// overlayUser is what the file says.
var overlayUser = regexp.MustCompile(`^job \d+ on [A-Za-z0-9.-]+$`)

func (j *job) overlayUser() string { return fmt.Sprintf("job %d on %s", j.id, j.node) }

// overlayInUseError is what the file of a locked directory says. The file is the user's:
// it may say anything.
type overlayInUseError string

func (e overlayInUseError) Error() string {
	if who := string(e); overlayUser.MatchString(who) {
		return "in use by " + who
	}
	return "in use by another job"
}

// overlayDir checks that a directory can be written to, and that what an overlay before
// has made there is directories as well. It returns the locked file in it, -1 where the
// file system has no locks.
func overlayDir(dir, user string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	if err := unix.Faccessat2(fd, ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return -1, err
	}
	for _, name := range []string{"upper", "work"} {
		var st unix.Stat_t
		err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return -1, fmt.Errorf("%q in it is no directory", name)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return -1, err
		}
	}
	return lockOverlay(fd, user)
}

// lockOverlay locks the file in a directory, and writes into it for whom.
func lockOverlay(dir int, user string) (int, error) {
	fd, err := unix.Openat(dir, overlayLock, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, fmt.Errorf("open %q in it: %w", overlayLock, err)
	}
	locked, err := lockFile(fd, user)
	if err != nil || !locked {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// lockFile waits a moment for whoever is about to let the lock go. Locks of open files
// (F_OFD_SETLK in fcntl(2)) hold between the nodes that share a file system, if it has
// them at all, and end with the last process that has the file open.
func lockFile(fd int, user string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return false, fmt.Errorf("%q in it is no file", overlayLock)
	}
	again := time.NewTicker(overlayLook)
	defer again.Stop()
	for end := time.Now().Add(overlayLast); ; <-again.C {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil:
			return true, writeOverlayUser(fd, user)
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES):
			return false, nil // the file system has no locks
		}
		text := make([]byte, overlayUserMax)
		n, err := unix.Pread(fd, text, 0)
		if err != nil {
			return false, err
		}
		used := overlayInUseError(strings.TrimSpace(string(text[:n])))
		if time.Now().After(end) {
			return false, used
		}
	}
}

func writeOverlayUser(fd int, user string) error {
	if err := unix.Ftruncate(fd, 0); err != nil {
		return err
	}
	_, err := unix.Pwrite(fd, []byte(user+"\n"), 0)
	return err
}
