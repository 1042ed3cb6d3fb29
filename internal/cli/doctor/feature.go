package doctor

import (
	"context"

	"github.com/carme-hpc/carme/internal/slurm"
)

// Feature is the node feature that sends --carme jobs to a node
// (contrib/slurm/job_submit.lua).
const Feature = "carme"

// KeepFeature makes the node's feature tell what the report does: a node that
// cannot seal a job off gets none. It reports whether that changed anything.
func (d Doctor) KeepFeature(ctx context.Context, r Report) (changed bool, err error) {
	return slurm.SetFeature(ctx, d.run, d.Node, Feature, r.OK)
}
