package auth

import (
	"context"
	"errors"
)

// Person is somebody as the directory has them.
type Person struct {
	// Name is the directory's spelling, whatever was typed.
	Name     string
	DN       string
	UID, GID uint32
	Home     string
	Full     string
	Mail     string
	Groups   []string
	Roles    []string
	// Stamp changes when the password does, where the directory tells.
	Stamp string
}

// Errors of a Directory.
var (
	// ErrUnknown says that nobody of that name may log in.
	ErrUnknown = errors.New("nobody of that name may log in")
	// ErrPassword says that the password is wrong.
	ErrPassword = errors.New("wrong password")
)

// Directory knows people. Other errors than the two above mean that it could
// not be asked.
type Directory interface {
	// Find returns who may log in under that name.
	Find(ctx context.Context, name string) (Person, error)
	// Check binds as the person. For a DN that is empty it takes as long and
	// refuses.
	Check(ctx context.Context, dn, password string) error
}
