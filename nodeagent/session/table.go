package session

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/nodeagent/watch"
)

// Options are where the jobs are. The zero values of Owner, IsAnchor and Now
// are those of a node.
type Options struct {
	// Dir is /run/carme/jobs, Socket /run/carme/agent.sock.
	Dir    string
	Socket string
	// Owner is who makes the jobs' directories: root.
	Owner uint32
	// IsAnchor checks that a process is an anchor.
	IsAnchor func(pid int) bool
	Now      func() time.Time
	Log      *slog.Logger
	// Ended is told of each job that has ended, after its Done was closed. It
	// must not block.
	Ended func(*Job, time.Time)
}

// Table is the jobs of this node.
type Table struct {
	Options

	watcher *watch.Watcher
	changed chan struct{}
	listen  net.Listener
	lookAt  chan struct{} // some job's stage may have changed

	mu      sync.Mutex
	jobs    map[uint32]*entry
	watches map[int]uint32 // watch → job; 0 is Dir
	dirs    map[uint32]int // job → watch of its directory, before it is set up
	closing bool
}

type entry struct {
	job     *Job
	sess    int // watch
	pidfds  []*os.File
	pending bool // a look is due
}

const (
	// lookEvery is how often everything is looked at without a reason.
	lookEvery = 30 * time.Second
	// stageEvery is the shortest time between two looks at a job's stage,
	// whatever its user does to the directory.
	stageEvery = 100 * time.Millisecond
	// registerTime is how long the plugin may take to say what it has to say.
	registerTime = time.Second
	// registering is how many may speak at once.
	registering = 32
)

// Open reads the jobs there are and listens for new ones. Run must follow.
func Open(o Options) (*Table, error) {
	if o.IsAnchor == nil {
		o.IsAnchor = IsAnchor
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Ended == nil {
		o.Ended = func(*Job, time.Time) {}
	}
	t := &Table{
		Options: o, changed: make(chan struct{}, 1), lookAt: make(chan struct{}, 1),
		jobs: map[uint32]*entry{}, watches: map[int]uint32{}, dirs: map[uint32]int{},
	}
	// As the plugin makes them (spank/cshim/job.c).
	if err := os.MkdirAll(filepath.Dir(o.Dir), 0o755); err != nil { //nolint:gosec // G301: /run/carme is for everybody to enter
		return nil, fmt.Errorf("make %s: %w", filepath.Dir(o.Dir), err)
	}
	if err := os.Mkdir(o.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make %s: %w", o.Dir, err)
	}
	watcher, err := watch.New()
	if err != nil {
		return nil, err
	}
	t.watcher = watcher
	wd, err := watcher.AddPath(o.Dir, watch.Names)
	if err == nil {
		t.watches[wd] = 0
		t.listen, err = listenPrivate(o.Socket)
	}
	if err != nil {
		_ = watcher.Close()
		return nil, err
	}
	t.lookAll()
	return t, nil
}

func listenPrivate(name string) (net.Listener, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", name)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return l, nil
}

// Run keeps the table until ctx ends. Jobs are not touched then: they go on.
func (t *Table) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		_ = t.watcher.Close()
		_ = t.listen.Close()
	})
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { t.serve(ctx) })
	all.Go(func() { t.stages(ctx) })
	all.Go(func() { t.lookRegularly(ctx) })
	for {
		events, err := t.watcher.Read()
		if errors.Is(err, os.ErrClosed) {
			t.close()
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range events {
			t.event(e)
		}
	}
}

// close frees what is held for jobs, which go on.
func (t *Table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closing = true
	for _, e := range t.jobs {
		for _, p := range e.pidfds {
			_ = p.Close()
		}
	}
}

// Get returns a job.
func (t *Table) Get(id uint32) (*Job, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.jobs[id]
	if !ok {
		return nil, false
	}
	return e.job, true
}

// All returns the jobs in order of their ids.
func (t *Table) All() []*Job {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*Job, 0, len(t.jobs))
	for _, e := range t.jobs {
		all = append(all, e.job)
	}
	slices.SortFunc(all, func(a, b *Job) int { return cmp.Compare(a.Job, b.Job) })
	return all
}

// Changed receives when a job came, went, or reached another stage.
func (t *Table) Changed() <-chan struct{} { return t.changed }

func (t *Table) change() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// SetGone notes which of the jobs that were asked about Slurm does not know
// any more, and returns those that it knew before.
func (t *Table) SetGone(asked []*Job, gone []uint32) []*Job {
	var lost []*Job
	for _, j := range asked {
		is := slices.Contains(gone, j.Job)
		j.mu.Lock()
		if is && !j.gone {
			lost = append(lost, j)
		}
		j.gone = is
		j.mu.Unlock()
	}
	return lost
}

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
	if err := t.add(dir, notes); err != nil && !errors.Is(err, errEnded) {
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
	anchor, err := openProcess(notes.Anchor, t.IsAnchor)
	if err != nil {
		return err
	}
	e.pidfds = append(e.pidfds, anchor)
	if text, err := t.readNote(dir, "extern"); err == nil {
		if pid, started, ok := extern(string(text)); ok {
			stepd, err := openProcess(pid, func(pid int) bool { return startedAt(pid) == started })
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
			waitEnd(p)
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

// registration is what the plugin says when a job is set up.
type registration struct {
	Event string `json:"event"`
	Job   uint32 `json:"job"`
}

func (t *Table) serve(ctx context.Context) {
	slots := make(chan struct{}, registering)
	for {
		conn, err := t.listen.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			t.Log.Error("cannot take registrations", "error", err)
			if !pause(ctx, stageEvery) {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			go func() {
				defer func() { <-slots }()
				t.register(conn)
			}()
		default:
			_ = conn.Close() // the directory tells of the job too
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (t *Table) register(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // nothing was written
	uid, err := PeerUID(conn.(*net.UnixConn))
	if err != nil || uid != t.Owner {
		t.Log.Warn("registration refused: the peer is not root", "uid", uid, "error", err)
		return
	}
	if err := conn.SetDeadline(time.Now().Add(registerTime)); err != nil {
		return
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 1024)).ReadBytes('\n')
	if err != nil {
		return
	}
	var r registration
	if err := json.Unmarshal(line, &r); err != nil || r.Job == 0 {
		t.Log.Warn("registration cannot be read", "error", err)
		return
	}
	t.look(r.Job)
}
