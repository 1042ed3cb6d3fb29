package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"
)

func main() {
	version := flag.String("version", "dev", "version of Carme")
	flag.Parse()
	if err := run(context.Background(), *version); err != nil {
		fmt.Fprintln(os.Stderr, "carme-sbom:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, version string) error {
	args := append([]string{"list", "-deps", "-json=Module"}, programs()...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = os.Stderr
	list, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("list packages: %w", err)
	}
	return write(os.Stdout, list, version, time.Now())
}
