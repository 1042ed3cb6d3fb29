package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/carme-hpc/carme/bench/control"
)

// controlCommand is "bench control": rows D and S.
func controlCommand(ctx context.Context, rounds int, out io.Writer) error {
	figures, err := controlRows(ctx, fromEnvironment(), rounds, out)
	return errors.Join(err, table(out, figures))
}

func controlRows(ctx context.Context, c cluster, rounds int, out io.Writer) ([]figure, error) {
	rows, err := control.Run(ctx, control.Options{
		Shell: c.shell, Address: c.address, Jobs: 5000, Viewers: 1000, Users: 10000, Rounds: max(3, rounds/3), Span: time.Minute, Out: out,
	})
	figures := make([]figure, 0, len(rows))
	for _, r := range rows {
		figures = append(figures, figure{r.ID, r.What, r.Carme, r.Other, r.Raw, r.Value, r.Unit, r.Must, r.Goal, r.Value <= r.Must, r.Value <= r.Goal})
	}
	return figures, err
}
