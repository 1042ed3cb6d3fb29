// Command carme-agent is the daemon on every node that carries browsers' streams
// to the apps of sealed jobs. See docs/man/carme-agent.8.
package main

import (
	"context"
	"os"

	"github.com/carme-hpc/carme/nodeagent"
)

func main() {
	os.Exit(nodeagent.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
