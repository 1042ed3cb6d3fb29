package core

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/request"
)

// The agent of the node, which may be absent: it finds the job's record again
// whenever it starts.
const (
	agentSocket  = "/run/carme/agent.sock"
	agentTimeout = 200 * time.Millisecond
)

// sessionDir is where the job's app puts its socket: the user's own directory
// below one that only root can walk through. The agent opens the socket there.
func (j *job) sessionDir() string { return filepath.Join(j.dir(), "sess") }

// helpers are the programs that this job needs inside.
func (j *job) helpers() map[string]string {
	if j.plan.App == nil {
		return helpers
	}
	all := maps.Clone(helpers)
	all[sessionView] = sessionProgram
	return all
}

func (j *job) makeSessionDir() error {
	if j.plan.App == nil {
		return nil
	}
	if err := os.Mkdir(j.sessionDir(), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the session's directory: %w", err)
	}
	if err := os.Chown(j.sessionDir(), int(j.person.UID), int(j.person.GID)); err != nil {
		return fmt.Errorf("give the session's directory to the user: %w", err)
	}
	return nil
}

// openSessionDir opens it before the job's view covers it; -1 without an app.
func (j *job) openSessionDir() (int, error) {
	if j.plan.App == nil {
		return -1, nil
	}
	return openTarget(j.sessionDir())
}

// showSession makes the session's directory visible in the job, with the
// description of the app for the program that runs it (session/run).
func (s *sandbox) showSession(dir int) error {
	app := s.job.plan.App
	if app == nil {
		return nil
	}
	if err := os.Mkdir(config.SessionDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", config.SessionDir, err)
	}
	if err := bind(dir, config.SessionDir, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return err
	}
	s.note(wire.MountSystem, config.SessionDir, s.job.sessionDir(), "")
	hidden := app.PythonHidden
	if s.job.plan.Request.Net == request.NetPrivate {
		hidden = nil
	}
	data, err := json.Marshal(wire.App{
		Name: app.Name, Title: app.Title, Command: app.Command, Env: app.Env, Socket: app.Socket, Files: app.Files, PythonHidden: hidden,
		HealthPath: app.Health.Path, HealthStatus: app.Health.Status, HealthSeconds: app.Health.TimeoutSeconds,
	})
	if err != nil {
		return fmt.Errorf("encode the app: %w", err)
	}
	if err := os.WriteFile(filepath.Join(jobView, wire.AppFile), data, 0o444); err != nil {
		return fmt.Errorf("write the app: %w", err)
	}
	return nil
}

// register leaves the job's record for the agent and knocks at its door.
func (j *job) register() error {
	r := wire.Session{
		Job: j.id, UID: j.person.UID, GID: j.person.GID, GIDs: j.person.GIDs, User: j.person.Name, Home: j.person.Home,
		Instance: j.instance, Node: j.node, Image: j.plan.imageKey(), Net: j.plan.Request.Net,
		Anchor: int(j.anchorPID), Started: time.Now().UTC(),
	}
	if app := j.plan.App; app != nil {
		r.App, r.Socket = app.Name, app.Socket
	}
	for _, c := range j.cgroups {
		r.Cgroups = append(r.Cgroups, c.Mount+c.Path)
	}
	for _, d := range j.proofDevices() {
		if d.Kind == wire.DeviceGPU {
			r.Devices = append(r.Devices, wire.SessionDevice{Path: d.Path, Minor: d.Minor, UUID: d.UUID, Model: d.Model})
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the job's record: %w", err)
	}
	name := filepath.Join(j.dir(), wire.SessionFile)
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return fmt.Errorf("write the job's record: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("write the job's record: %w", err)
	}
	knock(j.id)
	return nil
}

// knock tells the agent of the job. That nobody is there is no error: the agent
// watches the directory as well, this is only faster. Without package net, which
// takes longer to start than this does.
func knock(job uint32) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(agentTimeout.Nanoseconds())
	if unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait) != nil ||
		unix.Connect(fd, &unix.SockaddrUnix{Name: agentSocket}) != nil {
		return
	}
	_ = unix.Send(fd, fmt.Appendf(nil, "{\"event\":\"start\",\"job\":%d}\n", job), unix.MSG_NOSIGNAL) // see above
}
