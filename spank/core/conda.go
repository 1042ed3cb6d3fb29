package core

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/spank/request"
)

// condaRoots are where users install conda and its relatives, below the home
// directory; environments lie in envs/ of each.
var condaRoots = []string{".conda", "miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba", ".local/share/mamba"}

// condaSites are the same for a whole site.
var condaSites = []string{"/opt/conda", "/opt/miniconda3", "/opt/miniforge3"}

// findConda returns the directory of the environment that --carme-conda names,
// empty without one. It looks as the user, in the mounts of the namespace mnt.
func (j *job) findConda(mnt int) (prefix string, err error) {
	name := j.plan.Request.Conda
	if name == "" {
		return "", nil
	}
	candidates := condaCandidates(name, j.person.Home)
	err = asUser(mnt, j.person, func() error {
		for _, dir := range candidates {
			if st, err := os.Stat(filepath.Join(dir, "conda-meta")); err == nil && st.IsDir() {
				prefix = dir
				return nil
			}
		}
		return os.ErrNotExist
	})
	switch {
	case !errors.Is(err, os.ErrNotExist):
	case strings.HasPrefix(name, "/"):
		err = fmt.Errorf("--carme-conda: there is no conda environment %s that you can read (it would have a directory conda-meta); check the path", request.Quote(name))
	default:
		err = fmt.Errorf("--carme-conda: there is no conda environment %s in the usual places (carme(7)); write its directory, as conda env list shows it", request.Quote(name))
	}
	return prefix, err
}

// condaCandidates are the directories that a name may stand for. A prefix
// stands for itself.
func condaCandidates(name, home string) []string {
	if strings.HasPrefix(name, "/") {
		return []string{name}
	}
	var dirs []string
	for _, root := range condaRoots {
		dirs = append(dirs, filepath.Join(home, root, "envs", name))
		if name == "base" {
			dirs = append(dirs, filepath.Join(home, root))
		}
	}
	for _, root := range condaSites {
		dirs = append(dirs, filepath.Join(root, "envs", name))
		if name == "base" {
			dirs = append(dirs, root)
		}
	}
	return dirs
}

// condaEnvironment is what "conda activate" sets, its scripts in
// etc/conda/activate.d left out, which need a shell.
func condaEnvironment(name, prefix string) map[string]string {
	if strings.HasPrefix(name, "/") {
		name = prefix
	}
	return map[string]string{"CONDA_PREFIX": prefix, "CONDA_DEFAULT_ENV": name, "CONDA_SHLVL": "1"}
}

// withHostMounts calls f with this process's own mount namespace.
func withHostMounts(f func(mnt int) error) error {
	mnt, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open own mount namespace: %w", err)
	}
	defer unix.Close(mnt)
	return f(mnt)
}
