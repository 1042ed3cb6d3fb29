package backend

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/carme-hpc/carme/internal/clock"
	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/daemon"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	"github.com/carme-hpc/carme/portal/backend/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/auth/ldapauth"
	"github.com/carme-hpc/carme/portal/backend/auth/totp"
	"github.com/carme-hpc/carme/portal/backend/jobs"
	"github.com/carme-hpc/carme/portal/backend/nodes"
	"github.com/carme-hpc/carme/portal/backend/routes"
	"github.com/carme-hpc/carme/portal/backend/signer"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	// loginFloor is longer than a directory takes, so that time tells nothing.
	loginFloor = 700 * time.Millisecond
	// stopWithin is how long requests may take to end.
	stopWithin = 10 * time.Second
	// renewEvery is how often the own certificate is looked at.
	renewEvery = time.Minute
)

// parts is the daemon.
type parts struct {
	cfg     *Config
	log     *slog.Logger
	db      *store.DB
	certs   *mtls.Store
	auth    *auth.Service
	jobs    *jobs.Service
	server  *api.Server
	metrics *prometheus.Registry
}

// build reads keys and files and puts the parts together.
func build(ctx context.Context, cfg *Config, root string, log *slog.Logger) (_ *parts, err error) {
	dir, err := ldapauth.New(cfg.LDAP)
	if err != nil {
		return nil, err
	}
	seal, err := readSecret(cfg.file(factorKey), totp.KeySize)
	if err != nil {
		return nil, err
	}
	sealer, err := totp.NewSealer(seal, rand.Reader)
	if err != nil {
		return nil, err
	}
	key, keyID, public, err := routeKeys(cfg)
	if err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, cfg.database())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	certs, err := mtls.Open(mtls.In(cfg.file(tlsDir)), func(err error) { log.Error("certificate cannot be used", "err", err.Error()) })
	if err != nil {
		return nil, fmt.Errorf("%w; run: carme-backend init", err)
	}
	sign := signer.NewClient(cfg.SignerSocket)
	client, err := rest.New(cfg.Slurm.URL, cfg.slurmTimeout(), sign, clock.Real)
	if err != nil {
		return nil, err
	}
	p := &parts{cfg: cfg, log: log, db: db, certs: certs, metrics: prometheus.NewRegistry()}
	records := &audit.Log{Now: clock.Real, Out: log}
	feed := &routes.Feed{DB: db, Now: clock.Real}
	p.auth = &auth.Service{
		DB: db, Dir: dir, Sealer: sealer, Audit: records, Revoke: feed, Issuer: cfg.Issuer, Now: clock.Real, Random: rand.Reader,
		Rules: auth.Rules{
			SessionLife: time.Duration(cfg.Sessions.Hours) * time.Hour, IdleLife: time.Duration(cfg.Sessions.IdleMinutes) * time.Minute,
			FactorEvery: time.Duration(cfg.Sessions.FactorHours) * time.Hour, Floor: loginFloor,
		},
	}
	registry := &nodes.Registry{DB: db, Now: clock.Real, Log: log, RouteKeys: public}
	control := &nodes.Control{Certs: certs}
	ways := &routes.Service{
		DB: db, Audit: records, Feed: feed, Sessions: p.auth, Now: clock.Real, Cluster: cfg.Cluster, KeyID: keyID, Key: key,
	}
	offered := &catalogue{src: config.Source{Root: root}, log: log, now: clock.Real}
	p.jobs = &jobs.Service{
		DB: db, Audit: records, Log: log, Now: clock.Real, Slurm: client, Nodes: registry, Routes: ways, Agents: control,
		Hub: &jobs.Hub{Boot: boot()}, Limits: cfg.Limits, Default: cfg.Default, Catalogue: offered.get, Identity: identity, ServiceUser: cfg.Slurm.ServiceUser,
		AgentPort: cfg.AgentPort, Timeout: cfg.slurmTimeout(),
		Queue: func(ctx context.Context) ([]slurm.QueueRow, error) {
			return slurm.Queue(ctx, slurm.ExecBackground, rand.Text())
		},
	}
	registry.Changes, control.Addr, ways.Jobs = p.jobs, p.jobs.Addr, p.jobs
	p.server = &api.Server{
		DB: db, Auth: p.auth, Jobs: p.jobs, Routes: ways, Feed: feed, Nodes: registry, Audit: records, Log: log, Now: clock.Real, Metrics: p.metrics,
		Enrol: &nodes.Enrolment{
			DB: db, Audit: records, Signer: sign, Now: clock.Real, Addr: p.jobs.Addr, Unmunge: nodes.Unmunge, RouteKeys: public,
			UID: uint32(os.Geteuid()), //nolint:gosec // it is one
		},
		Health: func(ctx context.Context) map[string]string {
			parts := health(ctx, db, client, sign, cfg.Slurm.ServiceUser, offered)
			parts["directory"] = reachable(ctx, dir)
			return parts
		},
	}
	return p, nil
}

func boot() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// health is empty texts for what works.
func health(ctx context.Context, db *store.DB, client *rest.Client, sign *signer.Client, user string, offered *catalogue) map[string]string {
	say := func(err error) string {
		if err != nil {
			return err.Error()
		}
		return ""
	}
	var one int
	_, _, err := sign.Token(ctx, user)
	return map[string]string{
		"database": say(store.One(ctx, db.Read(), &one, "SELECT 1")), "signer": say(err), "slurm": say(client.Ping(ctx, user)),
		"catalogue": offered.problems(),
	}
}

// nobody is a name to look up in the directory. Whether there is such a person is
// all the same.
const nobody = "carme-health"

// reachable is empty for a directory that answers a search.
func reachable(ctx context.Context, dir *ldapauth.Directory) string {
	if _, err := dir.Find(ctx, nobody); err != nil && !errors.Is(err, auth.ErrUnknown) {
		return err.Error()
	}
	return ""
}

// identity asks NSS for the numeric groups of a user.
func identity(ctx context.Context, user string) ([]uint32, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := slurm.Exec(ctx, "/usr/bin/id", "-G", "--", user)
	if err != nil {
		return nil, fmt.Errorf("look up groups of %s: %w", user, err)
	}
	var gids []uint32
	for f := range strings.FieldsSeq(string(out)) {
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("look up groups of %s: %w", user, err)
		}
		gids = append(gids, uint32(n))
	}
	return gids, nil
}

// serve runs everything until ctx ends or a part fails.
func (p *parts) serve(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, p.db.Close()) }()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var conf net.ListenConfig
	public, err := conf.Listen(ctx, "tcp", p.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	own := uint32(os.Geteuid()) //nolint:gosec // it is one
	admin, err := signer.Listen(ctx, p.cfg.AdminSocket, 0o600)
	if err != nil {
		return errors.Join(err, public.Close())
	}
	var wg sync.WaitGroup
	part := func(name string, run func() error) {
		wg.Go(func() {
			if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				stop(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	p.server.Stopping = ctx.Done()
	servers := []*http.Server{p.server.HTTP(p.certs.OptionalServer([]string{"h2", "http/1.1"})), p.server.HTTP(nil)}
	part("REST API", func() error { return servers[0].ServeTLS(public, "", "") })
	part("admin socket", func() error {
		return servers[1].Serve(signer.Peers(admin, func(uid uint32) bool { return uid == 0 || uid == own }, p.log))
	})
	if p.cfg.MetricsListen != "" {
		l, err := conf.Listen(ctx, "tcp", p.cfg.MetricsListen)
		if err != nil {
			stop(fmt.Errorf("listen for metrics: %w", err))
		} else {
			p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
			m := &http.Server{Handler: promhttp.HandlerFor(p.metrics, promhttp.HandlerOpts{}), ReadHeaderTimeout: 5 * time.Second}
			servers = append(servers, m)
			part("metrics", func() error { return m.Serve(l) })
		}
	}
	p.gauges()
	wg.Go(func() { p.auth.Watch(ctx) })
	wg.Go(func() { p.jobs.Run(ctx) })
	wg.Go(func() { p.renew(ctx) })
	wg.Go(func() {
		daemon.OnHangup(ctx, func() {
			if err := p.certs.Reload(); err != nil {
				p.log.Error("certificate cannot be used", "err", err.Error())
			}
		})
	})
	p.log.Info("ready", "listen", public.Addr().String())
	daemon.Notify(daemon.Ready)
	<-ctx.Done()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
	defer cancel()
	var down sync.WaitGroup
	for _, s := range servers {
		down.Go(func() {
			if err := s.Shutdown(end); err != nil {
				p.log.Warn("requests were cut", "err", err.Error())
				_ = s.Close() // what is left
			}
		})
	}
	down.Wait()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// gauges are measurements of the state, beside those of requests.
func (p *parts) gauges() {
	for name, g := range map[string]struct {
		help  string
		value func() float64
	}{
		"carme_backend_event_streams": {"Browsers that wait for events.", func() float64 { return float64(p.jobs.Hub.Watching()) }},
		"carme_backend_picture_seconds": {"Age of what is known of Slurm; it grows while nobody looks.", func() float64 {
			return p.jobs.PictureAge().Seconds()
		}},
	} {
		p.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: g.help}, g.value))
	}
}

// renew keeps the own certificate good. It looks at once too: a head node that was
// off for a month, or was put back from a backup, has one that nobody takes.
func (p *parts) renew(ctx context.Context) {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	told := ""
	for {
		switch err := renewOwn(ctx, p.cfg, clock.Real()); {
		case err == nil || ctx.Err() != nil:
			told = ""
		case err.Error() != told:
			told = err.Error()
			p.log.ErrorContext(ctx, "own certificate could not be renewed; trying again", "err", told)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// runSigner is the other daemon.
func runSigner(ctx context.Context, cfg *SignerConfig, log *slog.Logger) error {
	account := signer.Getent(slurm.Exec)
	backend, err := account(ctx, cfg.BackendUser)
	if err != nil {
		return fmt.Errorf("look up backend_user: %w", err)
	}
	s, err := signer.Load(cfg.State, cfg.SlurmKey, cfg.KeyID,
		signer.Rules{MemberOf: cfg.MemberOf, SlurmUser: cfg.SlurmUser, ServiceUser: cfg.ServiceUser}, account, clock.Real, log)
	if err != nil {
		return err
	}
	const everybody = 0o666 // the peer's uid decides
	l, err := signer.Listen(ctx, cfg.Socket, everybody)
	if err != nil {
		return err
	}
	log.Info("ready", "socket", cfg.Socket)
	daemon.Notify(daemon.Ready)
	return s.Serve(ctx, signer.Peers(l, func(uid uint32) bool { return uint64(uid) == backend.UID }, log))
}

func level(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return slog.LevelInfo // checked when it was read
	}
	return l
}

func printProblems(w io.Writer, err error) {
	for _, line := range config.Problems(err) {
		fmt.Fprintln(w, "carme-backend: "+line)
	}
}
