package session

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
)

// Stages of a job, as internal/wire/api has them.
const (
	StageImage = "image" // the image is starting
	StageApp   = "app"   // the app is starting
	StageReady = "ready" // the app listens
)

var (
	instancePattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
	socketPattern   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)
)

func check(n wire.Session, id uint32) error {
	switch {
	case n.Job != id:
		return fmt.Errorf("it is of job %d", n.Job)
	case !instancePattern.MatchString(n.Instance):
		return fmt.Errorf("%q is not an instance", n.Instance)
	case n.Anchor <= 1:
		return fmt.Errorf("%d is not an anchor", n.Anchor)
	case n.Socket != "" && !socketPattern.MatchString(n.Socket):
		return fmt.Errorf("%q is not a name of a socket", n.Socket)
	}
	return nil
}

// Job is a sealed job on this node.
type Job struct {
	wire.Session

	sess *os.File // O_PATH of the sessions directory, nil without one
	done chan struct{}

	mu    sync.Mutex
	stage string
	text  string
	gone  bool
}

// Done is closed when the job has ended here.
func (j *Job) Done() <-chan struct{} { return j.done }

// Ended reports whether it has.
func (j *Job) Ended() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// Stage is how far the start of the app is, and what its starter says about it.
// The text is the user's: not to be trusted, but printable and short.
func (j *Job) Stage() (stage, text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stage, j.text
}

// Gone reports whether Slurm does not know the job any more.
func (j *Job) Gone() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.gone
}

// below is how a name in a directory of the user is opened: nothing leads out,
// and nothing is waited for.
func below(flags uint64) *unix.OpenHow {
	return &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
}

// openBelow opens a name in a directory.
func openBelow(dir *os.File, name string, flags uint64) (int, error) {
	raw, err := dir.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, openErr := -1, error(nil)
	// Control keeps the directory's descriptor from being closed and reused.
	if err := raw.Control(func(at uintptr) {
		for {
			fd, openErr = unix.Openat2(int(at), name, below(flags))
			// EAGAIN is that the user has a lease on the file: not our problem.
			if !errors.Is(openErr, unix.EINTR) {
				return
			}
		}
	}); err != nil {
		return -1, os.ErrClosed
	}
	return fd, openErr
}

// statusMax is how much of the status file counts, in bytes.
const statusMax = 4096

// look finds the stage anew and reports whether it or the text changed.
func (j *Job) look() bool {
	stage, text := StageImage, ""
	if j.sess != nil {
		word, said, ok := j.status()
		if ok {
			stage, text = StageApp, said
			if word == wire.AppReady && j.listens() {
				stage = StageReady
			}
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	changed := stage != j.stage || text != j.text
	j.stage, j.text = stage, text
	return changed
}

// status reads the user's status file: a word, and a line for people.
func (j *Job) status() (word, text string, ok bool) {
	// A FIFO, or a lease of the user's on the file, must not stop us.
	fd, err := openBelow(j.sess, wire.StatusFile, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return "", "", false
	}
	file := os.NewFile(uintptr(fd), wire.StatusFile)
	defer file.Close() //nolint:errcheck // nothing was written
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != j.UID {
		return "", "", false
	}
	data, err := io.ReadAll(io.LimitReader(file, statusMax))
	if err != nil {
		return "", "", false
	}
	first, rest, _ := bytes.Cut(data, []byte{'\n'})
	second, _, _ := bytes.Cut(rest, []byte{'\n'})
	return string(bytes.TrimSpace(first)), printable(string(second)), true
}

// textMax is how long the text of a stage is at most, in bytes.
const textMax = 400

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < ' ' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
	for len(s) > textMax {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return strings.TrimSpace(s)
}

func (j *Job) listens() bool {
	fd, err := j.openSocket()
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// decode reads a wire.SessionFile.
func decode(data []byte, id uint32) (wire.Session, error) {
	var n wire.Session
	if err := json.Unmarshal(data, &n); err != nil {
		return wire.Session{}, err
	}
	return n, check(n, id)
}
