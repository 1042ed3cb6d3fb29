package core

import (
	"fmt"
	"os"
	"strings"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/request"
)

// systemPaths of the node belong into every container: the job's own view,
// authentication of Slurm commands, their configuration, and the sockets of
// name services.
var systemPaths = []string{
	runDir, "/run/user", "/run/munge", "/etc/slurm", "/etc/carme/plugstack.d", "/usr/lib/carme", "/run/nslcd", "/var/lib/sss/pipes",
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
	for i, b := range p.Binds {
		view := bindView(i)
		if _, err := os.Lstat(view); err != nil {
			continue // a default that this node does not have
		}
		args = append(args, "--bind", view+":"+b.Dst)
	}
	return append(args, p.Image.Path, holdView)
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

// containerSpec is the record that makes the anchor start the container.
func (j *job) containerSpec() (*wire.Record, error) {
	rec := ofType("container")
	rec.Add("key", j.plan.imageKey())
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
