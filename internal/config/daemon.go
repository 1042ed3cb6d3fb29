package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Fail records a problem at the value that the keys and indexes lead to.
type Fail func(text string, at ...any)

// LoadFile decodes the YAML file of a daemon into v, which holds the defaults,
// and lets check look at it. The file is an absolute path on the machine, below
// src.Root. The error is a ProblemsError with everything that is wrong at once.
func LoadFile(src Source, name string, v any, check func(Fail)) error {
	if !path.IsAbs(name) {
		return fmt.Errorf("configuration %s: write its path from / on", name)
	}
	root, err := os.OpenRoot(src.Root)
	if err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing was written
	l := loader{root: root, trustOwner: src.TrustOwner}
	name = strings.TrimPrefix(path.Clean(name), "/")
	if _, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("configuration /%s is missing; there is an example in contrib/carme", name)
	}
	if data, ok := l.read(name); ok {
		if f := l.decode(name, data, v); f != nil {
			check(f.fail)
		}
	}
	return l.problems.sorted()
}
