// Package clienttest is a backend in memory for tests of the portal: it speaks
// the REST API of internal/wire/api, and the test moves its jobs along.
package clienttest
