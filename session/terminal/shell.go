package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/creack/pty"
)

const (
	// scrollback is how much output a shell keeps for those who come back, in
	// bytes.
	scrollback = 256 << 10
	// backlog is how many pieces of output a viewer may be behind before it is
	// sent away; it comes back and is shown the scrollback.
	backlog = 256
)

// shell is one shell with its terminal and those who look at it.
type shell struct {
	tty *os.File
	cmd *exec.Cmd

	mu      sync.Mutex
	past    []byte
	viewers map[*viewer]bool
	over    bool
	done    chan struct{}
}

// viewer gets the shell's output; it is closed when the shell ends or the
// viewer is too slow.
type viewer struct {
	out chan []byte
}

// startShell starts the user's shell.
func startShell(env []string) (*shell, error) {
	program := loginShell(env)
	cmd := exec.Command(program, "-l") //nolint:gosec,noctx // the user's own shell, as long as they like
	cmd.Env = append(append([]string(nil), env...), "TERM=xterm-256color", "COLORTERM=truecolor")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	s := &shell{tty: tty, cmd: cmd, viewers: map[*viewer]bool{}, done: make(chan struct{})}
	go s.pump()
	return s, nil
}

// loginShell is $SHELL if the image has it, else the best that it has.
func loginShell(env []string) string {
	candidates := []string{"/bin/bash", "/bin/sh"}
	if own := variable(env, "SHELL"); own != "" {
		candidates = append([]string{own}, candidates...)
	}
	for _, c := range candidates {
		if path, err := exec.LookPath(c); err == nil {
			return path
		}
	}
	return "/bin/sh"
}

// variable is the last value of a variable in an environment.
func variable(env []string, name string) string {
	value := ""
	for _, one := range env {
		if rest, ok := strings.CutPrefix(one, name+"="); ok {
			value = rest
		}
	}
	return value
}

// pump hands the shell's output to everyone until the shell ends.
func (s *shell) pump() {
	buf := make([]byte, 32<<10)
	for {
		n, err := s.tty.Read(buf)
		if n > 0 {
			s.show(append([]byte(nil), buf[:n]...))
		}
		if err != nil {
			break // EIO: the last process on the terminal is gone
		}
	}
	_ = s.cmd.Wait() // its status is shown by nobody
	s.mu.Lock()
	s.over = true
	for v := range s.viewers {
		close(v.out)
	}
	clear(s.viewers)
	s.mu.Unlock()
	_ = s.tty.Close() // nothing is left in it
	close(s.done)
}

func (s *shell) show(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.past = append(s.past, data...)
	if over := len(s.past) - scrollback; over > 0 {
		s.past = append([]byte(nil), s.past[over:]...)
	}
	for v := range s.viewers {
		select {
		case v.out <- data:
		default:
			delete(s.viewers, v)
			close(v.out)
		}
	}
}

// errOver says that the shell has ended.
var errOver = errors.New("the shell has ended")

// join returns what is on the screen and a viewer for the rest.
func (s *shell) join() ([]byte, *viewer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, nil, errOver
	}
	v := &viewer{out: make(chan []byte, backlog)}
	s.viewers[v] = true
	return append([]byte(nil), s.past...), v, nil
}

func (s *shell) leave(v *viewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.viewers[v] {
		delete(s.viewers, v)
		close(v.out)
	}
}

func (s *shell) write(data []byte) error {
	if _, err := s.tty.Write(data); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return fmt.Errorf("write to the terminal: %w", err)
	}
	return nil
}

// resize sets the size in characters; those of no screen are left alone.
func (s *shell) resize(rows, cols uint16) error {
	if rows == 0 || cols == 0 || rows > 1000 || cols > 2000 {
		return nil
	}
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	return nil
}

// end hangs up, as a closed terminal does.
func (s *shell) end() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGHUP) // ESRCH: it has ended
}
