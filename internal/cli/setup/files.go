package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// path is where a file of the host is, below Root.
func (s *setup) path(name string) string { return filepath.Join(s.Root, name) }

// say tells of one thing that was done.
func (s *setup) say(what, name, why string) {
	if why != "" {
		why = "  " + why
	}
	fmt.Fprintf(s.Out, "  %-6s %s%s\n", what, name, why)
}

// own gives a file to a user and the group of the same name.
func (s *setup) own(name, owner string) error {
	if s.Unprivileged || owner == "" {
		return nil
	}
	uid, gid, err := ids(owner)
	if err != nil {
		return err
	}
	if err := os.Chown(s.path(name), uid, gid); err != nil {
		return fmt.Errorf("give %s to %s: %w", name, owner, err)
	}
	return nil
}

func ids(owner string) (uid, gid int, err error) {
	u, err := user.Lookup(owner)
	if err != nil {
		return 0, 0, fmt.Errorf("look up user %s: %w", owner, err)
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, fmt.Errorf("look up user %s: %w", owner, err)
	}
	if gid, err = strconv.Atoi(u.Gid); err != nil {
		return 0, 0, fmt.Errorf("look up user %s: %w", owner, err)
	}
	return uid, gid, nil
}

// directory makes a directory of a user.
func (s *setup) directory(name string, mode os.FileMode, owner string) error {
	if err := os.MkdirAll(s.path(name), mode); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	if err := os.Chmod(s.path(name), mode); err != nil {
		return fmt.Errorf("set the mode of %s: %w", name, err)
	}
	return s.own(name, owner)
}

// place writes a file of ours, whatever was there.
func (s *setup) place(name string, data []byte, mode os.FileMode, owner string) error {
	if err := writeFile(s.path(name), data, mode); err != nil {
		return err
	}
	s.say("wrote", name, "")
	return s.own(name, owner)
}

// settle writes a configuration file if there is none, or if the one that is there
// is as an earlier run wrote it. One that the admin has edited stays: what would
// be written goes beside it, if it differs.
func (s *setup) settle(name, text string) error {
	old, err := os.ReadFile(s.path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.write(name, text, "")
	case err != nil:
		return fmt.Errorf("read %s: %w", name, err)
	case bytes.Equal(old, []byte(text)):
		s.say("kept", name, "")
		return nil
	}
	edited, err := s.edited(name)
	if err != nil {
		return err
	}
	if !edited {
		return s.write(name, text, "anew: these options say something else than the last ones, and nobody had edited it")
	}
	if err := writeFile(s.path(name+".new"), []byte(text), 0o644); err != nil {
		return err
	}
	s.say("kept", name, "it differs from what these options say; compare "+name+".new")
	return nil
}

// write writes a configuration file, and keeps in mind what it wrote.
func (s *setup) write(name, text, why string) error {
	for _, file := range []string{writtenDir + name, name} {
		if err := writeFile(s.path(file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	s.changed[readers()[name]] = true
	s.say("wrote", name, why)
	return nil
}

// edited says whether a configuration file is another than an earlier run wrote.
func (s *setup) edited(name string) (bool, error) {
	is, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	was, err := os.ReadFile(s.path(writtenDir + name))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // it was never written here
	}
	if err != nil {
		return false, fmt.Errorf("read what was written last: %w", err)
	}
	return !bytes.Equal(is, was), nil
}

// hand makes sure that a daemon can read a file of the admin's, and returns the
// name under which it can: what its user, or its unit, is kept from is copied.
func (s *setup) hand(ctx context.Context, file, owner, to string, mode os.FileMode) (string, error) {
	if file == "" || s.Unprivileged {
		return file, nil
	}
	hidden := slices.ContainsFunc([]string{"/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/"}, func(dir string) bool {
		return strings.HasPrefix(file, dir) // ProtectHome= and PrivateTmp= in the units
	})
	if !hidden && s.command(ctx, owner, "test", "-r", file) == nil {
		return file, nil
	}
	data, err := os.ReadFile(file) //nolint:gosec // the admin's own
	if err != nil {
		return "", fmt.Errorf("read what %s needs: %w", owner, err)
	}
	if old, err := os.ReadFile(s.path(to)); err == nil && bytes.Equal(old, data) {
		s.say("kept", to, "")
		return to, s.own(to, owner)
	}
	if err := writeFile(s.path(to), data, mode); err != nil {
		return "", err
	}
	s.changed[owner+".service"] = true
	s.say("copied", file, "to "+to+", for "+owner)
	return to, s.own(to, owner)
}

// writeFile writes a file whole or not at all.
func writeFile(name string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil { //nolint:gosec // /etc/carme is for all to read
		return fmt.Errorf("make the directory of %s: %w", name, err)
	}
	temporary := name + ".tmp"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove an old %s: %w", temporary, err)
	}
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode) //nolint:gosec // our own files
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Chmod(temporary, mode) // whatever the umask is
	}
	if err == nil {
		err = os.Rename(temporary, name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// ownGroup gives a directory to a user and another user's group.
func (s *setup) ownGroup(name, owner, group string) error {
	uid, _, err := ids(owner)
	if err != nil {
		return err
	}
	_, gid, err := ids(group)
	if err != nil {
		return err
	}
	if err := os.Chown(s.path(name), uid, gid); err != nil {
		return fmt.Errorf("give %s to %s: %w", name, owner, err)
	}
	return nil
}
