// Command carme-session runs inside a job, as the user: it starts the job's app
// beside the job's command, and is itself the web terminal.
package main

import (
	"fmt"
	"os"

	"github.com/carme-hpc/carme/session/run"
	"github.com/carme-hpc/carme/session/terminal"
)

const usage = "usage: carme-session run -- COMMAND... | carme-session terminal SOCKET"

func main() {
	status, err := 2, fmt.Errorf("%s", usage)
	switch args := os.Args[1:]; {
	case len(args) > 2 && args[0] == "run" && args[1] == "--":
		r := run.Runner{Paths: run.JobPaths(), Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		status, err = r.Run(args[2:])
	case len(args) == 2 && args[0] == "terminal":
		status, err = 0, terminal.Serve(args[1], os.Environ())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "carme: %v\n", err)
		status = max(status, 1)
	}
	os.Exit(status)
}
