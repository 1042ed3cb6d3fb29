package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	suite := flag.String("suite", "trixie", "Slurm release for the stage integration: trixie, forky, bookworm")
	only := flag.String("only", "", "row of docs/features.md, for example J5: run its tests alone")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: carme-test [-suite NAME] [-only ROW] all|unit|integration")
		flag.PrintDefaults()
	}
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, options{mode: flag.Arg(0), suite: *suite, only: *only}, os.Stdout, time.Now)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "carme-test:", err)
		os.Exit(2)
	}
	os.Exit(code)
}
