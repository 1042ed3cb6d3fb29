package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestRowsAreReadFromTheNamesFrontOnly(t *testing.T) {
	for name, want := range map[string][]string{
		"TestScenario_J5_only_the_jobs_gpus_open":    {"J5"},
		"TestAttack_J5_J2_old_descriptor":            {"J5", "J2"},
		"TestScenario_A13":                           {"A13"},
		"TestScenario_J5_asks_for_an_A100":           {"J5"},
		"TestFault_slurmd_restarts_on_an_A100":       nil,
		"TestReadsOptions":                           nil,
		"TestScenario_J5x_is_no_row":                 nil,
		"TestHazard_J16_W1_A2_three_rows_J9_are_not": {"J16", "W1", "A2"},
	} {
		if got := rowsOf(name); !slices.Equal(got, want) {
			t.Errorf("rowsOf(%s) = %v, want %v", name, got, want)
		}
	}
}

func TestRunPatternSelectsWhatTheTableCounts(t *testing.T) {
	for _, name := range []string{
		"TestScenario_J5_x", "TestAttack_J2_J5_x", "TestAttack_J5", "TestScenario_J15_x",
		"TestScenario_J2_needs_J5_x", "TestScenario_J50_x", "TestFault_x",
	} {
		selected := regexp.MustCompile(runPattern("J5", "J7")).MatchString(name)
		if counted := slices.Contains(rowsOf(name), "J5"); selected != counted {
			t.Errorf("%s: selected %v, counted %v", name, selected, counted)
		}
	}
}

func TestFeatureFileIsRefusedWhenItIsNotClear(t *testing.T) {
	for why, text := range map[string]string{
		"no rows":      "| id | promise | state |\n",
		"odd state":    "| J1 | jobs | perhaps |\n",
		"a cell more":  "| J1 | a | b | claimed |\n",
		"a row twice":  "| J1 | a | claimed |\n| J1 | b | planned |\n",
		"a cell fewer": "| J1 | claimed |\n",
	} {
		if rows, err := readFeatures(text); err == nil {
			t.Errorf("%s: accepted as %v", why, rows)
		}
	}
}

func TestFeatureFileOfTheRepositoryIsRead(t *testing.T) {
	text, err := os.ReadFile("../../" + featuresFile)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := readFeatures(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != strings.Count(string(text), "\n| J")+strings.Count(string(text), "\n| W")+strings.Count(string(text), "\n| A") {
		t.Errorf("%d rows read, but the file has another number", len(rows))
	}
}

var someFeatures = []feature{
	{id: "J1", promise: "one", claimed: true},
	{id: "J2", promise: "two", claimed: true},
	{id: "J3", promise: "three"},
}

func TestClaimedRowWithoutAPassedTestIsAProblem(t *testing.T) {
	pass := result{suite: "trixie", name: "TestScenario_J1_x", outcome: passed}
	for why, second := range map[string][]result{
		"no test":                     nil,
		"skipped":                     {{suite: "trixie", name: "TestScenario_J2_x", outcome: skipped}},
		"failed":                      {{suite: "trixie", name: "TestScenario_J2_x", outcome: failed}},
		"a unit test is no proof":     {{name: "TestScenario_J2_x", outcome: passed}},
		"a word that looks like rows": {{suite: "trixie", name: "TestScenario_J1_and_J2", outcome: passed}},
	} {
		_, problems := table(someFeatures, append([]result{pass}, second...), "")
		if want := []string{"row J2 has no test that passed"}; !slices.Equal(problems, want) {
			t.Errorf("%s: problems %q, want %q", why, problems, want)
		}
	}
}

func TestTableCountsATestForEachOfItsRows(t *testing.T) {
	rows, problems := table(someFeatures, []result{
		{suite: "trixie", name: "TestScenario_J1_J2_x", outcome: passed},
		{suite: "forky", name: "TestScenario_J1_J2_x", outcome: passed},
		{suite: "trixie", name: "TestScenario_J2_y/sub", outcome: skipped},
	}, "")
	if len(problems) != 0 {
		t.Errorf("problems %q", problems)
	}
	if len(rows) != 2 {
		t.Fatalf("%d rows, want the two claimed ones", len(rows))
	}
	if want := (count{passed: 2}); rows[0].count != want {
		t.Errorf("J1 counts %v, want %v", rows[0].count, want)
	}
	if want := (count{passed: 2, skipped: 1}); rows[1].count != want {
		t.Errorf("J2 counts %v, want %v", rows[1].count, want)
	}
}

func TestUnknownRowsAreProblems(t *testing.T) {
	_, problems := table(someFeatures, []result{{suite: "trixie", name: "TestScenario_J99_x", outcome: passed}}, "J77")
	want := []string{
		"TestScenario_J99_x names row J99, which is not in docs/features.md",
		"row J77 is not in docs/features.md",
	}
	if !slices.Equal(problems, want) {
		t.Errorf("problems %q, want %q", problems, want)
	}
}

func TestOneRowIsShownEvenIfItIsNotClaimed(t *testing.T) {
	rows, problems := table(someFeatures, []result{{suite: "trixie", name: "TestScenario_J3_x", outcome: passed}}, "J3")
	if len(rows) != 1 || rows[0].id != "J3" || rows[0].passed != 1 || len(problems) != 0 {
		t.Errorf("rows %v, problems %q", rows, problems)
	}
}
