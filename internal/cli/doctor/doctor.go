package doctor

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/spank/gpu"
)

const (
	// commandTime is how long one command may take: Slurm's own wait for an
	// answer (MessageTimeout, slurm.conf(5)), and Apptainer's start on a node
	// whose processors are all the jobs'.
	commandTime = 10 * time.Second
	// nvmlTime is how long NVML may take: without the persistence daemon it
	// starts the driver first.
	nvmlTime = 20 * time.Second
)

// slurmsConfiguration is the check that fails while slurmctld does not answer.
const slurmsConfiguration = "Slurm's configuration"

// Doctor looks at a node. Its fields are what a test replaces.
type Doctor struct {
	// Root is the root of the file system: "/".
	Root string
	// Node is Slurm's name of this node.
	Node string
	// Run runs Slurm's commands and Apptainer.
	Run slurm.Runner
	// NVML lists GPUs.
	NVML gpu.Library
	// Object reads a shared library.
	Object func(path string) (Object, error)
	// Now is the time.
	Now func() time.Time
	// Asked is for who cleans again and again.
	Asked *Asked
	// TrustOwner leaves out the checks that files belong to root.
	TrustOwner bool
}

// Examine makes every check. It takes less than a minute, also if Slurm and
// the driver hang.
func (d Doctor) Examine(ctx context.Context) Report {
	cfg, err := d.slurmConfig(ctx)
	findings := []Finding{d.killSwitch(), d.kernel(), d.userNamespaces()}
	findings = append(findings, d.files()...)
	findings = append(findings, d.exports(), d.release(ctx))
	if err != nil {
		findings = append(findings, fail(slurmsConfiguration, "start slurmctld, or mend the way to it, and ask again", "%v", err))
	} else {
		findings = append(findings, ok(slurmsConfiguration, "read from slurmctld"))
	}
	findings = append(findings, d.plugstack(cfg), d.switchFile(), d.prologFlags(cfg), d.prolog(cfg), d.adoption(), d.cgroup(cfg))
	findings = append(findings, d.config(ctx)...)
	findings = append(findings, d.gpus(ctx, cfg)...)
	findings = append(findings, d.leftovers(ctx))
	return newReport(d.Node, findings)
}

func (d Doctor) path(name string) string { return filepath.Join(d.Root, name) }

func (d Doctor) exists(name string) bool {
	_, err := os.Lstat(d.path(name))
	return err == nil
}

// run is Run with a deadline.
func (d Doctor) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	return d.Run(ctx, name, args...)
}

func (d Doctor) slurmConfig(ctx context.Context) (slurm.Config, error) {
	return slurm.ShowConfig(ctx, d.run)
}
