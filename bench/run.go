package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// run measures everything, prints the table and writes the figures: also those
// that were taken before something failed.
func run(ctx context.Context, rounds int, output string, out io.Writer) error {
	c := fromEnvironment()
	var figures []figure
	err := errors.Join(
		gather(&figures, func() ([]figure, error) { return pluginRows(ctx, c, rounds, someKills, nil, out) }),
		gather(&figures, func() ([]figure, error) { return webRows(ctx, webDefaults(out), false) }),
		gather(&figures, func() ([]figure, error) { return controlRows(ctx, c, rounds, out) }),
	)
	return errors.Join(err, table(out, figures), keep(output, c.suite, figures))
}

func gather(all *[]figure, take func() ([]figure, error)) error {
	figures, err := take()
	*all = append(*all, figures...)
	return err
}

// someKills are those of P6 unless it is asked for alone: a thousand take half an hour.
const someKills = 50

// pluginCommand is "bench plugin": the rows P.
func pluginCommand(ctx context.Context, rounds int, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench plugin", flag.ExitOnError)
	only := flags.String("only", "", "rows, separated by commas")
	kills := flags.Int("kills", someKills, "of slurmstepd, for P6")
	_ = flags.Parse(args) // it exits
	var rows []string
	if *only != "" {
		rows = strings.Split(*only, ",")
	}
	figures, err := pluginRows(ctx, fromEnvironment(), rounds, *kills, rows, out)
	return errors.Join(err, table(out, figures))
}

func pluginRows(ctx context.Context, c cluster, rounds, kills int, only []string, out io.Writer) (figures []figure, err error) {
	if err := c.placeNoop(ctx); err != nil {
		return nil, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, c.plugins(clean, true))
		for _, m := range []string{login, node} {
			_, problem := c.root(clean, m, "rm -rf $(dirname "+noop+")")
			err = errors.Join(err, problem)
		}
	}()
	p := &plugin{c, rounds, kills, only, out, nil}
	err = p.measureAll(ctx)
	return p.figures, err
}

// plugin takes the rows P.
type plugin struct {
	cluster cluster
	rounds  int
	kills   int
	only    []string
	out     io.Writer
	figures []figure
}

func (p *plugin) wanted(id string) bool { return p.only == nil || slices.Contains(p.only, id) }

func (p *plugin) add(f figure) {
	p.figures = append(p.figures, f)
	fmt.Fprintf(p.out, "%-4s %s: %.2f %s\n", f.ID, f.What, f.Value, f.Unit)
}

func (p *plugin) take(ctx context.Context, rows []row) error {
	for _, r := range rows {
		if !p.wanted(r.id) {
			continue
		}
		n := p.rounds
		if r.id == "P5" {
			n = max(2, n/(4*turn)) // 64 steps each
		}
		if err := p.cluster.measure(ctx, &r, n); err != nil {
			return err
		}
		p.add(figure{
			r.id, r.what, r.carmeMS, r.base, "ms", r.value(), r.unit, r.must, r.goal, r.reaches(r.must), r.reaches(r.goal),
		})
	}
	return nil
}

func (p *plugin) measureAll(ctx context.Context) error {
	if err := p.take(ctx, freshRows()); err != nil {
		return err
	}
	if err := p.cluster.plugins(ctx, true); err != nil {
		return err
	}
	// A node has no room for all of them at once.
	for _, l := range []later{{"-n16", "-n16 --carme=none", laterRows}, {"-n1", "-n1 --carme=base", imageRows}} {
		if err := p.beside(ctx, l); err != nil {
			return err
		}
	}
	if !p.wanted("P6") {
		return nil
	}
	ms, err := p.killed(ctx, p.kills)
	if err != nil {
		return err
	}
	p.add(figure{"P6", fmt.Sprintf("until nothing is left, longest of %d kills", p.kills), ms, 0, "ms", ms / 1000, "s", 5, 1, ms <= 5000, ms <= 1000})
	return nil
}

// later is what is measured beside two jobs that wait for steps.
type later struct {
	plain, sealed string // options of the jobs
	rows          func(plain, sealed string) []row
}

func (p *plugin) beside(ctx context.Context, l later) (err error) {
	if !slices.ContainsFunc(l.rows("", ""), func(r row) bool { return p.wanted(r.id) }) {
		return nil
	}
	var ids [2]string
	defer func() {
		_, problem := p.cluster.user(context.WithoutCancel(ctx), "scancel "+ids[0]+" "+ids[1])
		err = errors.Join(err, problem)
	}()
	for i, options := range []string{l.plain, l.sealed} {
		if ids[i], err = p.cluster.hold(ctx, options); err != nil {
			return err
		}
	}
	return p.take(ctx, l.rows(ids[0], ids[1]))
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
