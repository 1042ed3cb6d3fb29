package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/daemon"
	"github.com/carme-hpc/carme/internal/version"
)

// command runs carme-portal and returns its exit status: 0, 1 for an error, 2 for
// a wrong command line.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("carme-portal", flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("config", "/etc/carme/portal.yaml", "read the settings from `FILE`")
	check := flags.Bool("check", false, "say what is wrong with the settings and the files they name, and exit")
	show := flags.Bool("version", false, "print the version and exit")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "carme-portal: %q is not understood; see carme-portal(8)\n", flags.Arg(0))
		return 2
	}
	if *show {
		fmt.Fprintln(stdout, "carme-portal", version.String())
		return 0
	}
	run := func(ctx context.Context) error { return serve(ctx, *file) }
	if *check {
		run = func(context.Context) error { return checkFiles(*file) }
	}
	if err := daemon.Run(ctx, run); err != nil {
		for _, line := range config.Problems(err) {
			fmt.Fprintln(stderr, "carme-portal:", line)
		}
		return 1
	}
	return 0
}
