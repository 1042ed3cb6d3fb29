package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// removeTime is how long one job's leftovers may take: what is left then
	// goes the next time.
	removeTime = 2 * time.Second
	// depthMax is how many directories are open at once. What lies deeper is
	// moved up into the first one and removed from there.
	depthMax = 64
)

// removal is that of a directory with what is in it, as in
// spank/cshim/common/rmtree.c. A part of it is a user's, who may have made it
// deeper than there are descriptors, and may be at it still.
type removal struct {
	top   int
	names int // of what was moved up
	moved bool
	late  func() bool
}

var errLate = errors.New("there is more than can be removed at once")

// remove removes the directory of a job unless a step is being set up in it, or
// the job is not dead any more. It reports whether it did.
func (d Doctor) remove(ctx context.Context, id string) (bool, error) {
	jobs, err := unix.Open(d.path(jobsDir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open /%s: %w", jobsDir, err)
	}
	defer unix.Close(jobs)
	dir, err := openDir(jobs, id)
	if errors.Is(err, unix.ENOENT) {
		return false, nil // by another's hand
	}
	if err != nil {
		return false, fmt.Errorf("open /%s: %w", path.Join(jobsDir, id), err)
	}
	defer unix.Close(dir)
	// The plugin's lock (spank/cshim/job.c): a requeued job has the same number.
	if err := unix.Flock(dir, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("lock /%s: %w", path.Join(jobsDir, id), err)
	}
	// Nothing that was known before the lock need be true still.
	state, age, err := d.judge(id)
	if err != nil || state == runs || state == waits && len(d.givenUp(ctx, map[string]time.Duration{id: age})) == 0 {
		return false, err
	}
	if err := d.noteEnd(id); err != nil {
		return false, err
	}
	end := d.Now().Add(removeTime)
	r := removal{top: dir, late: func() bool { return d.Now().After(end) }}
	err = r.all()
	if err == nil {
		err = unix.Unlinkat(dir, externName, 0)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		err = unix.Unlinkat(jobs, id, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return false, fmt.Errorf("remove /%s: %w", path.Join(jobsDir, id), err)
	}
	return true, nil
}

func openDir(at int, name string) (int, error) {
	return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// externName says whose the directory is (JOB_EXTERN in
// spank/cshim/common/jobfiles.h). It goes last: what there was no time for is known
// to be a leftover by it.
const externName = "extern"

// all removes everything below the top directory but externName.
func (r *removal) all() error {
	for {
		r.moved = false
		if err := r.below(r.top, 0); err != nil || !r.moved {
			return err
		}
	}
}

// below removes what is in an open directory.
func (r *removal) below(dir, depth int) error {
	fd, err := openDir(dir, ".")
	if err != nil {
		return err
	}
	list := os.NewFile(uintptr(fd), "directory")
	defer list.Close() //nolint:errcheck // nothing was written
	for {
		const some = 256
		names, err := list.Readdirnames(some)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if r.late() {
				return errLate
			}
			if depth == 0 && name == externName {
				continue
			}
			if err := r.entry(dir, name, depth); err != nil {
				return err
			}
		}
	}
}

// entry removes one name of an open directory.
func (r *removal) entry(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if depth == depthMax {
		return r.moveUp(dir, name)
	}
	sub, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	if err := r.below(sub, depth+1); err != nil {
		return err
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

func (r *removal) moveUp(dir int, name string) error {
	for {
		r.names++
		err := unix.Renameat2(dir, name, r.top, fmt.Sprintf(".carme-removed-%d", r.names), unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			r.moved = true
			return err
		}
	}
}
