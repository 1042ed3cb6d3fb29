package backend

import (
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/auth/ldapauth"
	"github.com/carme-hpc/carme/portal/backend/jobs"
	"github.com/carme-hpc/carme/portal/backend/policy"
)

// Where things are unless the command line or the file says otherwise.
const (
	defaultFile       = "/etc/carme/backend.yaml"
	defaultSignerFile = "/etc/carme/signer.yaml"
	manual            = "carme-backend(8)"
)

// Config is backend.yaml.
type Config struct {
	// Cluster is Slurm's name of it.
	Cluster string `yaml:"cluster"`
	// Name is this backend's, in its certificate.
	Name          string          `yaml:"name"`
	Listen        string          `yaml:"listen"`
	MetricsListen string          `yaml:"metrics_listen"`
	State         string          `yaml:"state"`
	AdminSocket   string          `yaml:"admin_socket"`
	SignerSocket  string          `yaml:"signer_socket"`
	Issuer        string          `yaml:"issuer"`
	LDAP          ldapauth.Config `yaml:"ldap"`
	Slurm         Slurm           `yaml:"slurm"`
	Sessions      Sessions        `yaml:"sessions"`
	Limits        policy.Limits   `yaml:"limits"`
	// Default is what the start form begins with.
	Default jobs.Default `yaml:"default"`
	// AgentPort is where the nodes' agents listen.
	AgentPort string `yaml:"agent_port"`
	LogLevel  string `yaml:"log_level"`
}

// Slurm is how Slurm is reached.
type Slurm struct {
	// URL is slurmrestd's: unix:/PATH or http://HOST:PORT.
	URL            string `yaml:"url"`
	TimeoutSeconds int    `yaml:"timeout_seconds"`
	// ServiceUser looks at Slurm for everybody; signer.yaml names it too.
	ServiceUser string `yaml:"service_user"`
}

// Sessions is how long logins last.
type Sessions struct {
	Hours       int `yaml:"hours"`
	IdleMinutes int `yaml:"idle_minutes"`
	// FactorHours: on a browser where a second factor was shown this short ago,
	// the password is enough; 0: both at each login.
	FactorHours int `yaml:"factor_hours"`
}

// DefaultConfig is the one of a file that says nothing; the directory is missing.
func DefaultConfig() Config {
	return Config{
		Listen: ":7443", State: "/var/lib/carme/backend", AdminSocket: "/run/carme-backend/admin.sock",
		SignerSocket: "/run/carme-signer/signer.sock", Issuer: "Carme", LDAP: ldapauth.Default(), AgentPort: "7444", LogLevel: "info",
		Slurm:    Slurm{URL: "unix:/run/slurmrestd/slurmrestd.sock", TimeoutSeconds: 3, ServiceUser: "carme-backend"},
		Sessions: Sessions{Hours: 12, IdleMinutes: 120},
		Limits:   policy.Limits{api.RoleUser: {Running: 10}},
	}
}

var (
	clusterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$`)
	portNumber  = regexp.MustCompile(`^[1-9][0-9]{0,4}$`)
)

// LoadConfig reads and checks backend.yaml.
func LoadConfig(src config.Source, file string) (*Config, error) {
	c := DefaultConfig()
	err := config.Daemon{Source: src, File: file, Manual: manual}.Read(&c, func(fail config.Fail) { c.check(fail) })
	if err != nil {
		return nil, err
	}
	return &c, nil
}

func (c *Config) check(fail config.Fail) {
	if !clusterName.MatchString(c.Cluster) {
		fail("must be the name of the cluster, ClusterName in slurm.conf", "cluster")
	}
	if _, err := mtls.NewIdentity(mtls.RoleBackend, c.Name); err != nil {
		fail("must be the name of this host as nodes and portals reach it", "name")
	}
	for key, p := range map[string]string{"state": c.State, "admin_socket": c.AdminSocket, "signer_socket": c.SignerSocket} {
		if !path.IsAbs(p) || path.Clean(p) != p {
			fail("must be a path from / on", key)
		}
	}
	if !strings.Contains(c.Listen, ":") {
		fail("is no address; write :PORT or HOST:PORT", "listen")
	}
	if c.MetricsListen != "" && !strings.Contains(c.MetricsListen, ":") {
		fail("is no address; write 127.0.0.1:PORT", "metrics_listen")
	}
	if !portNumber.MatchString(c.AgentPort) {
		fail("is no port", "agent_port")
	}
	c.LDAP.Check(func(text string, at ...any) { fail(text, append([]any{"ldap"}, at...)...) })
	if !private(c.Slurm.URL) {
		fail("is no address of slurmrestd over which tokens may go; write unix:/PATH, https://HOST:PORT, or http://localhost:PORT", "slurm", "url")
	}
	const longest = 60
	if c.Slurm.TimeoutSeconds < 1 || c.Slurm.TimeoutSeconds > longest {
		fail("must be 1 to 60 seconds", "slurm", "timeout_seconds")
	}
	if c.Slurm.ServiceUser == "" || c.Slurm.ServiceUser == "root" {
		fail("must be a user other than root", "slurm", "service_user")
	}
	const day = 24
	if c.Sessions.Hours < 1 || c.Sessions.Hours > 7*day {
		fail("must be 1 to 168 hours", "sessions", "hours")
	}
	if c.Sessions.IdleMinutes < 5 || c.Sessions.IdleMinutes > day*60 {
		fail("must be 5 to 1440 minutes", "sessions", "idle_minutes")
	}
	if c.Sessions.FactorHours < 0 || c.Sessions.FactorHours > day {
		fail("must be 0 to 24 hours", "sessions", "factor_hours")
	}
	if _, ok := c.Limits[api.RoleUser]; !ok {
		fail("has no entry user, which is everybody's", "limits")
	}
	c.Limits.Check(func(text string, at ...any) { fail(text, append([]any{"limits"}, at...)...) })
	checkLevel(fail, c.LogLevel)
}

// private says whether nobody on the network can listen at an address of slurmrestd.
func private(address string) bool {
	if strings.HasPrefix(address, "unix:/") {
		return true
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || err == nil && ip.IsLoopback())
}

func checkLevel(fail config.Fail, level string) {
	switch level {
	case "debug", "info", "warn", "error":
	default:
		fail("is unknown; use debug, info, warn or error", "log_level")
	}
}

func (c *Config) slurmTimeout() time.Duration {
	return time.Duration(c.Slurm.TimeoutSeconds) * time.Second
}

// SignerConfig is signer.yaml.
type SignerConfig struct {
	Socket string `yaml:"socket"`
	State  string `yaml:"state"`
	// SlurmKey is the PEM file of the RSA key that slurmctld has in its JWKS
	// under KeyID.
	SlurmKey string `yaml:"slurm_key"`
	KeyID    string `yaml:"key_id"`
	// BackendUser is the only user that is answered.
	BackendUser string `yaml:"backend_user"`
	SlurmUser   string `yaml:"slurm_user"`
	ServiceUser string `yaml:"service_user"`
	// MemberOf: members of one of these groups get tokens.
	MemberOf []string `yaml:"member_of"`
	LogLevel string   `yaml:"log_level"`
}

// DefaultSignerConfig is the one of a file that says nothing; the groups are
// missing.
func DefaultSignerConfig() SignerConfig {
	return SignerConfig{
		Socket: "/run/carme-signer/signer.sock", State: "/var/lib/carme/signer", SlurmKey: "/var/lib/carme/signer/jwt.key",
		KeyID: "carme", BackendUser: "carme-backend", SlurmUser: "slurm", ServiceUser: "carme-backend", LogLevel: "info",
	}
}

// LoadSignerConfig reads and checks signer.yaml.
func LoadSignerConfig(src config.Source, file string) (*SignerConfig, error) {
	c := DefaultSignerConfig()
	err := config.Daemon{Source: src, File: file, Manual: manual}.Read(&c, func(fail config.Fail) { c.check(fail) })
	if err != nil {
		return nil, err
	}
	return &c, nil
}

func (c *SignerConfig) check(fail config.Fail) {
	for key, p := range map[string]string{"socket": c.Socket, "state": c.State, "slurm_key": c.SlurmKey} {
		if !path.IsAbs(p) || path.Clean(p) != p {
			fail("must be a path from / on", key)
		}
	}
	for key, user := range map[string]string{"backend_user": c.BackendUser, "slurm_user": c.SlurmUser, "key_id": c.KeyID} {
		if user == "" {
			fail("must not be empty", key)
		}
	}
	if c.ServiceUser == "root" || c.ServiceUser != "" && c.ServiceUser == c.SlurmUser {
		fail("must be a user without rights in Slurm, not root and not SlurmUser", "service_user")
	}
	if len(c.MemberOf) == 0 {
		fail("is missing; name the groups whose members may use the portal", "member_of")
	}
	checkLevel(fail, c.LogLevel)
}
