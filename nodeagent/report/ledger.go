package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/enrol"
	"github.com/carme-hpc/carme/nodeagent/session"
)

// endsMax is how many ends are kept while nobody hears them. Older ones are
// dropped: the backend also learns of an end because the job is missing.
const endsMax = 1000

// Ledger remembers on disk which jobs there were and which ends were not told,
// so that the end of a job that happens while no agent runs is told too.
type Ledger struct {
	file string

	mu    sync.Mutex
	known []jobKey
	ended []api.NodeEnd
}

type jobKey struct {
	Job      uint32 `json:"job"`
	Instance string `json:"instance"`
}

type ledgerFile struct {
	Known []jobKey      `json:"known"`
	Ended []api.NodeEnd `json:"ended"`
}

// OpenLedger reads the ledger of a state directory. Start must follow.
func OpenLedger(dir string) (*Ledger, error) {
	l := &Ledger{file: filepath.Join(dir, "jobs.json")}
	data, err := os.ReadFile(l.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	var old ledgerFile
	if len(data) > 0 {
		// A broken file means that ends are not told: the backend asks Slurm.
		_ = json.Unmarshal(data, &old)
	}
	l.known, l.ended = old.Known, old.Ended
	return l, nil
}

// Start compares with the jobs that run. Those known that do not run any more
// have ended, nobody knows when; now is taken.
func (l *Ledger) Start(running []*session.Job, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.known
	l.known = keys(running)
	for _, k := range before {
		if !slices.Contains(l.known, k) {
			l.add(api.NodeEnd{Job: k.Job, Instance: k.Instance, Time: now.UTC()})
		}
	}
	return l.write()
}

func keys(jobs []*session.Job) []jobKey {
	all := make([]jobKey, 0, len(jobs))
	for _, j := range jobs {
		all = append(all, jobKey{j.Job, j.Instance})
	}
	return all
}

func (l *Ledger) add(e api.NodeEnd) {
	l.ended = append(l.ended, e)
	if over := len(l.ended) - endsMax; over > 0 {
		l.ended = slices.Delete(l.ended, 0, over)
	}
}

// End notes the end of a job.
func (l *Ledger) End(e api.NodeEnd) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known = slices.DeleteFunc(l.known, func(k jobKey) bool { return k == jobKey{e.Job, e.Instance} })
	l.add(e)
	return l.write()
}

// Running notes the jobs that run.
func (l *Ledger) Running(jobs []*session.Job) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := keys(jobs)
	if slices.Equal(now, l.known) {
		return nil
	}
	l.known = now
	return l.write()
}

// Ended returns the ends that were not told.
func (l *Ledger) Ended() []api.NodeEnd {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.ended)
}

// Told forgets ends.
func (l *Ledger) Told(ends []api.NodeEnd) error {
	if len(ends) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = slices.DeleteFunc(l.ended, func(e api.NodeEnd) bool { return slices.Contains(ends, e) })
	return l.write()
}

func (l *Ledger) write() error {
	data, err := json.Marshal(ledgerFile{Known: l.known, Ended: l.ended})
	if err != nil {
		return fmt.Errorf("write jobs: %w", err)
	}
	// After a power cut all jobs have ended, and the backend asks Slurm.
	return enrol.WriteFile(l.file, data, false)
}
