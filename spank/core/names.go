package core

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Files with which a container names users and groups. The image's own do not
// know SlurmUser, without which no Slurm command starts, and the accounts they
// do know do not exist in a container of one user id.
const (
	passwdView = "/run/carme/passwd" //nolint:gosec // a path, no password
	groupView  = "/run/carme/group"
)

// names writes the node's local accounts and the user's own, with all groups.
func (s *sandbox) names() error {
	p := s.job.person
	id := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	lines := []string{p.passwd()}
	if err := withLocal("/etc/passwd", passwdView, lines); err != nil {
		return err
	}
	lines = nil
	for _, g := range p.named {
		lines = append(lines, strings.Join([]string{g.name, "x", id(g.gid), p.Name}, ":"))
	}
	return withLocal("/etc/group", groupView, lines)
}

// passwd is the user's line (passwd(5)). The shell is one that every image has; the
// user's own may be none of its programs.
func (p person) passwd() string {
	id := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	full := strings.ReplaceAll(cmp.Or(p.Full, p.Name), ":", " ")
	return strings.Join([]string{p.Name, "x", id(p.UID), id(p.GID), full, p.Home, "/bin/sh"}, ":")
}

// withLocal writes the lines of the node's file and those of extra whose name
// it does not have. The fields come from the name service, not from the user;
// a line that is not of the form is left out all the same.
func withLocal(from, to string, extra []string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("read the node's accounts: %w", err)
	}
	known := map[string]bool{}
	for line := range strings.SplitSeq(string(text), "\n") {
		name, _, _ := strings.Cut(line, ":")
		known[name] = true
	}
	var out bytes.Buffer
	out.Write(bytes.TrimRight(text, "\n"))
	out.WriteByte('\n')
	for _, line := range extra {
		name, _, _ := strings.Cut(line, ":")
		if known[name] || strings.ContainsAny(line, "\n\x00") {
			continue
		}
		known[name] = true
		out.WriteString(line + "\n")
	}
	if err := os.WriteFile(to, out.Bytes(), 0o444); err != nil {
		return fmt.Errorf("write %s: %w", to, err)
	}
	return nil
}
