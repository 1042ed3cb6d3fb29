// Package token makes and checks route tokens. With one, signed by the backend,
// a portal shows an agent that a viewer may reach one app of one job.
//
// A token is one version byte, the fields of Claims, each of fixed size or
// behind its length, and an Ed25519 signature over the domain prefix and all of
// that. There is one way to write a claim, and no algorithm to choose.
package token
