// Package audit keeps the record of who did what: a row in the same transaction
// as the act, each with the hash of the one before, so that a change shows.
package audit
