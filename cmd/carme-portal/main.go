// Command carme-portal is what users' browsers reach: pages, and the way to the
// apps in their jobs. See docs/man/carme-portal.8.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/daemon"
	"github.com/carme-hpc/carme/internal/version"
)

func main() {
	file := flag.String("config", "/etc/carme/portal.yaml", "read the settings from `FILE`")
	check := flag.Bool("check", false, "say what is wrong with the settings and the files they name, and exit")
	show := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *show {
		fmt.Println("carme-portal", version.String())
		return
	}
	run := func(ctx context.Context) error { return serve(ctx, *file) }
	if *check {
		run = func(context.Context) error { return checkFiles(*file) }
	}
	if err := daemon.Run(context.Background(), run); err != nil {
		for _, line := range config.Problems(err) {
			fmt.Fprintln(os.Stderr, "carme-portal:", line)
		}
		os.Exit(1)
	}
}
