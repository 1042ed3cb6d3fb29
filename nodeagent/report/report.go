package report

import (
	"context"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/session"
)

const (
	// postTime is how long the backend may take.
	postTime = 10 * time.Second
	// everyDefault is how often to report before the backend says.
	everyDefault = 5 * time.Second
	everyMax     = time.Minute
	// settle is how long changes are gathered before they are told.
	settle = 50 * time.Millisecond
	// unrest is for how long instead, once news has brought burst reports more
	// than one a second.
	unrest = time.Second
	burst  = 20
	// Between two attempts, half more or less of it. A backend that comes back
	// leads nobody to a session until its node has reported.
	firstPause   = time.Second
	longestPause = 8 * time.Second
)

// Poster sends a report (upstream.Client).
type Poster interface {
	Post(ctx context.Context, limit time.Duration, path string, in, out any) error
}

// Samples are measurements that wait to be told.
type Samples interface {
	Take() []api.NodeSample
	PutBack(samples []api.NodeSample)
}

// Reporter reports.
type Reporter struct {
	// Boot is a random value of this life of the agent.
	Boot    string
	Node    string
	Backend Poster
	Ledger  *Ledger
	// Jobs are those that run.
	Jobs    func() []*session.Job
	Samples Samples
	// Problem is what the self-test found.
	Problem func() string
	// Answered is told what the backend answered about these jobs.
	Answered func(asked []*session.Job, answer api.Reported)
	// Changed receives when there is news.
	Changed <-chan struct{}
	Log     *slog.Logger

	seq int64
	// credit is how many reports news may still bring at once, as of then.
	credit float64
	then   time.Time
}

// patience is how long changes are gathered after news that comes now. A user
// makes news by writing to a file, as often as the agent looks there; a report
// costs the backend more than that.
func (r *Reporter) patience(now time.Time) time.Duration {
	r.credit = min(burst, r.credit+now.Sub(r.then).Seconds())
	r.then = now
	if r.credit < 1 {
		return unrest
	}
	r.credit--
	return settle
}

// Run reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) {
	every, wait, failing := everyDefault, firstPause, false
	for {
		answer, err := r.once(ctx)
		var next time.Duration
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failing {
				r.Log.Warn("cannot report to the backend; jobs go on, and ends are kept", "error", err)
			}
			failing = true
			next = wait/2 + mathrand.N(wait) //nolint:gosec // G404: no secret
			wait = min(2*wait, longestPause)
		default:
			if failing {
				r.Log.Info("the backend takes reports again")
			}
			failing, wait = false, firstPause
			if d := time.Duration(answer.EverySeconds) * time.Second; d > 0 {
				every = min(d, everyMax)
			}
			next = every
		}
		if !r.wait(ctx, next, failing) {
			return
		}
	}
}

// wait returns when the next report is due, false at the end. News is told at
// once, but to a backend that failed only after a pause.
func (r *Reporter) wait(ctx context.Context, next time.Duration, failing bool) bool {
	timer := time.NewTimer(next)
	defer timer.Stop()
	changed := r.Changed
	if failing {
		changed = nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	case <-changed:
	}
	timer.Reset(r.patience(time.Now()))
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (r *Reporter) once(ctx context.Context) (api.Reported, error) {
	r.seq++
	jobs := r.Jobs()
	if err := r.Ledger.Running(jobs); err != nil {
		r.Log.Error("jobs cannot be remembered; an end may not be told after a restart", "error", err)
	}
	// The ends after the jobs: a job is in neither list only if it started in
	// between, and then there is news.
	report := api.Report{
		Boot: r.Boot, Seq: r.seq, Ended: r.Ledger.Ended(), Jobs: r.describe(jobs), Samples: r.Samples.Take(), Problem: r.Problem(),
	}
	var answer api.Reported
	if err := r.Backend.Post(ctx, postTime, "/v1/agent/report", report, &answer); err != nil {
		r.Samples.PutBack(report.Samples)
		return answer, err
	}
	if err := r.Ledger.Told(report.Ended); err != nil {
		r.Log.Error("ends cannot be forgotten; they will be told twice", "error", err)
	}
	r.Answered(jobs, answer)
	return answer, nil
}

func (r *Reporter) describe(jobs []*session.Job) []api.NodeJob {
	all := make([]api.NodeJob, 0, len(jobs))
	for _, j := range jobs {
		if j.Ended() {
			continue
		}
		stage, text := j.Stage()
		one := api.NodeJob{
			Job: j.Job, UID: j.UID, Instance: j.Instance, App: j.App, Image: j.Image, Started: j.Started, Stage: stage, Text: text,
		}
		for _, d := range j.Devices {
			one.Devices = append(one.Devices, api.Device{Node: r.Node, UUID: d.UUID, Model: d.Model})
		}
		all = append(all, one)
	}
	return all
}
