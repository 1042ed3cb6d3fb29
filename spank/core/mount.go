package core

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The calls below use the descriptor-based mount interface (fsopen(2),
// open_tree(2), move_mount(2), mount_setattr(2); Linux 5.12): what is mounted
// and where it goes are both opened first, so that no path is walked twice.

// openTarget opens a mount point. Symbolic links are refused: whoever could
// place one would choose what we cover.
func openTarget(path string) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("open mount point %s: %w", path, err)
	}
	return fd, nil
}

// newFS makes a filesystem that is mounted nowhere yet and returns it as a
// directory descriptor. options are mount options, such as "mode", "1777".
func newFS(kind string, attrs int, options ...string) (int, error) {
	ctx, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open filesystem %s: %w", kind, err)
	}
	defer unix.Close(ctx)
	for i := 0; i+1 < len(options); i += 2 {
		if err := unix.FsconfigSetString(ctx, options[i], options[i+1]); err != nil {
			return -1, fmt.Errorf("set %s=%s of filesystem %s: %w", options[i], options[i+1], kind, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("create filesystem %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("mount filesystem %s: %w", kind, err)
	}
	return fd, nil
}

// cloneTree makes a detached copy of the mount at source, with what is mounted
// below it.
func cloneTree(source int) (int, error) {
	fd, err := unix.OpenTree(source, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("clone a mount: %w", err)
	}
	return fd, nil
}

// setAttrs sets mount attributes (MOUNT_ATTR_RDONLY, ...) on a detached tree.
func setAttrs(tree int, attrs uint64) error {
	if attrs == 0 {
		return nil
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attrs}); err != nil {
		return fmt.Errorf("set mount attributes: %w", err)
	}
	return nil
}

// attachAt mounts a detached tree over an open mount point.
func attachAt(tree, target int) error {
	if err := unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach a mount: %w", err)
	}
	return nil
}

// attach mounts a detached tree over path and closes it.
func attach(tree int, path string) error {
	defer unix.Close(tree)
	target, err := openTarget(path)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := attachAt(tree, target); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// tmpfs mounts an empty, private directory over path.
func tmpfs(path, mode, size string) error {
	fd, err := newFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode", mode, "size", size)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return attach(fd, path)
}

// bind mounts the tree at an open source over path.
func bind(source int, path string, attrs uint64) error {
	tree, err := cloneTree(source)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := setAttrs(tree, attrs); err != nil {
		unix.Close(tree)
		return fmt.Errorf("%s: %w", path, err)
	}
	return attach(tree, path)
}

// isDir reports whether path is a directory and no symbolic link.
func isDir(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// remountReadOnly makes the mount at path read-only; those below it stay as
// they are.
func remountReadOnly(path string) error {
	if err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

// narrow covers a directory such that only the children for which keep is true
// remain. They must be directories or files, not links.
func narrow(dir string, keep func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	kept := map[string]int{}
	defer func() {
		for _, fd := range kept {
			unix.Close(fd)
		}
	}()
	cover, err := newFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode", "555", "size", "1M")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !keep(e.Name()) {
			continue
		}
		fd, err := openTarget(filepath.Join(dir, e.Name()))
		if err != nil {
			unix.Close(cover)
			return err
		}
		kept[e.Name()] = fd
		if err := placeholder(cover, e.Name(), e.IsDir()); err != nil {
			unix.Close(cover)
			return err
		}
	}
	if err := attach(cover, dir); err != nil {
		return err
	}
	for name, fd := range kept {
		if err := bind(fd, filepath.Join(dir, name), 0); err != nil {
			return err
		}
	}
	return remountReadOnly(dir)
}

// placeholder makes an empty directory or file to mount on.
func placeholder(dir int, name string, isDir bool) error {
	if isDir {
		if err := unix.Mkdirat(dir, name, 0o755); err != nil && err != unix.EEXIST {
			return fmt.Errorf("make %s: %w", name, err)
		}
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o444)
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return unix.Close(fd)
}
