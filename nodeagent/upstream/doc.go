// Package upstream asks the backend's REST API.
package upstream
