package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output and build-fail
	FailedBuild string // import path of the build that made the package fail
	Test        string
	Elapsed     float64 // seconds
	Output      string
}

// collector turns the events of one `go test -json` into results.
type collector struct {
	suite    string
	now      func() time.Time
	mu       sync.Mutex // guards what follows: the heartbeat asks while tests run
	tests    map[testKey]*testState
	order    []testKey
	builds   map[string]*strings.Builder // compiler output by import path
	packages []result                    // packages that failed outside of any test
	noise    strings.Builder             // lines that are no events, as from the go command itself
	finished func(result)                // called for each top-level test, and each package as name ""
}

type testKey struct{ pkg, name string }

type testState struct {
	result
	done        bool
	hasChild    bool
	childFailed bool
	started     time.Time
}

func newCollector(suite string, now func() time.Time, finished func(result)) *collector {
	return &collector{
		suite: suite, now: now, finished: finished,
		tests: map[testKey]*testState{}, builds: map[string]*strings.Builder{},
	}
}

// read consumes the stream until its end.
func (c *collector) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			c.mu.Lock()
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				c.add(e)
			} else {
				c.noise.Write(line)
			}
			c.mu.Unlock()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test events: %w", err)
		}
	}
}

func (c *collector) add(e event) {
	switch {
	case e.Action == "build-output":
		if c.builds[e.ImportPath] == nil {
			c.builds[e.ImportPath] = &strings.Builder{}
		}
		c.builds[e.ImportPath].WriteString(e.Output)
	case e.Action == "build-fail":
	case e.Test == "":
		c.addPackage(e)
	default:
		c.addTest(e)
	}
}

func (c *collector) addTest(e event) {
	state := c.state(testKey{e.Package, e.Test})
	switch e.Action {
	case "output":
		state.output += e.Output
	case "pass", "fail", "skip":
		state.done = true
		state.outcome = outcome(e.Action)
		state.elapsed = seconds(e.Elapsed)
		if state.outcome == skipped {
			state.reason = skipReason(state.output)
		}
		if parent := c.parent(testKey{e.Package, e.Test}); parent == nil {
			c.finished(state.result)
		} else if state.outcome == failed {
			parent.childFailed = true
		}
	}
}

// addPackage handles what a package says outside of its tests: a failure
// without a failed test is one of its own, such as a build error, a failing
// TestMain, or a timeout that leaves tests unfinished.
func (c *collector) addPackage(e event) {
	switch e.Action {
	case "output":
		// Kept under the empty name, for the failure below.
		c.state(testKey{e.Package, ""}).output += e.Output
	case "pass", "skip", "fail":
		state := c.state(testKey{e.Package, ""})
		state.done = true
		state.outcome = outcome(e.Action)
		state.elapsed = seconds(e.Elapsed)
		if state.outcome == failed && !c.anyFailed(e.Package) {
			r := state.result
			r.name = "(package)"
			if build := c.builds[e.FailedBuild]; build != nil {
				r.output = build.String()
			}
			c.packages = append(c.packages, r)
		}
		c.finished(state.result)
	}
}

func (c *collector) anyFailed(pkg string) bool {
	for key, state := range c.tests {
		if key.pkg == pkg && key.name != "" && (!state.done || state.outcome == failed) {
			return true
		}
	}
	return false
}

func (c *collector) state(key testKey) *testState {
	if s, ok := c.tests[key]; ok {
		return s
	}
	s := &testState{result: result{suite: c.suite, pkg: key.pkg, name: key.name}, started: c.now()}
	c.tests[key] = s
	c.order = append(c.order, key)
	if parent := c.parent(key); parent != nil {
		parent.hasChild = true
	}
	return s
}

// parent is the nearest test above that has run. A subtest's own name may hold
// slashes, so not every prefix is a test.
func (c *collector) parent(key testKey) *testState {
	for i := strings.LastIndex(key.name, "/"); i > 0; i = strings.LastIndex(key.name[:i], "/") {
		if p, ok := c.tests[testKey{key.pkg, key.name[:i]}]; ok {
			return p
		}
	}
	return nil
}

// results lists every leaf once, and a parent only if it failed by itself.
// Tests that never ended count as failed.
func (c *collector) results() []result {
	var all []result
	for _, key := range c.order {
		state := c.tests[key]
		if key.name == "" {
			continue
		}
		if !state.done {
			state.outcome = failed
			state.output += "the test did not finish\n"
			if parent := c.parent(key); parent != nil {
				parent.childFailed = true
			}
		}
		if state.hasChild && (state.outcome != failed || state.childFailed) {
			continue
		}
		all = append(all, state.result)
	}
	return append(all, c.packages...)
}

// running is the test that has been running longest, and since when.
func (c *collector) running() (name string, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range c.order {
		state := c.tests[key]
		if key.name != "" && !state.done && !state.hasChild && (name == "" || state.started.Before(since)) {
			name, since = key.name, state.started
		}
	}
	return name, since
}

// logLine is a line that t.Log, t.Skip and friends print: "    x_test.go:12: text".
var logLine = regexp.MustCompile(`(?m)^\s+\S+\.go:\d+: (.*)$`)

func skipReason(output string) string {
	found := logLine.FindAllStringSubmatch(output, -1)
	if len(found) == 0 {
		return "no reason given"
	}
	return found[len(found)-1][1]
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
