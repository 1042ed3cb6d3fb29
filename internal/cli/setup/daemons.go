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
	"time"
)

// Files of Slurm's tokens.
const (
	slurmKeyFile = signerDir + "/jwt.key"
	jwksFile     = "/etc/carme/slurm-jwks.json"
	slurmKeyID   = "carme"
	rsaBits      = 3072
	signerSocket = "/run/carme-signer/signer.sock"
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

// units are the host's.
func (s *setup) units() []string {
	switch s.Role {
	case RoleHead:
		return []string{"carme-signer.service", "carme-backend.service"}
	case RolePortal:
		return []string{"carme-portal.service"}
	case RoleNode:
		return []string{"carme-agent.service"}
	}
	return []string{"carme-signer.service", "carme-backend.service", "carme-portal.service"}
}

// daemons enables and starts the units; the portal's after it has joined.
func (s *setup) daemons(ctx context.Context) error {
	for _, unit := range s.units() {
		if unit == "carme-portal.service" {
			continue
		}
		if err := s.start(ctx, unit); err != nil {
			return err
		}
	}
	return nil
}

func (s *setup) start(ctx context.Context, unit string) error {
	if s.NoStart || !s.exists("/run/systemd/system") {
		s.say("left", unit, "not started; "+startHint(unit))
		return nil
	}
	if err := s.command(ctx, "", "systemctl", "enable", "--now", unit); err != nil {
		return err
	}
	s.say("runs", unit, "")
	return nil
}

func startHint(unit string) string { return "systemctl enable --now " + unit }

// stateOf is a daemon's file of its own certificate.
func stateOf(dir, name string) string { return filepath.Join(dir, "tls", name) }
