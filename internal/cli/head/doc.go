// Package head asks the backend on this host what only its administrators may
// ask: by REST over its admin socket, which answers root alone.
package head
