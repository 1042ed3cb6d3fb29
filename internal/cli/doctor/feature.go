package doctor

import (
	"context"
	"slices"

	"github.com/carme-hpc/carme/internal/slurm"
)

// Feature is the node feature that sends --carme jobs to a node
// (contrib/slurm/job_submit.lua).
const Feature = "carme"

// KeepFeature makes the node's feature tell what the report does: a node that
// cannot seal a job off gets none. It reports whether that changed anything. That
// slurmctld did not answer says nothing of the node: it sends no jobs then, and is
// back, as a rule, when it is told.
func (d Doctor) KeepFeature(ctx context.Context, r Report) (changed bool, err error) {
	own := func(f Finding) bool { return f.Status == Fail && f.Name != slurmsConfiguration }
	if !r.OK && !slices.ContainsFunc(r.Findings, own) {
		return false, nil
	}
	return slurm.SetFeature(ctx, d.run, d.Node, Feature, r.OK)
}
