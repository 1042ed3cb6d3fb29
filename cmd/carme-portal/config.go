package main

import (
	"cmp"
	"log/slog"
	"net"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/carme-hpc/carme/internal/config"
)

// Config is portal.yaml. docs/man/carme-portal.8 explains each setting.
type Config struct {
	Listen        string  `yaml:"listen"`
	PortalHost    string  `yaml:"portal_host"`
	AppsDomain    string  `yaml:"apps_domain"`
	PublicPort    int     `yaml:"public_port"`
	Name          string  `yaml:"name"`
	TLS           Pair    `yaml:"tls"`
	Backend       Backend `yaml:"backend"`
	MetricsListen string  `yaml:"metrics_listen"`
	LogLevel      string  `yaml:"log_level"`
}

// Pair is the certificate that browsers see.
type Pair struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Backend is the way to the backend, and what proves to it who we are.
type Backend struct {
	URL  string `yaml:"url"`
	Name string `yaml:"name"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	CA   string `yaml:"ca"`
}

func defaults() Config {
	const own = "/var/lib/carme/portal/"
	return Config{
		Listen: ":8443", PublicPort: 8443, LogLevel: "info",
		TLS:     Pair{Cert: "/etc/carme/portal/tls.crt", Key: "/etc/carme/portal/tls.key"},
		Backend: Backend{Cert: own + "cert.pem", Key: own + "key.pem", CA: "/etc/carme/ca.pem"},
	}
}

func load(file string, source config.Source) (Config, error) {
	c := defaults()
	err := config.Daemon{Source: source, File: file, Manual: "carme-portal(8)"}.Read(&c, c.checker())
	return c, err
}

var hostName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// checker says what is wrong with the values.
func (c *Config) checker() func(config.Fail) {
	return func(fail config.Fail) {
		address(fail, c.Listen, "listen")
		if c.MetricsListen != "" {
			address(fail, c.MetricsListen, "metrics_listen")
		}
		c.checkHosts(fail)
		if c.PublicPort < 1 || c.PublicPort > 65535 {
			fail("must be a port, 1 to 65535", "public_port")
		}
		target, err := url.Parse(c.Backend.URL)
		if err != nil || target.Scheme != "https" || target.Host == "" || strings.Trim(target.Path, "/") != "" || target.User != nil {
			fail("must be the backend's address, such as https://carme-ctl:7443", "backend", "url")
		}
		absolute(fail, c.TLS.Cert, "tls", "cert")
		absolute(fail, c.TLS.Key, "tls", "key")
		absolute(fail, c.Backend.Cert, "backend", "cert")
		absolute(fail, c.Backend.Key, "backend", "key")
		absolute(fail, c.Backend.CA, "backend", "ca")
		if new(slog.Level).UnmarshalText([]byte(c.LogLevel)) != nil {
			fail("must be debug, info, warn or error", "log_level")
		}
	}
}

func (c *Config) checkHosts(fail config.Fail) {
	if !hostName.MatchString(c.PortalHost) {
		fail("must be a full host name in lower case, such as portal.example.org", "portal_host")
	}
	switch {
	case !hostName.MatchString(c.AppsDomain):
		fail("must be a full domain in lower case, such as apps.example.org", "apps_domain")
	case c.PortalHost == c.AppsDomain || strings.HasSuffix(c.PortalHost, "."+c.AppsDomain):
		fail("must not be that of the portal: sessions have hosts below it, and the portal must not be one of them", "apps_domain")
	case strings.HasSuffix(c.AppsDomain, "."+c.PortalHost):
		fail("must not be below portal_host: a session could set cookies for the portal", "apps_domain")
	}
}

func address(fail config.Fail, value string, at ...any) {
	if _, port, err := net.SplitHostPort(value); err != nil || cmp.Or(port, "0") == "0" {
		fail("must be ADDRESS:PORT, or :PORT for all addresses", at...)
	}
}

func absolute(fail config.Fail, name string, at ...any) {
	if !path.IsAbs(name) {
		fail("must be the absolute path of a file", at...)
	}
}
