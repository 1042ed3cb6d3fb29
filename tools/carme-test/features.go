package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// feature is one row of docs/features.md.
type feature struct {
	id      string
	promise string
	claimed bool
}

var rowID = regexp.MustCompile(`^[JWA][0-9]+$`)

// readFeatures takes the rows out of the Markdown tables of docs/features.md:
// "| J5 | promise | claimed |" or "| J9 | promise | planned |".
func readFeatures(markdown string) ([]feature, error) {
	var all []feature
	for line := range strings.Lines(markdown) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if !rowID.MatchString(cells[0]) {
			continue
		}
		if len(cells) != 3 {
			return nil, fmt.Errorf("row %s has %d cells, not 3: a | within a cell?", cells[0], len(cells))
		}
		f := feature{id: cells[0], promise: cells[1]}
		switch word, _, _ := strings.Cut(cells[2], " "); strings.TrimRight(word, ",:;") {
		case "claimed":
			f.claimed = true
		case "planned":
		default:
			return nil, fmt.Errorf("row %s is neither claimed nor planned: %q", f.id, cells[2])
		}
		if slices.ContainsFunc(all, func(other feature) bool { return other.id == f.id }) {
			return nil, fmt.Errorf("row %s stands there twice", f.id)
		}
		all = append(all, f)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no rows found")
	}
	return all, nil
}

// rowTokens are the rows between the kind of a test and its sentence. A
// sentence may hold a word that looks like a row (A100), so the first word that
// is no row ends the list.
var rowTokens = regexp.MustCompile(`^Test[A-Za-z]+((?:_[JWA][0-9]+)+)(?:_|$)`)

// rowsOf lists the rows that a test says it proves.
func rowsOf(test string) []string {
	m := rowTokens.FindStringSubmatch(test)
	if m == nil {
		return nil
	}
	return strings.Split(m[1][1:], "_")
}

// runPattern selects, for `go test -run`, the tests of these rows.
func runPattern(rows ...string) string {
	return `^Test[A-Za-z]+(_[JWA][0-9]+)*_(` + strings.Join(rows, "|") + `)(_|$)`
}

// row is a feature with the results that speak for or against it.
type row struct {
	feature
	count
	results []result
}

// table sorts integration results by row. only, if set, is the single row
// asked for; otherwise all claimed rows are there. problems are rows without
// any test that passed, and tests that name rows unknown to the file.
func table(features []feature, results []result, only string) (rows []row, problems []string) {
	known := map[string]bool{}
	for _, f := range features {
		known[f.id] = true
		if f.id == only || (only == "" && f.claimed) {
			rows = append(rows, row{feature: f})
		}
	}
	if only != "" && !known[only] {
		problems = append(problems, fmt.Sprintf("row %s is not in %s", only, featuresFile))
	}
	for _, r := range results {
		if r.suite == "" {
			continue // only the real cluster proves a row
		}
		for _, id := range rowsOf(r.top()) {
			if !known[id] {
				problems = append(problems, fmt.Sprintf("%s names row %s, which is not in %s", r.top(), id, featuresFile))
			}
			for i := range rows {
				if rows[i].id == id {
					rows[i].add(r.outcome)
					rows[i].results = append(rows[i].results, r)
				}
			}
		}
	}
	for _, w := range rows {
		if w.passed == 0 {
			problems = append(problems, fmt.Sprintf("row %s has no test that passed", w.id))
		}
	}
	slices.Sort(problems)
	return rows, slices.Compact(problems)
}
