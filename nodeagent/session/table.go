package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/carme-hpc/carme/nodeagent/watch"
)

// Options are where the jobs are. The zero values of Owner, IsAnchor and Now
// are those of a node.
type Options struct {
	// Dir is /run/carme/jobs, Socket /run/carme/agent.sock.
	Dir    string
	Socket string
	// Owner is who makes the jobs' directories: root.
	Owner uint32
	// IsAnchor checks that a process is an anchor.
	IsAnchor func(pid int) bool
	Now      func() time.Time
	Log      *slog.Logger
	// Ended is told of each job that has ended, after its Done was closed. It
	// must not block.
	Ended func(*Job, time.Time)
}

// Table is the jobs of this node.
type Table struct {
	Options

	watcher *watch.Watcher
	changed chan struct{}
	listen  net.Listener
	lookAt  chan struct{} // some job's stage may have changed

	mu      sync.Mutex
	jobs    map[uint32]*entry
	watches map[int]uint32 // watch → job; 0 is Dir
	dirs    map[uint32]int // job → watch of its directory, before it is set up
	closing bool
}

type entry struct {
	job     *Job
	sess    int // watch
	pidfds  []*os.File
	pending bool // a look is due
}

// Open reads the jobs there are and listens for new ones. Run must follow.
func Open(o Options) (*Table, error) {
	if o.IsAnchor == nil {
		o.IsAnchor = IsAnchor
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Ended == nil {
		o.Ended = func(*Job, time.Time) {}
	}
	t := &Table{
		Options: o, changed: make(chan struct{}, 1), lookAt: make(chan struct{}, 1),
		jobs: map[uint32]*entry{}, watches: map[int]uint32{}, dirs: map[uint32]int{},
	}
	// As the plugin makes them (spank/cshim/job.c).
	if err := os.MkdirAll(filepath.Dir(o.Dir), 0o755); err != nil { //nolint:gosec // G301: /run/carme is for everybody to enter
		return nil, fmt.Errorf("make %s: %w", filepath.Dir(o.Dir), err)
	}
	if err := os.Mkdir(o.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make %s: %w", o.Dir, err)
	}
	watcher, err := watch.New()
	if err != nil {
		return nil, err
	}
	t.watcher = watcher
	wd, err := watcher.AddPath(o.Dir, watch.Names)
	if err == nil {
		t.watches[wd] = 0
		t.listen, err = listenPrivate(o.Socket)
	}
	if err != nil {
		_ = watcher.Close()
		return nil, err
	}
	t.lookAll()
	return t, nil
}

// Run keeps the table until ctx ends. Jobs are not touched then: they go on.
func (t *Table) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		_ = t.watcher.Close()
		_ = t.listen.Close()
	})
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { t.serve(ctx) })
	all.Go(func() { t.stages(ctx) })
	all.Go(func() { t.lookRegularly(ctx) })
	for {
		events, err := t.watcher.Read()
		if errors.Is(err, os.ErrClosed) {
			t.close()
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range events {
			t.event(e)
		}
	}
}

// close frees what is held for jobs, which go on.
func (t *Table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closing = true
	for _, e := range t.jobs {
		for _, p := range e.pidfds {
			_ = p.Close()
		}
	}
}

// Get returns a job.
func (t *Table) Get(id uint32) (*Job, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.jobs[id]
	if !ok {
		return nil, false
	}
	return e.job, true
}

// All returns the jobs in order of their ids.
func (t *Table) All() []*Job {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*Job, 0, len(t.jobs))
	for _, e := range t.jobs {
		all = append(all, e.job)
	}
	slices.SortFunc(all, func(a, b *Job) int { return cmp.Compare(a.Job, b.Job) })
	return all
}

// Changed receives when a job came, went, or reached another stage.
func (t *Table) Changed() <-chan struct{} { return t.changed }

func (t *Table) change() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// SetGone notes which of the jobs that were asked about Slurm does not know
// any more, and returns those that it knew before.
func (t *Table) SetGone(asked []*Job, gone []uint32) []*Job {
	var lost []*Job
	for _, j := range asked {
		is := slices.Contains(gone, j.Job)
		j.mu.Lock()
		if is && !j.gone {
			lost = append(lost, j)
		}
		j.gone = is
		j.mu.Unlock()
	}
	return lost
}
