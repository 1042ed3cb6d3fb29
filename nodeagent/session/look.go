package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/nodeagent/process"
	"github.com/carme-hpc/carme/nodeagent/watch"
)

const (
	// lookEvery is how often everything is looked at without a reason.
	lookEvery = 30 * time.Second
	// stageEvery is the shortest time between two looks at a job's stage,
	// whatever its user does to the directory.
	stageEvery = 100 * time.Millisecond
)

func (t *Table) lookRegularly(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.lookAll()
		}
	}
}

func (t *Table) event(e watch.Event) {
	if e.Lost {
		t.lookAll()
		t.mu.Lock()
		for _, entry := range t.jobs {
			entry.pending = true
		}
		t.mu.Unlock()
		t.lookSoon()
		return
	}
	t.mu.Lock()
	id, ok := t.watches[e.Watch]
	if e.Gone {
		delete(t.watches, e.Watch)
		if t.dirs[id] == e.Watch {
			delete(t.dirs, id)
		}
	}
	isStage := false
	if entry := t.jobs[id]; ok && entry != nil && entry.sess == e.Watch {
		entry.pending, isStage = true, true
		delete(t.watches, e.Watch)
	}
	t.mu.Unlock()
	switch {
	case !ok:
	case isStage:
		t.lookSoon()
	case id != 0:
		t.look(id)
	default:
		if n, err := strconv.ParseUint(e.Name, 10, 32); err == nil && n > 0 {
			t.look(uint32(n))
		}
	}
}

func (t *Table) lookSoon() {
	select {
	case t.lookAt <- struct{}{}:
	default: // stages has something to do already and looks at all
	}
}

// stages looks at the stages of jobs whose directories changed.
func (t *Table) stages(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.lookAt:
		}
		var due []*Job
		t.mu.Lock()
		for _, e := range t.jobs {
			if e.pending {
				e.pending = false
				t.watchSess(e) // before the look: what comes later is an event
				due = append(due, e.job)
			}
		}
		t.mu.Unlock()
		for _, j := range due {
			if j.look() {
				t.change()
			}
		}
		pause.Reset(stageEvery)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

func (t *Table) lookAll() {
	entries, err := os.ReadDir(t.Dir)
	if err != nil {
		t.Log.Error("cannot list jobs", "error", err)
		return
	}
	there := map[uint32]bool{}
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil || n == 0 || !e.IsDir() {
			continue
		}
		there[uint32(n)] = true
		t.look(uint32(n))
	}
	for _, j := range t.All() {
		if !there[j.Job] {
			t.look(j.Job)
		} else if j.look() {
			t.change()
		}
	}
}

// look reads a job's directory and takes what it says.
func (t *Table) look(id uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing {
		return
	}
	old := t.jobs[id]
	dir, err := t.openDir(id)
	if short(err) {
		t.Log.Error("cannot look at a job; it stays as it was", "job", id, "error", err)
		return
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Log.Warn("job's directory is not as the plugin makes it", "job", id, "error", err)
		}
		t.end(id, old)
		return
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	if old == nil && t.dirs[id] == 0 {
		if wd, err := t.addWatch(dir, watch.Names); err == nil {
			t.watches[wd], t.dirs[id] = id, wd
		}
	}
	notes, err := t.notes(dir, id)
	switch {
	case short(err):
		t.Log.Error("cannot look at a job; it stays as it was", "job", id, "error", err)
		return
	case errors.Is(err, fs.ErrNotExist): // it is not set up yet
		t.end(id, old)
		return
	case err != nil:
		t.Log.Warn("job's notes cannot be read", "job", id, "error", err)
		t.end(id, old)
		return
	}
	if old != nil && old.job.Instance == notes.Instance {
		return
	}
	t.end(id, old)
	if err := t.add(dir, notes); err != nil && !errors.Is(err, process.ErrEnded) {
		t.Log.Warn("job cannot be taken", "job", id, "error", err)
	}
}

// short reports whether an error says something about this process, not about
// the job.
func short(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// openDir opens a job's directory, which must be root's.
func (t *Table) openDir(id uint32) (*os.File, error) {
	name := filepath.Join(t.Dir, strconv.FormatUint(uint64(id), 10))
	fd, err := unix.Openat2(unix.AT_FDCWD, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = dir.Close()
		return nil, err
	}
	if st.Uid != t.Owner || st.Mode&0o022 != 0 {
		_ = dir.Close()
		return nil, fmt.Errorf("others can change it (owner %d, mode %04o)", st.Uid, st.Mode&0o7777)
	}
	return dir, nil
}

func (t *Table) addWatch(dir *os.File, mask uint32) (wd int, err error) {
	raw, err := dir.SyscallConn()
	if err != nil {
		return -1, err
	}
	if controlErr := raw.Control(func(fd uintptr) { wd, err = t.watcher.Add(int(fd), mask) }); controlErr != nil {
		return -1, controlErr
	}
	return wd, err
}

// noteMax is the size of the largest file of notes, in bytes.
const noteMax = 1 << 20

// readNote reads a file that the plugin wrote.
func (t *Table) readNote(dir *os.File, name string) ([]byte, error) {
	fd, err := openBelow(dir, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close() //nolint:errcheck // nothing was written
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Uid != t.Owner || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("others can change %s", name)
	}
	return io.ReadAll(io.LimitReader(file, noteMax))
}

func (t *Table) notes(dir *os.File, id uint32) (wire.Session, error) {
	data, err := t.readNote(dir, wire.SessionFile)
	if err != nil {
		return wire.Session{}, err
	}
	n, err := decode(data, id)
	if err != nil {
		return wire.Session{}, fmt.Errorf("read %s: %w", wire.SessionFile, err)
	}
	return n, nil
}

// add takes a job whose processes run.
func (t *Table) add(dir *os.File, notes wire.Session) error {
	e := &entry{job: &Job{Session: notes, done: make(chan struct{})}, sess: -1}
	anchor, err := process.Open(notes.Anchor, t.IsAnchor)
	if err != nil {
		return err
	}
	e.pidfds = append(e.pidfds, anchor)
	if text, err := t.readNote(dir, "extern"); err == nil {
		if pid, started, ok := extern(string(text)); ok {
			stepd, err := process.Open(pid, func(pid int) bool { return startedAt(pid) == started })
			if err != nil {
				_ = anchor.Close()
				return err
			}
			e.pidfds = append(e.pidfds, stepd)
		}
	}
	if fd, err := openBelow(dir, "sess", unix.O_PATH|unix.O_DIRECTORY); err == nil {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Uid != notes.UID {
			unix.Close(fd)
			t.Log.Warn("sessions directory is not the job's user's", "job", notes.Job)
		} else {
			e.job.sess = os.NewFile(uintptr(fd), "sess")
			t.watchSess(e)
		}
	}
	e.job.look()
	t.jobs[notes.Job] = e
	for _, p := range e.pidfds {
		go func() {
			process.Wait(p)
			t.endEntry(notes.Job, e)
		}()
	}
	t.Log.Info("job started", "job", notes.Job, "instance", notes.Instance, "uid", notes.UID, "app", notes.App)
	t.change()
	return nil
}

// watchSess watches the user's directory until something happens in it. There
// are no more events than looks, whatever the user does there.
func (t *Table) watchSess(e *entry) {
	if e.job.sess == nil {
		return
	}
	if wd, err := t.addWatch(e.job.sess, watch.Names|watch.Once); err == nil {
		e.sess = wd
		t.watches[wd] = e.job.Job
	}
}

// endEntry ends a job if it is still that one.
func (t *Table) endEntry(id uint32, e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.jobs[id] == e && !t.closing {
		t.end(id, e)
	}
}

// end takes a job out, nil for none.
func (t *Table) end(id uint32, e *entry) {
	if e == nil {
		return
	}
	delete(t.jobs, id)
	close(e.job.done)
	for _, p := range e.pidfds {
		_ = p.Close()
	}
	if e.sess >= 0 {
		delete(t.watches, e.sess)
		t.watcher.Remove(e.sess)
	}
	if e.job.sess != nil {
		_ = e.job.sess.Close()
	}
	t.Log.Info("job ended", "job", id, "instance", e.job.Instance)
	t.Ended(e.job, t.Now())
	t.change()
}
