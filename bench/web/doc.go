// Package web measures the way from a browser to an app: portal, agent and app
// as they are built, beside nginx with auth_request and configurable-http-proxy
// in the same chain (TLS in, a check, a hop with certificates on both sides, a
// unix socket). A small server of its own stands for the backend; it is part of
// the measuring device.
package web
