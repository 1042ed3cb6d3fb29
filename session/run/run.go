package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
)

// Paths are where things lie inside a job.
type Paths struct {
	App     string // description, a wire.App as JSON
	Dir     string // the session's directory
	Session string // the program itself
}

// JobPaths are those of a real job (spank/core/session.go).
func JobPaths() Paths {
	return Paths{App: "/run/carme/job/" + wire.AppFile, Dir: "/run/carme/sess", Session: "/run/carme/session"}
}

// grace is how long an app has to end after SIGTERM.
const grace = 10 * time.Second

// Runner runs one app and one command.
type Runner struct {
	Paths  Paths
	Env    []string
	Stdin  *os.File
	Stdout *os.File
	Stderr *os.File
	// Grace is how long the app has to end after SIGTERM; 0: ten seconds.
	Grace time.Duration
}

// errTaken says that another task of the job has started the app.
var errTaken = errors.New("the app is started already")

// Run starts the app and command and returns the status to exit with: the
// command's if it failed, else the app's. It returns when both have ended, or
// at once when the command cannot be started. A command that fails ends the
// app; one that succeeds leaves it running.
//
// Where another task has started the app, Run becomes the command by execve(2)
// and returns only if that fails.
func (r *Runner) Run(command []string) (int, error) {
	if len(command) == 0 {
		return 0, errors.New("there is no command to run")
	}
	app, err := r.load()
	if err != nil {
		return 0, err
	}
	lock, err := r.lock()
	if errors.Is(err, errTaken) {
		return 0, r.become(command)
	}
	if err != nil {
		return 0, err
	}
	defer lock.Close() //nolint:errcheck // the kernel lets the lock go either way

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded()...)
	defer signal.Stop(signals)
	script := exec.Command(command[0], command[1:]...) //nolint:gosec,noctx // the user's own command, which ends by Slurm's signals
	script.Stdin, script.Stdout, script.Stderr, script.Env = r.Stdin, r.Stdout, r.Stderr, r.Env
	if err := script.Start(); err != nil {
		return 0, fmt.Errorf("run %s: %w", command[0], err)
	}
	a := r.startApp(app)
	return r.wait(script, a, signals)
}

func (r *Runner) load() (*wire.App, error) {
	data, err := os.ReadFile(r.Paths.App)
	if err != nil {
		return nil, fmt.Errorf("read the description of the job's app: %w", err)
	}
	app := new(wire.App)
	if err := json.Unmarshal(data, app); err != nil {
		return nil, fmt.Errorf("read the description of the job's app: %w", err)
	}
	return app, nil
}

// lock is held as long as this task answers for the app.
func (r *Runner) lock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.Paths.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the session's directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close() // nothing was written
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errTaken
	}
	return nil, fmt.Errorf("lock the session's directory: %w", err)
}

func (r *Runner) become(command []string) error {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	if err := unix.Exec(path, command, r.Env); err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	return nil
}

// forwarded are the signals that Slurm may send to a task or a batch script
// alone; the rest of a step's processes get theirs from Slurm.
func forwarded() []os.Signal {
	return []os.Signal{
		syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGCONT,
	}
}

// running is an app that was started.
type running struct {
	app    *wire.App
	socket string
	cmd    *exec.Cmd
	ended  chan error
	stop   context.CancelFunc // of the health checks
}

// startApp starts the app. That it cannot be started is told by the status
// file and on stderr: the job goes on with its command.
func (r *Runner) startApp(app *wire.App) *running {
	a := &running{app: app, socket: filepath.Join(r.Paths.Dir, app.Socket), ended: make(chan error, 1)}
	argv := r.expand(app, a.socket)
	env := append([]string(nil), r.Env...)
	for name, value := range app.Env {
		env = append(env, name+"="+r.fill(value, app, a.socket))
	}
	env = append(env, r.hide(app)...)
	r.writeFiles(app)
	if err := os.Remove(a.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(r.Stderr, "carme: app %s: %v\n", app.Name, err)
	}
	r.status(wire.AppStarting, "")
	a.cmd = exec.Command(argv[0], argv[1:]...) //nolint:gosec,noctx // the site's description; it ends by stopApp
	a.cmd.Stdout, a.cmd.Stderr, a.cmd.Env = r.Stdout, r.Stderr, env
	// Ctrl-C in an interactive step is for the command.
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.cmd.Start(); err != nil {
		fmt.Fprintf(r.Stderr, "carme: app %s: start %s: %v; choose an image that has it\n", app.Name, argv[0], err)
		r.status(wire.AppEnded, fmt.Sprintf("%s could not be started: %v", app.Title, err))
		a.cmd = nil
		a.ended <- fmt.Errorf("start %s: %w", argv[0], err)
		return a
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.stop = cancel
	go r.watch(ctx, a)
	go func() { a.ended <- a.cmd.Wait() }()
	return a
}

// files is where the app's own files are.
func (r *Runner) files() string { return filepath.Join(r.Paths.Dir, "files") }

// writeFiles writes what the description has for the app.
func (r *Runner) writeFiles(app *wire.App) {
	for name, text := range app.Files {
		file := filepath.Join(r.files(), name)
		err := os.MkdirAll(filepath.Dir(file), 0o700)
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o600)
		}
		if err != nil {
			fmt.Fprintf(r.Stderr, "carme: app %s: write %s: %v\n", app.Name, name, err)
		}
	}
}

// hide makes Python modules that cannot be imported, in front of all others, and
// returns the environment for it. The user may undo it; it is not there to bind
// them but to keep a server's helper from opening a port unasked.
func (r *Runner) hide(app *wire.App) []string {
	if len(app.PythonHidden) == 0 {
		return nil
	}
	const stub = "raise ImportError('%s opens ports that others on this node could reach; use --carme-net=private')\n"
	top := filepath.Join(r.Paths.Dir, "python")
	for _, module := range app.PythonHidden {
		dir := filepath.Join(top, module)
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "__init__.py"), fmt.Appendf(nil, stub, module), 0o600)
		}
		if err != nil {
			fmt.Fprintf(r.Stderr, "carme: app %s: hide %s: %v\n", app.Name, module, err)
		}
	}
	path := top
	if old := r.variable("PYTHONPATH"); old != "" {
		path += ":" + old
	}
	return []string{"PYTHONPATH=" + path}
}

func (r *Runner) expand(app *wire.App, socket string) []string {
	argv := make([]string, 0, len(app.Command))
	for _, word := range app.Command {
		argv = append(argv, r.fill(word, app, socket))
	}
	return argv
}

// fill replaces the blanks of internal/config.App.
func (r *Runner) fill(word string, _ *wire.App, socket string) string {
	return strings.NewReplacer(
		"{{socket}}", socket, "{{dir}}", r.Paths.Dir, "{{session}}", r.Paths.Session,
		"{{home}}", r.variable("HOME"), "{{user}}", r.variable("USER"), "{{job}}", r.variable("SLURM_JOB_ID"), "{{runtime}}", r.variable("XDG_RUNTIME_DIR"), "{{files}}", r.files(),
	).Replace(word)
}

func (r *Runner) variable(name string) string {
	for _, e := range r.Env {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// status tells the agent how far the app is. The directory is the user's own,
// who may fill or remove it; the app does not depend on it.
func (r *Runner) status(state, text string) {
	name := filepath.Join(r.Paths.Dir, wire.StatusFile)
	err := os.WriteFile(name+".new", []byte(state+"\n"+text+"\n"), 0o600)
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		fmt.Fprintf(r.Stderr, "carme: tell the portal that the app is %s: %v\n", state, err)
	}
}

// wait returns when command and app have ended.
func (r *Runner) wait(script *exec.Cmd, a *running, signals <-chan os.Signal) (int, error) {
	scriptEnded := make(chan error, 1)
	go func() { scriptEnded <- script.Wait() }()
	appEnded := a.ended
	var kill <-chan time.Time
	end := func() {
		if appEnded == nil || a.cmd == nil || kill != nil {
			return
		}
		a.signal(syscall.SIGTERM)
		limit := r.Grace
		if limit == 0 {
			limit = grace
		}
		kill = time.After(limit)
	}
	status, appStatus := 0, 0
	for scriptEnded != nil || appEnded != nil {
		select {
		case err := <-scriptEnded:
			scriptEnded = nil
			if status = exitStatus(err); status != 0 {
				end()
			}
		case err := <-appEnded:
			appEnded = nil
			appStatus = r.appEnded(a, err, kill != nil)
		case sig := <-signals:
			if scriptEnded != nil && !r.fromTerminal(sig) {
				_ = script.Process.Signal(sig) // it may have ended just now
			}
			if sig == syscall.SIGTERM {
				end()
			}
		case <-kill:
			a.signal(syscall.SIGKILL)
		}
	}
	if status == 0 {
		status = appStatus
	}
	return status, nil
}

// fromTerminal: the terminal has given the signal to the command as well.
func (r *Runner) fromTerminal(sig os.Signal) bool {
	if sig != syscall.SIGINT && sig != syscall.SIGQUIT {
		return false
	}
	_, err := unix.IoctlGetTermios(int(r.Stdin.Fd()), unix.TCGETS)
	return err == nil
}

// signal reaches everything that the app has started and not moved away.
func (a *running) signal(sig syscall.Signal) {
	_ = syscall.Kill(-a.cmd.Process.Pid, sig) // ESRCH: it has ended
}

// appEnded notes the end of the app and returns what counts of its status.
func (r *Runner) appEnded(a *running, err error, asked bool) int {
	if a.stop != nil {
		a.stop()
	}
	if a.cmd == nil {
		return exitStatus(err)
	}
	if asked || err == nil {
		r.status(wire.AppEnded, a.app.Title+" has ended")
		return 0
	}
	r.status(wire.AppEnded, fmt.Sprintf("%s has ended: %v; its messages are in the job's output", a.app.Title, err))
	fmt.Fprintf(r.Stderr, "carme: app %s: %v\n", a.app.Name, err)
	return exitStatus(err)
}

// exitStatus is the status as a shell gives it: 128 and more for a signal.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) {
		return 127
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() { //nolint:misspell // the library's spelling
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}

// discard reads what is left, so that a connection can be used again.
func discard(in io.Reader) { _, _ = io.Copy(io.Discard, io.LimitReader(in, 1<<20)) }
