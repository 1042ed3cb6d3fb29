package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
)

// Roles of a host.
const (
	RoleAll    = "all" // head and portal on one host
	RoleHead   = "head"
	RolePortal = "portal"
	RoleNode   = "node"
)

// Users of the daemons (packaging/sysusers.d/carme.conf).
const (
	backendUser = "carme-backend"
	signerUser  = "carme-signer"
	portalUser  = "carme-portal"
)

// Files of the host.
const (
	backendFile = "/etc/carme/backend.yaml"
	signerFile  = "/etc/carme/signer.yaml"
	portalFile  = "/etc/carme/portal.yaml"
	agentFile   = "/etc/carme/agent.yaml"
	caFile      = "/etc/carme/ca.pem"
	webCADir    = "/etc/carme/web-ca"
	// writtenDir keeps configuration as it was written here, to tell what the
	// admin has edited since.
	writtenDir  = "/var/lib/carme/setup"
	webCertFile = "/var/lib/carme/portal/web.crt"
	webKeyFile  = "/var/lib/carme/portal/web.key"
	backendDir  = "/var/lib/carme/backend"
	signerDir   = "/var/lib/carme/signer"
	portalDir   = "/var/lib/carme/portal"
	agentDir    = "/var/lib/carme/agent"
	program     = "/usr/sbin/carme-backend"
)

// Options are the answers that only the admin has.
type Options struct {
	// Role of this host: RoleAll, RoleHead, RolePortal, RoleNode.
	Role string
	// PortalHost is the portal's name, AppsDomain the one below which each
	// session has a name; PublicPort is the port that browsers see.
	PortalHost string
	AppsDomain string
	PublicPort int
	// Cluster is ClusterName of slurm.conf.
	Cluster string
	// Backend is HOST:PORT of the backend, as portals and nodes reach it. Empty
	// with RoleAll: this host, which the portal reaches by loopback.
	Backend string
	// Host is the name of this host.
	Host string
	// CAFile is the CA of Carme's own certificates, copied from the head node.
	CAFile string
	// JoinTokenFile holds the token with which a portal joins.
	JoinTokenFile string
	Directory     Directory
	// SlurmKey and SlurmKeyID are a key that slurmctld knows already; empty: a
	// new one is made.
	SlurmKey, SlurmKeyID string
	// Slurmrestd is unix:/PATH, https://HOST:PORT or http://localhost:PORT.
	Slurmrestd string
	// NoStart leaves the daemons alone.
	NoStart bool

	// Root of the file system, Out for what is said, Now for the time, Resolve
	// for what the name server says, nil for not to ask it.
	Root    string
	Out     io.Writer
	Now     func() time.Time
	Resolve func(ctx context.Context, host string) error
	// Unprivileged leaves out accounts, owners and programs, for tests.
	Unprivileged bool
}

// Directory is the LDAP server.
type Directory struct {
	URL, CA, BindDN, PasswordFile string
	PeopleBase, GroupsBase        string
	LoginGroup, AdminGroup        string
}

// setup is one run.
type setup struct {
	Options

	// changed are the units that read another configuration than before.
	changed map[string]bool
}

func (s *setup) now() time.Time { return s.Now() }

// As the daemons read them.
var (
	hostName    = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
	clusterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$`)
)

// Problems lists everything that is wrong with the options, each with the way
// out.
func (o *Options) Problems() []string {
	var wrong []string
	fail := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if !slices.Contains([]string{RoleAll, RoleHead, RolePortal, RoleNode}, o.Role) {
		fail("--role=%s is unknown; use all, head, portal or node", o.Role)
	}
	if o.portal() {
		o.nameProblems(fail)
	}
	if o.head() {
		o.directoryProblems(fail)
		o.slurmProblems(fail)
	}
	if (o.head() || o.Role == RoleNode) && !clusterName.MatchString(o.Cluster) {
		fail("--cluster=%q must be ClusterName of slurm.conf: letters, digits, _ and -; ask: scontrol show config", o.Cluster)
	}
	o.backendProblems(fail)
	o.needFile(fail, "--ca", o.CAFile)
	if !o.head() && o.CAFile == "" {
		fail("--ca is missing; copy %s from the head node", caFile)
	}
	o.needFile(fail, "--join-token-file", o.JoinTokenFile)
	if o.Role == RolePortal && o.JoinTokenFile == "" {
		fail("--join-token-file is missing; make a token on the head node: carme-backend token --role portal --name %s", o.Host)
	}
	slices.Sort(wrong)
	return wrong
}

// needFile wants a file that is named to be there.
func (o *Options) needFile(fail func(string, ...any), option, name string) {
	if name == "" {
		return
	}
	info, err := os.Stat(name)
	switch {
	case !filepath.IsAbs(name) && option != "--ca" && option != "--join-token-file":
		fail("%s=%s must be an absolute path: a daemon reads it", option, name)
	case err != nil:
		fail("%s: %v", option, err)
	case !info.Mode().IsRegular():
		fail("%s=%s is not a file", option, name)
	}
}

func (o *Options) directoryProblems(fail func(string, ...any)) {
	d := o.Directory
	for option, value := range map[string]string{"--ldap-people": d.PeopleBase, "--ldap-groups": d.GroupsBase} {
		if !strings.Contains(value, "=") {
			fail("%s=%q must be a place in the directory, such as ou=people,dc=example,dc=org", option, value)
		}
	}
	if d.LoginGroup == "" {
		fail("--login-group is missing; name the group whose members may log in")
	}
	if u, err := url.Parse(d.URL); err != nil || u.Scheme != "ldap" && u.Scheme != "ldaps" || u.Hostname() == "" {
		fail("--ldap-url=%q must be ldaps://HOST, or ldap://HOST for StartTLS", d.URL)
	}
	if (d.BindDN == "") != (d.PasswordFile == "") {
		fail("--ldap-bind-dn and --ldap-password-file go together: give both, or none for a directory that anybody may search")
	}
	o.needFile(fail, "--ldap-ca", d.CA)
	o.needFile(fail, "--ldap-password-file", d.PasswordFile)
}

func (o *Options) slurmProblems(fail func(string, ...any)) {
	if (o.SlurmKey == "") != (o.SlurmKeyID == "") {
		fail("--slurm-key and --slurm-key-id go together: the id is \"kid\" of the key in slurmctld's JWKS")
	}
	o.needFile(fail, "--slurm-key", o.SlurmKey)
	u, err := url.Parse(o.Slurmrestd)
	if err != nil || !slices.Contains([]string{"unix", "https", "http"}, u.Scheme) || u.Scheme == "unix" && !strings.HasPrefix(u.Path, "/") {
		fail("--slurmrestd=%q must be unix:/PATH, https://HOST:PORT or http://localhost:PORT", o.Slurmrestd)
	}
}

func (o *Options) backendProblems(fail func(string, ...any)) {
	host, port, err := net.SplitHostPort(o.Backend)
	if n, notANumber := strconv.Atoi(port); err != nil || host == "" || notANumber != nil || n < 1 || n > portMax {
		if o.Role != RoleAll || o.Backend != "" {
			fail("--backend=%q must be HOST:PORT, such as head:7443, as the other hosts reach it", o.Backend)
		}
		return
	}
	if _, err := mtls.NewIdentity(mtls.RoleBackend, o.BackendName()); err != nil {
		fail("--backend=%q: the host must be a name: %v", o.Backend, err)
	}
}

func (o *Options) nameProblems(fail func(string, ...any)) {
	for option, name := range map[string]string{"--portal-host": o.PortalHost, "--apps-domain": o.AppsDomain} {
		if name == "" {
			fail("%s is missing; give a DNS name, such as carme.example.org for the portal and apps.example.org for the apps", option)
		} else if !hostName.MatchString(name) {
			fail("%s=%q must be a DNS name in lower case with a dot in it, no address and no *", option, name)
		}
	}
	switch {
	case o.PortalHost == "":
	case o.PortalHost == o.AppsDomain:
		fail("--portal-host and --apps-domain are both %s; an app could pose as the portal, choose another name for one of them", o.PortalHost)
	case strings.HasSuffix(o.PortalHost, "."+o.AppsDomain):
		fail("--portal-host=%s lies within --apps-domain=%s; an app could pose as the portal, choose another name", o.PortalHost, o.AppsDomain)
	case strings.HasSuffix(o.AppsDomain, "."+o.PortalHost):
		fail("--apps-domain=%s lies within --portal-host=%s; an app could set cookies for the portal, choose a name beside it, such as apps.%s",
			o.AppsDomain, o.PortalHost, parent(o.PortalHost))
	}
	if o.PublicPort < 1 || o.PublicPort > portMax {
		fail("--public-port=%d is no port", o.PublicPort)
	}
}

// parent is the domain that a name lies in.
func parent(name string) string {
	_, domain, _ := strings.Cut(name, ".")
	return domain
}

const portMax = 65535

func (o *Options) head() bool   { return o.Role == RoleAll || o.Role == RoleHead }
func (o *Options) portal() bool { return o.Role == RoleAll || o.Role == RolePortal }

// Run sets the host up. What is wrong with the options is one error.
func Run(ctx context.Context, o Options) error {
	if wrong := o.Problems(); len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	s := &setup{Options: o, changed: map[string]bool{}}
	steps := []struct {
		title  string
		wanted bool
		do     func(context.Context) error
	}{
		{"", s.starts(), s.ports},
		{"Accounts", o.Role != RoleNode && !o.Unprivileged, s.accounts},
		{"Head node: keys, database, configuration", o.head(), s.headNode},
		{"Portal: certificate, configuration", o.portal(), s.portalHost},
		{"Node: configuration", o.Role == RoleNode, s.node},
		{"Daemons", true, s.daemons},
		{"Portal: join the backend", o.portal() && !o.Unprivileged, s.join},
	}
	for _, step := range steps {
		if !step.wanted {
			continue
		}
		if step.title != "" {
			fmt.Fprintf(s.Out, "%s\n", step.title)
		}
		if err := step.do(ctx); err != nil {
			return err
		}
	}
	s.advise(ctx)
	return nil
}

// accounts makes the daemons' users.
func (s *setup) accounts(ctx context.Context) error {
	return s.command(ctx, "", "systemd-sysusers", "/usr/lib/sysusers.d/carme.conf")
}

// command runs a program as a user, "" for this one. What it says is shown only
// if it fails.
func (s *setup) command(ctx context.Context, as, name string, args ...string) error {
	if s.Unprivileged {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // our own programs and systemd's
	if as != "" {
		attr, err := become(as)
		if err != nil {
			return err
		}
		cmd.SysProcAttr = attr
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// fill writes a template's text.
func (s *setup) fill(text string) (string, error) {
	t, err := template.New("").Funcs(template.FuncMap{"quote": func(v string) string { return fmt.Sprintf("%q", v) }}).Parse(text)
	if err != nil {
		return "", fmt.Errorf("read a template: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, &s.Options); err != nil {
		return "", fmt.Errorf("fill in a template: %w", err)
	}
	return out.String(), nil
}

// configure fills in a template and settles it.
func (s *setup) configure(name, text string) error {
	filled, err := s.fill(text)
	if err != nil {
		return err
	}
	return s.settle(name, filled)
}

// exists reports whether the host has the file.
func (s *setup) exists(name string) bool {
	_, err := os.Lstat(s.path(name))
	return err == nil
}
