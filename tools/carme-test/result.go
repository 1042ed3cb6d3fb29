package main

import (
	"fmt"
	"strings"
	"time"
)

// outcome is how one test ended.
type outcome string

const (
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
)

// result is one check that ran: a Go test or subtest, a line of a C test's
// output, or a whole stage that has no finer grain.
type result struct {
	suite   string // Slurm release for integration tests, else empty
	pkg     string
	name    string
	outcome outcome
	elapsed time.Duration
	output  string // what the test printed
	reason  string // why it was skipped
}

// top is the name of the test function that a subtest belongs to.
func (r result) top() string {
	name, _, _ := strings.Cut(r.name, "/")
	return name
}

// where names the result for a person.
func (r result) where() string {
	if r.suite == "" {
		return strings.TrimSpace(r.pkg + " " + r.name)
	}
	return fmt.Sprintf("%s (%s)", r.name, r.suite)
}

// count is what the last line and the rows of the table say.
type count struct{ passed, failed, skipped int }

func (c *count) add(o outcome) {
	switch o {
	case passed:
		c.passed++
	case failed:
		c.failed++
	case skipped:
		c.skipped++
	}
}

func (c count) total() int { return c.passed + c.failed + c.skipped }

func (c count) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}
