package session

import (
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
