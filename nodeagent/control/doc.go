// Package control does for the backend what needs the node's file systems: it
// reads the end of a user's file and looks at a user's home. The backend alone
// may ask.
//
// Root opens no path of a user's. A child does, this program again, which becomes
// the user with the user's groups; it is killed when it takes too long, and one
// that cannot be killed, because a file server is gone, counts until it ends.
package control
