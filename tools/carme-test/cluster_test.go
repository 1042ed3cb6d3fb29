package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSecondTryIsForTheTestFunctionsOfTheReleaseThatFailed(t *testing.T) {
	results := []result{
		{suite: "trixie", name: "TestA", outcome: passed},
		{suite: "trixie", name: "TestB/one", outcome: failed},
		{suite: "trixie", name: "TestB/two", outcome: passed},
		{suite: "trixie", name: "TestB", outcome: failed},
		{suite: "trixie", name: "TestC", outcome: skipped},
		{suite: "forky", name: "TestD", outcome: failed},
		{pkg: "p", outcome: failed}, // a package, no test
	}
	if got := failedTests(results, "trixie"); !slices.Equal(got, []string{"TestB"}) {
		t.Errorf("the second try is for %q", got)
	}
}

func TestClustersAreToldApartByReleaseAndInstance(t *testing.T) {
	t.Setenv("TESTBED_INSTANCE", "")
	c := byHand("trixie")
	if got := c.String(); got != "trixie" {
		t.Errorf("the cluster by hand is called %q", got)
	}
	if got := strings.Join(c.beside("forky", "forky").env(), " "); got != "SLURM_SUITE=forky TESTBED_INSTANCE=forky" {
		t.Errorf("another cluster is %q", got)
	}
	t.Setenv("TESTBED_INSTANCE", "my")
	if got := byHand("trixie").beside("trixie", "helper").instance; got != "my-helper" {
		t.Errorf("beside my own cluster there is %q", got)
	}
	if env := (cluster{}).env(); env != nil {
		t.Errorf("no cluster means %q", env)
	}
}

// A module of its own stands for the repository, with tests that note where they ran.
func module(t *testing.T) (ran func() []string) {
	t.Helper()
	dir := t.TempDir()
	head := "//go:build integration\n\npackage x\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\n"
	write(t, dir+"/go.mod", "module m\n\ngo 1.24\n")
	write(t, dir+"/integration/main_test.go", head+`func TestMain(m *testing.M) { os.Exit(m.Run()) }

func ran(t *testing.T) {
	t.Helper()
	f, _ := os.OpenFile("../ran", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	f.WriteString(os.Getenv("SLURM_SUITE") + " " + t.Name() + "\n")
	f.Close()
}
`)
	write(t, dir+"/integration/a_test.go", head+"func TestFault_J1_a(t *testing.T) { ran(t) }\nfunc TestAttack_J2_b(t *testing.T) { ran(t); if os.Getenv(\"BREAK\") != \"\" { os.Exit(7) } }\nfunc TestFault_A1_after(t *testing.T) { ran(t) }\n")
	write(t, dir+"/integration/b_test.go", head+`func TestScenario_J2_unsteady(t *testing.T) {
	ran(t)
	if _, err := os.Stat("../second"); err != nil {
		os.WriteFile("../second", nil, 0o600)
		t.Error("not yet")
	}
}
`)
	t.Chdir(dir)
	write(t, outputDir+"/keep", "")
	t.Setenv("GOFLAGS", "")
	t.Setenv("GOWORK", "off")
	return func() []string {
		text, err := os.ReadFile(filepath.Join(dir, "ran"))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(strings.ReplaceAll(string(text), " ", ":"))
		slices.Sort(lines)
		return lines
	}
}

func TestLanesRunEachTestOnceForEachReleaseThatWantsIt(t *testing.T) {
	ran := module(t)
	write(t, "./second", "")
	by := cluster{suite: "trixie"}
	lanes := []lane{{{by, nil}}, {{by.beside("forky", "forky"), []string{"J2"}}, {by.beside("trixie", "helper"), nil}}}
	for _, blocked := range []map[cluster]string{{}, {by: "testbed trixie"}} {
		if err := os.Remove("ran"); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		var screen strings.Builder
		r := &runner{out: &screen, now: time.Now, blocked: blocked}
		results, err := r.clusterTests(t.Context(), stage{name: "integration", limit: time.Minute}, lanes)
		if err != nil || tally(results) != (count{passed: 6}) {
			t.Errorf("without %v: %v, %+v\n%s", blocked, err, results, &screen)
		}
		want := []string{
			"forky:TestAttack_J2_b", "forky:TestScenario_J2_unsteady",
			"trixie:TestAttack_J2_b", "trixie:TestFault_A1_after", "trixie:TestFault_J1_a", "trixie:TestScenario_J2_unsteady",
		}
		if got := ran(); !slices.Equal(got, want) {
			t.Errorf("without %v there ran %q", blocked, got)
		}
		if !strings.Contains(screen.String(), "forky          TestAttack_J2_b") {
			t.Errorf("the screen does not tell the clusters apart:\n%s", &screen)
		}
	}
}

func TestTestsThatNobodyCouldRunAreAnError(t *testing.T) {
	module(t)
	by := cluster{suite: "trixie"}
	var screen strings.Builder
	r := &runner{out: &screen, now: time.Now, blocked: map[cluster]string{by: "testbed trixie"}}
	_, err := r.clusterTests(t.Context(), stage{name: "integration", limit: time.Minute}, []lane{{{by, nil}}})
	if err == nil || !strings.Contains(err.Error(), "4 tests did not run") {
		t.Errorf("without a cluster: %v", err)
	}
}

func TestCrashFailsTheTestsThatItKeptFromRunning(t *testing.T) {
	module(t)
	t.Setenv("BREAK", "yes")
	var screen strings.Builder
	r := &runner{out: &screen, now: time.Now}
	s := stage{name: "integration", limit: time.Minute, on: cluster{suite: "trixie"}}
	program, err := r.buildTests(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	got := r.batch(t.Context(), s, program, batch{"a_test.go", []string{"TestFault_J1_a", "TestAttack_J2_b", "TestFault_A1_after"}})
	if tally(got) != (count{passed: 1, failed: 2}) {
		t.Errorf("%+v", got)
	}
}

func TestUnsteadyTestPassesAtItsSecondTryAndIsNamed(t *testing.T) {
	module(t)
	var screen strings.Builder
	r := &runner{out: &screen, now: time.Now}
	on := cluster{suite: "trixie"}
	results, err := r.clusterTests(context.Background(), stage{name: "integration", limit: time.Minute, on: on}, []lane{{{on, []string{"J2"}}}})
	if err != nil || tally(results) != (count{passed: 2}) {
		t.Errorf("%v, %+v\n%s", err, results, &screen)
	}
	if !slices.Equal(r.unsteady, []string{"TestScenario_J2_unsteady (trixie)"}) {
		t.Errorf("unsteady are %q", r.unsteady)
	}
}
