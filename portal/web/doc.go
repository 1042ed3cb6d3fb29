// Package web is the portal's pages, made on the server by Gin and
// html/template: login, start form, jobs, security. It is a client of the
// backend with the user's own session token and holds no state.
package web
