// Package client speaks the backend's REST API for the portal: pages and
// session proxy use nothing else to learn or do anything.
package client
