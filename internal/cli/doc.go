// Package cli is the command carme: its words and flags, and what they print.
package cli
