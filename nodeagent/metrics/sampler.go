package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/session"
)

// keep is how many samples are kept while the backend is away: an hour of one
// job every 5 s.
const keep = 720

// Sampler measures jobs.
type Sampler struct {
	Jobs func() []*session.Job
	// GPU returns a GPU's last sample.
	GPU func(uuid string) (api.GPUSample, bool)
	Now func() time.Time

	mu      sync.Mutex
	before  map[*session.Job]reading
	last    []api.NodeSample // of all jobs
	pending []api.NodeSample
}

type reading struct {
	Usage

	at time.Time
}

// Run measures until ctx ends.
func (s *Sampler) Run(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		s.Measure()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Measure measures all jobs once.
func (s *Sampler) Measure() {
	// Without the lock, for which the end of a job waits: a user with many
	// processes makes it take long.
	jobs, now := s.Jobs(), map[*session.Job]reading{}
	for _, j := range jobs {
		if usage, ok := ReadUsage(j.Cgroups); ok {
			now[j] = reading{usage, s.Now()}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = s.last[:0:0]
	for _, j := range jobs {
		r, ok := now[j]
		if !ok {
			continue
		}
		// A rate needs two readings.
		if old, ok := s.before[j]; ok && r.at.After(old.at) {
			sample := s.sample(j, old, r)
			s.last = append(s.last, sample)
			s.pending = append(s.pending, sample)
		}
	}
	s.before = now
	if over := len(s.pending) - keep; over > 0 {
		s.pending = append([]api.NodeSample(nil), s.pending[over:]...)
	}
}

func (s *Sampler) sample(j *session.Job, old, r reading) api.NodeSample {
	const mb = 1 << 20
	seconds := r.at.Sub(old.at).Seconds()
	// A counter that went back is of a cgroup that was made anew.
	rate := func(now, before float64) float64 { return max(0, now-before) / seconds }
	sample := api.NodeSample{
		Job: j.Job, Instance: j.Instance, Time: r.at.UTC(),
		CPU:      100 * rate(r.CPU.Seconds(), old.CPU.Seconds()),
		MemoryMB: float64(r.Memory) / mb,
		ReadMB:   rate(float64(r.Read), float64(old.Read)) / mb,
		WriteMB:  rate(float64(r.Write), float64(old.Write)) / mb,
	}
	for _, d := range j.Devices {
		if gpu, ok := s.GPU(d.UUID); ok {
			sample.GPUs = append(sample.GPUs, gpu)
		}
	}
	return sample
}

// Take returns the samples since the last call.
func (s *Sampler) Take() []api.NodeSample {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.pending
	s.pending = nil
	return all
}

// PutBack keeps samples that could not be told.
func (s *Sampler) PutBack(samples []api.NodeSample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(samples, s.pending...)
	if over := len(s.pending) - keep; over > 0 {
		s.pending = s.pending[over:]
	}
}

// Last returns the newest sample of each job.
func (s *Sampler) Last() []api.NodeSample {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]api.NodeSample(nil), s.last...)
}

// OOM reports whether a process of the job was killed for memory. When the job
// has ended its cgroup may be gone: then the last reading counts.
func (s *Sampler) OOM(j *session.Job) bool {
	if usage, ok := ReadUsage(j.Cgroups); ok {
		return usage.OOM > 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before[j].OOM > 0
}
