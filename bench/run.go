package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// figure is a row as it is kept.
type figure struct {
	ID     string  `json:"id"`
	What   string  `json:"what"`
	Carme  float64 `json:"carme"`
	Other  float64 `json:"compared_with,omitempty"`
	Raw    string  `json:"raw_unit"` // of both
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Must   float64 `json:"must"`
	Goal   float64 `json:"goal"`
	MustOK bool    `json:"reaches_must"`
	GoalOK bool    `json:"reaches_goal"`
}

// run measures everything, prints the table and writes the figures.
func run(ctx context.Context, rounds int, output string, out io.Writer) (err error) {
	c := fromEnvironment()
	if err := c.placeNoop(ctx); err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if problem := c.plugins(clean, true); err == nil {
			err = problem
		}
		for _, m := range []string{login, node} {
			if _, problem := c.root(clean, m, "rm -rf $(dirname "+noop+")"); err == nil {
				err = problem
			}
		}
	}()
	figures, err := measureAll(ctx, c, rounds, out)
	if err != nil {
		return err
	}
	more, err := webRows(ctx, webDefaults(out))
	if err != nil {
		return err
	}
	figures = append(figures, more...)
	if more, err = controlRows(ctx, c, rounds, out); err != nil {
		return err
	}
	figures = append(figures, more...)
	if err := table(out, figures); err != nil {
		return err
	}
	return keep(output, c.suite, figures)
}

func measureAll(ctx context.Context, c cluster, rounds int, out io.Writer) ([]figure, error) {
	var figures []figure
	take := func(rows []row) error {
		for _, r := range rows {
			fmt.Fprintf(out, "%-4s %s\n", r.id, r.what)
			n := rounds
			if r.id == "P5" {
				n = max(2, rounds/5) // 64 steps each
			}
			if err := c.measure(ctx, &r, n); err != nil {
				return err
			}
			figures = append(figures, figure{
				r.id, r.what, r.carmeMS, r.base, "ms", r.value(), r.unit, r.must, r.goal, r.reaches(r.must), r.reaches(r.goal),
			})
		}
		return nil
	}
	if err := take(freshRows()); err != nil {
		return nil, err
	}
	if err := c.plugins(ctx, true); err != nil {
		return nil, err
	}
	if err := withJobs(ctx, c, func(j jobs) error { return take(laterRows(j)) }); err != nil {
		return nil, err
	}
	fmt.Fprintln(out, "P6   slurmstepd killed")
	ms, err := c.killed(ctx, max(3, rounds/3))
	if err != nil {
		return nil, err
	}
	return append(figures, figure{
		"P6", "until nothing is left, longest", ms, 0, "ms", ms / 1000, "s", 5, 1, ms <= 5000, ms <= 1000,
	}), nil
}

// withJobs runs do beside three jobs that wait for steps.
func withJobs(ctx context.Context, c cluster, do func(jobs) error) (err error) {
	var j jobs
	defer func() {
		if _, problem := c.user(context.WithoutCancel(ctx), "scancel "+j.plain+" "+j.sealed+" "+j.imaged); err == nil {
			err = problem
		}
	}()
	for id, options := range map[*string]string{&j.plain: "-n16", &j.sealed: "-n16 --carme=none", &j.imaged: "-n1 --carme=base"} {
		if *id, err = c.hold(ctx, options+""); err != nil {
			return err
		}
	}
	return do(j)
}

func table(out io.Writer, figures []figure) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nrow\twhat\tCarme\tcompared\tfigure\tmust\tgoal\t")
	for _, f := range figures {
		verdict := "misses must"
		if f.GoalOK {
			verdict = "reaches goal"
		} else if f.MustOK {
			verdict = "reaches must"
		}
		fmt.Fprintf(w, "%s\t%s\t%.1f %s\t%.1f\t%.2f %s\t%g\t%g\t%s\n", f.ID, f.What, f.Carme, f.Raw, f.Other, f.Value, f.Unit, f.Must, f.Goal, verdict)
	}
	return w.Flush()
}

func keep(path, suite string, figures []figure) error {
	text, err := json.MarshalIndent(map[string]any{"suite": suite, "rows": figures}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the figures: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // G301: results are for everybody
		return fmt.Errorf("make a directory for the figures: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil { //nolint:gosec // G306: results are for everybody
		return fmt.Errorf("write the figures: %w", err)
	}
	return nil
}
