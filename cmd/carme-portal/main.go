// Command carme-portal is what users' browsers reach: pages, and the way to the
// apps in their jobs. See docs/man/carme-portal.8.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(command(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
