package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/carme-hpc/carme/internal/cli/doctor"
	"github.com/carme-hpc/carme/nodeagent/watch"
)

const (
	// again is when a self-test that has failed is run the next time, and each
	// further one after twice as long, up to Every: what it asks may have been
	// away for a moment.
	again = 2 * time.Second
	// after is how many more self-tests follow as soon on one for the end of slurmd,
	// whatever they say: slurmctld may still be busy with what ended it.
	after = 3
	// settle is how long changes are gathered: a package writes many files.
	settle = time.Second
	// killTime is how long a self-test that was killed is waited for.
	killTime = 2 * time.Second
	// outputMax is how much the self-test may say, in bytes.
	outputMax = 1 << 20
)

// SelfTest runs the installed `carme doctor`, in a process of its own: it asks
// Slurm and NVML, which may hang.
type SelfTest struct {
	// Carme is the program.
	Carme string
	// Every is how often it runs without a reason, Limit how long it may take.
	Every time.Duration
	Limit time.Duration
	// Files are directories whose changes are a reason.
	Files []string
	// Slurmd finds the process whose end is a reason too; nil for none.
	Slurmd func() int
	// Changed is called when the outcome is another; may be nil.
	Changed func()
	Log     *slog.Logger

	mu      sync.Mutex
	problem string
	running bool // one that hangs counts until it ends
}

// Problem is what keeps the node from taking jobs, one line, empty for nothing.
func (s *SelfTest) Problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.problem
}

// Run tests at once, regularly, soon again after a failure, and when files change,
// until ctx ends.
func (s *SelfTest) Run(ctx context.Context) {
	changed, restarted := make(chan struct{}, 1), make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { s.watch(ctx, changed) })
	if s.Slurmd != nil {
		watching.Go(func() { s.follow(ctx, restarted) })
	}
	next, more := again, 0
	for {
		s.Test(ctx)
		wait := s.Every
		if s.Problem() == "" && more == 0 {
			next = again
		} else {
			wait, next, more = min(next, s.Every), min(2*next, s.Every), max(more-1, 0)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			continue
		case <-changed:
		case <-restarted:
			next, more = again, after
		}
		timer.Reset(settle)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// watch tells of changes of the files. A directory that comes later or that is
// put in another's place is watched from the next change of another one on; of
// the whole tree the one above it is among them.
func (s *SelfTest) watch(ctx context.Context, changed chan<- struct{}) {
	w, err := watch.New()
	if err != nil {
		s.Log.Warn("changes of the plugin's files are not noticed at once", "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	defer stop()
	for {
		for _, dir := range s.Files {
			// Once more is the same watch.
			if _, err := w.AddPath(dir, watch.Names|watch.Modes); err != nil {
				s.Log.Debug("directory is not watched", "error", err)
			}
		}
		if _, err := w.Read(); err != nil {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// Test runs the self-test once, and takes its outcome.
func (s *SelfTest) Test(ctx context.Context) {
	problem := ""
	if err := s.doctor(ctx); err != nil {
		problem = err.Error()
	}
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	before := s.problem
	s.problem = problem
	s.mu.Unlock()
	if problem == before {
		return
	}
	if problem != "" {
		s.Log.Warn("node cannot take jobs with --carme", "problem", problem)
	} else {
		s.Log.Info("node can take jobs with --carme")
	}
	if s.Changed != nil {
		s.Changed()
	}
}

func (s *SelfTest) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.running
	s.running = true
	return !was
}

func (s *SelfTest) leave() {
	s.mu.Lock()
	s.running = false
	s.mu.Unlock()
}

// doctor examines the node and keeps its feature.
func (s *SelfTest) doctor(ctx context.Context) error {
	if !s.enter() {
		return errors.New("the self-test before has not ended; run: carme doctor")
	}
	ctx, cancel := context.WithTimeout(ctx, s.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Carme, "doctor", "--json", "--feature") //nolint:gosec // G204: the admin's setting
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	// With the commands that it runs: one of them tells Slurm.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = limited{&out}, limited{&stderr}
	done := make(chan error, 1)
	go func() {
		err := cmd.Run()
		s.leave()
		done <- err
	}()
	var runErr error
	select {
	case runErr = <-done:
	case <-ctx.Done():
		// An agent that has ended tells Slurm nothing more. But the self-test may
		// hang where no signal reaches it.
		timer := time.NewTimer(killTime)
		defer timer.Stop()
		select {
		case <-done: //nolint:errcheck // it was killed
		case <-timer.C:
		}
		return fmt.Errorf("the self-test has not ended after %s; run: carme doctor", s.Limit)
	}
	var report doctor.Report
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		if line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n"); line != "" {
			return fmt.Errorf("the self-test has failed: %s", line)
		}
		return fmt.Errorf("the self-test has failed: %w", errors.Join(runErr, err))
	}
	if report.OK {
		return nil
	}
	i := slices.IndexFunc(report.Findings, func(f doctor.Finding) bool { return f.Status == doctor.Fail })
	if i < 0 {
		return errors.New("the self-test found something; run: carme doctor")
	}
	f := report.Findings[i]
	return fmt.Errorf("%s: %s; %s", f.Name, f.Detail, f.Mend)
}

// limited is a buffer that does not grow without end.
type limited struct{ *bytes.Buffer }

func (l limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > outputMax {
		return 0, io.ErrShortWrite
	}
	return l.Buffer.Write(p)
}
