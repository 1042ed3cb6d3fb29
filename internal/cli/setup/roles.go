package setup

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// headNode makes what backend and signer need.
func (s *setup) headNode(ctx context.Context) error {
	for _, d := range []struct {
		name, owner string
		mode        os.FileMode
	}{
		{"/var/lib/carme", "", 0o755},
		{backendDir, backendUser, 0o700},
		{signerDir, signerUser, 0o700},
	} {
		if err := s.directory(d.name, d.mode, d.owner); err != nil {
			return err
		}
	}
	if err := s.handOver(ctx); err != nil {
		return err
	}
	if err := s.configure(signerFile, signerTemplate); err != nil {
		return err
	}
	if err := s.configure(backendFile, backendTemplate); err != nil {
		return err
	}
	if err := s.tokenKey(); err != nil {
		return err
	}
	// It refuses to replace a CA, and all certificates with it.
	if !s.exists(signerDir + "/ca.key") {
		if err := s.command(ctx, signerUser, program, "signer", "init", "--config", signerFile); err != nil {
			return err
		}
	}
	err := s.withSigner(ctx, func() error {
		return s.command(ctx, backendUser, program, "init", "--config", backendFile)
	})
	if err != nil || s.Unprivileged {
		return err
	}
	ca, err := os.ReadFile(s.path(stateOf(backendDir, "ca.pem")))
	if err != nil {
		return fmt.Errorf("read the CA: %w", err)
	}
	return s.place(caFile, ca, 0o644, "")
}

// handOver gives the daemons of the head node what the admin has brought.
func (s *setup) handOver(ctx context.Context) error {
	for _, f := range []struct {
		name      *string
		owner, to string
		mode      os.FileMode
	}{
		{&s.Directory.PasswordFile, backendUser, "/etc/carme/ldap-password", 0o600},
		{&s.Directory.CA, backendUser, "/etc/carme/ldap-ca.pem", 0o644},
		{&s.SlurmKey, signerUser, signerDir + "/slurm.key", 0o600},
	} {
		name, err := s.hand(ctx, *f.name, f.owner, f.to, f.mode)
		if err != nil {
			return err
		}
		*f.name = name
	}
	return nil
}

// portalHost makes what the portal needs of this host alone.
func (s *setup) portalHost(context.Context) error {
	if err := s.directory("/var/lib/carme", 0o755, ""); err != nil {
		return err
	}
	if err := s.directory(portalDir, 0o700, portalUser); err != nil {
		return err
	}
	if err := s.takeCA(); err != nil {
		return err
	}
	if err := s.webCertificate(); err != nil {
		return err
	}
	if err := s.configure(portalFile, portalTemplate); err != nil {
		return err
	}
	return s.configure(socketFile, socketTemplate)
}

// node makes what the agent needs; it enrols by itself.
func (s *setup) node(context.Context) error {
	if err := s.directory("/var/lib/carme", 0o755, ""); err != nil {
		return err
	}
	if err := s.directory(agentDir, 0o700, ""); err != nil {
		return err
	}
	if err := s.takeCA(); err != nil {
		return err
	}
	return s.configure(agentFile, agentTemplate)
}

// takeCA puts the CA of Carme's own certificates where the daemons look for it.
func (s *setup) takeCA() error {
	if s.CAFile == "" {
		return nil
	}
	data, err := os.ReadFile(s.CAFile)
	if err != nil {
		return fmt.Errorf("read the CA: %w", err)
	}
	return s.place(caFile, data, 0o644, "")
}

// become is how a program is started as a user, without other groups.
func become(name string) (*syscall.SysProcAttr, error) {
	uid, gid, err := ids(name)
	if err != nil {
		return nil, err
	}
	u, err := strconv.ParseUint(strconv.Itoa(uid), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	g, err := strconv.ParseUint(strconv.Itoa(gid), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u), Gid: uint32(g)}}, nil
}
