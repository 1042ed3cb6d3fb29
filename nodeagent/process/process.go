// Package process follows processes that are not children of this one, by
// descriptors that a new process with an old number is not taken for (pidfd_open(2)).
package process

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrEnded is that a process is not there, or not the one that is meant.
var ErrEnded = errors.New("has ended")

// Open opens a pidfd of a process that is not a zombie, and checks that it is the
// one meant; else ErrEnded.
func Open(pid int, is func(pid int) bool) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrEnded
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	// While the descriptor says that its process lives, the id is its own.
	if !is(pid) || hasEnded(fd) {
		unix.Close(fd)
		return nil, ErrEnded
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

func hasEnded(fd int) bool {
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // G115: a descriptor
		n, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// Wait returns when the process has ended, or the descriptor is closed.
func Wait(pidfd *os.File) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool { return hasEnded(int(fd)) })
}
