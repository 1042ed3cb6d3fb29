package core

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/policy"
	"github.com/carme-hpc/carme/spank/request"
)

// systemPaths of the node belong into every container: the job's own view,
// authentication of Slurm commands, their configuration (/run/slurm on a
// configless node), and the sockets of name services.
var systemPaths = []string{
	runDir, "/run/user", "/run/munge", "/etc/slurm", "/run/slurm", "/etc/carme/plugstack.d", "/usr/lib/carme", "/run/nslcd", "/var/lib/sss/pipes",
}

// runtimeArgs is the command that starts the container. The runtime makes only
// a user and a mount namespace: PID, IPC, UTS and network are the job's.
func (j *job) runtimeArgs() []string {
	p := &j.plan
	args := []string{p.Site.Apptainer.Path, "--quiet", "exec", "--userns", "--no-init"}
	if p.Image.NV {
		args = append(args, "--nv")
	}
	switch p.Request.Overlay {
	case request.OverlayNone, "":
	case request.OverlayTmpfs:
		args = append(args, "--writable-tmpfs")
	default:
		args = append(args, "--overlay", p.Request.Overlay)
	}
	paths := append([]string{}, systemPaths...)
	if j.slurmLib != "" {
		paths = append(paths, j.slurmLib) // Slurm's plugins, at the path that is built into it
	}
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			args = append(args, "--bind", path)
		}
	}
	if j.spool != "" {
		args = append(args, "--bind", j.spool) // batch scripts lie there
	}
	args = append(args, "--bind", passwdView+":/etc/passwd:ro", "--bind", groupView+":/etc/group:ro")
	for _, b := range p.Binds {
		if arg, ok := j.sources[place(b)]; ok { // else a default that this node does not have
			args = append(args, "--bind", arg)
		}
	}
	return append(args, j.imageView, holdView)
}

// runtimeEnv is the whole environment of the runtime: nothing of the user's.
// What the image sets comes on top, and is handed to the tasks.
func (j *job) runtimeEnv() []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + j.person.Home, "USER=" + j.person.Name, "LOGNAME=" + j.person.Name, "LANG=C.UTF-8",
		// A full or read-only home must not keep the container from starting.
		"APPTAINERENV_PREPEND_PATH=" + commands,
		"APPTAINER_CONFIGDIR=" + runtimeDir(j.person) + "/apptainer", "APPTAINER_CACHEDIR=" + runtimeDir(j.person) + "/apptainer/cache",
	}
	for _, e := range j.plan.Env {
		env = append(env, "APPTAINERENV_"+e)
	}
	return env
}

// boundKey is the key under which the anchor remembers, in the record of the
// job, where the runtime finds the binds of the first step: source:SRC:DST.
const boundKey = "bound"

// place tells binds of a job from one another; paths in them have no colon.
func place(b policy.Bind) string { return b.Src + ":" + b.Dst }

// laterBinds finds the sources of a later step's binds: those of the first step
// are in the job already, and what belongs to another image or to the runtime's
// variables is taken from where the job itself sees it.
func (j *job) laterBinds(bound []string) error {
	j.sources = map[string]string{}
	for _, line := range bound {
		if source, at, ok := strings.Cut(line, ":"); ok {
			_, target, _ := strings.Cut(at, ":")
			j.sources[at] = source + ":" + target
		}
	}
	return withHostMounts(func(mnt int) error {
		for _, b := range j.plan.Binds {
			if _, ok := j.sources[place(b)]; ok {
				continue
			}
			if err := j.laterBind(mnt, b); err != nil {
				return err
			}
		}
		return nil
	})
}

// laterBind finds the source of one bind as the user, as bindOne does.
func (j *job) laterBind(mnt int, b policy.Bind) error {
	var actual string
	err := asUser(mnt, j.person, func() error {
		fd, err := unix.Open(b.Src, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		actual, err = pathOf(fd)
		return err
	})
	if !b.Own && err != nil {
		return nil //nolint:nilerr // a default that this node does not have
	}
	if err != nil {
		return fmt.Errorf("--carme-bind: open %s: %w; check the path and its permissions", b.Src, err)
	}
	readOnly, err := j.mayBind(actual, b)
	if err != nil {
		return err
	}
	mode := ""
	if readOnly {
		mode = ":ro"
	}
	j.sources[place(b)] = actual + ":" + b.Dst + mode
	return nil
}

// startContainer has the anchor start the job's container.
func (j *job) startContainer(anchor anchorConn) error {
	spec, err := j.containerSpec()
	if err != nil {
		return err
	}
	fds := []int{j.image}
	if j.overlay >= 0 {
		fds = append(fds, j.overlay)
	}
	_, err = anchor.call("accepted", spec, fds...)
	return err
}

// containerSpec is the record that makes the anchor start the container.
func (j *job) containerSpec() (*wire.Record, error) {
	rec := ofType("container")
	rec.Add("key", j.plan.imageKey())
	rec.Add("image", j.imageView)
	for _, a := range j.runtimeArgs() {
		if strings.ContainsRune(a, 0) {
			return nil, fmt.Errorf("an argument of the runtime holds a NUL")
		}
		rec.Add("argv", a)
	}
	for _, e := range j.runtimeEnv() {
		rec.Add("env", e)
	}
	return rec, nil
}
