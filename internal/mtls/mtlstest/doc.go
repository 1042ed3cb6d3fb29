// Package mtlstest makes a CA and certificates for tests.
package mtlstest
