package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// anchorProgram is the anchor's file name (spank/cshim/anchor).
const anchorProgram = "carme-anchor"

// IsAnchor reports whether a process runs the anchor's program, as root. A
// process id in old notes may be another's by now.
func IsAnchor(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	exe, err := os.Readlink(proc + "/exe")
	// A package upgrade leaves " (deleted)" behind the name.
	if err != nil || strings.TrimSuffix(filepath.Base(exe), " (deleted)") != anchorProgram {
		return false
	}
	var st unix.Stat_t
	return unix.Stat(proc, &st) == nil && st.Uid == 0
}

var errEnded = errors.New("has ended")

// openProcess opens a pidfd of a process that is not a zombie, and checks that
// it is the one meant.
func openProcess(pid int, is func(pid int) bool) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, errEnded
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	// While the descriptor says that its process lives, the id is its own.
	if !is(pid) || hasEnded(fd) {
		unix.Close(fd)
		return nil, errEnded
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

// waitEnd returns when the process has ended, or the descriptor is closed.
func waitEnd(pidfd *os.File) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool { return hasEnded(int(fd)) })
}

// startedAt is the start time of a process in clock ticks since boot (field 22
// of proc_pid_stat(5)).
func startedAt(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The second field, the command, ends at the last parenthesis.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const afterCommand = 22 - 3
	if len(fields) <= afterCommand {
		return ""
	}
	return fields[afterCommand]
}

// extern reads which process is the job's extern slurmstepd (JOB_EXTERN of
// spank/cshim/common/jobfiles.h), false if the plugin has not noted it.
func extern(text string) (pid int, started string, ok bool) {
	first, started, ok := strings.Cut(strings.TrimSpace(text), " ")
	pid, err := strconv.Atoi(first)
	return pid, started, ok && err == nil && pid > 1
}
