package nodeagent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/daemon"
	"github.com/carme-hpc/carme/internal/version"
	"github.com/carme-hpc/carme/nodeagent/control"
	"github.com/carme-hpc/carme/nodeagent/metrics"
)

// Main runs the program with its arguments and returns its exit status.
func Main(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	if len(args) > 0 && args[0] == ControlChild {
		return status(control.Child(in, out), errOut)
	}
	if len(args) > 0 && args[0] == GPUChild {
		return status(metrics.Child(ctx, nvml.New(), measureEvery, out), errOut)
	}
	flags := flag.NewFlagSet("carme-agent", flag.ContinueOnError)
	flags.SetOutput(errOut)
	file := flags.String("config", ConfigFile, "read the configuration from `FILE`")
	check := flags.Bool("check", false, "check the configuration and end")
	show := flags.Bool("version", false, "show the version and end")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(errOut, "carme-agent: %q is not understood; see carme-agent(8)\n", flags.Arg(0))
		return 2
	}
	if *show {
		fmt.Fprintf(out, "carme-agent %s\n", version.String())
		return 0
	}
	cfg, err := ReadConfig(*file)
	if err != nil {
		for _, line := range config.Problems(err) {
			fmt.Fprintf(errOut, "carme-agent: %s\n", line)
		}
		return 1
	}
	if *check {
		return 0
	}
	return status(daemon.Run(ctx, func(ctx context.Context) error { return Run(ctx, cfg, Real()) }), errOut)
}

func status(err error, errOut io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(errOut, "carme-agent: %v\n", err)
	return 1
}
