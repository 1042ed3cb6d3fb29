package nodeagent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/daemon"
	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/control"
	"github.com/carme-hpc/carme/nodeagent/enrol"
	"github.com/carme-hpc/carme/nodeagent/relay"
	"github.com/carme-hpc/carme/nodeagent/report"
	"github.com/carme-hpc/carme/nodeagent/session"
	"github.com/carme-hpc/carme/nodeagent/upstream"
)

// Names of what the program does besides being the daemon: its first argument.
const (
	ControlChild = "control-child"
)

const (
	jobsDir  = "/run/carme/jobs"
	socket   = "/run/carme/agent.sock"
	itself   = "/proc/self/exe"
	homeTime = 5 * time.Second
)

// Machine is what the agent takes from its surroundings; tests give others.
type Machine struct {
	JobsDir string
	Socket  string
	// Owner is who the plugin is: root.
	Owner    uint32
	IsAnchor func(pid int) bool
	// Self is this program.
	Self string
	Now  func() time.Time
	Log  io.Writer
	// Listening is told where connections are taken; may be nil.
	Listening func(net.Addr)
}

// Real is the machine itself.
func Real() Machine {
	return Machine{
		JobsDir: jobsDir, Socket: socket, IsAnchor: session.IsAnchor, Self: itself, Now: time.Now, Log: os.Stderr,
	}
}

func level(name string) (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(name))
	return l, err
}

// agent is the parts of one run.
type agent struct {
	Config
	Machine

	log      *slog.Logger
	jobs     *session.Table
	relay    *relay.Relay
	enrol    *enrol.Enroller
	ledger   *report.Ledger
	listener *net.TCPListener
}

// Run is the daemon, until ctx ends.
func Run(ctx context.Context, cfg Config, m Machine) error {
	lvl, err := level(cfg.LogLevel)
	if err != nil {
		return fmt.Errorf("read log_level: %w", err)
	}
	a := &agent{Config: cfg, Machine: m, log: logx.New(m.Log, lvl)}
	if err := a.build(ctx); err != nil {
		return err
	}
	return a.run(ctx)
}

func (a *agent) build(ctx context.Context) error {
	if err := os.MkdirAll(a.State, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	keys, err := enrol.OpenKeys(a.State)
	if err != nil {
		return err
	}
	a.enrol, err = enrol.New(enrol.Options{
		Node: a.Node, State: a.State, CA: a.CA, Address: a.Backend.Address, Backend: a.backend(),
		JoinToken: a.JoinToken, Munge: enrol.Munge(a.Munge, a.Backend.UID), Keys: keys, Now: a.Now, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.relay = &relay.Relay{
		Cluster: a.Cluster, Node: a.Node, Keys: keys.Get, Limits: a.Limits, Times: relay.DefaultTimes, Now: a.Now, Log: a.log,
	}
	if a.ledger, err = report.OpenLedger(a.State); err != nil {
		return err
	}
	a.jobs, err = session.Open(session.Options{
		Dir: a.JobsDir, Socket: a.Socket, Owner: a.Owner, IsAnchor: a.IsAnchor, Now: a.Now, Log: a.log, Ended: a.ended,
	})
	if err != nil {
		return err
	}
	a.relay.Jobs = a.jobs
	if err := a.ledger.Start(a.jobs.All(), a.Now()); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("listen for portals: %w", err)
	}
	a.listener = listener.(*net.TCPListener)
	return nil
}

func (a *agent) backend() mtls.Identity {
	return mtls.Identity{Role: mtls.RoleBackend, Name: a.Backend.Name}
}

// ended is told of the end of a job.
func (a *agent) ended(j *session.Job, at time.Time) {
	a.relay.EndJob(j)
	if err := a.ledger.End(api.NodeEnd{Job: j.Job, Instance: j.Instance, Time: at.UTC()}); err != nil {
		a.log.Error("end of a job cannot be kept; it is lost if the agent stops now", "job", j.Job, "error", err)
	}
}

func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	failed := make(chan error, 4)
	start := func(part func(context.Context) error) {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				failed <- err
				cancel()
			}
		})
	}
	srv := a.server()
	start(a.jobs.Run)
	start(srv.run)
	start(func(ctx context.Context) error { a.enrol.Run(ctx); return nil })
	start(func(ctx context.Context) error { a.report(ctx); return nil })
	start(func(ctx context.Context) error { daemon.OnHangup(ctx, a.reload); return nil })
	if a.Listening != nil {
		a.Listening(a.listener.Addr())
	}
	a.log.Info("agent is ready", "node", a.Node, "jobs", len(a.jobs.All()), "listen", a.listener.Addr().String())
	daemon.Notify(daemon.Ready)
	<-ctx.Done()
	_ = a.listener.Close()
	a.relay.CloseAll()
	parts.Wait()
	close(failed)
	var all []error
	for err := range failed {
		all = append(all, err)
	}
	return errors.Join(all...)
}

func (a *agent) server() *server {
	c := &control.Control{Program: a.Self, Args: []string{ControlChild}, Own: os.Geteuid() != 0, Limit: homeTime, Log: a.log}
	return &server{
		listener: a.listener, log: a.log, config: chooseConfig(a.enrol.Store, a.enrol),
		serve: map[string]func(context.Context, *relay.Conn){
			relay.ALPN: a.relay.Serve, control.ALPN: c.Serve, enrol.ALPN: a.enrol.Answer,
		},
	}
}

func (a *agent) reload() {
	if store := a.enrol.Store(); store != nil {
		if err := store.Reload(); err != nil {
			a.log.Warn("certificate cannot be read again", "error", err)
		}
	}
}

// report reports, once there is a certificate to do it with.
func (a *agent) report(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.enrol.Ready():
	}
	client := upstream.New(a.Backend.Address, a.enrol.Store(), a.backend())
	defer client.Close()
	r := &report.Reporter{
		Boot: boot(), Node: a.Node, Backend: client, Ledger: a.ledger, Jobs: a.jobs.All,
		Samples: func() []api.NodeSample { return nil }, Problem: func() string { return "" },
		Answered: a.answered, Changed: a.jobs.Changed(), Log: a.log,
	}
	r.Run(ctx)
}

// answered takes what the backend answered to a report.
func (a *agent) answered(asked []*session.Job, answer api.Reported) {
	if err := a.enrol.Keys.Set(answer.RouteKeys); err != nil {
		a.log.Warn("route keys of the backend cannot be used", "error", err)
	}
	for _, j := range a.jobs.SetGone(asked, answer.Gone) {
		a.log.Warn("Slurm does not know the job; its streams are closed", "job", j.Job)
		a.relay.EndJob(j)
	}
}

func boot() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	return hex.EncodeToString(random[:])
}
