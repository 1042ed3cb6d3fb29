// Package policy decides what of a request a user gets on this node: the
// request's grammar is spank/request, the admin's decisions are
// internal/config. It is pure: nothing is opened, so what depends on links in a
// path is checked again, with AllowsSource and AllowsImage, by who opens it.
package policy
