// Package version says which Carme this is.
package version
