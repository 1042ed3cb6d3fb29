package setup

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"net"
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
		Backend: "head:7443", Host: "head", Directory: Directory{
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
	s := &setup{Options: o}
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
		"an address":       {func(o *Options) { o.PortalHost = "192.0.2.1" }, "no address"},
		"a wildcard":       {func(o *Options) { o.AppsDomain = "*.apps.example.org" }, "no *"},
		"apps in portal":   {func(o *Options) { o.AppsDomain = "apps." + o.PortalHost }, "such as apps.example.org"},
		"no scheme":        {func(o *Options) { o.Directory.URL = "ldap.example.org" }, "ldap://HOST for StartTLS"},
		"people":           {func(o *Options) { o.Directory.PeopleBase = "people" }, "--ldap-people=\"people\" must be a place"},
		"half an account":  {func(o *Options) { o.Directory.BindDN = "cn=x" }, "go together"},
		"lost password":    {func(o *Options) { o.Directory.BindDN, o.Directory.PasswordFile = "cn=x", "/nowhere" }, "--ldap-password-file"},
		"key without id":   {func(o *Options) { o.SlurmKey = "/dev/null" }, "--slurm-key-id go together"},
		"slurmrestd":       {func(o *Options) { o.Slurmrestd = "localhost" }, "--slurmrestd="},
		"no port":          {func(o *Options) { o.Role, o.Backend = RoleHead, "head:" }, "HOST:PORT"},
		"backend's port":   {func(o *Options) { o.Role, o.Backend = RoleHead, "head:x" }, "HOST:PORT"},
		"directory":        {func(o *Options) { o.Directory.URL = "" }, "--ldap-url=\"\" must be ldaps://HOST"},
		"login group":      {func(o *Options) { o.Directory.LoginGroup = "" }, "--login-group is missing"},
		"cluster":          {func(o *Options) { o.Cluster = "" }, "--cluster"},
		"odd cluster":      {func(o *Options) { o.Cluster = "a.b" }, "ClusterName"},
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

// started is options on a machine that runs systemd.
func started(t *testing.T) Options {
	t.Helper()
	o, _ := options(t, RolePortal)
	o.JoinTokenFile, o.CAFile = written(t, "token"), written(t, "a CA")
	if err := os.MkdirAll(filepath.Join(o.Root, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	return o
}

func written(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestSetup_names_a_port_that_is_taken_before_it_writes_anything(t *testing.T) {
	o := started(t)
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	o.PublicPort = taken.Addr().(*net.TCPAddr).Port
	want := fmt.Sprintf("port %d is taken by another program", o.PublicPort)
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--public-port") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(o.Root, "etc")); err == nil {
		t.Error("it has written configuration")
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), o); err != nil {
		t.Error(err)
	}
}

func TestSetup_lets_systemd_listen_where_browsers_come_in(t *testing.T) {
	o := started(t)
	o.PublicPort = 61443
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{socketFile: "ListenStream=\nListenStream=61443\n", portalFile: `listen: ":61443"`} {
		if text, err := os.ReadFile(filepath.Join(o.Root, name)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s says %q (%v)", name, text, err)
		}
	}
}

func TestSetup_run_again_with_other_options_replaces_what_nobody_has_edited(t *testing.T) {
	o, out := options(t, RoleHead)
	o.Directory.URL = "ldaps://wrong.example.org"
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(o.Root, backendFile)
	for _, c := range []struct {
		url    string
		edited bool
	}{{"ldaps://right.example.org", false}, {"ldaps://third.example.org", true}, {"ldaps://fourth.example.org", true}} {
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if c.edited {
			before = append(before, "# mine\n"...)
			if err := os.WriteFile(file, before, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		o.Directory.URL = c.url
		out.Reset()
		if err := Run(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(file)
		if err != nil || bytes.Equal(before, after) != c.edited || strings.Contains(string(after), c.url) == c.edited {
			t.Errorf("%s: it is now %s (%v)", c.url, after, err)
		}
		if strings.Contains(out.String(), backendFile+".new") != c.edited {
			t.Errorf("%s: it says\n%s", c.url, out)
		}
	}
}

// certificate is one of a CA that is not ours.
func certificate(t *testing.T, names ...string) (cert, key []byte) {
	t.Helper()
	secret, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "A public CA"}, DNSNames: names,
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, secret.Public(), secret)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("CERTIFICATE", der), pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(secret))
}

func TestSetup_keeps_a_certificate_of_a_public_CA(t *testing.T) {
	o, out := options(t, RoleAll)
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	put := func(names ...string) []byte {
		cert, key := certificate(t, names...)
		for name, data := range map[string][]byte{webCertFile: cert, webKeyFile: key} {
			if err := os.WriteFile(filepath.Join(o.Root, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return cert
	}
	mine := put(o.webNames()...)
	out.Reset()
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(filepath.Join(o.Root, webCertFile)); err != nil || !bytes.Equal(now, mine) {
		t.Errorf("it is another one now (%v)", err)
	}
	if !strings.Contains(out.String(), `of "A public CA", until`) {
		t.Errorf("it does not say whose it is:\n%s", out)
	}
	put(o.PortalHost)
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "is not for s-example.apps.example.org") {
		t.Errorf("without the sessions' names: %v", err)
	}
}

func TestSetup_does_not_replace_a_CA_whose_key_is_elsewhere(t *testing.T) {
	o, _ := options(t, RoleAll)
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(o.Root, webCADir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), o); err != nil {
		t.Errorf("while its certificate is good: %v", err)
	}
	o.Now = func() time.Time { return time.Now().Add(webCertLife - renewBefore/2) }
	if err := Run(t.Context(), o); err == nil || !strings.Contains(err.Error(), "ca.pem and ca.key belong together") {
		t.Errorf("when it needs another certificate: %v", err)
	}
}

func TestSetup_of_one_host_tells_the_nodes_a_name_that_they_can_reach(t *testing.T) {
	o, out := options(t, RoleAll)
	o.Backend = ""
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "--backend head:7443 ") {
		t.Errorf("it says\n%s", out)
	}
	for name, wants := range map[string][]string{backendFile: {"\nname: head\n"}, portalFile: {"url: https://localhost:7443\n", "name: head\n"}} {
		text, err := os.ReadFile(filepath.Join(o.Root, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wants {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s lacks %q:\n%s", name, want, text)
			}
		}
	}
}

func TestSetup_lets_the_backend_listen_where_others_are_told_to_find_it(t *testing.T) {
	for backend, want := range map[string]string{"head:9443": `listen: ":9443"`, "head:7443": ""} {
		o, out := options(t, RoleHead)
		o.Backend = backend
		if err := Run(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(o.Root, backendFile))
		if err != nil || strings.Contains(string(text), "listen:") != (want != "") || !strings.Contains(string(text), want) {
			t.Errorf("%s: %s (%v)", backend, text, err)
		}
		if !strings.Contains(out.String(), "TCP "+strings.TrimPrefix(backend, "head:")+" (backend)") {
			t.Errorf("it says\n%s", out)
		}
	}
}

func TestSetup_says_which_names_the_name_server_lacks(t *testing.T) {
	o, out := options(t, RoleAll)
	o.Resolve = func(_ context.Context, host string) error {
		if host == o.PortalHost {
			return nil
		}
		return errors.New("no such host")
	}
	if err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "add a record for *.apps.example.org") || strings.Contains(text, "record for portal.example.org") {
		t.Errorf("it says\n%s", text)
	}
}
