package config

import "strings"

// Match reports whether the clean absolute path is one that pattern means, for
// the user of that name.
//
// A pattern is a path. It matches itself and everything below. `/*` at its end
// matches everything below, but not the directory itself; elsewhere a component
// `*` is any one component, and `$USER` is the user's name. There are no
// further wildcards. The comparison is of names only: who opens the path must
// see to it that no link leads elsewhere.
func Match(pattern, path, user string) bool {
	want, have := components(pattern), components(path)
	if len(have) < len(want) {
		return false
	}
	for i, w := range want {
		switch {
		case w == "*":
		case w == "$USER":
			if user == "" || have[i] != user {
				return false
			}
		case w != have[i]:
			return false
		}
	}
	return true
}

func components(path string) []string {
	path = strings.Trim(path, "/")
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

// Of these are the names that the configuration knows.
const (
	letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + small
	small   = "abcdefghijklmnopqrstuvwxyz"
	digits  = "0123456789"
)

// isWord reports whether s is 1 to most characters, the first one of these, each
// other one of those too. Regular expressions say the same, and compiling them
// takes longer than all else that reading the configuration does, for each job.
func isWord(s string, most int, first, later string) bool {
	return s != "" && len(s) <= most && strings.Contains(first, s[:1]) && strings.Trim(s[1:], first+later) == ""
}
