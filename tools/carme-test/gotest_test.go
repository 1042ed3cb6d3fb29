package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

func collect(t *testing.T, events string) (*collector, []result) {
	t.Helper()
	c := newCollector("trixie", time.Now, func(result) {})
	if err := c.read(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	return c, c.results()
}

func tally(results []result) count {
	var c count
	for _, r := range results {
		c.add(r.outcome)
	}
	return c
}

func TestEventsBecomeResults(t *testing.T) {
	for name, c := range map[string]struct {
		events string
		want   count
	}{
		"a test": {
			`{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, count{passed: 1},
		},
		"subtests count, their parent does not": {
			`{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA/x"}
{"Action":"run","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA/y"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, count{passed: 1, failed: 1},
		},
		"a parent that fails by itself counts": {
			`{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"pass","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, count{passed: 1, failed: 1},
		},
		"a slash in a subtest's name makes no test": {
			`{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/bind_/etc/x"}
{"Action":"pass","Package":"p","Test":"TestA/bind_/etc/x"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, count{passed: 1},
		},
		"a test that never ends has failed": {
			`{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, count{failed: 1},
		},
		"a package that fails without a test": {
			`{"Action":"output","Package":"p","Output":"panic in TestMain\n"}
{"Action":"fail","Package":"p"}`, count{failed: 1},
		},
		"a package without tests is nothing": {
			`{"Action":"skip","Package":"p"}`, count{},
		},
	} {
		if _, results := collect(t, c.events); tally(results) != c.want {
			t.Errorf("%s: %v, want %v", name, tally(results), c.want)
		}
	}
}

func TestBuildErrorsAreShown(t *testing.T) {
	_, results := collect(t, `{"ImportPath":"p [p.test]","Action":"build-output","Output":"x.go:1: undefined: y\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`)
	if len(results) != 1 || results[0].output != "x.go:1: undefined: y\n" {
		t.Errorf("results %+v", results)
	}
}

func TestSkipReasonIsTheLastLogLine(t *testing.T) {
	_, results := collect(t, `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:9: looking\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:12: no InfiniBand: here\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}`)
	if len(results) != 1 || results[0].reason != "no InfiniBand: here" {
		t.Errorf("results %+v", results)
	}
}

func TestHeartbeatNamesTheDeepestTestThatRuns(t *testing.T) {
	c, _ := collect(t, `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/slow"}`)
	if name, _ := c.running(); name != "TestA/slow" {
		t.Errorf("running is %q", name)
	}
}

func TestCTestsAreCountedByLine(t *testing.T) {
	got := readTAP("cc -o x\n1..3\nok 1 - joins\nnot ok 2 - leaves\nok 3 - frozen # SKIP no freezer\nokay then\n")
	if tally(got) != (count{passed: 1, failed: 1, skipped: 1}) {
		t.Fatalf("results %+v", got)
	}
	if got[0].name != "joins" || got[1].name != "leaves" || got[2].reason != "no freezer" {
		t.Errorf("results %+v", got)
	}
	if got := readTAP("all 12 tests passed\n"); len(got) != 0 {
		t.Errorf("plain text read as %+v", got)
	}
}

// A real `go test -json` of a throw-away module, so that a change of the
// stream's form is noticed.
func TestRealGoTestIsUnderstood(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":         "module m\n\ngo 1.24\n",
		"a/a_test.go":    "package a\nimport \"testing\"\nfunc TestPass(t *testing.T){}\nfunc TestSkip(t *testing.T){t.Skip(\"because\")}\nfunc TestFail(t *testing.T){t.Error(\"wrong\")}\n",
		"b/b_test.go":    "package b\nimport \"testing\"\nfunc TestX(t *testing.T){ undefined() }\n",
		"plain/plain.go": "package plain\n",
	} {
		write(t, dir+"/"+name, text)
	}
	t.Chdir(dir)
	write(t, outputDir+"/keep", "")
	var screen strings.Builder
	r := &runner{out: &screen, now: time.Now}
	t.Setenv("GOFLAGS", "")
	t.Setenv("GOWORK", "off")
	results, err := r.goTest(context.Background(), stage{name: "unit"}, "./...")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tally(results), (count{passed: 1, failed: 2, skipped: 1}); got != want {
		t.Errorf("counts %v, want %v: %+v", got, want, results)
	}
	if !strings.Contains(screen.String(), "TestFail") {
		t.Errorf("the failed test was not shown: %s", screen.String())
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(name[:strings.LastIndex(name, "/")], 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
