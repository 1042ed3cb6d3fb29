package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/tools/internal/child"
)

func fake(name, suite string, vital bool, ran *[]string, results []result, err error) stage {
	return stage{
		name: name, on: cluster{suite: suite}, vital: vital, limit: time.Minute,
		run: func(context.Context, *runner, stage) ([]result, error) {
			*ran = append(*ran, name)
			return results, err
		},
	}
}

func TestFailedStageStopsOnlyWhatNeedsIt(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		fails string
		ran   string
	}{
		"prepare":        {"prepare", "prepare"},
		"unit":           {"unit", "prepare unit up-trixie test-trixie up-forky test-forky"},
		"first cluster":  {"up-trixie", "prepare unit up-trixie up-forky test-forky"},
		"second cluster": {"up-forky", "prepare unit up-trixie test-trixie up-forky"},
		"nothing":        {"", "prepare unit up-trixie test-trixie up-forky test-forky"},
	} {
		var ran []string
		t.Chdir(t.TempDir()) // the logs of a failed cluster are kept below test-output
		var stages []stage
		for _, s := range []struct {
			name, suite string
			vital       bool
		}{
			{"prepare", "", true},
			{"unit", "", false},
			{"up-trixie", "trixie", true},
			{"test-trixie", "trixie", false},
			{"up-forky", "forky", true},
			{"test-forky", "forky", false},
		} {
			var err error
			if s.name == c.fails {
				err = broken
			}
			stages = append(stages, fake(s.name, s.suite, s.vital, &ran, nil, err))
		}
		var screen strings.Builder
		r := &runner{out: &screen, now: time.Now}
		r.carryOut(context.Background(), stages)
		if got := strings.Join(ran, " "); got != c.ran {
			t.Errorf("%s fails: ran %s, want %s", name, got, c.ran)
		}
		if got, want := tally(r.results).failed, 6-len(ran); c.fails != "" && got != want+1 {
			t.Errorf("%s fails: %d failures, want one for it and one for each of %d not run", name, got, want)
		}
	}
}

func TestInterruptedRunSaysSoAndIsNotGreen(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var ran []string
	var screen strings.Builder
	r := &runner{out: &screen, now: time.Now}
	r.carryOut(ctx, []stage{fake("unit", "", false, &ran, nil, nil)})
	if len(ran) != 0 || tally(r.results).failed != 1 || !strings.Contains(screen.String(), "context canceled") {
		t.Errorf("ran %v, results %v, screen %s", ran, r.results, screen.String())
	}
}

func TestPlanIsSaidWithItsNeeds(t *testing.T) {
	stages, err := plan(options{mode: "all"})
	if err != nil {
		t.Fatal(err)
	}
	var screen strings.Builder
	printPlan(&screen, stages)
	for _, want := range []string{"prepare", "lint", "unit", "test-c", "govulncheck", "testbed trixie helper", "testbed forky", "every scenario, attack, fault and hazard on trixie", "rows J2, J3, J4, J5, J6, J7, J8, J13, J15, J16, J20", "needs Docker"} {
		if !strings.Contains(screen.String(), want) {
			t.Errorf("%q is missing in the plan:\n%s", want, screen.String())
		}
	}
	if stages[0].name != "prepare" || !stages[0].vital {
		t.Errorf("the plan begins with %q", stages[0].name)
	}
}

func TestKnownHolesFailAndADatabaseOutOfReachDoesNot(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir(outputDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for status, want := range map[int]outcome{0: passed, 1: failed, 75: skipped} {
		program := fmt.Sprintf("./vuln%d", status)
		text := fmt.Sprintf("#!/bin/sh\necho looking\necho it is so >&2\nexit %d\n", status)
		if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		var screen strings.Builder
		r := &runner{out: &screen, now: time.Now}
		r.one(t.Context(), knownHoles(program))
		if len(r.results) != 1 || r.results[0].outcome != want || want == skipped && r.results[0].reason != "it is so" {
			t.Errorf("status %d: %+v\n%s", status, r.results, &screen)
		}
	}
}

func TestUnitPlanNeedsNoDocker(t *testing.T) {
	stages, err := plan(options{mode: "unit"})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stages {
		if s.on.suite != "" || strings.Contains(s.needs, "Docker") {
			t.Errorf("stage %s is in the unit plan", s.name)
		}
	}
}

func TestUnknownModesAndRowsAreRefused(t *testing.T) {
	for _, o := range []options{{mode: "al"}, {mode: ""}, {mode: "integration", suite: "trixie", only: "J5|rm"}} {
		if _, err := plan(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestProblemsCountAsFailures(t *testing.T) {
	var screen strings.Builder
	total := summarise(&screen, []result{{outcome: passed}, {name: "TestX", outcome: skipped, reason: "no fuse"}}, []string{"row J2 has no test that passed"})
	if total.String() != "1 passed, 1 failed, 1 skipped" {
		t.Errorf("total is %q", total)
	}
	for _, want := range []string{"row J2", "no fuse"} {
		if !strings.Contains(screen.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, screen.String())
		}
	}
}

func TestSummaryEndsEachFailureWithItsReason(t *testing.T) {
	said := strings.Repeat("it tries\n", 40) + "    x_test.go:9: job 7 is PENDING\n--- FAIL: TestX (1.00s)\n"
	var screen strings.Builder
	summarise(&screen, []result{{name: "TestX", outcome: failed, output: said}, {name: "TestY", outcome: failed}}, nil)
	if got := screen.String(); !strings.Contains(got, "\n    |     x_test.go:9: job 7 is PENDING\n") || strings.Count(got, "it tries") > 25 || strings.Count(got, "\n    | ") > 25 {
		t.Errorf("the end of what the test said is missing, or more than that is there:\n%s", got)
	}
}

func TestTableNamesTestsAndReasons(t *testing.T) {
	rows, _ := table(someFeatures, []result{
		{suite: "trixie", name: "TestScenario_J1_x/good", outcome: passed},
		{suite: "trixie", name: "TestScenario_J1_x/mig", outcome: skipped, reason: "no MIG"},
		{suite: "forky", name: "TestScenario_J1_x/bad", outcome: failed},
		{suite: "forky", name: "TestScenario_J1_ib", outcome: skipped, reason: "no InfiniBand"},
	}, "")
	var screen strings.Builder
	printTable(&screen, rows)
	for _, want := range []string{
		"ok    trixie   TestScenario_J1_x", "skip  TestScenario_J1_x/mig: no MIG",
		"skip  forky    TestScenario_J1_ib: no InfiniBand\n",
		"FAIL  forky    TestScenario_J1_x", "FAIL  TestScenario_J1_x/bad", "RED, nothing passed: two",
	} {
		if !strings.Contains(screen.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, screen.String())
		}
	}
}

// What the Makefile calls is what the driver understands.
func TestMakefileCallsTheDriverRightly(t *testing.T) {
	for target, want := range map[string]options{
		"test":                               {mode: "all", suite: "trixie"},
		"test ONLY=J5":                       {mode: "integration", suite: "trixie", only: "J5"},
		"test ONLY=J5 SLURM_SUITE=forky":     {mode: "integration", suite: "forky", only: "J5"},
		"test-unit":                          {mode: "unit", suite: "trixie"},
		"test-integration SLURM_SUITE=forky": {mode: "integration", suite: "forky"},
		"test-integration ONLY=A14":          {mode: "integration", suite: "trixie", only: "A14"},
	} {
		cmd := child.Command(t.Context(), "make", append([]string{"-n", "-C", "../.."}, strings.Fields(target)...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // not the SLURM_SUITE of whoever runs this
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("make -n %s: %v\n%s", target, err, out)
			continue
		}
		_, call, found := strings.Cut(string(out), "\nbuild/carme-test ")
		call, _, _ = strings.Cut(call, "\n")
		got, err := parse(strings.Fields(strings.ReplaceAll(call, "'", "")), io.Discard)
		if err != nil || !found || got != want {
			t.Errorf("make %s calls %q, read as %+v, want %+v (%v)", target, call, got, want, err)
		}
		if _, err := plan(got); err != nil {
			t.Errorf("make %s: %v", target, err)
		}
	}
}
