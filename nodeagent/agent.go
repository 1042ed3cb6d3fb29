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

	"github.com/carme-hpc/carme/internal/cli/doctor"
	"github.com/carme-hpc/carme/internal/daemon"
	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/nodeagent/control"
	"github.com/carme-hpc/carme/nodeagent/enrol"
	"github.com/carme-hpc/carme/nodeagent/metrics"
	"github.com/carme-hpc/carme/nodeagent/reconcile"
	"github.com/carme-hpc/carme/nodeagent/relay"
	"github.com/carme-hpc/carme/nodeagent/report"
	"github.com/carme-hpc/carme/nodeagent/session"
	"github.com/carme-hpc/carme/nodeagent/upstream"
)

// Names of what the program does besides being the daemon: its first argument.
const (
	ControlChild = "control-child"
	GPUChild     = "gpu-child"
)

const (
	jobsDir  = "/run/carme/jobs"
	socket   = "/run/carme/agent.sock"
	itself   = "/proc/self/exe"
	homeTime = 5 * time.Second

	// drainTime is how long streams may go on after the end was asked for: new
	// ones are refused meanwhile.
	drainTime = time.Second

	// measureEvery is how often jobs and GPUs are measured.
	measureEvery = 5 * time.Second
	// gpuSilence is how long NVML may take: without the persistence daemon it
	// starts the driver first.
	gpuSilence = 30 * time.Second
	gpuAgain   = time.Minute
	// cleanEvery is how often what ended jobs left is looked for.
	cleanEvery = 2 * time.Second
	// testEvery is how often the node examines itself, testTime how long it may
	// take (doctor.Doctor.Examine).
	testEvery = time.Minute
	testTime  = 90 * time.Second
)

// pluginFiles are where what a job needs is installed and configured.
func pluginFiles() []string {
	return []string{
		"/usr/lib/carme", "/usr/libexec/carme", "/etc/carme", "/etc/carme/plugstack.d", "/etc/carme/images.d", "/etc/carme/apps.d",
		"/etc/slurm", // plugstack.conf
	}
}

// Machine is what the agent takes from its surroundings; tests give others.
type Machine struct {
	// Root is the root of the file system.
	Root    string
	JobsDir string
	Socket  string
	// Owner is who the plugin is: root.
	Owner    uint32
	IsAnchor func(pid int) bool
	// Self is this program.
	Self string
	// Run runs Slurm's commands; nil where there are none.
	Run slurm.Runner
	Now func() time.Time
	Log io.Writer
	// Listening is told where connections are taken; may be nil.
	Listening func(net.Addr)
}

// Real is the machine itself.
func Real() Machine {
	return Machine{
		Root: "/", JobsDir: jobsDir, Socket: socket, IsAnchor: session.IsAnchor, Self: itself, Run: slurm.Exec, Now: time.Now, Log: os.Stderr,
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
	sampler  *metrics.Sampler
	gpus     *metrics.GPUs
	selfTest *reconcile.SelfTest
	listener *net.TCPListener
	news     chan struct{} // for the backend
}

// Run is the daemon, until ctx ends.
func Run(ctx context.Context, cfg Config, m Machine) error {
	lvl, err := level(cfg.LogLevel)
	if err != nil {
		return fmt.Errorf("read log_level: %w", err)
	}
	a := &agent{Config: cfg, Machine: m, log: logx.New(m.Log, lvl), news: make(chan struct{}, 1)}
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
		JoinToken: a.JoinToken, BackendUID: a.Backend.UID, Munge: enrol.Munge(a.Munge), Keys: keys, Now: a.Now, Log: a.log,
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
	a.gpus = &metrics.GPUs{Program: a.Self, Args: []string{GPUChild}, Silence: gpuSilence, Again: gpuAgain, Log: a.log}
	a.sampler = &metrics.Sampler{Jobs: a.running, GPU: a.gpus.Get, Now: a.Now}
	a.selfTest = &reconcile.SelfTest{
		Carme: a.Carme, Every: testEvery, Limit: testTime, Files: pluginFiles(), Slurmd: reconcile.Slurmd, Changed: a.tell, Log: a.log,
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
	if err := a.ledger.End(api.NodeEnd{Job: j.Job, Instance: j.Instance, Time: at.UTC(), OOM: a.sampler.OOM(j)}); err != nil {
		a.log.Error("end of a job cannot be kept; it is lost if the agent stops now", "job", j.Job, "error", err)
	}
}

func (a *agent) running() []*session.Job { return a.jobs.All() }

// tell makes the next report come at once.
func (a *agent) tell() {
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// pass makes news of the changes of jobs.
func (a *agent) pass(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.jobs.Changed():
			a.tell()
		}
	}
}

func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	failed := make(chan error, 8)
	start := func(part func(context.Context) error) {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				failed <- err
				cancel()
			}
		})
	}
	always := func(part func(context.Context)) {
		start(func(ctx context.Context) error { part(ctx); return nil })
	}
	start(a.jobs.Run)
	start(a.server().run)
	if a.MetricsListen != "" {
		start(func(ctx context.Context) error { return a.sources().Serve(ctx, a.MetricsListen) })
	}
	always(a.enrol.Run)
	always(a.report)
	always(a.pass)
	always(a.gpus.Run)
	always(func(ctx context.Context) { a.sampler.Run(ctx, measureEvery) })
	always(a.selfTest.Run)
	always((&reconcile.Leftovers{Clean: a.cleaner().Clean, Every: cleanEvery, Log: a.log}).Run)
	always(func(ctx context.Context) { daemon.OnHangup(ctx, a.reload) })
	if a.Listening != nil {
		a.Listening(a.listener.Addr())
	}
	a.log.Info("agent is ready", "node", a.Node, "jobs", len(a.jobs.All()), "listen", a.listener.Addr().String())
	daemon.Notify(daemon.Ready)
	<-ctx.Done()
	_ = a.listener.Close()
	drain, stop := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer stop()
	a.relay.Drain(drain)
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

func (a *agent) doctor() doctor.Doctor {
	return doctor.Doctor{Root: a.Root, Node: a.Node, Now: a.Now, Run: a.Run}
}

// cleaner is for one goroutine.
func (a *agent) cleaner() doctor.Doctor {
	d := a.doctor()
	d.Asked = doctor.NewAsked()
	return d
}

func (a *agent) sources() metrics.Sources {
	return metrics.Sources{
		Jobs: a.jobs.All, Samples: a.sampler.Last, GPUs: a.gpus.All, Problem: a.selfTest.Problem,
		Streams: func() (open int, answered map[string]int64, to, from int64) {
			open, answered = a.relay.Counts()
			return open, answered, a.relay.ToApps.Load(), a.relay.FromApps.Load()
		},
		Expires: func() time.Time {
			if store := a.enrol.Store(); store != nil {
				return store.Leaf().NotAfter
			}
			return time.Time{}
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
		Samples: a.sampler, Problem: a.selfTest.Problem, Answered: a.answered, Changed: a.news, Log: a.log,
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
