package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// side is one of the two things that are compared.
type side struct {
	prepare string // shell code outside the time that is taken
	cmd     string
	noop    bool // with the plugin that does nothing in the product's place
}

// row is one measurement: its result is made of the medians of both sides.
type row struct {
	id, what      string
	carme, other  side
	ratio         bool    // of the two, else their difference
	per           float64 // the difference is divided by this
	must, goal    float64
	more          bool // a larger figure is a better one
	unit          string
	carmeMS, base float64
}

const (
	srun  = "srun -Q -w " + node + " "
	image = "/opt/carme/images/base.sif"
)

func freshRows() []row {
	return []row{
		{
			id: "P1", what: "plain srun, Carme installed", unit: "ms", must: 0.5, goal: 0.1,
			carme: side{idle, srun + "true", false}, other: side{idle, srun + "true", true},
		},
		{
			id: "P2", what: "srun --carme without image, first step", unit: "ms", must: 15, goal: 5,
			carme: side{idle, srun + "--carme=none true", false}, other: side{idle, srun + "true", true},
		},
		{
			id: "P4", what: "srun --carme=IMAGE, first step", unit: "x", must: 1.1, goal: 1.0, ratio: true,
			carme: side{idle, srun + "--carme=base true", false}, other: side{idle, srun + "apptainer -s exec " + image + " true", true},
		},
		{
			id: "P4b", what: "the same, 16 tasks", unit: "x", must: 0.5, goal: 0.1, ratio: true,
			carme: side{idle, srun + "-n16 --carme=base true", false},
			other: side{idle, srun + "-n16 apptainer -s exec " + image + " true", true},
		},
	}
}

// step is one in a job that waits for steps.
func step(id, more string) side {
	return side{"", "srun -Q --overlap --mem=0 --jobid=" + id + " " + more, false}
}

func laterRows(plain, sealed string) []row {
	// Sixteen at once, 64 in all; the figure is a time, so that its inverse is
	// the rate.
	many := func(id string) side {
		return side{"", "seq 64 | xargs -P16 -I{} srun -Q --overlap --mem=0 --jobid=" + id + " true", false}
	}
	return []row{
		{
			id: "P2b", what: "later step without image", unit: "ms", must: 3, goal: 1,
			carme: step(sealed, "true"), other: step(plain, "true"),
		},
		{
			id: "P3", what: "each further task of a step", unit: "ms", must: 0.2, goal: 0.04, per: 15,
			carme: step(sealed, "-n16 true"), other: step(plain, "-n16 true"),
		},
		{
			id: "P5", what: "steps per second, 16 at once", unit: "x", must: 0.90, goal: 0.98, ratio: true, more: true,
			carme: many(sealed), other: many(plain),
		},
	}
}

func imageRows(plain, sealed string) []row {
	return []row{
		{
			id: "P4b", what: "later step in the image", unit: "x", must: 0.5, goal: 0.1, ratio: true,
			carme: step(sealed, "true"), other: step(plain, "apptainer -s exec "+image+" true"),
		},
	}
}

// value is the row's figure.
func (r row) value() float64 {
	switch {
	case r.ratio && r.more:
		return r.base / r.carmeMS
	case r.ratio:
		return r.carmeMS / r.base
	case r.per > 0:
		return (r.carmeMS - r.base) / r.per
	default:
		return r.carmeMS - r.base
	}
}

func (r row) reaches(limit float64) bool {
	if r.more {
		return r.value() >= limit
	}
	return r.value() <= limit
}

func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// turn is how many samples are taken of a side before the other has its turn. The
// first is thrown away: it finds the caches as the change of plugins left them.
const turn = 5

// measure takes the samples of a row, both sides in turn, and which goes first
// in turn too.
func (c cluster) measure(ctx context.Context, r *row, rounds int) error {
	var samples [2][]float64
	for i := range rounds {
		for k := range 2 {
			which := (i + k) % 2
			s := r.carme
			if which == 1 {
				s = r.other
			}
			if err := c.plugins(ctx, !s.noop); err != nil {
				return err
			}
			for n := range turn {
				ms, err := c.milliseconds(ctx, s.prepare, s.cmd)
				if err != nil {
					return fmt.Errorf("%s: %w", r.id, err)
				}
				if n > 0 {
					samples[which] = append(samples[which], ms)
				}
			}
		}
	}
	r.carmeMS, r.base = median(samples[0]), median(samples[1])
	return nil
}

// fate waits on a node for the first slurmstepd of a job, and then for up to 0.8 s: until
// then the extern step, the image and the batch script start one after the other. It ends
// all slurmstepd that are there by SIGKILL, and the job, of which Slurm would think for
// minutes that it runs; it tells after how many milliseconds nothing of the job is left.
const fate = `left() {
	pgrep -lx 'carme-(anchor|host|session)'; pgrep -lfx '.*sleep 900'; ls -d /run/carme/jobs/ID 2>/dev/null
}
for i in {1..1000}; do pgrep -f '^slurmstepd: \[ID\.' >/dev/null && break; sleep 0.01; done
sleep 0.$(printf %03d $((RANDOM % 800)))
t0=${EPOCHREALTIME/./}
pkill -KILL -f '^slurmstepd: \[ID\.' || { echo "job ID does not start" >&2; exit 1; }
scancel ID
for i in {1..1000}; do
	[ -n "$(left)" ] || { echo $(( (${EPOCHREALTIME/./} - t0) / 1000 )); exit; }
	sleep 0.005
done
echo "left of job ID:" >&2; left >&2; exit 1`

// killed ends all of a job's slurmstepd with SIGKILL at a moment of its start or later,
// again and again; it returns the longest time until nothing of the job was left, in
// milliseconds.
func (p *plugin) killed(ctx context.Context, times int) (float64, error) {
	c, longest := p.cluster, 0.0
	for n := range times {
		if n > 0 && n%100 == 0 {
			fmt.Fprintf(p.out, "P6   %d of %d, longest %.0f ms\n", n, times, longest)
		}
		id, err := c.user(ctx, idle+"sbatch --parsable -w "+node+" --mem=4000 -o /dev/null --carme=base --no-requeue --wrap 'exec sleep 900'")
		if err != nil {
			return 0, err
		}
		out, err := c.root(ctx, node, strings.ReplaceAll(fate, "ID", id))
		if err != nil {
			return 0, err
		}
		var ms float64
		if _, err := fmt.Sscan(out, &ms); err != nil {
			return 0, fmt.Errorf("read a time: %w", err)
		}
		longest = max(longest, ms)
		// Slurm may have been about to start the batch script: that leaves nothing either.
		if _, err := c.user(ctx, idle+"true"); err != nil {
			return 0, err
		}
		if out, err := c.root(ctx, node, "ls /run/carme/jobs; pgrep -lx 'carme-(anchor|host|session)' || true"); err != nil || out != "" {
			return 0, errors.Join(err, fmt.Errorf("left of job %s: %s", id, out))
		}
	}
	return longest, nil
}
