package setup

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
)

func options(t *testing.T, role string) (Options, *bytes.Buffer) {
	t.Helper()
	out := new(bytes.Buffer)
	return Options{
		Role: role, PortalHost: "portal.example.org", AppsDomain: "apps.example.org", PublicPort: 443, Cluster: "hpc",
		Backend: "head:7443", Directory: Directory{
			URL: "ldaps://ldap", PeopleBase: "ou=people,dc=x", GroupsBase: "ou=groups,dc=x", LoginGroup: "users",
		},
		Slurmrestd: "unix:/run/r.sock", Root: t.TempDir(), Out: out, Now: time.Now, Unprivileged: true,
	}, out
}

func TestSetup_of_one_host_writes_keys_certificates_and_configuration(t *testing.T) {
	o, out := options(t, RoleAll)
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{backendFile, signerFile, portalFile, slurmKeyFile, jwksFile, webCertFile, webKeyFile, webCADir + "/ca.pem"} {
		if _, err := os.Stat(filepath.Join(o.Root, name)); err != nil {
			t.Error(err)
		}
	}
	for _, want := range []string{"AuthAltParameters=jwks=" + jwksFile, "PrologFlags=Contain", "TCP 443", "TCP 7444", "*.apps.example.org"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	for _, secret := range []string{slurmKeyFile, webKeyFile, webCADir + "/ca.key"} {
		if info, err := os.Stat(filepath.Join(o.Root, secret)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", secret, info.Mode(), err)
		}
	}
}

func TestSetup_makes_a_certificate_that_browsers_take_for_its_names_alone(t *testing.T) {
	o, _ := options(t, RoleAll)
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	ca, _, err := readPair(filepath.Join(o.Root, webCADir, "ca.pem"), filepath.Join(o.Root, webCADir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := readPair(filepath.Join(o.Root, webCertFile), filepath.Join(o.Root, webKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for name, good := range map[string]bool{
		"portal.example.org": true, "s-1.apps.example.org": true, "apps.example.org": false, "other.example.org": false, "a.b.apps.example.org": false,
	} {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name})
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
	if cert.NotAfter.Sub(cert.NotBefore) > 398*24*time.Hour {
		t.Errorf("it lives %v", cert.NotAfter.Sub(cert.NotBefore))
	}
}

func TestSetup_can_be_run_again(t *testing.T) {
	o, out := options(t, RoleAll)
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	before := map[string]string{}
	for _, name := range []string{webCADir + "/ca.pem", webCertFile, slurmKeyFile, jwksFile} {
		data, err := os.ReadFile(filepath.Join(o.Root, name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = string(data)
	}
	mine := []byte("# the admin's\n")
	if err := os.WriteFile(filepath.Join(o.Root, backendFile), mine, 0o644); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for name, text := range before {
		if data, err := os.ReadFile(filepath.Join(o.Root, name)); err != nil || string(data) != text {
			t.Errorf("%s changed (%v)", name, err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(o.Root, backendFile)); err != nil || !bytes.Equal(data, mine) {
		t.Errorf("the admin's file became %q, %v", data, err)
	}
	if !strings.Contains(out.String(), backendFile+".new") {
		t.Errorf("it does not say where to look:\n%s", out)
	}
}

func TestSetup_renews_a_certificate_that_ends_soon(t *testing.T) {
	o, _ := options(t, RoleAll)
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(o.Root, webCertFile))
	if err != nil {
		t.Fatal(err)
	}
	o.Now = func() time.Time { return time.Now().Add(webCertLife - renewBefore/2) }
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(filepath.Join(o.Root, webCertFile))
	if err != nil || bytes.Equal(before, after) {
		t.Errorf("it is still the old one (%v)", err)
	}
}

func TestSetup_joins_anew_with_a_certificate_that_is_no_good_now(t *testing.T) {
	o, _ := options(t, RolePortal)
	s := &setup{o}
	file := filepath.Join(o.Root, stateOf(portalDir, "cert.pem"))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if have, err := s.joined(); have || err != nil {
		t.Errorf("without one: %v, %v", have, err)
	}
	cert := mtlstest.New(t).Issue(t, mtls.RolePortal, "web") // good since an hour, for a day
	text, err := os.ReadFile(mtls.In(cert).Cert)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for off, want := range map[time.Duration]bool{0: true, 48 * time.Hour: false, -48 * time.Hour: false} {
		s.Now = func() time.Time { return time.Now().Add(off) }
		if have, err := s.joined(); have != want || err != nil {
			t.Errorf("with a clock that is wrong by %v: %v, %v", off, have, err)
		}
	}
}

func TestSetup_writes_the_public_key_as_slurmctld_reads_it(t *testing.T) {
	o, _ := options(t, RoleHead)
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(o.Root, jwksFile))
	if err != nil {
		t.Fatal(err)
	}
	var set struct {
		Keys []struct{ Kty, Alg, Kid, N, E string }
	}
	if err := json.Unmarshal(data, &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%s: %v", data, err)
	}
	if k := set.Keys[0]; k.Kty != "RSA" || k.Alg != "RS256" || k.E != "AQAB" || len(k.N) != 512 || k.Kid != slurmKeyID {
		t.Errorf("got %+v", k)
	}
}

func TestSetup_names_everything_that_is_wrong(t *testing.T) {
	cases := map[string]struct {
		change func(*Options)
		want   string
	}{
		"role":             {func(o *Options) { o.Role = "x" }, "--role=x is unknown"},
		"no portal host":   {func(o *Options) { o.PortalHost = "" }, "--portal-host"},
		"upper case":       {func(o *Options) { o.AppsDomain = "Apps.example.org" }, "lower case"},
		"one label":        {func(o *Options) { o.AppsDomain = "apps" }, "with a dot"},
		"same names":       {func(o *Options) { o.AppsDomain = o.PortalHost }, "could pose as the portal"},
		"portal in apps":   {func(o *Options) { o.PortalHost = "p." + o.AppsDomain }, "could pose as the portal"},
		"port":             {func(o *Options) { o.PublicPort = 0 }, "--public-port=0"},
		"directory":        {func(o *Options) { o.Directory.URL = "" }, "--ldap-url is missing"},
		"login group":      {func(o *Options) { o.Directory.LoginGroup = "" }, "--login-group is missing"},
		"cluster":          {func(o *Options) { o.Cluster = "" }, "--cluster"},
		"node without CA":  {func(o *Options) { o.Role = RoleNode }, "--ca is missing"},
		"portal, no token": {func(o *Options) { o.Role = RolePortal }, "--join-token-file is missing"},
		"backend":          {func(o *Options) { o.Role, o.Backend = RoleHead, "head" }, "HOST:PORT"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o, _ := options(t, RoleAll)
			c.change(&o)
			if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			if left, err := os.ReadDir(o.Root); err != nil || len(left) > 0 {
				t.Errorf("it wrote %v (%v)", left, err)
			}
		})
	}
}
