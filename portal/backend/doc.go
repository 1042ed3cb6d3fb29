// Package backend puts the parts of carme-backend together: configuration, keys,
// the daemon, the signer beside it, and the few commands that an admin has.
package backend
