package setup

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Files of Slurm's tokens.
const (
	slurmKeyFile = signerDir + "/jwt.key"
	jwksFile     = "/etc/carme/slurm-jwks.json"
	slurmKeyID   = "carme"
	rsaBits      = 3072
	signerSocket = "/run/carme-signer/signer.sock"
	// agentPort is where agents listen unless they are told otherwise.
	agentPort = "7444"
	// startPatience is how long a daemon may take until it listens.
	startPatience = 20 * time.Second
)

// tokenKey makes the key that signs Slurm's tokens, and its public half as
// slurmctld reads it (RFC 7517), unless the site has one.
func (s *setup) tokenKey() error {
	if s.SlurmKey != "" || s.exists(slurmKeyFile) {
		return nil
	}
	key, err := rsa.GenerateKey(rand.Reader, rsaBits)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	public, err := json.Marshal(map[string]any{"keys": []map[string]string{{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": slurmKeyID,
		"n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes()),
	}}})
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	if err := s.place(jwksFile, append(public, '\n'), 0o644, ""); err != nil {
		return err
	}
	return s.place(slurmKeyFile, pemOf("PRIVATE KEY", der), 0o600, signerUser)
}

// listens reports whether somebody answers at a unix socket.
func (s *setup) listens(ctx context.Context, socket string) bool {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", s.path(socket))
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was said
	return true
}

// withSigner runs do while the signer runs. Where it does not run yet it is
// started for the moment.
func (s *setup) withSigner(ctx context.Context, do func() error) error {
	if s.Unprivileged || s.listens(ctx, signerSocket) {
		return do()
	}
	if err := s.directory("/run/carme-signer", 0o710, signerUser); err != nil {
		return err
	}
	if err := s.ownGroup("/run/carme-signer", signerUser, backendUser); err != nil {
		return err
	}
	attr, err := become(signerUser)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "signer", "--config", signerFile)
	cmd.SysProcAttr = attr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = startPatience
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the signer: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err = s.await(ctx, signerSocket, ended); err == nil {
		err = do()
	}
	cancel()
	select {
	case <-ended: //nolint:errcheck // it was asked to end
	case <-time.After(startPatience):
		return errors.Join(err, errors.New("the signer that was started for the set-up does not end"))
	}
	return err
}

// await waits until a daemon listens.
func (s *setup) await(ctx context.Context, socket string, ended <-chan error) error {
	limit := time.After(startPatience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !s.listens(ctx, socket) {
		select {
		case err := <-ended:
			return fmt.Errorf("the signer ended at once: %w; run it by hand to see why: %s signer", err, program)
		case <-limit:
			return fmt.Errorf("the signer does not listen on %s", socket)
		case <-tick.C:
		}
	}
	return nil
}

// Units, called after their users.
const (
	signerUnit  = signerUser + ".service"
	backendUnit = backendUser + ".service"
	agentUnit   = "carme-agent.service"
	portalUnit  = portalUser + ".service"
	socketUnit  = portalUser + ".socket"
	// socketFile says where it listens.
	socketFile = "/etc/systemd/system/" + socketUnit + ".d/listen.conf"
)

// readers are the units that read a file of configuration.
func readers() map[string]string {
	return map[string]string{
		signerFile: signerUnit, backendFile: backendUnit, agentFile: agentUnit, portalFile: portalUnit, socketFile: portalUnit,
	}
}

// units are the host's.
func (s *setup) units() []string {
	switch s.Role {
	case RoleHead:
		return []string{signerUnit, backendUnit}
	case RolePortal:
		return []string{portalUnit}
	case RoleNode:
		return []string{agentUnit}
	}
	return []string{signerUnit, backendUnit, portalUnit}
}

// starts says whether daemons are started at all.
func (s *setup) starts() bool { return !s.NoStart && s.exists("/run/systemd/system") }

// ports wants those of daemons that do not run yet to be free: systemd's own
// words, that a dependency failed, help nobody.
func (s *setup) ports(ctx context.Context) error {
	for _, p := range []struct {
		unit, file, port, out string
	}{
		{backendUnit, backendFile, s.BackendPort(), "choose another by --backend " + s.BackendName() + ":PORT"},
		{socketUnit, portalFile, strconv.Itoa(s.PublicPort), "choose another by --public-port"},
		{agentUnit, agentFile, agentPort, "write " + agentFile + " with another as listen, which is agent_port in " + backendFile},
	} {
		unit := p.unit
		if unit == socketUnit {
			unit = portalUnit
		}
		if !slices.Contains(s.units(), unit) || s.active(ctx, p.unit) {
			continue
		}
		if edited, err := s.edited(p.file); err != nil || edited {
			continue // it may say another port
		}
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", ":"+p.port)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("port %s is taken by another program (ss -ltnp 'sport = :%s' names it); stop that, or %s", p.port, p.port, p.out)
		}
		if err != nil {
			return fmt.Errorf("try port %s: %w", p.port, err)
		}
		if err := listener.Close(); err != nil {
			return fmt.Errorf("try port %s: %w", p.port, err)
		}
	}
	return nil
}

func (s *setup) active(ctx context.Context, unit string) bool {
	return !s.Unprivileged && s.command(ctx, "", "systemctl", "is-active", "--quiet", unit) == nil
}

// daemons enables and starts the units; the portal's after it has joined.
func (s *setup) daemons(ctx context.Context) error {
	for _, unit := range s.units() {
		if unit == portalUnit {
			continue
		}
		if err := s.start(ctx, unit); err != nil {
			return err
		}
	}
	return nil
}

// start enables and starts a unit. One that runs with another configuration than
// the one that is there now starts again.
func (s *setup) start(ctx context.Context, unit string) error {
	if !s.starts() {
		s.say("left", unit, "not started; "+startHint(unit))
		return nil
	}
	commands := [][]string{{"enable", unit}}
	if s.changed[unit] {
		stop := []string{"stop", unit}
		if unit == portalUnit {
			stop = append(stop, socketUnit) // it may get another port
		}
		commands = append(commands, stop)
	}
	for _, args := range append(commands, []string{"start", unit}) {
		if err := s.command(ctx, "", "systemctl", args...); err != nil {
			return fmt.Errorf("%w%s", err, s.lastWords(ctx, unit))
		}
	}
	s.say("runs", unit, "")
	return nil
}

// lastWords is what a unit that does not start has told the journal.
func (s *setup) lastWords(ctx context.Context, unit string) string {
	const some = "4"
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "journalctl", "--no-pager", "-q", "-o", "cat", "-n", some, "-u", unit) //nolint:gosec // our own units
	out, err := cmd.Output()
	if text := strings.TrimSpace(string(out)); err == nil && text != "" {
		return "; its last words: " + text
	}
	return "; see: journalctl -u " + unit
}

func startHint(unit string) string { return "systemctl enable --now " + unit }

// stateOf is a daemon's file of its own certificate.
func stateOf(dir, name string) string { return filepath.Join(dir, "tls", name) }
