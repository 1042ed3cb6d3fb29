package request

import (
	"errors"
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

// AboutError is a refusal of what an option says, where the text does not begin with
// the option's name.
type AboutError struct {
	// Option is its name without dashes in front.
	Option string
	Err    error
}

func (e *AboutError) Error() string { return e.Err.Error() }

func (e *AboutError) Unwrap() error { return e.Err }

// Named gives the refusals of what the variable of an option says the name of
// the variable: its user has typed no option.
func (in Input) Named(err error) error {
	if list, ok := err.(Errors); ok { //nolint:errorlint // a wrapped one has a text of its own
		named := make(Errors, 0, len(list))
		for _, e := range list {
			named = append(named, in.Named(e))
		}
		return named
	}
	for _, o := range Options() {
		if in.isDefault(o.Name) && isAbout(err, o.Name) {
			return errors.New(renamed(err.Error(), o))
		}
	}
	return err
}

func isAbout(err error, option string) bool {
	if about, ok := err.(*AboutError); ok { //nolint:errorlint // as above
		return about.Option == option
	}
	rest, ok := strings.CutPrefix(err.Error(), "--"+option)
	return ok && strings.IndexAny(rest, ":= ") == 0
}

// renamed is a text about an option as one about its variable. That --carme=list
// shows the images is true in any case.
func renamed(text string, o Option) string {
	if o.Name != OptCarme && strings.Contains(text, "--"+o.Name) {
		return strings.ReplaceAll(text, "--"+o.Name, o.Env)
	}
	return o.Env + ": " + text
}

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
