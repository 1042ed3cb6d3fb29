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

// isSlurmd reports whether a process of root's is slurmd by its name. A user's
// program may have the name too.
func isSlurmd(pid int) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	name, err := os.ReadFile(filepath.Join(proc, "comm"))
	var st unix.Stat_t
	return err == nil && strings.TrimSuffix(string(name), "\n") == "slurmd" && unix.Stat(proc, &st) == nil && st.Uid == 0
}

// Slurmd is the process id of this node's slurmd, 0 if there is none. It comes
// before its own children, which have its name until they execute another program.
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
// again (`scontrol reconfigure`, since Slurm 23.11), and by then slurmctld has
// forgotten the features that it was told of nodes. No file tells of that: under
// systemd slurmd writes no pid file.
func (s *SelfTest) follow(ctx context.Context, changed chan<- struct{}) {
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
		case changed <- struct{}{}:
		default:
		}
	}
}
