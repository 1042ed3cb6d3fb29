//go:build !profile

package daemon

// profile is in profile.go; programs that are installed have none.
func profile() (stop func(), err error) { return func() {}, nil }
