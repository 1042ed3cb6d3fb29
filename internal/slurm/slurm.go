package slurm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// Runner runs a program without a shell and returns what it writes to its
// standard output. A test gives one that answers from a table.
type Runner func(ctx context.Context, name string, args ...string) ([]byte, error)

// Exec is the Runner of a real machine. The error holds the first line that the
// program wrote to its standard error.
func Exec(ctx context.Context, name string, args ...string) ([]byte, error) {
	return execute(ctx, 0, nil, name, args...)
}

// background is how much a program gives way to those that somebody waits for
// (nice(2)): of a busy processor it has a tenth.
const background = 10

// ExecBackground is the EnvRunner of a real machine, for a program for which nobody
// waits.
func ExecBackground(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	return execute(ctx, background, env, name, args...)
}

func execute(ctx context.Context, nice int, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the callers' names are constants and the admin's settings
	if len(env) > 0 {
		cmd.Env = append(os.Environ(), env...)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Start()
	if err == nil && nice != 0 {
		// It may have ended; and it does its work at any priority.
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, cmd.Process.Pid, nice)
	}
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	if line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n"); line != "" {
		return stdout.Bytes(), fmt.Errorf("run %s: %w: %s", name, err, line)
	}
	return stdout.Bytes(), fmt.Errorf("run %s: %w", name, err)
}

// Config is Slurm's configuration in force, as `scontrol show config` prints it.
// The keys are lower case; those of cgroup.conf are among them.
type Config map[string]string

// Get returns a setting, empty if it is missing or "(null)". Case of the name
// does not matter.
func (c Config) Get(name string) string {
	v := c[strings.ToLower(name)]
	if v == "(null)" {
		return ""
	}
	return v
}

// Has reports whether one of the comma-separated words of a setting is word,
// whatever its case.
func (c Config) Has(name, word string) bool {
	for w := range strings.SplitSeq(c.Get(name), ",") {
		if strings.EqualFold(strings.TrimSpace(w), word) {
			return true
		}
	}
	return false
}

// ShowConfig asks slurmctld for the configuration in force.
func ShowConfig(ctx context.Context, run Runner) (Config, error) {
	out, err := run(ctx, "scontrol", "show", "config")
	if err != nil {
		return nil, err
	}
	cfg := Config{}
	for line := range strings.Lines(string(out)) {
		key, value, ok := strings.Cut(line, "=")
		if ok {
			cfg[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
		}
	}
	if len(cfg) == 0 {
		return nil, errors.New("scontrol show config: no setting in its answer")
	}
	return cfg, nil
}

// Version is a release of Slurm.
type Version struct{ Major, Minor, Micro int }

// String is the release as Slurm writes it: 24.11.5, 24.05.1.
func (v Version) String() string { return fmt.Sprintf("%d.%02d.%d", v.Major, v.Minor, v.Micro) }

// SameMajor reports whether plugins of one release load in the other: the year
// and the month must be the same (plugin.c:_verify_syms).
func (v Version) SameMajor(o Version) bool { return v.Major == o.Major && v.Minor == o.Minor }

// VersionFromNumber decodes SLURM_VERSION_NUMBER (slurm/slurm_version.h).
func VersionFromNumber(n uint32) Version {
	return Version{int(n >> 16), int(n >> 8 & 0xff), int(n & 0xff)}
}

var release = regexp.MustCompile(`(\d+)\.(\d+)\.(\d+)`)

// NodeVersion asks slurmd on this machine which release it is.
func NodeVersion(ctx context.Context, run Runner) (Version, error) {
	out, err := run(ctx, "slurmd", "-V")
	if err != nil {
		return Version{}, err
	}
	m := release.FindStringSubmatch(string(out))
	if m == nil {
		return Version{}, fmt.Errorf("slurmd -V: no version in %q", strings.TrimSpace(string(out)))
	}
	var v Version
	for i, at := range []*int{&v.Major, &v.Minor, &v.Micro} {
		if *at, err = strconv.Atoi(m[i+1]); err != nil {
			return Version{}, fmt.Errorf("slurmd -V: %w", err)
		}
	}
	return v, nil
}
