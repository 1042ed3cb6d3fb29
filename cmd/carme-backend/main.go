// Command carme-backend is the backend of the portal and, as `carme-backend
// signer`, the holder of its two dangerous keys. See docs/man/carme-backend.8.
package main

import (
	"context"
	"os"

	"github.com/carme-hpc/carme/portal/backend"
)

func main() {
	os.Exit(backend.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
