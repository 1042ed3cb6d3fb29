package request

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// quoteMax is how many bytes of a user's string a message repeats.
	quoteMax = 80
	// errorsMax is how many errors one message names.
	errorsMax = 8
)

// Errors is everything that is wrong with a request. Its text is one line of
// printable characters: causes and remedies, separated by semicolons, without
// a prefix.
type Errors []error

// Error joins the errors to one line. Beyond the eighth they are counted only.
func (e Errors) Error() string {
	var b strings.Builder
	for i, err := range e {
		if i == errorsMax {
			fmt.Fprintf(&b, "; and %d more", len(e)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

// Unwrap gives errors.Is and errors.As each of the errors.
func (e Errors) Unwrap() []error { return e }

// Quote makes s fit for a message: a Go string literal, so that no control
// character reaches a terminal or a log, cut after 80 bytes.
func Quote(s string) string {
	if len(s) <= quoteMax {
		return strconv.Quote(s)
	}
	cut := quoteMax
	for cut > quoteMax-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "..."
}
