package main

import (
	"slices"
	"testing"
)

func TestSecondTryIsForTheTestFunctionsThatFailed(t *testing.T) {
	results := []result{
		{name: "TestA", outcome: passed},
		{name: "TestB/one", outcome: failed},
		{name: "TestB/two", outcome: passed},
		{name: "TestB", outcome: failed},
		{name: "TestC", outcome: skipped},
		{pkg: "p", outcome: failed}, // a package, no test
	}
	if got := failedTests(results); !slices.Equal(got, []string{"TestB"}) {
		t.Errorf("the second try is for %q", got)
	}
}
