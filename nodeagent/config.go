package nodeagent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/nodeagent/relay"
)

// ConfigFile is where the configuration is, unless --config says otherwise.
const ConfigFile = "/etc/carme/agent.yaml"

// Config is agent.yaml.
type Config struct {
	// Cluster is the name that route tokens carry.
	Cluster string `yaml:"cluster"`
	// Node is this node's name in Slurm.
	Node    string  `yaml:"node"`
	Listen  string  `yaml:"listen"`
	Backend Backend `yaml:"backend"`
	CA      string  `yaml:"ca"`
	State   string  `yaml:"state"`
	// MetricsListen is where Prometheus may ask, empty for nowhere.
	MetricsListen string       `yaml:"metrics_listen"`
	Munge         string       `yaml:"munge"`
	JoinToken     string       `yaml:"join_token_file"`
	Carme         string       `yaml:"carme"`
	Limits        relay.Limits `yaml:"limits"`
	LogLevel      string       `yaml:"log_level"`
}

// Backend is where the backend is.
type Backend struct {
	Address string `yaml:"address"`
	// Name is that of its certificate, empty for any backend of the CA.
	Name string `yaml:"name"`
	// UID is the user it runs as on its host, 0 for unknown.
	UID uint32 `yaml:"uid"`
}

// DefaultConfig is the configuration of a node called name.
func DefaultConfig(name string) Config {
	name, _, _ = strings.Cut(name, ".")
	return Config{ //nolint:gosec // G101: the name of a file
		Node: name, Listen: ":7444", CA: "/etc/carme/ca.pem", State: "/var/lib/carme/agent",
		Munge: "/usr/bin/munge", JoinToken: "/etc/carme/join-token", Carme: "/usr/bin/carme",
		Limits:   relay.Limits{Job: 1024, User: 4096, Total: 16384},
		LogLevel: "info",
	}
}

// ReadConfig reads and checks the file. The error has everything that is wrong
// (config.Problems).
func ReadConfig(file string) (Config, error) {
	host, err := os.Hostname()
	if err != nil {
		return Config{}, err
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return Config{}, err
	}
	return readConfig(config.Daemon{Source: config.Source{Root: "/"}, File: abs, Manual: "carme-agent(8)"}, host)
}

func readConfig(from config.Daemon, host string) (Config, error) {
	c := DefaultConfig(host)
	return c, from.Read(&c, func(fail config.Fail) { c.check(fail) })
}

var clusterPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (c *Config) check(fail config.Fail) {
	if !clusterPattern.MatchString(c.Cluster) {
		fail("cluster must be a name of letters, digits, '.', '_' and '-': ClusterName of slurm.conf", "cluster")
	}
	if _, err := mtls.NewIdentity(mtls.RoleNode, c.Node); err != nil {
		fail("node must be this node's NodeName in slurm.conf", "node")
	}
	if c.Backend.Name != "" {
		if _, err := mtls.NewIdentity(mtls.RoleBackend, c.Backend.Name); err != nil {
			fail("must be the name in the backend's certificate", "backend", "name")
		}
	}
	if err := checkAddress(c.Backend.Address); err != nil || strings.HasPrefix(c.Backend.Address, ":") {
		fail("must be HOST:PORT of the backend, such as head:7443", "backend", "address")
	}
	if checkAddress(c.Listen) != nil {
		fail("must be [ADDRESS]:PORT", "listen")
	}
	if c.MetricsListen != "" && checkAddress(c.MetricsListen) != nil {
		fail("must be [ADDRESS]:PORT, or empty", "metrics_listen")
	}
	for _, f := range []struct{ key, path string }{
		{"ca", c.CA}, {"state", c.State}, {"munge", c.Munge}, {"join_token_file", c.JoinToken}, {"carme", c.Carme},
	} {
		if !filepath.IsAbs(f.path) || filepath.Clean(f.path) != f.path {
			fail("must be an absolute path", f.key)
		}
	}
	for _, f := range []struct {
		key string
		n   int
	}{{"job", c.Limits.Job}, {"user", c.Limits.User}, {"total", c.Limits.Total}} {
		if f.n < 1 || f.n > 1<<20 {
			fail("must be between 1 and 1048576", "limits", f.key)
		}
	}
	if _, err := level(c.LogLevel); err != nil {
		fail("must be debug, info, warn or error", "log_level")
	}
}

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil && port == "" {
		err = errors.New("no port")
	}
	if err == nil {
		_, err = net.LookupPort("tcp", port) //nolint:noctx // a number, or a line of /etc/services
	}
	return err
}
