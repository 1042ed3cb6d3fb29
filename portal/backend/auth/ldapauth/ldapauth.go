package ldapauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/carme-hpc/carme/portal/backend/auth"
)

// uidMin is the smallest uid of a person; below are the system's.
const uidMin = 1000

// nameMax is the longest login name that is looked up, in bytes.
const nameMax = 256

// Config is the directory and how it is built.
type Config struct {
	// URLs are ldaps://HOST or ldap://HOST, the latter with StartTLS. They are
	// tried in order.
	URLs []string `yaml:"urls"`
	// CA is a PEM file; empty: the system's.
	CA string `yaml:"ca"`
	// BindDN and PasswordFile are the account that searches.
	BindDN       string `yaml:"bind_dn"`
	PasswordFile string `yaml:"password_file"`
	People       People `yaml:"people"`
	Groups       Groups `yaml:"groups"`
	// LoginGroups: who is in one of them may log in; empty: everyone found.
	LoginGroups []string `yaml:"login_groups"`
	// AdminGroups: who is in one of them is an admin.
	AdminGroups    []string `yaml:"admin_groups"`
	TimeoutSeconds int      `yaml:"timeout_seconds"`
}

// People says where people are, and the names of their attributes.
type People struct {
	Base   string `yaml:"base"`
	Filter string `yaml:"filter"`
	Name   string `yaml:"name"`
	UID    string `yaml:"uid"`
	GID    string `yaml:"gid"`
	Home   string `yaml:"home"`
	Full   string `yaml:"full_name"`
	Mail   string `yaml:"mail"`
	// Changed are attributes that change with the password; those that a person
	// does not have say nothing.
	Changed []string `yaml:"password_changed"`
}

// Groups says where groups are. MemberIs is name (memberUid) or dn (member).
type Groups struct {
	Base     string `yaml:"base"`
	Filter   string `yaml:"filter"`
	Name     string `yaml:"name"`
	Member   string `yaml:"member"`
	MemberIs string `yaml:"member_is"`
}

// Default is a directory with the schema of RFC 2307.
func Default() Config {
	return Config{
		People: People{
			Filter: "(objectClass=posixAccount)", Name: "uid", UID: "uidNumber", GID: "gidNumber", Home: "homeDirectory",
			Full: "cn", Mail: "mail",
			// OpenLDAP's ppolicy, Active Directory, shadow(5), Kerberos.
			Changed: []string{"pwdChangedTime", "pwdLastSet", "shadowLastChange", "krbLastPwdChange"},
		},
		Groups:         Groups{Filter: "(objectClass=posixGroup)", Name: "cn", Member: "memberUid", MemberIs: "name"},
		TimeoutSeconds: 5,
	}
}

// Check calls fail for everything that is wrong with the settings.
func (c *Config) Check(fail func(text string, at ...any)) {
	if len(c.URLs) == 0 {
		fail("there is no directory; add urls: [ldaps://HOST]", "urls")
	}
	for i, u := range c.URLs {
		parsed, err := url.Parse(u)
		if err != nil || parsed.Hostname() == "" || parsed.Scheme != "ldap" && parsed.Scheme != "ldaps" {
			fail("is no address of a directory; write ldaps://HOST, or ldap://HOST for StartTLS", "urls", i)
		}
	}
	for key, text := range map[string]string{"base": c.People.Base, "name": c.People.Name, "uid": c.People.UID, "gid": c.People.GID, "home": c.People.Home} {
		if text == "" {
			fail("must not be empty", "people", key)
		}
	}
	if _, err := ldap.CompileFilter(c.People.Filter); err != nil {
		fail("is no filter (RFC 4515)", "people", "filter")
	}
	if _, err := ldap.CompileFilter(c.Groups.Filter); err != nil {
		fail("is no filter (RFC 4515)", "groups", "filter")
	}
	if c.Groups.MemberIs != "name" && c.Groups.MemberIs != "dn" {
		fail("is unknown; use name or dn", "groups", "member_is")
	}
	if c.Groups.Base == "" && len(c.LoginGroups)+len(c.AdminGroups) > 0 {
		fail("is needed for login_groups and admin_groups", "groups", "base")
	}
	if c.TimeoutSeconds < 1 || c.TimeoutSeconds > 60 {
		fail("must be 1 to 60 seconds", "timeout_seconds")
	}
}

// Directory is a directory that can be asked.
type Directory struct {
	cfg      Config
	password string
	roots    *x509.CertPool
}

var _ auth.Directory = (*Directory)(nil)

// New reads the files that cfg names.
func New(cfg Config) (*Directory, error) {
	d := &Directory{cfg: cfg}
	if cfg.BindDN != "" {
		secret, err := os.ReadFile(cfg.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("read password for the directory: %w", err)
		}
		d.password = strings.TrimRight(string(secret), "\r\n")
		if d.password == "" {
			return nil, fmt.Errorf("password file %s is empty; a bind without password would prove nothing", cfg.PasswordFile)
		}
	}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("read CA of the directory: %w", err)
		}
		d.roots = x509.NewCertPool()
		if !d.roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA of the directory: no certificate in %s", cfg.CA)
		}
	}
	return d, nil
}

func (d *Directory) timeout() time.Duration { return time.Duration(d.cfg.TimeoutSeconds) * time.Second }

// dial returns a connection with verified TLS, on which nothing was said yet.
func (d *Directory) dial(ctx context.Context) (*ldap.Conn, error) {
	var errs []error
	for _, u := range d.cfg.URLs {
		conn, err := d.dialOne(ctx, u)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("reach directory: %w", errors.Join(errs...))
}

func (d *Directory) dialOne(ctx context.Context, address string) (*ldap.Conn, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname(), RootCAs: d.roots}
	port := map[string]string{"ldap": "389", "ldaps": "636"}[u.Scheme]
	if p := u.Port(); p != "" {
		port = p
	}
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	if u.Scheme == "ldaps" {
		secure := tls.Client(raw, conf)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", address, err), raw.Close())
		}
		return d.start(secure, true), raw.SetDeadline(time.Time{})
	}
	conn := d.start(raw, false)
	if err := conn.StartTLS(conf); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", address, err), conn.Close())
	}
	return conn, raw.SetDeadline(time.Time{})
}

func (d *Directory) start(c net.Conn, isTLS bool) *ldap.Conn {
	conn := ldap.NewConn(c, isTLS)
	conn.SetTimeout(d.timeout())
	conn.Start()
	return conn
}

// Find looks for exactly one entry, then for the groups it is in.
func (d *Directory) Find(ctx context.Context, name string) (auth.Person, error) {
	if !fit(name) {
		return auth.Person{}, auth.ErrUnknown
	}
	conn, err := d.dial(ctx)
	if err != nil {
		return auth.Person{}, err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to be said
	if d.cfg.BindDN != "" {
		if err := conn.Bind(d.cfg.BindDN, d.password); err != nil {
			return auth.Person{}, fmt.Errorf("bind as %s: %w", d.cfg.BindDN, err)
		}
	}
	p, err := d.person(conn, name)
	if err != nil {
		return auth.Person{}, err
	}
	if p.Groups, err = d.groups(conn, p); err != nil {
		return auth.Person{}, err
	}
	in := func(list []string) bool {
		return slices.ContainsFunc(list, func(g string) bool { return slices.Contains(p.Groups, g) })
	}
	if len(d.cfg.LoginGroups) > 0 && !in(d.cfg.LoginGroups) {
		return auth.Person{}, auth.ErrUnknown
	}
	p.Roles = []string{"user"}
	if in(d.cfg.AdminGroups) {
		p.Roles = append(p.Roles, "admin")
	}
	return p, nil
}

// fit refuses names that no person has, before the directory sees them.
func fit(name string) bool {
	return name != "" && len(name) <= nameMax && !strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == 0x7f })
}

func (d *Directory) person(conn *ldap.Conn, name string) (auth.Person, error) {
	p := d.cfg.People
	filter := "(&" + p.Filter + "(" + p.Name + "=" + ldap.EscapeFilter(name) + "))"
	want := []string{p.Name, p.UID, p.GID, p.Home, p.Full, p.Mail}
	want = append(want, p.Changed...)
	req := ldap.NewSearchRequest(p.Base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 2, d.cfg.TimeoutSeconds, false, filter, want, nil)
	res, err := conn.Search(req)
	if err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) && !ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
		return auth.Person{}, fmt.Errorf("search directory: %w", err)
	}
	if res == nil || len(res.Entries) != 1 || err != nil {
		return auth.Person{}, auth.ErrUnknown
	}
	e := res.Entries[0]
	uid, errUID := strconv.ParseUint(e.GetAttributeValue(p.UID), 10, 32)
	gid, errGID := strconv.ParseUint(e.GetAttributeValue(p.GID), 10, 32)
	found := auth.Person{
		Name: e.GetAttributeValue(p.Name), DN: e.DN, UID: uint32(uid), GID: uint32(gid), Home: e.GetAttributeValue(p.Home),
		Full: e.GetAttributeValue(p.Full), Mail: e.GetAttributeValue(p.Mail),
	}
	for _, name := range p.Changed {
		if value := e.GetEqualFoldAttributeValue(name); value != "" {
			found.Stamp += name + "=" + value + " "
		}
	}
	const uidMax = 1<<32 - 2 // the last one means nobody
	if errUID != nil || errGID != nil || uid < uidMin || uid > uidMax || len(e.GetAttributeValues(p.Name)) != 1 || !fit(found.Name) {
		return auth.Person{}, auth.ErrUnknown
	}
	return found, nil
}

func (d *Directory) groups(conn *ldap.Conn, p auth.Person) ([]string, error) {
	g := d.cfg.Groups
	if g.Base == "" {
		return nil, nil
	}
	member := p.Name
	if g.MemberIs == "dn" {
		member = p.DN
	}
	filter := "(&" + g.Filter + "(" + g.Member + "=" + ldap.EscapeFilter(member) + "))"
	const most = 4096
	req := ldap.NewSearchRequest(g.Base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, most, d.cfg.TimeoutSeconds, false, filter, []string{g.Name}, nil)
	res, err := conn.Search(req)
	if err != nil {
		return nil, fmt.Errorf("search groups: %w", err)
	}
	names := []string{}
	for _, e := range res.Entries {
		if name := e.GetAttributeValue(g.Name); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Check binds on a connection of its own, which is closed afterwards.
func (d *Directory) Check(ctx context.Context, dn, password string) error {
	if password == "" {
		return auth.ErrPassword // RFC 4513 5.1.2: a bind without password succeeds
	}
	conn, err := d.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to be said
	unknown := dn == ""
	if unknown {
		dn = d.cfg.People.Name + "=carme-nobody," + d.cfg.People.Base
	}
	err = conn.Bind(dn, password)
	switch {
	case unknown && (err == nil || ldap.IsErrorAnyOf(err, ldap.LDAPResultInvalidCredentials, ldap.LDAPResultNoSuchObject)):
		return auth.ErrPassword
	case ldap.IsErrorAnyOf(err, ldap.LDAPResultInvalidCredentials, ldap.LDAPResultNoSuchObject, ldap.LDAPResultInvalidDNSyntax,
		ldap.LDAPResultUnwillingToPerform, ldap.LDAPResultConstraintViolation, ldap.LDAPResultInappropriateAuthentication):
		return auth.ErrPassword
	case err != nil:
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}
