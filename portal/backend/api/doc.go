// Package api is the backend's REST API, version 1: routes.go has every path with
// who may use it, openapi.yaml says what they mean.
package api
