package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Status is the outcome of one check.
type Status string

// Outcomes.
const (
	OK   Status = "ok"
	Note Status = "note" // works, but worth knowing
	Skip Status = "skip" // could not be looked at, for a reason reported elsewhere
	Fail Status = "fail"
)

// Finding is the outcome of one check.
type Finding struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail is one line: what was found.
	Detail string `json:"detail"`
	// Mend is one line: what to do. Every failure has it.
	Mend string `json:"mend,omitempty"`
}

// Report is the answer of `carme doctor`.
type Report struct {
	// OK says that nothing failed.
	OK       bool      `json:"ok"`
	Node     string    `json:"node"`
	Findings []Finding `json:"findings"`
}

func newReport(node string, findings []Finding) Report {
	r := Report{OK: true, Node: node, Findings: findings}
	for _, f := range findings {
		r.OK = r.OK && f.Status != Fail
	}
	return r
}

// WriteJSON writes the report as JSON.
func (r Report) WriteJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// WriteText writes the report for a person.
func (r Report) WriteText(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s\n", r.Node)
	count := map[Status]int{}
	for _, f := range r.Findings {
		count[f.Status]++
		fmt.Fprintf(&b, "  %-4s  %s: %s\n", strings.ToUpper(string(f.Status)), f.Name, f.Detail)
		if f.Mend != "" {
			fmt.Fprintf(&b, "        -> %s\n", f.Mend)
		}
	}
	if r.OK {
		fmt.Fprintf(&b, "ready for srun --carme (%d checks, %d notes)\n", len(r.Findings), count[Note])
	} else {
		fmt.Fprintf(&b, "NOT ready for srun --carme: %d of %d checks failed\n", count[Fail], len(r.Findings))
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func ok(name, format string, args ...any) Finding {
	return Finding{Name: name, Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func note(name, detail, mend string) Finding {
	return Finding{Name: name, Status: Note, Detail: detail, Mend: mend}
}

func skip(name, why string) Finding { return Finding{Name: name, Status: Skip, Detail: why} }

func fail(name, mend, format string, args ...any) Finding {
	return Finding{Name: name, Status: Fail, Detail: fmt.Sprintf(format, args...), Mend: mend}
}
