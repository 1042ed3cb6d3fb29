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
	from := flag.Int("from", 1, "number of the step to begin with")
	secret := flag.String("code", "", "print the one-time code of this `SECRET`, and end")
	flag.Parse()
	if *secret != "" {
		if err := printCode(*secret, time.Now()); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			os.Exit(1)
		}
		return
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	prefix := ""
	if instance := os.Getenv("TESTBED_INSTANCE"); instance != "" {
		prefix = instance + "-"
	}
	d := &demo{
		prefix: prefix, out: os.Stdout, now: time.Now, run: runCommand, farewell: 5 * time.Second,
		listens: "127.0.0.1:" + portalPort, answers: portalAnswers, shareCA: shareCA, cameBy: sshHere,
	}
	err := d.show(ctx, *from)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}
