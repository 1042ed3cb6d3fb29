package nodes

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	// heardWithin is how long a node counts as heard of.
	heardWithin = time.Minute
	// reportEvery is how often agents report, in seconds.
	reportEvery = 5
	// ringSize is how many measurements of a job on a node are kept: an hour.
	ringSize = 720
	// coarseEvery is how often one of them is stored.
	coarseEvery = time.Minute
	// Limits of what one node can make this process keep.
	jobsMax, samplesMax, devicesMax, textMax = 4096, 8192, 64, 512
)

// Changes is told of what nodes report.
type Changes interface {
	// JobOnNode says that a sealed job is there or changed its stage.
	JobOnNode(ctx context.Context, node string, job api.NodeJob) error
	// JobEnded says that it is no longer there.
	JobEnded(ctx context.Context, node string, job api.NodeJob, end api.NodeEnd) error
	// Gone says whether Slurm is known not to know the job.
	Gone(job uint32) bool
}

// Registry is what the agents said.
type Registry struct {
	DB      *store.DB
	Now     func() time.Time
	Log     *slog.Logger
	Changes Changes
	// RouteKeys are the public keys of route tokens.
	RouteKeys map[string][]byte

	mu      sync.Mutex
	nodes   map[string]*nodeState
	samples map[uint32]*jobSamples
}

type nodeState struct {
	seen    time.Time
	boot    string
	problem string
	jobs    map[uint32]api.NodeJob
}

type jobSamples struct {
	rings  map[string][]api.NodeSample // by node, oldest first
	stored map[string]time.Time
	last   time.Time
}

// Report takes what a node says. The node is the one of its certificate.
func (r *Registry) Report(ctx context.Context, node string, in api.Report) (api.Reported, error) {
	if len(in.Jobs) > jobsMax || len(in.Samples) > samplesMax || len(in.Ended) > jobsMax {
		return api.Reported{}, fmt.Errorf("node %s reports more than can be", node)
	}
	now := r.Now()
	fresh, ended := r.take(node, in, now)
	for _, j := range fresh {
		if err := r.Changes.JobOnNode(ctx, node, j); err != nil {
			return api.Reported{}, err
		}
	}
	for _, e := range ended {
		if err := r.Changes.JobEnded(ctx, node, e.job, e.end); err != nil {
			return api.Reported{}, err
		}
	}
	if err := r.keep(ctx, node, in.Samples, now); err != nil {
		return api.Reported{}, err
	}
	out := api.Reported{RouteKeys: r.RouteKeys, EverySeconds: reportEvery}
	for _, j := range in.Jobs {
		if r.Changes.Gone(j.Job) {
			out.Gone = append(out.Gone, j.Job)
		}
	}
	return out, nil
}

type endedJob struct {
	job api.NodeJob
	end api.NodeEnd
}

// take replaces the node's state and returns what is new and what is over.
func (r *Registry) take(node string, in api.Report, now time.Time) (fresh []api.NodeJob, ended []endedJob) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nodes == nil {
		r.nodes = map[string]*nodeState{}
	}
	before := r.nodes[node]
	if before == nil {
		before = &nodeState{jobs: map[uint32]api.NodeJob{}}
	}
	state := &nodeState{seen: now, boot: in.Boot, problem: clip(in.Problem), jobs: map[uint32]api.NodeJob{}}
	for _, j := range in.Jobs {
		j.Text = clip(j.Text)
		j.App, j.Image, j.Instance, j.Stage = clip(j.App), clip(j.Image), clip(j.Instance), clip(j.Stage)
		if len(j.Devices) > devicesMax {
			j.Devices = j.Devices[:devicesMax]
		}
		for i := range j.Devices {
			j.Devices[i].Node = node
		}
		state.jobs[j.Job] = j
		old, ok := before.jobs[j.Job]
		if !ok || old.Stage != j.Stage || old.Text != j.Text || old.Instance != j.Instance {
			fresh = append(fresh, j)
		}
	}
	for id, j := range before.jobs {
		if now, ok := state.jobs[id]; !ok || now.Instance != j.Instance {
			end := api.NodeEnd{Job: id, Instance: j.Instance, Time: r.Now()}
			for _, e := range in.Ended {
				if e.Job == id && e.Instance == j.Instance {
					end = e
				}
			}
			ended = append(ended, endedJob{j, end})
		}
	}
	for _, e := range in.Ended { // those that ended before this process heard of them
		if _, ok := before.jobs[e.Job]; !ok {
			ended = append(ended, endedJob{api.NodeJob{Job: e.Job, Instance: clip(e.Instance)}, e})
		}
	}
	r.nodes[node] = state
	return fresh, ended
}

func clip(s string) string {
	if len(s) > textMax {
		return s[:textMax]
	}
	return s
}

// Find returns the job on the nodes that have it, by node.
func (r *Registry) Find(job uint32) map[string]api.NodeJob {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := map[string]api.NodeJob{}
	for name, n := range r.nodes {
		if j, ok := n.jobs[job]; ok {
			found[name] = j
		}
	}
	return found
}

// Heard reports whether the node was heard of in the last minute, and since when
// it was not.
func (r *Registry) Heard(node string) (bool, time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[node]
	if n == nil {
		return false, time.Time{}
	}
	return r.Now().Sub(n.seen) < heardWithin, n.seen
}

// keep stores measurements: all in memory, one a minute in the database.
func (r *Registry) keep(ctx context.Context, node string, samples []api.NodeSample, now time.Time) error {
	var rows []api.NodeSample
	r.mu.Lock()
	if r.samples == nil {
		r.samples = map[uint32]*jobSamples{}
	}
	for _, s := range samples {
		if _, own := r.nodes[node].jobs[s.Job]; !own {
			continue // a node speaks of its own jobs only
		}
		if len(s.GPUs) > devicesMax {
			s.GPUs = s.GPUs[:devicesMax]
		}
		js := r.samples[s.Job]
		if js == nil {
			js = &jobSamples{rings: map[string][]api.NodeSample{}, stored: map[string]time.Time{}}
			r.samples[s.Job] = js
		}
		ring := append(js.rings[node], s)
		if len(ring) > ringSize {
			ring = slices.Delete(ring, 0, len(ring)-ringSize)
		}
		js.rings[node], js.last = ring, now
		if s.Time.Sub(js.stored[node]) >= coarseEvery {
			js.stored[node] = s.Time
			rows = append(rows, s)
		}
	}
	for id, js := range r.samples {
		if now.Sub(js.last) > time.Hour {
			delete(r.samples, id)
		}
	}
	r.mu.Unlock()
	if len(rows) == 0 {
		return nil
	}
	return r.DB.Write(ctx, func(tx store.Tx) error {
		for _, s := range rows {
			for _, v := range values(s) {
				if _, err := store.Exec(ctx, tx, "INSERT INTO samples (job, node, name, device, at, value) VALUES (?, ?, ?, ?, ?, ?)",
					int64(s.Job), node, v.name, v.device, s.Time.Unix(), v.value); err != nil {
					return fmt.Errorf("store measurements: %w", err)
				}
			}
		}
		return nil
	})
}

type value struct {
	name, device string
	value        float64
}

func values(s api.NodeSample) []value {
	all := []value{
		{"cpu_percent", "", s.CPU}, {"memory_mb", "", s.MemoryMB}, {"io_read_mbps", "", s.ReadMB}, {"io_write_mbps", "", s.WriteMB},
	}
	for _, g := range s.GPUs {
		d := clip(g.UUID)
		all = append(all, value{"gpu_percent", d, g.Percent}, value{"gpu_memory_mb", d, g.MemoryMB},
			value{"gpu_power_w", d, g.PowerW}, value{"gpu_energy_j", d, g.EnergyJ})
	}
	return all
}

type seriesKey struct{ node, name, device string }

type point struct {
	key   seriesKey
	at    int64
	value float64
}

// Metrics returns the measurements of a job: from memory, or the stored ones.
func (r *Registry) Metrics(ctx context.Context, job uint32) (api.Metrics, error) {
	var points []point
	r.mu.Lock()
	if js := r.samples[job]; js != nil {
		for node, ring := range js.rings {
			for _, s := range ring {
				for _, v := range values(s) {
					points = append(points, point{seriesKey{node, v.name, v.device}, s.Time.Unix(), v.value})
				}
			}
		}
	}
	r.mu.Unlock()
	if len(points) == 0 {
		var rows []struct {
			Node, Name, Device string
			At                 int64
			Value              float64
		}
		const most = 200000
		if err := store.One(ctx, r.DB.Read(), &rows, "SELECT node, name, device, at, value FROM samples WHERE job = ? ORDER BY at LIMIT ?", int64(job), most); err != nil {
			return api.Metrics{}, fmt.Errorf("read measurements: %w", err)
		}
		for _, row := range rows {
			points = append(points, point{seriesKey{row.Node, row.Name, row.Device}, row.At, row.Value})
		}
	}
	return aligned(points), nil
}

// aligned gives all series the same times.
func aligned(points []point) api.Metrics {
	times := map[int64]bool{}
	by := map[seriesKey]map[int64]float64{}
	for _, p := range points {
		times[p.at] = true
		if by[p.key] == nil {
			by[p.key] = map[int64]float64{}
		}
		by[p.key][p.at] = p.value
	}
	out := api.Metrics{Times: slices.Sorted(maps.Keys(times)), Series: []api.Series{}}
	if out.Times == nil {
		out.Times = []int64{}
	}
	for key, at := range by {
		s := api.Series{Node: key.node, Name: key.name, Device: key.device, Values: make([]*float64, len(out.Times))}
		for i, t := range out.Times {
			if v, ok := at[t]; ok {
				s.Values[i] = &v
			}
		}
		out.Series = append(out.Series, s)
	}
	slices.SortFunc(out.Series, func(a, b api.Series) int {
		for _, c := range []int{compare(a.Name, b.Name), compare(a.Node, b.Node), compare(a.Device, b.Device)} {
			if c != 0 {
				return c
			}
		}
		return 0
	})
	return out
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
