package config

import (
	"errors"
	"path/filepath"
	"strings"
)

// Daemon is the one file of a daemon.
type Daemon struct {
	Source

	// File is its absolute path below Root.
	File string
	// Manual is the page that explains it, such as carme-agent(8).
	Manual string
}

// Fail records a problem at the setting that the keys and indexes lead to.
type Fail func(text string, at ...any)

// Read decodes the file into v, strictly, and calls check, which names what is
// wrong with the values. As for Load, only root may be able to write the file.
// The error is a ProblemsError with everything that is wrong, or that of
// opening Root.
func (d Daemon) Read(v any, check func(fail Fail)) error {
	l, err := newLoader(d.Source)
	if err != nil {
		return err
	}
	defer l.close()
	l.manual = d.Manual
	name := strings.TrimPrefix(filepath.Clean("/"+d.File), "/")
	data, ok := l.read(name)
	if ok {
		if f := l.decode(name, data, v); f != nil {
			check(f.fail)
		}
	} else if len(l.problems) == 0 {
		l.fail(name, 0, "is missing; see "+d.Manual)
	}
	return l.problems.sorted()
}

// Problems lists what is wrong, one per line, for a person. An error of another
// kind is one line; those of a joined error follow each other, and nil has none.
func Problems(err error) []string {
	if err == nil {
		return nil
	}
	if all, is := err.(interface{ Unwrap() []error }); is { // what is joined, not what is wrapped
		var lines []string
		for _, one := range all.Unwrap() {
			lines = append(lines, Problems(one)...)
		}
		return lines
	}
	var problems ProblemsError
	if !errors.As(err, &problems) {
		return []string{err.Error()}
	}
	lines := make([]string, 0, len(problems))
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	return lines
}
