package config

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with a file.
type Problem struct {
	// File is its absolute path on the node.
	File string
	// Line counts from 1; 0 if the problem is the file itself.
	Line int
	// Text says what is wrong and how to mend it, on one line.
	Text string
}

// String is FILE:LINE: TEXT.
func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Text
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
}

// ProblemsError is everything that is wrong with a configuration, in the order of
// files and lines. It is an error; its text is one line.
type ProblemsError []Problem

// Error joins the problems with semicolons.
func (p ProblemsError) Error() string {
	lines := make([]string, 0, len(p))
	for _, one := range p {
		lines = append(lines, one.String())
	}
	return strings.Join(lines, "; ")
}

// sorted returns the problems as an error, nil if there are none.
func (p ProblemsError) sorted() error {
	if len(p) == 0 {
		return nil
	}
	slices.SortStableFunc(p, func(a, b Problem) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	return p
}
