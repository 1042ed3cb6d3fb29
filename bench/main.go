package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/carme-hpc/carme/bench/web"
)

func main() {
	rounds := flag.Int("rounds", 15, "samples of each side of each row")
	output := flag.String("o", "test-output/bench.json", "where the figures go as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch flag.Arg(0) {
	case "plugin":
		err = pluginCommand(ctx, *rounds, flag.Args()[1:], os.Stdout)
	case "web":
		err = webCommand(ctx, flag.Args()[1:], os.Stdout)
	case "control":
		err = controlCommand(ctx, *rounds, os.Stdout)
	case "part": // a process that bench web starts
		err = web.Part(ctx, flag.Arg(1), flag.Arg(2))
	default:
		err = run(ctx, *rounds, *output, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
