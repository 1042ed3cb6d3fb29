package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// cluster is one testbed: a Slurm release, and TESTBED_INSTANCE, which is empty
// for the one that people use by hand. The zero value is no cluster.
type cluster struct{ suite, instance string }

// byHand is the cluster of a release that this process's environment means.
func byHand(suite string) cluster {
	return cluster{suite: suite, instance: os.Getenv("TESTBED_INSTANCE")}
}

// beside is another cluster of any release, which is taken away after the tests.
func (c cluster) beside(suite, name string) cluster {
	return cluster{suite: suite, instance: strings.TrimPrefix(c.instance+"-"+name, "-")}
}

func (c cluster) String() string {
	if c.instance == "" || c.instance == c.suite {
		return c.suite
	}
	return c.suite + " " + c.instance
}

// env makes testbed/bin and the tests mean this cluster.
func (c cluster) env() []string {
	if c == (cluster{}) {
		return nil
	}
	return []string{"SLURM_SUITE=" + c.suite, "TESTBED_INSTANCE=" + c.instance}
}

func bringUp(on cluster) stage {
	return stage{
		name: "testbed " + on.String(), does: "build and bring up the cluster, install Carme on it", needs: "Docker",
		limit: testbedLimit, on: on, vital: true,
		run: func(ctx context.Context, r *runner, s stage) ([]result, error) {
			_, err := r.stream(ctx, s, "make", "--no-print-directory", "testbed")
			return nil, err
		},
	}
}

// takeDown removes a cluster; Docker's daemon stays for the others.
func (r *runner) takeDown(ctx context.Context, s stage) {
	if _, err := r.stream(ctx, s, "testbed/bin/down", "--keep-dockerd"); err != nil {
		r.say("   cluster %s stays: %v\n", s.on, err)
	}
}

// integration runs tests on one cluster; rows selects them, nil all of them.
func integration(on cluster, does string, rows []string) stage {
	return stage{
		name: "integration " + on.String(), does: does, needs: "the cluster",
		limit: integrationLimit, on: on,
		run: func(ctx context.Context, r *runner, s stage) ([]result, error) {
			return r.clusterTests(ctx, s, []lane{{{on, rows}}})
		},
	}
}

// sideBySide runs all tests on first and those of secondRows on second. Most of
// an integration test is waiting, for a step to start, a limit to pass, a daemon
// to come back, so two clusters work at a time: one through the tests of first;
// the other through those of second, and then, on a cluster of its own, it helps
// with what is left of first.
func sideBySide(by cluster) []stage {
	helper, other := by.beside(first, "helper"), by.beside(second, second)
	joint := stage{
		name: "integration", needs: "the clusters", limit: integrationLimit,
		does: fmt.Sprintf("every scenario, attack, fault and hazard on %s; rows %s on %s", first, strings.Join(secondRows, ", "), second),
		run: func(ctx context.Context, r *runner, s stage) ([]result, error) {
			results, err := r.clusterTests(ctx, s, []lane{{{by, nil}}, {{other, secondRows}, {helper, nil}}})
			for _, c := range []cluster{helper, other} {
				s.on = c
				r.takeDown(context.WithoutCancel(ctx), s)
			}
			return results, err
		},
	}
	return []stage{bringUp(by), bringUp(helper), bringUp(other), joint}
}

// share is a cluster with the rows whose tests it runs, nil for all; clusters of
// one release with the same rows divide the tests among them.
type share struct {
	on   cluster
	rows []string
}

// key is the same for clusters that divide tests among them.
func (sh share) key() string { return sh.on.suite + "|" + strings.Join(sh.rows, ",") }

// lane is what runs one after the other; lanes run side by side.
type lane []share

// triesMax is how many tests may get a second try: where more fail, something is
// broken that another try does not mend.
const triesMax = 10

// clusterTests runs the lanes, and what failed there once more.
func (r *runner) clusterTests(ctx context.Context, s stage, lanes []lane) ([]result, error) {
	program, err := r.buildTests(ctx, s)
	if err != nil {
		return nil, err
	}
	files, err := testFiles(testsDir)
	if err != nil {
		return nil, err
	}
	results, err := r.runLanes(ctx, s, program, lanes, files)
	if err != nil {
		return results, err
	}
	if len(results) == 0 {
		return nil, errors.New("no integration test ran")
	}
	// Each release's first cluster has the second tries, alone on the machine.
	var tried []string
	for _, l := range lanes {
		for _, sh := range l {
			if !slices.Contains(tried, sh.on.suite) && r.blocked[sh.on] == "" {
				tried = append(tried, sh.on.suite)
				s.on = sh.on
				results = r.secondTry(ctx, s, program, results)
			}
		}
	}
	for _, l := range lanes {
		for _, sh := range l {
			bad := func(res result) bool { return res.suite == sh.on.suite && res.outcome == failed }
			if len(lanes) > 1 && slices.ContainsFunc(results, bad) && r.blocked[sh.on] == "" {
				s.on = sh.on
				r.showLogs(context.WithoutCancel(ctx), s)
			}
		}
	}
	return results, nil
}

// secondTry runs the tests that failed on the release of s.on once more, alone: a
// real cluster with its daemons, timers and a busy machine now and then fails a
// test that is sound. One that passes then counts as passed and is named as
// unsteady, in the stage and in the summary; a broken one fails twice.
func (r *runner) secondTry(ctx context.Context, s stage, program string, results []result) []result {
	again := failedTests(results, s.on.suite)
	if len(again) == 0 || len(again) > triesMax || ctx.Err() != nil {
		return results
	}
	r.say("   a second try on %s for %d that failed\n", s.on, len(again))
	repeated := r.batch(ctx, s, program, batch{file: "the second try", tests: again})
	kept := slices.DeleteFunc(slices.Clone(results), func(res result) bool {
		return res.suite == s.on.suite && slices.Contains(again, res.top())
	})
	still := failedTests(repeated, s.on.suite)
	for _, name := range again {
		if !slices.Contains(still, name) {
			r.unsteady = append(r.unsteady, result{suite: s.on.suite, name: name}.where())
		}
	}
	return append(kept, repeated...)
}

// failedTests are the test functions of a release of which something failed.
func failedTests(results []result, suite string) []string {
	var names []string
	for _, res := range results {
		if top := res.top(); res.outcome == failed && res.suite == suite && top != "" && !slices.Contains(names, top) {
			names = append(names, top)
		}
	}
	return names
}

// ofRows keeps the tests of these rows; nil keeps all.
func ofRows(files []batch, rows []string) []batch {
	if rows == nil {
		return files
	}
	wanted := regexp.MustCompile(runPattern(rows...))
	var kept []batch
	for _, b := range files {
		b.tests = slices.DeleteFunc(slices.Clone(b.tests), func(name string) bool { return !wanted.MatchString(name) })
		if len(b.tests) > 0 {
			kept = append(kept, b)
		}
	}
	return kept
}
