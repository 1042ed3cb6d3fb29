package report

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/session"
)

func job(id uint32) *session.Job {
	return &session.Job{Session: wire.Session{Job: id, Instance: "i"}}
}

func TestLedger_keeps_ends_over_a_restart_but_not_without_end(t *testing.T) {
	dir := t.TempDir()
	open := func(running ...*session.Job) *Ledger {
		t.Helper()
		l, err := OpenLedger(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Start(running, time.Unix(1000, 0)); err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open(job(1), job(2), job(3))
	if err := l.End(api.NodeEnd{Job: 2, Instance: "i", OOM: true}); err != nil {
		t.Fatal(err)
	}
	l = open(job(3)) // job 1 ended while nobody looked
	ends := l.Ended()
	if len(ends) != 2 || ends[0].Job != 2 || !ends[0].OOM || ends[1].Job != 1 || ends[1].Time.Unix() != 1000 {
		t.Errorf("ends are %+v", ends)
	}
	if err := l.Told(ends[:1]); err != nil {
		t.Fatal(err)
	}
	if ends = open(job(3)).Ended(); len(ends) != 1 || ends[0].Job != 1 {
		t.Errorf("ends are %+v", ends)
	}
	l = open(job(3))
	for i := range uint32(endsMax + 5) {
		l.add(api.NodeEnd{Job: i})
	}
	if ends = l.Ended(); len(ends) != endsMax || ends[0].Job != 5 {
		t.Errorf("%d ends, the first of job %d", len(ends), ends[0].Job)
	}
	if err := os.WriteFile(filepath.Join(dir, "jobs.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ends = open().Ended(); len(ends) != 0 {
		t.Errorf("from a broken file: %+v", ends)
	}
}

// fakeBackend takes reports, or not.
type fakeBackend struct {
	mu      sync.Mutex
	fail    bool
	reports []api.Report
	came    chan struct{}
}

func (b *fakeBackend) Post(_ context.Context, _ time.Duration, _ string, in, out any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { b.came <- struct{}{} }()
	if b.fail {
		return errors.New("down")
	}
	b.reports = append(b.reports, in.(api.Report))
	*out.(*api.Reported) = api.Reported{EverySeconds: 3600, Gone: []uint32{9}}
	return nil
}

type fakeSamples struct{ pending []api.NodeSample }

func (s *fakeSamples) Take() []api.NodeSample {
	all := s.pending
	s.pending = nil
	return all
}

func (s *fakeSamples) PutBack(all []api.NodeSample) { s.pending = append(all, s.pending...) }

func TestAttack_a_user_who_makes_news_all_the_time_does_not_flood_the_backend(t *testing.T) {
	r, now, reports := &Reporter{}, time.Now(), 0
	for start := now; now.Sub(start) < time.Minute; reports++ {
		now = now.Add(r.patience(now))
	}
	if reports > burst+2*60 {
		t.Errorf("%d reports in a minute", reports)
	}
	if d := r.patience(now.Add(time.Minute)); d != settle {
		t.Errorf("after a rest news waits for %s", d)
	}
}

func TestReporter_tells_news_at_once_and_again_what_was_not_heard(t *testing.T) {
	l, err := OpenLedger(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.End(api.NodeEnd{Job: 5}); err != nil {
		t.Fatal(err)
	}
	b := &fakeBackend{fail: true, came: make(chan struct{}, 100)}
	news := make(chan struct{}, 1)
	asked := make(chan int, 100)
	r := &Reporter{
		Boot: "x", Backend: b, Ledger: l, Jobs: func() []*session.Job { return nil }, Samples: &fakeSamples{[]api.NodeSample{{Job: 5}}},
		Problem: func() string { return "" }, Changed: news, Log: slog.New(slog.DiscardHandler),
		Answered: func(_ []*session.Job, a api.Reported) { asked <- len(a.Gone) },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	<-b.came
	b.mu.Lock()
	b.fail = false
	b.mu.Unlock()
	if <-asked != 1 {
		t.Error("the answer did not arrive")
	}
	news <- struct{}{}
	<-asked // an hour early
	cancel()
	<-done
	first, second := b.reports[0], b.reports[1]
	if len(first.Ended) != 1 || len(first.Samples) != 1 || first.Seq != 2 {
		t.Errorf("the first report taken is %+v", first)
	}
	if len(second.Ended) != 0 || len(second.Samples) != 0 || second.Seq != 3 {
		t.Errorf("the second is %+v", second)
	}
}
