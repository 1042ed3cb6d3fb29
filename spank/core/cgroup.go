package core

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where cgroups are mounted (cgroups(7)).
const cgroupRoot = "/sys/fs/cgroup"

// jobCgroup is a directory of the job in one cgroup hierarchy.
type jobCgroup struct {
	Mount string // cgroupRoot, or a v1 hierarchy below it
	Path  string // of the job below Mount, with a leading slash
}

// parseCgroups reads the lines of /proc/PID/cgroup of a process in a step and
// returns the job's directories: what stands before "/step_". They are not
// built from the job id, since Slurm 26.05 names them after its SLUID.
// Hierarchies in which Slurm made no directory for the step are left out.
// version is 2 if Slurm uses the unified hierarchy, else 1.
func parseCgroups(lines []string) (dirs []jobCgroup, version int) {
	version = 2
	unified := cgroupRoot
	if len(lines) > 1 && isDir(cgroupRoot+"/unified") {
		unified = cgroupRoot + "/unified"
	}
	for _, line := range lines {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			continue
		}
		job, _, ok := strings.Cut(parts[2], "/step_")
		if !ok || job == "" {
			continue
		}
		mount := unified
		if parts[1] != "" {
			version = 1
			mount = filepath.Join(cgroupRoot, strings.TrimPrefix(parts[1], "name="))
		}
		dirs = append(dirs, jobCgroup{mount, job})
	}
	return dirs, version
}

// narrowCgroups covers /sys/fs/cgroup with a directory that holds nothing but
// the job's own subtrees, at their real paths and read-only. A cgroup namespace
// would not do: its root cannot be the job's directory on v2, where inner
// cgroups hold no processes.
func narrowCgroups(dirs []jobCgroup) error {
	if !isDir(cgroupRoot) {
		return nil
	}
	sources := make([]int, 0, len(dirs))
	kept := make([]jobCgroup, 0, len(dirs))
	defer func() {
		for _, fd := range sources {
			unix.Close(fd)
		}
	}()
	for _, d := range dirs {
		fd, err := openTarget(d.Mount + d.Path)
		if err != nil {
			continue // a hierarchy that is mounted elsewhere stays hidden
		}
		sources = append(sources, fd)
		kept = append(kept, d)
	}
	if err := tmpfs(cgroupRoot, "755", "1M"); err != nil {
		return err
	}
	for i, d := range kept {
		path := d.Mount + d.Path
		if err := os.MkdirAll(path, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", path, err)
		}
		if err := bind(sources[i], path, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	return remountReadOnly(cgroupRoot)
}
