// Package proxy leads browsers to the apps in users' jobs: each session, viewer
// and mode has a host of its own below the apps domain, every request to it is
// checked, and its bytes go through the node's agent to the app's socket.
package proxy
