package ldapauth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/portal/backend/auth"
)

//nolint:misspell // a name of LDAP
const tree = `dn: dc=c
objectClass: dcObject
objectClass: organization
dc: c
o: c

dn: cn=reader,dc=c
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: reader
userPassword: reader-pass

dn: ou=people,dc=c
objectClass: organizationalUnit
ou: people

dn: ou=more,dc=c
objectClass: organizationalUnit
ou: more

dn: ou=groups,dc=c
objectClass: organizationalUnit
ou: groups

`

func entry(name, unit, pass string, uid int) string {
	return fmt.Sprintf(`dn: cn=%[1]s %[4]d,ou=%[2]s,dc=c
objectClass: inetOrgPerson
objectClass: posixAccount
uid: %[1]s
cn: %[1]s %[4]d
sn: x
mail: %[1]s@c
uidNumber: %[4]d
gidNumber: %[4]d
homeDirectory: /home/%[1]s
userPassword: %[3]s

`, name, unit, pass, uid)
}

func group(name string, gid int, members ...string) string {
	text := fmt.Sprintf("dn: cn=%[1]s,ou=groups,dc=c\nobjectClass: posixGroup\ncn: %[1]s\ngidNumber: %[2]d\n", name, gid)
	for _, m := range members {
		text += "memberUid: " + m + "\n"
	}
	return text + "\n"
}

// slapd runs a directory of its own. CARME_SLAPD_ROOT is where Debian's package
// is unpacked, / if it is installed.
func slapd(t *testing.T) (port int, ca string) {
	t.Helper()
	prefix := os.Getenv("CARME_SLAPD_ROOT")
	program := filepath.Join("/", prefix, "usr/sbin/slapd")
	if _, err := os.Stat(program); err != nil {
		t.Skip("no slapd here: apt install slapd, or set CARME_SLAPD_ROOT")
	}
	dir := t.TempDir()
	ca = certificate(t, dir)
	conf := ""
	for _, s := range []string{"core", "cosine", "nis", "inetorgperson"} {
		conf += "include " + filepath.Join("/", prefix, "etc/ldap/schema", s+".schema") + "\n"
	}
	conf += fmt.Sprintf(`modulepath %[2]s
moduleload back_mdb
TLSCACertificateFile %[1]s/ca.pem
TLSCertificateFile %[1]s/cert.pem
TLSCertificateKeyFile %[1]s/key.pem
security simple_bind=128
database mdb
suffix "dc=c"
rootdn "cn=admin,dc=c"
directory %[1]s/db
access to attrs=userPassword by anonymous auth by * none
access to * by users read by * none
`, dir, filepath.Join("/", prefix, "usr/lib/ldap"))
	data := tree + strings.Replace(entry("alice", "people", "alice-pass", 10001), "uid:", "objectClass: shadowAccount\nshadowLastChange: 20000\nuid:", 1) + entry("dave", "people", "dave-pass", 10004) + entry("sys", "people", "sys-pass", 999) +
		entry("root", "people", "root-pass", 0) + entry("twin", "people", "twin-pass", 10010) + entry("twin", "more", "twin-pass", 10011) +
		group("carme-users", 20001, "alice", "sys", "root", "twin") + group("carme-admins", 20002, "alice") + group("other", 20003, "alice", "dave")
	for name, text := range map[string]string{"slapd.conf": conf, "tree.ldif": data} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	add := exec.CommandContext(t.Context(), program, "-Tadd", "-q", "-f", dir+"/slapd.conf", "-l", dir+"/tree.ldif") //nolint:gosec // G702: whoever runs the tests may
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	port = free(t)
	run := exec.CommandContext(t.Context(), program, "-d0", "-h", fmt.Sprintf("ldap://127.0.0.1:%d/", port), "-f", dir+"/slapd.conf") //nolint:gosec // G702: as above
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = run.Process.Kill(); _ = run.Wait() })
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var d net.Dialer
		if c, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = c.Close()
			return port, ca
		}
		select {
		case <-deadline:
			t.Fatal("slapd does not listen")
		case <-tick.C:
		}
	}
}

func free(t *testing.T) int {
	t.Helper()
	var conf net.ListenConfig
	l, err := conf.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only its number counts
	return l.Addr().(*net.TCPAddr).Port
}

// certificate makes one for 127.0.0.1 that is its own CA.
func certificate(t *testing.T, dir string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, data := range map[string][]byte{"ca.pem": cert, "cert.pem": cert, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "ca.pem")
}

func directory(t *testing.T, change func(*Config)) *Directory {
	t.Helper()
	port, ca := slapd(t)
	cfg := Default()
	cfg.URLs, cfg.CA, cfg.BindDN = []string{fmt.Sprintf("ldap://127.0.0.1:%d", port)}, ca, "cn=reader,dc=c"
	cfg.PasswordFile = filepath.Join(t.TempDir(), "p")
	cfg.People.Base, cfg.Groups.Base = "dc=c", "ou=groups,dc=c"
	cfg.LoginGroups, cfg.AdminGroups = []string{"carme-users"}, []string{"carme-admins"}
	if err := os.WriteFile(cfg.PasswordFile, []byte("reader-pass\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFind_gives_a_person_with_groups_and_roles(t *testing.T) {
	d := directory(t, nil)
	for _, typed := range []string{"alice", "ALICE", " alice "} {
		p, err := d.Find(t.Context(), typed)
		if err != nil {
			t.Errorf("%q: %v", typed, err)
			continue
		}
		if p.Name != "alice" || p.UID != 10001 || p.Home != "/home/alice" || strings.Join(p.Groups, ",") != "carme-admins,carme-users,other" || strings.Join(p.Roles, ",") != "user,admin" {
			t.Errorf("person is %+v", p)
		}
		if p.Stamp != "shadowLastChange=20000 " {
			t.Errorf("the password's stamp is %q", p.Stamp)
		}
	}
}

func TestFind_knows_nobody_by(t *testing.T) {
	d := directory(t, nil)
	for name, typed := range map[string]string{
		"a name that is not there": "nobody", "a wildcard": "*", "a part of a name": "ali*", "a filter": "alice)(uid=*", "another filter": "x)(|(uid=alice)",
		"nothing": "", "a NUL": "alice\x00", "a newline": "alice\n", "a name outside the login groups": "dave", "a system user": "sys", "root": "root",
		"a name that two have": "twin", "a long name": strings.Repeat("a", 300),
	} {
		if p, err := d.Find(t.Context(), typed); !errors.Is(err, auth.ErrUnknown) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func TestCheck_takes_the_right_password_only(t *testing.T) {
	d := directory(t, nil)
	p, err := d.Find(t.Context(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(t.Context(), p.DN, "alice-pass"); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct{ dn, password string }{
		"a wrong one": {p.DN, "x"}, "an empty one": {p.DN, ""}, "another's": {p.DN, "dave-pass"}, "nobody's": {"", "alice-pass"}, "nobody's empty one": {"", ""},
	} {
		if err := d.Check(t.Context(), c.dn, c.password); !errors.Is(err, auth.ErrPassword) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDirectory_with_another_certificate_is_not_talked_to(t *testing.T) {
	d := directory(t, func(c *Config) { c.CA = certificate(t, t.TempDir()) })
	if _, err := d.Find(t.Context(), "alice"); err == nil || errors.Is(err, auth.ErrUnknown) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
}

func TestDirectory_that_does_not_answer_is_given_up(t *testing.T) {
	var conf net.ListenConfig
	l, err := conf.Listen(t.Context(), "tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's
	for _, scheme := range []string{"ldap", "ldaps"} {
		cfg := Default()
		cfg.URLs, cfg.TimeoutSeconds, cfg.People.Base = []string{scheme + "://" + l.Addr().String()}, 1, "dc=c"
		d, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := d.Find(t.Context(), "alice"); err == nil || errors.Is(err, auth.ErrUnknown) || time.Since(start) > 3*time.Second {
			t.Errorf("%s: %v after %v", scheme, err, time.Since(start))
		}
	}
}
