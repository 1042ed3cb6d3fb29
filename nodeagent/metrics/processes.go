package metrics

import (
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/procfs"
)

// userHZ is in how many parts of a second proc_pid_stat(5) counts.
const userHZ = 100

// ofProcesses sums up what the processes of a cgroup and of those below it have
// used, with their ended children. What a process has used goes to its parent when
// it ends, and the job's PID 1 takes those without one; only what tasks have used,
// which slurmstepd waits for, is lost with them.
func ofProcesses(dir string) (u Usage) {
	// A step may end meanwhile: then there is nothing to read.
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			return nil
		}
		for _, line := range lines(name, "cgroup.procs") {
			if pid, err := strconv.Atoi(line); err == nil {
				u.addProcess(pid)
			}
		}
		return nil
	})
	return u
}

// addProcess adds nothing if the process has ended.
func (u *Usage) addProcess(pid int) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return
	}
	stat, err := p.Stat()
	if err != nil {
		return
	}
	ticks := stat.UTime + stat.STime
	if children := stat.CUTime + stat.CSTime; children > 0 {
		ticks += uint(children)
	}
	u.CPU += time.Duration(ticks) * time.Second / userHZ //nolint:gosec // G115: far from the bounds
	if io, err := p.IO(); err == nil {
		u.Read += int64(io.ReadBytes)   //nolint:gosec // G115: as above
		u.Write += int64(io.WriteBytes) //nolint:gosec // G115: as above
	}
}
