package setup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"
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
	// Backend is HOST:PORT of the backend, as portals and nodes reach it.
	Backend string
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

	// Root of the file system, Out for what is said, Now for the time.
	Root string
	Out  io.Writer
	Now  func() time.Time
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
}

func (s *setup) now() time.Time { return s.Now() }

var (
	hostName    = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	clusterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
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
		for option, value := range map[string]string{
			"--ldap-url": o.Directory.URL, "--ldap-people": o.Directory.PeopleBase, "--ldap-groups": o.Directory.GroupsBase,
			"--login-group": o.Directory.LoginGroup,
		} {
			if value == "" {
				fail("%s is missing", option)
			}
		}
	}
	if (o.head() || o.Role == RoleNode) && !clusterName.MatchString(o.Cluster) {
		fail("--cluster=%q is no ClusterName of slurm.conf", o.Cluster)
	}
	if _, _, err := net.SplitHostPort(o.Backend); err != nil && o.Role != RoleAll {
		fail("--backend=%q must be HOST:PORT, such as head:7443, as the other hosts reach it", o.Backend)
	}
	if !o.head() && o.CAFile == "" {
		fail("--ca is missing; copy %s from the head node", caFile)
	}
	if o.Role == RolePortal && o.JoinTokenFile == "" {
		fail("--join-token-file is missing; make a token on the head node: carme-backend token --role portal --name NAME")
	}
	slices.Sort(wrong)
	return wrong
}

func (o *Options) nameProblems(fail func(string, ...any)) {
	for option, name := range map[string]string{"--portal-host": o.PortalHost, "--apps-domain": o.AppsDomain} {
		if !hostName.MatchString(name) || !strings.Contains(name, ".") {
			fail("%s=%q must be a DNS name in lower case with a dot in it", option, name)
		}
	}
	if o.PortalHost == o.AppsDomain || strings.HasSuffix(o.PortalHost, "."+o.AppsDomain) {
		fail("--portal-host=%s lies within --apps-domain=%s; an app could pose as the portal, choose another name", o.PortalHost, o.AppsDomain)
	}
	if strings.HasSuffix(o.AppsDomain, "."+o.PortalHost) {
		fail("--apps-domain=%s lies within --portal-host=%s; an app could set cookies for the portal, choose another name", o.AppsDomain, o.PortalHost)
	}
	if o.PublicPort < 1 || o.PublicPort > 65535 {
		fail("--public-port=%d is no port", o.PublicPort)
	}
}

func (o *Options) head() bool   { return o.Role == RoleAll || o.Role == RoleHead }
func (o *Options) portal() bool { return o.Role == RoleAll || o.Role == RolePortal }

// Run sets the host up. What is wrong with the options is one error.
func Run(ctx context.Context, o Options) error {
	if o.Role == RoleAll && o.Backend == "" {
		o.Backend = "localhost:7443"
	}
	if wrong := o.Problems(); len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	s := &setup{o}
	steps := []struct {
		title  string
		wanted bool
		do     func(context.Context) error
	}{
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
		fmt.Fprintf(s.Out, "%s\n", step.title)
		if err := step.do(ctx); err != nil {
			return err
		}
	}
	s.advise()
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
	if err := t.Execute(&out, s.Options); err != nil {
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
