package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/carme-hpc/carme/bench/web"
)

// chpVersion is the release of configurable-http-proxy that is compared with.
const chpVersion = "5.3.0"

// webCommand is "bench web": the rows that need no cluster.
func webCommand(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench web", flag.ExitOnError)
	o := webDefaults(out)
	flags.StringVar(&o.Programs.Portal, "portal", o.Programs.Portal, "program")
	flags.StringVar(&o.Programs.Agent, "agent", o.Programs.Agent, "program")
	flags.StringVar(&o.Programs.CHP, "chp", o.Programs.CHP, "program")
	flags.StringVar(&o.Programs.Before, "before", "", "directory of another build of both, to compare with in R1, R2, R3 and W1")
	alone := flags.Bool("alone", false, "leave out those it is compared with")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "samples of each side of each row")
	flags.DurationVar(&o.Lasting, "lasting", o.Lasting, "how long one sample of a rate lasts")
	flags.IntVar(&o.Sockets, "sockets", o.Sockets, "idle websockets")
	flags.Int64Var(&o.Big, "big", o.Big, "size of the large transfer in bytes")
	only := flags.String("only", "", "rows, separated by commas")
	_ = flags.Parse(args) // it exits
	if *only != "" {
		o.Only = strings.Split(*only, ",")
	}
	figures, err := webRows(ctx, o, *alone)
	if err != nil {
		return err
	}
	return table(out, figures)
}

func webDefaults(out io.Writer) web.Options {
	const gigabyte = 1 << 30
	return web.Options{
		Programs: web.Programs{
			Portal: "build/host/carme-portal", Agent: "build/host/carme-agent", CHP: ".cache/chp/node_modules/.bin/configurable-http-proxy",
		},
		Rounds: 7, Lasting: 3 * time.Second, Sockets: 10000, Big: 2 * gigabyte, Out: out,
	}
}

func webRows(ctx context.Context, o web.Options, alone bool) ([]figure, error) {
	var err error
	if o.Programs.Self, err = os.Executable(); err != nil {
		return nil, err
	}
	for _, p := range []*string{&o.Programs.Portal, &o.Programs.Agent, &o.Programs.CHP} {
		if *p, err = filepath.Abs(*p); err != nil {
			return nil, err
		}
	}
	if alone {
		o.Programs.CHP = ""
	} else if err := findRivals(&o); err != nil {
		return nil, err
	}
	rows, err := web.Run(ctx, o)
	if err != nil {
		return nil, err
	}
	figures := make([]figure, 0, len(rows))
	for _, r := range rows {
		reaches := func(limit float64) bool {
			if r.More {
				return r.Value >= limit
			}
			return r.Value <= limit
		}
		figures = append(figures, figure{r.ID, r.What, r.Carme, r.Other, r.Raw, r.Value, r.Unit, r.Must, r.Goal, reaches(r.Must), reaches(r.Goal)})
	}
	return figures, nil
}

func findRivals(o *web.Options) (err error) {
	if o.Programs.Nginx, err = exec.LookPath("nginx"); err != nil {
		return fmt.Errorf("nginx is missing, as root: apt-get install nginx-light: %w", err)
	}
	if _, err := os.Stat(o.Programs.CHP); err != nil {
		fmt.Fprintf(o.Out, "configurable-http-proxy is missing, it is left out; to have it: npm install --prefix .cache/chp configurable-http-proxy@%s\n", chpVersion)
		o.Programs.CHP = ""
	}
	return nil
}
