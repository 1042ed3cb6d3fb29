package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Kinds of changes to watch for.
const (
	// Names is that a name comes, goes, or is written to.
	Names = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_CLOSE_WRITE | unix.IN_DELETE_SELF | unix.IN_ONLYDIR
	// Once ends the watch with its first event: whoever causes many costs
	// nothing more.
	Once = unix.IN_ONESHOT
	// Modes is that owner or mode of a name changes.
	Modes = unix.IN_ATTRIB
	// Content is that a file's content changes.
	Content = unix.IN_MODIFY
)

// Event is one change.
type Event struct {
	// Watch is what Add returned.
	Watch int
	// Name is the entry of the directory, empty for the directory itself.
	Name string
	// Gone says that the watch has ended with what it watched.
	Gone bool
	// Lost says that events were lost: look at everything again.
	Lost bool
}

// Watcher is one inotify instance.
type Watcher struct {
	file *os.File
	buf  []byte
}

// New makes a watcher.
func New() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	return &Watcher{file: os.NewFile(uintptr(fd), "inotify"), buf: make([]byte, 64<<10)}, nil
}

// Close ends the watcher; a Read that waits returns os.ErrClosed.
func (w *Watcher) Close() error { return w.file.Close() }

// AddPath watches a path.
func (w *Watcher) AddPath(path string, mask uint32) (int, error) {
	wd := -1
	raw, err := w.file.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("watch %s: %w", path, err)
	}
	var addErr error
	if err := raw.Control(func(fd uintptr) { wd, addErr = unix.InotifyAddWatch(int(fd), path, mask) }); err != nil {
		return -1, fmt.Errorf("watch %s: %w", path, err)
	}
	if addErr != nil {
		return -1, fmt.Errorf("watch %s: %w", path, addErr)
	}
	return wd, nil
}

// Add watches what an open descriptor refers to, whatever its name is now.
func (w *Watcher) Add(fd int, mask uint32) (int, error) {
	return w.AddPath("/proc/self/fd/"+strconv.Itoa(fd), mask)
}

// Remove ends one watch. One that has ended already is no error.
func (w *Watcher) Remove(wd int) {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_, _ = unix.InotifyRmWatch(int(fd), uint32(wd)) //nolint:gosec // G115: a watch descriptor is not negative
	})
}

// Read waits for changes.
func (w *Watcher) Read() ([]Event, error) {
	n, err := w.file.Read(w.buf)
	if err != nil {
		if errors.Is(err, os.ErrClosed) {
			return nil, os.ErrClosed
		}
		return nil, fmt.Errorf("read file changes: %w", err)
	}
	return parse(w.buf[:n]), nil
}

// parse reads struct inotify_event (inotify(7)).
func parse(data []byte) []Event {
	var all []Event
	for len(data) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(data[4:])
		size := int(binary.NativeEndian.Uint32(data[12:]))
		e := Event{
			Watch: int(int32(binary.NativeEndian.Uint32(data))), //nolint:gosec // G115: the field is an int
			Gone:  mask&unix.IN_IGNORED != 0,
			Lost:  mask&unix.IN_Q_OVERFLOW != 0,
		}
		data = data[unix.SizeofInotifyEvent:]
		if size > len(data) {
			break
		}
		name, _, _ := bytes.Cut(data[:size], []byte{0})
		e.Name = string(name)
		data = data[size:]
		all = append(all, e)
	}
	return all
}
