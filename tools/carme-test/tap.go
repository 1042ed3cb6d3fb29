package main

import (
	"regexp"
	"strings"
)

// tapLine is a test line of the Test Anything Protocol, version 12
// (https://testanything.org/tap-specification.html).
var tapLine = regexp.MustCompile(`(?m)^(not )?ok\b\s*\d*\s*(?:-\s*)?([^#\n]*?)\s*(?:#\s*(?i:skip)\S*\s*(.*))?$`)

// readTAP takes the test lines out of the output of C tests; none means that
// the output is not in this form.
func readTAP(output string) []result {
	var all []result
	for _, m := range tapLine.FindAllStringSubmatch(output, -1) {
		r := result{pkg: "c", name: m[2], outcome: passed}
		switch {
		case m[1] != "":
			r.outcome = failed
			r.output = m[0] + "\n"
		case strings.Contains(strings.ToLower(m[0]), "# skip"):
			r.outcome = skipped
			r.reason = m[3]
		}
		all = append(all, r)
	}
	return all
}
