package request

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// pathMax is Linux's PATH_MAX without the final NUL, in bytes (limits.h).
const pathMax = 4095

// nameMax is the longest name of an image or environment in bytes.
const nameMax = 128

// protected are the directories of which the set-up itself makes the job's
// view. No option reaches into, covers or shows them.
func protected() []string {
	return []string{"/proc", "/sys", "/dev", "/run/carme", "/var/run/carme", "/etc/carme"}
}

// covered are directories that no option may put something else over.
func covered() []string {
	return []string{"/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/run", "/var", "/root", "/boot"}
}

// CleanPath checks an absolute path as users may give it and returns it without
// a slash at its end. It refuses what is relative, has empty, `.` or `..`
// components, is longer than PATH_MAX, or has characters that cannot be
// printed. The error says what is wrong without repeating the path.
func CleanPath(path string) (string, error) {
	switch {
	case path == "":
		return "", errors.New("the path is empty; write it from / on")
	case strings.HasPrefix(path, "~"):
		return "", errors.New("~ is not replaced here; write $HOME")
	case path[0] != '/':
		return "", errors.New("the path is relative; write it from / on")
	case len(path) > pathMax:
		return "", fmt.Errorf("the path is longer than %d bytes", pathMax)
	case !printable(path):
		return "", errors.New("the path has characters that cannot be printed")
	case path == "/":
		return path, nil
	}
	path = strings.TrimSuffix(path, "/")
	for part := range strings.SplitSeq(path[1:], "/") {
		switch part {
		case "":
			return "", errors.New("the path has // in it; write it with single slashes")
		case ".", "..":
			return "", fmt.Errorf("the path has %s in it; write it out", part)
		}
	}
	return path, nil
}

// ValidName reports whether name can be the name of an image in the catalogue
// or of a conda environment: letters, digits, and `._+-` after the first, at
// most 128 bytes.
func ValidName(name string) bool {
	if name == "" || len(name) > nameMax {
		return false
	}
	for i, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && strings.IndexByte("._+-", c) >= 0:
		default:
			return false
		}
	}
	return true
}

// CheckSource refuses the clean absolute path of something to be shown in a
// job if that would show a directory the set-up guards: /proc, /sys, /dev, the
// state and configuration of Carme, or anything above them.
func CheckSource(path string) error {
	for _, p := range protected() {
		if within(path, p) {
			return fmt.Errorf("%s cannot be shown in a job", p)
		}
		if within(p, path) {
			return fmt.Errorf("%s cannot be shown in a job, because %s is in it; name the directories below it that you need", path, p)
		}
	}
	return nil
}

// CheckTarget refuses the clean absolute path at which something is to appear
// in a job if a directory the set-up makes or the system lives in would be
// covered or changed. Below /usr, /var and the like, but not below /etc, a
// target is fine.
func CheckTarget(path string) error {
	for _, p := range protected() {
		if within(path, p) || within(p, path) {
			return fmt.Errorf("nothing can be put at %s; choose another place, such as /mnt", shorten(path, p))
		}
	}
	for _, p := range covered() {
		if within(p, path) || p == "/etc" && within(path, p) {
			return fmt.Errorf("nothing can be put over %s; choose another place, such as /mnt", shorten(path, p))
		}
	}
	return nil
}

// shorten returns the shorter of a path and the directory that guards it: a
// path of a user, which may be long, is named only if it is above.
func shorten(path, guard string) string {
	if within(guard, path) {
		return path
	}
	return guard
}

// within reports whether the clean path is dir or below it.
func within(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

// printable reports whether s is UTF-8 of characters that can be printed, the
// blank included.
func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, c := range s {
		if !unicode.IsPrint(c) {
			return false
		}
	}
	return true
}
