package setup

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
)

const (
	joinTimeout = 30 * time.Second
	answerMax   = 1 << 20
)

// backendPort is where the backend listens unless it is told otherwise.
const backendPort = "7443"

// BackendName is the backend's name in its certificate.
func (o *Options) BackendName() string {
	if o.Backend == "" {
		return o.Host
	}
	host, _, err := net.SplitHostPort(o.Backend)
	if err != nil {
		return o.Backend
	}
	return host
}

// BackendAddress is where a portal on this host finds the backend.
func (o *Options) BackendAddress() string {
	if o.Backend == "" {
		return net.JoinHostPort("localhost", backendPort)
	}
	return o.Backend
}

// BackendPort is where the backend listens.
func (o *Options) BackendPort() string {
	_, port, err := net.SplitHostPort(o.Backend)
	if err != nil {
		return backendPort
	}
	return port
}

// forOthers is the backend as other hosts reach it.
func (o *Options) forOthers() string {
	if o.Backend == "" {
		return net.JoinHostPort(o.Host, backendPort)
	}
	return o.Backend
}

// joined says whether the portal has a certificate that is still good: it renews
// that by itself.
func (s *setup) joined() (bool, error) {
	name := stateOf(portalDir, "cert.pem")
	data, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the portal's certificate: %w", err)
	}
	if block, _ := pem.Decode(data); block != nil {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && s.now().Before(cert.NotAfter) && !s.now().Before(cert.NotBefore) {
			s.say("kept", name, "")
			return true, nil
		}
	}
	s.say("found", name, "it is not good now or cannot be read: joining again")
	return false, nil
}

// join gets the portal its certificate, unless it has one, and starts it.
func (s *setup) join(ctx context.Context) error {
	have, err := s.joined()
	if err != nil {
		return err
	}
	if have {
		return s.start(ctx, portalUnit)
	}
	token, err := s.joinToken(ctx)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("ask for the name of this host: %w", err)
	}
	name, _, _ = strings.Cut(name, ".")
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("make a request for a certificate: %w", err)
	}
	enrolled, err := s.askToJoin(ctx, api.Enrol{Role: mtls.RolePortal, Name: name, CSR: csr, JoinToken: token})
	if err != nil {
		return err
	}
	secret, err := keyPEM(key)
	if err != nil {
		return err
	}
	if err := s.directory(portalDir+"/tls", 0o700, portalUser); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{"ca.pem", enrolled.CA, 0o644}, {"key.pem", secret, 0o600}, {"cert.pem", enrolled.Certificate, 0o644}} {
		if err := s.place(stateOf(portalDir, f.name), f.data, f.mode, portalUser); err != nil {
			return err
		}
	}
	return s.start(ctx, portalUnit)
}

// joinToken reads the token that the admin brought, or asks the backend on this
// host for one.
func (s *setup) joinToken(ctx context.Context) (string, error) {
	if s.JoinTokenFile != "" {
		data, err := os.ReadFile(s.JoinTokenFile)
		if err != nil {
			return "", fmt.Errorf("read the join token: %w", err)
		}
		return strings.TrimSpace(string(data)), nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("ask for the name of this host: %w", err)
	}
	host, _, _ = strings.Cut(host, ".")
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "token", "--role", mtls.RolePortal, "--name", host) //nolint:gosec // our own program
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("ask the backend for a join token: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// askToJoin sends the request to the backend, which must have a certificate of
// Carme's CA with the name that the admin gave.
func (s *setup) askToJoin(ctx context.Context, in api.Enrol) (*api.Enrolled, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	certs, err := mtls.Open(mtls.Files{CA: s.path(caFile)}, func(error) {})
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: certs.Client(mtls.Identity{Role: mtls.RoleBackend, Name: s.BackendName()}),
	}}
	defer client.CloseIdleConnections()
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.BackendAddress()+"/v1/join", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the backend: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the backend at %s to join: %w", s.BackendAddress(), err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	answer, err := io.ReadAll(io.LimitReader(resp.Body, answerMax))
	if err != nil {
		return nil, fmt.Errorf("read the backend's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var refused api.ErrorBody
		if json.Unmarshal(answer, &refused) == nil && refused.Error.Message != "" {
			return nil, errors.New("the backend refuses: " + refused.Error.Message)
		}
		return nil, fmt.Errorf("the backend answers %s", resp.Status)
	}
	enrolled := new(api.Enrolled)
	if err := json.Unmarshal(answer, enrolled); err != nil {
		return nil, fmt.Errorf("read the backend's answer: %w", err)
	}
	return enrolled, nil
}
