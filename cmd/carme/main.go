// Command carme shows what a job is isolated from, lists images and examines
// nodes. See docs/man/carme.1.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/carme-hpc/carme/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := cli.Run(ctx, cli.Real(), os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
