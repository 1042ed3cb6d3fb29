package core

import (
	"fmt"
	"os/user"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// person is the job's user as the node knows them.
type person struct {
	UID, GID uint32
	GIDs     []uint32 // supplementary groups, as Slurm has them
	Name     string
	Full     string // as the directory spells it out, empty if it does not
	Home     string
	Groups   []string // names of GID and GIDs, for the catalogue
	named    []namedGroup
}

// namedGroup is a group of the user that has a name on the node.
type namedGroup struct {
	gid  uint32
	name string
}

// lookUp asks the node's name services (nsswitch.conf(5)) for the user. A
// group without a name is left out of Groups. Each question may go over the
// network, so none is asked twice.
func lookUp(uid, gid uint32, gids []uint32) (person, error) {
	p := person{UID: uid, GID: gid, GIDs: gids}
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return p, fmt.Errorf("user %d is unknown on this node: %w", uid, err)
	}
	p.Name, p.Full, p.Home = u.Username, u.Name, u.HomeDir
	asked := map[uint32]bool{}
	for _, g := range append([]uint32{gid}, gids...) {
		if asked[g] {
			continue
		}
		asked[g] = true
		if group, err := user.LookupGroupId(strconv.FormatUint(uint64(g), 10)); err == nil {
			p.Groups = append(p.Groups, group.Name)
			p.named = append(p.named, namedGroup{g, group.Name})
		}
	}
	return p, nil
}

// startLookUp is lookUp while other things are done; the function waits for it.
func startLookUp(uid, gid uint32, gids []uint32) func() (person, error) {
	var p person
	var err error
	done := make(chan struct{})
	go func() {
		p, err = lookUp(uid, gid, gids)
		close(done)
	}()
	return func() (person, error) {
		<-done
		return p, err
	}
}

// owns reports whether an open file belongs to the user.
func (p person) owns(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Uid == p.UID
}

// asUser runs f on a thread that is the user in every respect the kernel
// checks, in the mount namespace mnt, and ends the thread. Paths that a user
// names are opened there: root may not be able to (root_squash, Kerberos,
// FUSE), and must not when it could. Credentials are those of one thread in
// Linux; glibc and Go only pretend otherwise, hence the raw calls.
func asUser(mnt int, p person, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("leave the process's root directory: %w", err)
			}
			if err := unix.Setns(mnt, unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("join the job's mounts: %w", err)
			}
			if err := becomeThread(p); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// becomeThread sets groups, gid and uid of the calling thread alone, real,
// effective and saved (setgroups(2), setresgid(2), setresuid(2)).
func becomeThread(p person) error {
	// What the calls take for "as before": root.
	const unchanged = 1<<32 - 1
	if p.UID == unchanged || p.GID == unchanged {
		return fmt.Errorf("take the ids %d and %d: they are nobody's", p.UID, p.GID)
	}
	gids := append([]uint32{}, p.GIDs...)
	var list unsafe.Pointer
	if len(gids) > 0 {
		list = unsafe.Pointer(&gids[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(gids)), uintptr(list), 0); e != 0 {
		return fmt.Errorf("take the user's groups: %w", e)
	}
	gid, uid := uintptr(p.GID), uintptr(p.UID)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fmt.Errorf("take the user's group: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("become the user: %w", e)
	}
	return nil
}
