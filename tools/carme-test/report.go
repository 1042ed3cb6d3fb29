package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

func printPlan(w io.Writer, stages []stage) {
	fmt.Fprintln(w, "plan")
	for i, s := range stages {
		fmt.Fprintf(w, "  %d  %-20s %s\n     %-20s needs %s\n", i+1, s.name, s.does, "", s.needs)
	}
}

// progress says that a test or a package has ended. Of unit tests only the
// packages are shown, and what failed.
func (r *runner) progress(s stage, res result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if res.name == "" {
		if s.on.suite == "" && res.outcome != skipped {
			fmt.Fprintf(r.out, "   %-4s %7s  %s\n", res.outcome, round(res.elapsed), res.pkg)
		}
		return
	}
	if s.on.suite == "" && res.outcome != failed {
		return
	}
	fmt.Fprintf(r.out, "   %-4s %7s  %s%s", res.outcome, round(res.elapsed), s.label(), res.name)
	if res.outcome == skipped {
		fmt.Fprintf(r.out, ": %s", res.reason)
	}
	fmt.Fprintln(r.out)
}

// printTable shows the claimed rows, and below each the tests that speak for it.
func printTable(w io.Writer, rows []row) {
	fmt.Fprintf(w, "\nrows of %s\n", featuresFile)
	fmt.Fprintf(w, "  %-4s %5s %5s %5s %5s  %s\n", "row", "tests", "pass", "fail", "skip", "promise")
	for _, row := range rows {
		mark := ""
		if row.passed == 0 {
			mark = "RED, nothing passed: "
		}
		fmt.Fprintf(w, "  %-4s %5d %5d %5d %5d  %s%s\n", row.id, row.total(), row.passed, row.failed, row.skipped, mark, row.promise)
		for _, line := range testLines(row.results) {
			fmt.Fprintf(w, "         %s\n", line)
		}
	}
}

// testLines sums up the subtests of each test function, and names those that
// did not pass.
func testLines(results []result) []string {
	type key struct{ suite, top string }
	counts := map[key]*count{}
	var order []key
	odd := map[key][]string{}
	why := map[key]string{} // a whole test was skipped
	for _, r := range results {
		k := key{r.suite, r.top()}
		if counts[k] == nil {
			counts[k] = &count{}
			order = append(order, k)
		}
		counts[k].add(r.outcome)
		if r.outcome == skipped && r.name == k.top {
			why[k] = ": " + r.reason
		} else if r.outcome == skipped {
			odd[k] = append(odd[k], fmt.Sprintf("skip  %s: %s", r.name, r.reason))
		}
		if r.outcome == failed && r.name != k.top {
			odd[k] = append(odd[k], "FAIL  "+r.name)
		}
	}
	var lines []string
	for _, k := range order {
		word := "ok  "
		switch c := counts[k]; {
		case c.failed > 0:
			word = "FAIL"
		case c.passed == 0:
			word = "skip"
		}
		lines = append(lines, fmt.Sprintf("%s  %-8s %s%s", word, k.suite, k.top, why[k]))
		for _, text := range odd[k] {
			lines = append(lines, "      "+text)
		}
	}
	return lines
}

// summarise lists again what failed, why others were skipped, and counts;
// each problem of the table counts as a failure.
func summarise(w io.Writer, results []result, problems []string) count {
	var total count
	for _, r := range results {
		total.add(r.outcome)
	}
	total.failed += len(problems)
	if total.failed > 0 {
		fmt.Fprintln(w, "\nfailed")
		for _, r := range results {
			if r.outcome == failed {
				fmt.Fprintf(w, "  %s\n%s", r.where(), lastLines(r.output))
			}
		}
		for _, p := range problems {
			fmt.Fprintf(w, "  %s\n", p)
		}
	}
	if total.skipped > 0 {
		fmt.Fprintln(w, "\nskipped")
		for _, r := range results {
			if r.outcome == skipped {
				fmt.Fprintf(w, "  %s: %s\n", r.where(), r.reason)
			}
		}
	}
	return total
}

// lastLines are the end of what a failed test said, where its reason stands,
// indented: whoever reads only the end of a long log finds it there.
func lastLines(output string) string {
	const shown = 25
	lines := strings.Split(strings.TrimRight(output, "\n"), "\n")
	if output == "" {
		return ""
	}
	return "    | " + strings.Join(lines[max(0, len(lines)-shown):], "\n    | ") + "\n"
}

func round(d time.Duration) time.Duration {
	if d < time.Minute {
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(time.Second)
}

func ensureNewline(s string) string {
	if s == "" || strings.HasSuffix(s, "\n") {
		return s
	}
	return s + "\n"
}
