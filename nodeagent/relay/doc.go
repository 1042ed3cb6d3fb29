// Package relay carries bytes between portals and apps. One TLS connection is
// one authorised stream: the client sends a route token, gets one status byte,
// and then talks to the app's socket. Nothing in between is understood here.
//
// A stream is registered before it is used and closed when its job ends. An
// idle one holds no buffer: readiness is waited for in the kernel, and buffers
// come from a pool while there is something to carry.
package relay
