// Package integration holds the black-box tests: they drive the running testbed
// through docker exec as its users would, and import nothing of the product.
// They are built with the tag integration; `make test-integration` runs them.
package integration
