package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// lookEvery is how often the files are looked at, at most.
const lookEvery = 5 * time.Second

// certificate is a pair of files that is read again when it has changed.
// Connections that are open keep what they have.
type certificate struct {
	cert, key string
	now       func() time.Time
	problem   func(error)

	mu      sync.Mutex
	pair    *tls.Certificate
	changed time.Time
	looked  time.Time
}

func openCertificate(cert, key string, now func() time.Time, problem func(error)) (*certificate, error) {
	c := &certificate{cert: cert, key: key, now: now, problem: problem}
	return c, c.reload()
}

func (c *certificate) reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.load()
}

// load reads the files. The caller holds the lock.
func (c *certificate) load() error {
	c.looked = c.now()
	changed, err := latest(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("browsers' certificate: %w", err)
	}
	c.changed = changed
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("browsers' certificate: %w", err)
	}
	c.pair = &pair
	return nil
}

func latest(files ...string) (when time.Time, err error) {
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return when, err
		}
		if info.ModTime().After(when) {
			when = info.ModTime()
		}
	}
	return when, nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) > lookEvery {
		c.looked = now
		if changed, err := latest(c.cert, c.key); err != nil || !changed.Equal(c.changed) {
			if err := c.load(); err != nil && c.problem != nil {
				c.problem(err)
			}
		}
	}
	return c.pair, nil
}

func (c *certificate) config() *tls.Config {
	return &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}
}

// covers says whether browsers would take the certificate for the hosts.
func (c *certificate) covers(hosts ...string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, host := range hosts {
		if err := c.pair.Leaf.VerifyHostname(host); err != nil {
			return fmt.Errorf("browsers' certificate: it must be for the portal's host and for *.APPS_DOMAIN: %w", err)
		}
	}
	return nil
}
