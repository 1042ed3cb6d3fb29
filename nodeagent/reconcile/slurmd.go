package reconcile

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/nodeagent/process"
)

// slurmdEvery is how often a slurmd that does not run is looked for.
const slurmdEvery = 5 * time.Second

// isSlurmd reports whether a process of root's runs slurmd. Its name does not tell:
// one that has started itself anew may be called exe. Its file is slurmd, or slurmd-wlm
// with Debian, and " (deleted)" behind that after an upgrade. A user's program may be
// called so too.
func isSlurmd(pid int) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	exe, err := os.Readlink(filepath.Join(proc, "exe"))
	var st unix.Stat_t
	if err != nil || unix.Stat(proc, &st) != nil || st.Uid != 0 {
		return false
	}
	name := strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	return name == "slurmd" || strings.HasPrefix(name, "slurmd-")
}

// Slurmd is the process id of this node's slurmd, 0 if there is none. It comes
// before its own children, which run it until they execute another program.
func Slurmd() int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	first := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && isSlurmd(pid) && (first == 0 || pid < first) {
			first = pid
		}
	}
	return first
}

// follow tells of each end of slurmd. It starts anew when its configuration is read
// again (`scontrol reconfigure`, since Slurm 23.11), and by then slurmctld has forgotten
// the features that it was told of nodes, or soon does. No file tells of that: under
// systemd slurmd writes no pid file.
func (s *SelfTest) follow(ctx context.Context, ended chan<- struct{}) {
	for ctx.Err() == nil {
		pid := s.Slurmd()
		p, err := process.Open(pid, func(int) bool { return s.Slurmd() == pid })
		if err != nil {
			timer := time.NewTimer(slurmdEvery)
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		stop := context.AfterFunc(ctx, func() { _ = p.Close() })
		process.Wait(p)
		if stop() {
			_ = p.Close()
		}
		select {
		case ended <- struct{}{}:
		default:
		}
	}
}
