package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/carme-hpc/carme/tools/internal/child"
)

type options struct {
	mode  string
	suite string
	only  string
}

// parse reads the command line; what is wrong with it is said on w.
func parse(args []string, w io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("carme-test", flag.ContinueOnError)
	flags.SetOutput(w)
	flags.StringVar(&o.suite, "suite", first, "Slurm release for the mode integration: trixie, forky, bookworm")
	flags.StringVar(&o.only, "only", "", "row of "+featuresFile+", for example J5: run its tests alone")
	flags.Usage = func() {
		fmt.Fprintln(w, "usage: carme-test [-suite NAME] [-only ROW] all|unit|integration")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, fmt.Errorf("read the command line: %w", err)
	}
	o.mode = flags.Arg(0)
	return o, nil
}

// runner carries out a plan and collects what it finds.
type runner struct {
	out     io.Writer
	now     func() time.Time
	results []result
	// unsteady are the tests that failed and then passed (secondTry).
	unsteady []string
	// blocked has, by cluster, or none for all, the vital stage that failed.
	blocked map[cluster]string
	mu      sync.Mutex // guards out while tests run
}

// run does everything and returns the exit status.
func run(ctx context.Context, o options, out io.Writer, now func() time.Time) (int, error) {
	stages, err := plan(o)
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(featuresFile)
	if err != nil {
		return 0, fmt.Errorf("read the claimed rows: %w", err)
	}
	features, err := readFeatures(string(text))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", featuresFile, err)
	}
	if err := os.RemoveAll(outputDir); err != nil {
		return 0, fmt.Errorf("clear old output: %w", err)
	}
	if err := os.MkdirAll(outputDir, 0o750); err != nil {
		return 0, fmt.Errorf("make room for output: %w", err)
	}
	r := &runner{out: out, now: now}
	start := now()
	printPlan(out, stages)
	limited, cancel := context.WithTimeout(ctx, wholeLimit)
	r.carryOut(limited, stages)
	cancel()

	var problems []string
	if o.mode != "unit" {
		var rows []row
		rows, problems = table(features, r.results, o.only)
		printTable(out, rows)
	}
	if len(r.unsteady) > 0 {
		fmt.Fprintf(out, "\nunsteady: failed once, passed at the second try\n  %s\n", strings.Join(r.unsteady, "\n  "))
	}
	total := summarise(out, r.results, problems)
	fmt.Fprintf(out, "\ntook %s; output is kept in %s/\n%s\n", round(now().Sub(start)), outputDir, total)
	if err := os.WriteFile(filepath.Join(outputDir, "summary"), []byte(total.String()+"\n"), 0o600); err != nil {
		return 0, fmt.Errorf("keep the summary: %w", err)
	}
	if total.failed > 0 {
		return 1, nil
	}
	return 0, nil
}

// carryOut runs the stages in order. A failed stage does not stop those that
// can do without it: one run should tell as much as possible.
func (r *runner) carryOut(ctx context.Context, stages []stage) {
	r.blocked = map[cluster]string{}
	for i, s := range stages {
		fmt.Fprintf(r.out, "\n== %d/%d %s\n", i+1, len(stages), s.name)
		by := r.blocked[cluster{}]
		if by == "" {
			by = r.blocked[s.on]
		}
		if ctx.Err() != nil {
			r.fail(s, fmt.Sprintf("not run: %v\n", ctx.Err()))
			continue
		}
		if by != "" {
			r.fail(s, fmt.Sprintf("not run: stage %s failed\n", by))
			continue
		}
		if !r.one(ctx, s) && s.vital {
			r.blocked[s.on] = s.name
		}
	}
}

// one runs a stage and says whether it went well.
func (r *runner) one(ctx context.Context, s stage) bool {
	start := r.now()
	limited, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	results, err := s.run(limited, r, s)
	r.results = append(r.results, results...)
	took := round(r.now().Sub(start))
	if err != nil {
		if errors.Is(limited.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("stopped after %s, the limit of this stage: %w", s.limit, err)
		}
		r.fail(s, err.Error()+"\n")
	}
	if err == nil && !anyFailed(results) {
		fmt.Fprintf(r.out, "   %s done in %s\n", s.name, took)
		return true
	}
	fmt.Fprintf(r.out, "   %s FAILED after %s\n", s.name, took)
	for _, res := range results {
		if res.outcome == failed {
			fmt.Fprintf(r.out, "\n--- FAIL: %s\n%s", res.where(), ensureNewline(res.output))
		}
	}
	if s.on.suite != "" && !errors.Is(ctx.Err(), context.Canceled) {
		r.showLogs(context.WithoutCancel(ctx), s)
	}
	return false
}

// say prints a line while tests run.
func (r *runner) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format, args...)
}

// fail records a stage that has no finer result.
func (r *runner) fail(s stage, why string) {
	fmt.Fprintf(r.out, "   %s", ensureNewline(why))
	r.results = append(r.results, result{pkg: "stage", name: s.name, outcome: failed, output: why})
}

// showLogs prints the containers' logs, the end of them if they are long, and
// keeps all of them: the next stage may replace the cluster.
func (r *runner) showLogs(ctx context.Context, s stage) {
	const shown = 300
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := child.Command(limited, "make", "--no-print-directory", "testbed-logs")
	cmd.Env = append(os.Environ(), s.on.env()...)
	logs, err := cmd.CombinedOutput()
	if err != nil {
		logs = append(logs, fmt.Sprintf("make testbed-logs: %v\n", err)...)
	}
	name := filepath.Join(outputDir, "logs-"+strings.ReplaceAll(s.on.String(), " ", "-")+".txt")
	if err := os.WriteFile(name, logs, 0o600); err != nil {
		fmt.Fprintf(r.out, "   keep the containers' logs: %v\n", err)
	}
	lines := strings.SplitAfter(string(logs), "\n")
	fmt.Fprintf(r.out, "\n--- logs of the containers of %s (all %d lines in %s)\n", s.on, len(lines), name)
	fmt.Fprint(r.out, ensureNewline(strings.Join(lines[max(0, len(lines)-shown):], "")))
}
