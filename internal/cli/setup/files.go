package setup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
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

// settle writes a configuration file if there is none. One that is there is the
// admin's: what would be written goes beside it, if it differs.
func (s *setup) settle(name, text string) error {
	old, err := os.ReadFile(s.path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := writeFile(s.path(name), []byte(text), 0o644); err != nil {
			return err
		}
		s.say("wrote", name, "")
		return nil
	case err != nil:
		return fmt.Errorf("read %s: %w", name, err)
	case bytes.Equal(old, []byte(text)):
		s.say("kept", name, "")
		return nil
	}
	if err := writeFile(s.path(name+".new"), []byte(text), 0o644); err != nil {
		return err
	}
	s.say("kept", name, "it differs from what these options say; compare "+name+".new")
	return nil
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
