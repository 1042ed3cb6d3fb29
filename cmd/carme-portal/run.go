package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/daemon"
	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/version"
	"github.com/carme-hpc/carme/portal/client"
	"github.com/carme-hpc/carme/portal/proxy"
	"github.com/carme-hpc/carme/portal/web"
)

// parts are what the files in the settings hold.
type parts struct {
	config  Config
	own     *mtls.Store  // what proves to backend and agents who we are
	browser *certificate // what browsers see
}

func open(file string, problem func(error)) (*parts, error) {
	c, err := load(file, config.Source{Root: "/"})
	if err != nil {
		return nil, err
	}
	p := &parts{config: c}
	var ownErr, browserErr error
	if p.own, ownErr = mtls.Open(p.files(), problem); ownErr != nil {
		ownErr = fmt.Errorf("backend's files: %w", ownErr)
	} else {
		ownErr = checkName(p.own, c.Name, time.Now())
	}
	if p.browser, browserErr = openCertificate(c.TLS.Cert, c.TLS.Key, time.Now, problem); browserErr == nil {
		browserErr = p.browser.covers(c.PortalHost, "s-example."+c.AppsDomain)
	}
	return p, errors.Join(ownErr, browserErr)
}

// files are those that prove to backend and agents who we are.
func (p *parts) files() mtls.Files {
	return mtls.Files{Cert: p.config.Backend.Cert, Key: p.config.Backend.Key, CA: p.config.Backend.CA}
}

func (p *parts) renewer(backend *client.Client, log *slog.Logger) *renewer {
	return &renewer{own: p.own, files: p.files(), ask: backend.Renew, now: time.Now, log: log}
}

// checkName compares the certificate for the backend with the settings.
func checkName(own *mtls.Store, name string, now time.Time) error {
	id, err := mtls.CertIdentity(own.Leaf())
	switch {
	case err != nil:
		return fmt.Errorf("backend's files: %w", err)
	case !now.Before(own.Leaf().NotAfter):
		return fmt.Errorf("backend's files: the certificate has expired at %s; join again: carme setup --role portal, with a new join token", own.Leaf().NotAfter)
	case id.Role != mtls.RolePortal || name != "" && id.Name != name:
		return fmt.Errorf("backend's files: the certificate is that of %s, not of portal %s", id, name)
	}
	return nil
}

// checkFiles is --check.
func checkFiles(file string) error {
	if _, err := open(file, nil); err != nil {
		return err
	}
	fmt.Printf("%s is good\n", file)
	return nil
}

// serve runs the portal until ctx ends.
func serve(ctx context.Context, file string) error {
	level := new(slog.LevelVar)
	log := logx.New(os.Stderr, level.Level())
	p, err := open(file, func(err error) { log.Error("certificate: cannot be used, the last one stays", "error", err) })
	if err != nil {
		return err
	}
	if err := level.UnmarshalText([]byte(p.config.LogLevel)); err != nil {
		return err
	}
	log = logx.New(os.Stderr, level.Level())
	economise(ctx)

	backend := p.client()
	names := proxy.Names{Portal: p.config.PortalHost, Apps: p.config.AppsDomain, Port: p.config.PublicPort}
	apps := proxy.New(proxy.Options{Names: names, Backend: backend, AgentTLS: agents(p.own), Log: log, Now: time.Now})
	pages, err := web.New(web.Options{
		Backend: backend, AppsPattern: names.AppsPattern(), Log: log, Now: time.Now, Stopping: ctx.Done(),
		AppOrigin: func(label string) (string, bool) { return names.AppOrigin(label), proxy.ValidLabel(label) },
	})
	if err != nil {
		return err
	}
	listener, err := listen(ctx, p.config.Listen, log)
	if err != nil {
		return err
	}
	stopMetrics, err := serveMetrics(ctx, p.config.MetricsListen, counters(apps.Stats, p.own), log)
	if err != nil {
		return err
	}
	defer stopMetrics()
	go daemon.OnHangup(ctx, func() { p.reload(log) })

	var background sync.WaitGroup
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	background.Go(func() { apps.Run(running) })
	background.Go(func() { p.renewer(backend, log).run(running) })
	log.InfoContext(ctx, "portal: serving", "version", version.String(), "portal", names.PortalOrigin(), "apps", names.AppsPattern(), "listen", listener.Addr().String())
	daemon.Notify(daemon.Ready)
	// Requests under way are finished while revocations still come; then
	// websockets end, and browsers open them again at whoever listens next.
	err = proxy.Serve(ctx, listener, p.browser.config(), names.Dispatch(pages, apps), log)
	stop()
	background.Wait()
	return err
}

func (p *parts) reload(log *slog.Logger) {
	daemon.Notify(daemon.Reloading)
	if err := errors.Join(p.own.Reload(), p.browser.reload()); err != nil {
		log.Error("reload: a certificate cannot be used, the last one stays", "error", err)
	}
	daemon.Notify(daemon.Ready)
}

// client is the backend's, over one connection or a few of HTTP/2.
func (p *parts) client() *client.Client {
	expect := mtls.Identity{Role: mtls.RoleBackend, Name: p.config.Backend.Name}
	return client.New(p.config.Backend.URL, &http.Transport{
		TLSClientConfig: p.own.Client(expect, "h2", "http/1.1"), ForceAttemptHTTP2: true,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 64,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	})
}

// agents returns the TLS configuration for a node's agent, the same one each
// time, since it holds the sessions to resume.
func agents(own *mtls.Store) func(string) *tls.Config {
	var known sync.Map
	return func(node string) *tls.Config {
		if found, ok := known.Load(node); ok {
			return found.(*tls.Config)
		}
		fresh := own.Client(mtls.Identity{Role: mtls.RoleNode, Name: node}, proxy.RelayProtocol)
		kept, _ := known.LoadOrStore(node, fresh)
		return kept.(*tls.Config)
	}
}
