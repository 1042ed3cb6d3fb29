package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mdp/qrterminal/v3"
	"github.com/pquerna/otp/totp"
)

// The portal of the testbed, as testbed/bin/portal names it and
// testbed/bin/machine publishes it.
const (
	portalPort = "8443"
	portalURL  = "https://portal.carme.localhost:" + portalPort + "/"
	webCA      = ".cache/testbed/web-ca/ca.pem" // in root's directory with its key
	sharedCA   = "build/carme-demo-ca.pem"
)

// portal shows the way into the portal, once it has answered.
func portal(ctx context.Context, d *demo) error {
	if err := d.answers(ctx); err != nil {
		return err
	}
	ca, err := d.shareCA()
	if err != nil {
		return err
	}
	p := func(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }
	p("\nThe portal:              %s", portalURL)
	p("Log in as:               alice, password alice-pass (bob, carol and mallory likewise)")
	p("One-time code:           scan the QR code that the page shows, or let this machine make one of the secret below it:")
	p("                         build/carme-demo -code SECRET")
	p("Trust its certificate:   mkdir -p ~/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n carme-demo -i %s", ca)
	p("                         (Chromium; package libnss3-tools. The CA can sign for these names alone and stays the same between runs.)")
	if login, ok := d.cameBy(); ok {
		p("From your own machine:   %s    (or the name that you gave ssh), then open the address there", login.tunnel())
		p("                         %s    is the certificate to trust there", login.fetch(ca))
	}
	p("")
	qrterminal.GenerateHalfBlock(portalURL, qrterminal.L, d.out)
	return nil
}

// shareCA puts the certificate of the portal's CA where everybody can read it,
// and returns the absolute path.
func shareCA() (string, error) {
	data, err := os.ReadFile(webCA)
	if err != nil {
		return "", fmt.Errorf("read the portal's CA: %w", err)
	}
	if err := os.WriteFile(sharedCA, data, 0o644); err != nil { //nolint:gosec // G306: it is public
		return "", fmt.Errorf("share the portal's CA: %w", err)
	}
	name, err := filepath.Abs(sharedCA)
	if err != nil {
		return "", fmt.Errorf("find the portal's CA: %w", err)
	}
	return name, nil
}

// portalAnswers asks for the login page as a browser on this machine does.
func portalAnswers(ctx context.Context) error {
	data, err := os.ReadFile(webCA)
	if err != nil {
		return fmt.Errorf("read the portal's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return errors.New("the portal's CA is no certificate; run: make demo-down, then make demo")
	}
	// A browser resolves names below localhost by itself (RFC 6761).
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13, ServerName: "portal.carme.localhost"}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: config}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://127.0.0.1:8443/login", nil)
	if err != nil {
		return fmt.Errorf("ask the portal: %w", err)
	}
	req.Host = "portal.carme.localhost:8443"
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the portal: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the portal answers %s", resp.Status)
	}
	return nil
}

// printCode prints the one-time code of now for a secret of the portal's.
func printCode(secret string, now time.Time) error {
	code, err := totp.GenerateCode(strings.ReplaceAll(secret, " ", ""), now)
	if err != nil {
		return fmt.Errorf("make a one-time code: %w; the secret stands below the QR code on the page", err)
	}
	fmt.Println(code)
	return nil
}
