package control

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// order is what the child is told.
type order struct {
	Request

	// Own leaves the ids as they are.
	Own bool `json:"own,omitempty"`
}

// Child answers one request from in on out, as the user whom it names: it does
// what that user may do. It must have a process of its own, for it gives up
// root's rights for good.
func Child(in io.Reader, out io.Writer) error {
	var o order
	if err := json.NewDecoder(io.LimitReader(in, lineMax)).Decode(&o); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	req := o.Request
	if !o.Own {
		if err := become(req); err != nil {
			return err
		}
	}
	answer := Answer{Error: "this is not a request"}
	switch req.Op {
	case "tail":
		answer = tail(req)
	case "home":
		answer = home(req.Path)
	}
	if err := json.NewEncoder(out).Encode(answer); err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}

// become makes this process one of the user's that the user can neither trace nor
// look into. It runs outside of all jobs: who could take it over would be free of
// their jobs' limits, and could open every GPU of the node.
func become(req Request) error {
	if err := check(req); err != nil {
		return err
	}
	gids := make([]int, 0, len(req.GIDs))
	for _, g := range req.GIDs {
		gids = append(gids, int(g))
	}
	uid, gid := int(req.UID), int(req.GID)
	if err := syscall.Setgroups(gids); err != nil {
		return fmt.Errorf("take the user's groups: %w", err)
	}
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("take the user's group: %w", err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("become the user: %w", err)
	}
	if syscall.Geteuid() != uid || syscall.Getuid() != uid || syscall.Getegid() != gid {
		return errors.New("become the user: the ids have not changed")
	}
	// The kernel does so with the change of ids, but for what fs.suid_dumpable says
	// (proc_sys_fs(5)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep the user from tracing this process: %w", err)
	}
	return nil
}

// codeServer is the code of a file system that does not answer.
const codeServer = "server"

// explain is an error in words for the owner of the file, and its code.
func explain(what string, err error) (text, code string) {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return what + " does not exist", "missing"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return what + " may not be opened by you", "denied"
	case errors.Is(err, unix.EDQUOT):
		return what + " is full: your quota is used up", "quota"
	case errors.Is(err, unix.ENOSPC):
		return what + " is full: its file system has no space left", "space"
	case errors.Is(err, unix.EROFS):
		return what + " is read-only", "readonly"
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.EIO), errors.Is(err, unix.ETIMEDOUT), errors.Is(err, unix.EHOSTDOWN), errors.Is(err, unix.ENOTCONN):
		return what + " cannot be reached: its file server does not answer", codeServer
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return what + ": " + errno.Error(), ""
	}
	return what + " cannot be used", ""
}

// failed is the answer to a request whose file could not be used.
func failed(what string, err error) Answer {
	text, code := explain(what, err)
	return Answer{Error: text, Code: code}
}

func tail(req Request) Answer {
	const what = "the file"
	// A FIFO would be waited for, a terminal would become ours.
	fd, err := unix.Open(req.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(what, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed(what, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return Answer{Error: what + " is a device, a directory or the like", Code: "kind"}
	}
	offset := req.Offset
	if offset < 0 {
		offset = max(0, st.Size+offset)
	}
	offset = min(offset, st.Size)
	size := req.Max
	if size <= 0 || size > dataMax {
		size = dataMax
	}
	data := make([]byte, size)
	n := 0
	for n < size {
		got, err := unix.Pread(fd, data[n:], offset+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return failed(what, err)
		}
		if got == 0 {
			break
		}
		n += got
	}
	return Answer{OK: true, Offset: offset, Size: st.Size, Data: data[:n]}
}

func home(path string) Answer {
	const what = "your home directory"
	answer := Answer{OK: true}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		answer.Problem, answer.Code = explain(what, err)
		return answer
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		answer.Problem, answer.Code = explain(what, err)
		return answer
	}
	const mb = 1 << 20
	block := uint64(st.Bsize)                      //nolint:gosec // G115: the kernel's block size is positive
	answer.FreeMB = int64(st.Bavail * block / mb)  //nolint:gosec // G115: megabytes of a file system
	answer.TotalMB = int64(st.Blocks * block / mb) //nolint:gosec // G115: megabytes of a file system
	// Quotas show only when something is written.
	if err := tryWrite(path); err != nil {
		answer.Problem, answer.Code = explain(what, err)
	}
	return answer
}

// tryWrite writes a page to a file without a name, or with one that is gone at
// once.
func tryWrite(dir string) error {
	fd, err := unix.Open(dir, unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EINVAL) {
		var random [8]byte
		_, _ = rand.Read(random[:]) // never fails (crypto/rand)
		name := filepath.Join(dir, ".carme-"+hex.EncodeToString(random[:]))
		if fd, err = unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err == nil {
			defer os.Remove(name) //nolint:errcheck // the user can too
		}
	}
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, make([]byte, 4096))
	if err == nil {
		err = unix.Fsync(fd)
	}
	// File servers tell of a full disk at last when the file is closed.
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	return err
}
