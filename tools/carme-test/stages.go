package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/carme-hpc/carme/tools/internal/child"
)

const (
	featuresFile = "docs/features.md"
	outputDir    = "test-output"

	// How long everything may take. CI ends it after 90 minutes; whoever is
	// ended there cannot say any more what went wrong.
	wholeLimit = 87 * time.Minute

	// How long one stage may take.
	prepareLimit     = 20 * time.Minute
	lintLimit        = 15 * time.Minute
	unitLimit        = 15 * time.Minute
	testbedLimit     = 25 * time.Minute
	integrationLimit = 70 * time.Minute
)

// second is the release on which the isolation, GPU and container rows (network,
// binds and homes, nested steps, the proof and the tasks' prologs among them), and
// that plain jobs and Slurm's own features stay as they are, are proved again;
// everything runs on first.
const (
	first  = "trixie"
	second = "forky"
)

var secondRows = []string{"J2", "J3", "J4", "J5", "J6", "J7", "J8", "J13", "J15", "J16", "J20"}

// stage is one step of the plan.
type stage struct {
	name  string
	does  string // for the plan
	needs string // for the plan
	limit time.Duration
	// on is set for stages on a cluster, whose logs are shown on failure.
	on cluster
	// vital: when it fails, the stages that follow cannot run; with a cluster,
	// only those on that cluster.
	vital bool
	// labelled: its lines name the cluster, because stages run side by side.
	labelled bool
	run      func(ctx context.Context, r *runner, s stage) ([]result, error)
}

// plan lists the stages of a mode.
func plan(o options) ([]stage, error) {
	switch o.mode {
	case "all":
		stages := []stage{
			prepare("full"),
			makeStage("lint", "golangci-lint, clang-format, shellcheck", "the linters", lintLimit),
			unit(), cTests(), knownHoles("tools/vuln"),
		}
		return append(stages, sideBySide(byHand(first))...), nil
	case "unit":
		return []stage{prepare("unit"), unit(), cTests()}, nil
	case "integration":
		does, rows := "every scenario, attack, fault and hazard", []string(nil)
		if o.only != "" {
			if !rowID.MatchString(o.only) {
				return nil, fmt.Errorf("ONLY=%s is no row: rows are named like J5 (see %s)", o.only, featuresFile)
			}
			does, rows = "row "+o.only, []string{o.only}
		}
		on := byHand(o.suite)
		return []stage{prepare("testbed"), bringUp(on), integration(on, does, rows)}, nil
	default:
		return nil, fmt.Errorf("mode %q is unknown: use all, unit or integration", o.mode)
	}
}

func prepare(mode string) stage {
	needs := "root, if something is missing"
	if mode == "unit" {
		needs = "nothing, if gcc and Slurm's headers are there"
	}
	return stage{
		name: "prepare", does: "install what this machine lacks (tools/prepare " + mode + ")", needs: needs,
		limit: prepareLimit, vital: true,
		run: func(ctx context.Context, r *runner, s stage) ([]result, error) {
			_, err := r.stream(ctx, s, "tools/prepare", mode)
			return nil, err
		},
	}
}

func makeStage(target, does, needs string, limit time.Duration) stage {
	return stage{
		name: target, does: does, needs: needs, limit: limit,
		run: func(ctx context.Context, r *runner, s stage) ([]result, error) {
			_, err := r.stream(ctx, s, "make", "--no-print-directory", target)
			if err != nil {
				return nil, err
			}
			return []result{{pkg: target, outcome: passed}}, nil
		},
	}
}

func unit() stage {
	return stage{
		name: "unit", does: "go test -race ./...", needs: "gcc", limit: unitLimit,
		run: func(ctx context.Context, r *runner, s stage) ([]result, error) {
			return r.goTest(ctx, s, "-race", "-shuffle=on", "./...")
		},
	}
}

// notChecked is the status of tools/vuln for a database that it cannot reach.
const notChecked = 75

// knownHoles looks for holes that others have found. A database that is out of
// reach is no failure of this tree, and no pass either: the check counts as
// skipped, with the reason.
func knownHoles(program string) stage {
	return stage{
		name: "vuln", does: "govulncheck: known holes in what the programs call", needs: "https://vuln.go.dev", limit: unitLimit,
		run: func(ctx context.Context, r *runner, s stage) ([]result, error) {
			output, err := r.stream(ctx, s, program)
			exit, exited := errors.AsType[*exec.ExitError](err)
			switch {
			case err == nil:
				return []result{{pkg: s.name, outcome: passed}}, nil
			case exited && exit.ExitCode() == notChecked:
				lines := strings.Split(strings.TrimSpace(output), "\n")
				return []result{{pkg: s.name, name: "known holes", outcome: skipped, reason: lines[len(lines)-1]}}, nil
			}
			return nil, err
		},
	}
}

func cTests() stage {
	return stage{
		name: "c", does: "make test-c, under ASAN and UBSAN", needs: "gcc", limit: unitLimit,
		run: func(ctx context.Context, r *runner, s stage) ([]result, error) {
			output, err := r.stream(ctx, s, "make", "--no-print-directory", "test-c")
			results := readTAP(output)
			if len(results) == 0 && err == nil {
				results = []result{{pkg: "c", name: "test-c", outcome: passed}}
			}
			if anyFailed(results) {
				err = nil // the exit status says nothing more
			}
			return results, err
		},
	}
}

// goTest runs `go test -json` and reports each test as it ends. An error means
// that the command failed in a way that no result tells of.
func (r *runner) goTest(ctx context.Context, s stage, args ...string) ([]result, error) {
	cmd := child.Command(ctx, "go", append([]string{"test", "-json"}, args...)...)
	return r.testEvents(s, cmd)
}

// testEvents runs a command that prints the events of `go test -json`.
func (r *runner) testEvents(s stage, cmd *exec.Cmd) ([]result, error) {
	cmd.Env = append(os.Environ(), s.on.env()...)
	log, err := os.OpenFile(filepath.Join(outputDir, s.file()+".jsonl"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	defer log.Close() //nolint:errcheck // a copy for people; the results come from the stream

	read, write := io.Pipe()
	cmd.Stdout = io.MultiWriter(write, log)
	var stderr strings.Builder
	cmd.Stderr = &stderr

	collected := newCollector(s.on.suite, r.now, func(res result) { r.progress(s, res) })
	done := make(chan error, 1)
	go func() { done <- collected.read(read) }()
	stop := make(chan struct{})
	go r.heartbeat(s, collected, stop)
	runErr := cmd.Run()
	close(stop)
	write.Close() //nolint:errcheck // never fails on a pipe
	if err := <-done; err != nil {
		return collected.results(), err
	}
	results := collected.results()
	if runErr != nil && !anyFailed(results) {
		return results, fmt.Errorf("run tests: %w\n%s%s", runErr, stderr.String(), collected.noise.String())
	}
	return results, nil
}

// heartbeat names the test that runs, now and then, until stop is closed.
func (r *runner) heartbeat(s stage, c *collector, stop <-chan struct{}) {
	const often = 30 * time.Second
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			name, since := c.running()
			if took := r.now().Sub(since); name != "" && took >= often {
				r.say("   ...  %7s  %s%s still runs\n", took.Round(time.Second), s.label(), name)
			}
		}
	}
}

func anyFailed(results []result) bool {
	for _, r := range results {
		if r.outcome == failed {
			return true
		}
	}
	return false
}

// stream runs a command, shows its output indented as it comes, keeps it in
// the stage's log, and returns it.
func (r *runner) stream(ctx context.Context, s stage, name string, args ...string) (string, error) {
	cmd := child.Command(ctx, name, args...)
	log, err := os.OpenFile(filepath.Join(outputDir, s.file()+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return "", fmt.Errorf("open log: %w", err)
	}
	defer log.Close() //nolint:errcheck // a copy for people; what counts is returned
	cmd.Env = append(os.Environ(), s.on.env()...)
	var all strings.Builder
	screen := &child.Indenter{W: r.out, Prefix: "   | "}
	cmd.Stdout = io.MultiWriter(&all, log, screen)
	cmd.Stderr = cmd.Stdout
	err = cmd.Run()
	screen.Flush()
	if err != nil {
		return all.String(), fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return all.String(), nil
}

// label begins the lines of a stage that runs beside another.
func (s stage) label() string {
	if !s.labelled {
		return ""
	}
	return fmt.Sprintf("%-14s ", s.on)
}

func (s stage) file() string { return strings.ReplaceAll(s.name, " ", "-") }
