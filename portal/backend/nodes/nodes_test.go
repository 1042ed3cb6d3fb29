package nodes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
)

type certifier struct{ signed []string }

func (c *certifier) Certificate(_ context.Context, role, name string, _ []byte) (cert, ca []byte, err error) {
	c.signed = append(c.signed, role+"/"+name)
	return []byte("cert"), []byte("ca"), nil
}

func database(t *testing.T) (*store.DB, *audit.Log) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := store.Create(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db, &audit.Log{Now: time.Now, Out: slog.New(slog.DiscardHandler)}
}

// agent is a node's end of the enrolment: a listener with a key, which answers
// every challenge with the text that answer makes of it.
func agent(t *testing.T, answer func(nonce, spki string) string) (addr string, csr []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr = request(t, key)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	var conf net.ListenConfig
	raw, err := conf.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := tls.NewListener(raw, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{enrolProtocol}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var in struct {
				Nonce string `json:"nonce"`
			}
			if err := json.NewDecoder(c).Decode(&in); err == nil {
				_, _ = io.WriteString(c, `{"munge":"MUNGE:`+answer(in.Nonce, hex.EncodeToString(sum[:]))+"\"}\n")
			}
			_ = c.Close()
		}
	}()
	return raw.Addr().String(), csr
}

func request(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// unmunge takes UID|FOR|PAYLOAD behind MUNGE: for a credential.
func unmunge(_ context.Context, text string) (Credential, error) {
	f := strings.SplitN(strings.TrimPrefix(text, "MUNGE:"), "~", 3)
	if len(f) != 3 {
		return Credential{}, errors.New("replayed")
	}
	c := Credential{For: -1, Payload: f[2]}
	if f[0] != "root" {
		c.UID = 10001
	}
	if f[1] == "us" {
		c.For = 998
	}
	return c, nil
}

func TestEnrol_signs_for_root_of_the_node_that_Slurm_has_only(t *testing.T) {
	good := func(nonce, spki string) string { return "root~us~carme-enrol|" + nonce + "|" + spki + "|n1" }
	for name, c := range map[string]struct {
		answer func(nonce, spki string) string
		in     func(api.Enrol) api.Enrol
		ok     bool
	}{
		"root of the node": {answer: good, ok: true},
		"a user of the node": {answer: func(nonce, spki string) string {
			return strings.Replace(good(nonce, spki), "root", "user", 1)
		}},
		"a credential for anybody": {answer: func(nonce, spki string) string { return strings.Replace(good(nonce, spki), "~us~", "~all~", 1) }},
		"a credential of before":   {answer: func(string, string) string { return "replayed" }},
		"another nonce":            {answer: func(_, spki string) string { return good(strings.Repeat("0", 64), spki) }},
		"another key":              {answer: func(nonce, _ string) string { return good(nonce, strings.Repeat("0", 64)) }},
		"another node's":           {answer: func(nonce, spki string) string { return strings.Replace(good(nonce, spki), "|n1", "|n2", 1) }},
		"a request of another key": {answer: good, in: func(e api.Enrol) api.Enrol {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			e.CSR = request(t, key)
			return e
		}},
		"a portal":        {answer: good, in: func(e api.Enrol) api.Enrol { e.Role = "portal"; return e }},
		"a backend":       {answer: good, in: func(e api.Enrol) api.Enrol { e.Role = "backend"; return e }},
		"no request":      {answer: good, in: func(e api.Enrol) api.Enrol { e.CSR = nil; return e }},
		"a strange name":  {answer: good, in: func(e api.Enrol) api.Enrol { e.Name = "n1/../x"; return e }},
		"an unknown node": {answer: good, in: func(e api.Enrol) api.Enrol { e.Name = "n9"; return e }},
	} {
		t.Run(name, func(t *testing.T) {
			db, log := database(t)
			addr, csr := agent(t, c.answer)
			signer := &certifier{}
			e := &Enrolment{DB: db, Audit: log, Signer: signer, Now: time.Now, Unmunge: unmunge, UID: 998, Addr: func(_ context.Context, node string) (string, error) {
				if node != "n1" {
					return "", problem.NotFound()
				}
				return addr, nil
			}}
			in := api.Enrol{Role: mtls.RoleNode, Name: "n1", CSR: csr}
			if c.in != nil {
				in = c.in(in)
			}
			out, err := e.Enrol(t.Context(), in)
			if (err == nil) != c.ok || c.ok != (len(signer.signed) == 1) || c.ok && string(out.Certificate) != "cert" {
				t.Errorf("%+v, %v, signed %v", out, err, signer.signed)
			}
		})
	}
}

func TestJoin_spends_its_token(t *testing.T) {
	db, log := database(t)
	now := time.Now()
	signer := &certifier{}
	e := &Enrolment{DB: db, Audit: log, Signer: signer, Now: func() time.Time { return now }}
	_, csr := agent(t, func(string, string) string { return "" })
	tok, err := e.JoinToken(t.Context(), "root", mtls.RolePortal, "p1")
	if err != nil {
		t.Fatal(err)
	}
	in := api.Enrol{Role: mtls.RolePortal, Name: "p1", CSR: csr, JoinToken: tok}
	for name, change := range map[string]func(*api.Enrol){
		"another name": func(e *api.Enrol) { e.Name = "p2" }, "another role": func(e *api.Enrol) { e.Role = mtls.RoleNode }, "another token": func(e *api.Enrol) { e.JoinToken = "x" },
	} {
		bad := in
		change(&bad)
		if _, err := e.Join(t.Context(), bad); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := e.Join(t.Context(), in); err != nil {
		t.Error(err)
	}
	if _, err := e.Join(t.Context(), in); err == nil {
		t.Error("taken twice")
	}
	late, err := e.JoinToken(t.Context(), "root", mtls.RolePortal, "p1")
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(joinLife + time.Second)
	in.JoinToken = late
	if _, err := e.Join(t.Context(), in); err == nil || len(signer.signed) != 1 {
		t.Errorf("taken after an hour: %v, signed %v", err, signer.signed)
	}
	now = now.Add(-24 * time.Hour)
	if _, err := e.Join(t.Context(), in); err == nil {
		t.Error("a clock that was put back makes it good again")
	}
}

func TestRenew_is_for_the_same_name_only(t *testing.T) {
	db, log := database(t)
	_, csr := agent(t, func(string, string) string { return "" })
	e := &Enrolment{DB: db, Audit: log, Signer: &certifier{}, Now: time.Now}
	peer := mtls.Identity{Role: mtls.RoleNode, Name: "n1"}
	if _, err := e.Renew(t.Context(), peer, api.Enrol{Role: mtls.RoleNode, Name: "n1", CSR: csr}); err != nil {
		t.Error(err)
	}
	for _, in := range []api.Enrol{{Role: mtls.RoleNode, Name: "n2", CSR: csr}, {Role: mtls.RolePortal, Name: "n1", CSR: csr}} {
		if _, err := e.Renew(t.Context(), peer, in); err == nil {
			t.Errorf("%s/%s was signed", in.Role, in.Name)
		}
	}
}

func TestCredential_is_read_as_unmunge_prints_it(t *testing.T) {
	head := "STATUS:          Success (0)\nUID:             root (0)\nUID_RESTRICTION: carme-backend (998)\n\n"
	c, err := parseCredential(head + "carme-enrol|x\n\nUID: root (0)")
	if err != nil || c.UID != 0 || c.For != 998 || c.Payload != "carme-enrol|x\n\nUID: root (0)" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []string{"", "STATUS: Success (0)\n\nUID: root (0)", "STATUS: Expired credential (15)\nUID: root (0)\n\nx", "UID: root (0)\n\nx"} {
		if c, err := parseCredential(bad); err == nil {
			t.Errorf("%q gives %+v", bad, c)
		}
	}
}

type changes struct {
	began, ended []uint32
	gone         uint32
}

func (c *changes) JobOnNode(_ context.Context, _ string, j api.NodeJob) error {
	c.began = append(c.began, j.Job)
	return nil
}

func (c *changes) JobEnded(_ context.Context, _ string, j api.NodeJob, _ api.NodeEnd) error {
	c.ended = append(c.ended, j.Job)
	return nil
}

func (c *changes) Gone(job uint32) bool { return job == c.gone }

func TestReport_tells_what_is_new_and_what_is_over(t *testing.T) {
	db, _ := database(t)
	ch := &changes{gone: 3}
	r := &Registry{DB: db, Now: time.Now, Log: slog.New(slog.DiscardHandler), Changes: ch}
	send := func(in api.Report) api.Reported {
		t.Helper()
		out, err := r.Report(t.Context(), "n1", in)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	at := time.Unix(1700000000, 0)
	sample := func(s int64) api.NodeSample {
		return api.NodeSample{Job: 1, Time: at.Add(time.Duration(s) * time.Second), CPU: float64(s), GPUs: []api.GPUSample{{UUID: "g", Percent: 5}}}
	}
	one, three := api.NodeJob{Job: 1, Instance: "a", Stage: api.StageApp}, api.NodeJob{Job: 3, Instance: "c"}
	send(api.Report{Jobs: []api.NodeJob{one}, Samples: []api.NodeSample{sample(0), sample(5)}})
	send(api.Report{Jobs: []api.NodeJob{one}, Samples: []api.NodeSample{sample(65)}}) // nothing new
	one.Stage = api.StageReady
	out := send(api.Report{Jobs: []api.NodeJob{one, three}})
	if len(out.Gone) != 1 || out.Gone[0] != 3 {
		t.Errorf("gone %v", out.Gone)
	}
	one.Instance = "b" // requeued
	send(api.Report{Jobs: []api.NodeJob{one}, Ended: []api.NodeEnd{{Job: 9, Instance: "z"}}})
	if len(ch.began) != 4 || len(ch.ended) != 3 {
		t.Errorf("began %v, ended %v", ch.began, ch.ended)
	}
	if ok, _ := r.Heard("n1"); !ok || len(r.Find(1)) != 1 || len(r.Find(3)) != 0 {
		t.Error("the state is not that of the last report")
	}
	m, err := r.Metrics(t.Context(), 1)
	if err != nil || len(m.Times) != 3 || len(m.Series) != 8 || m.Series[0].Name != "cpu_percent" || *m.Series[0].Values[2] != 65 {
		t.Errorf("%+v, %v", m, err)
	}
	r.samples = nil // as after a restart: what is stored, one a minute
	if m, err = r.Metrics(t.Context(), 1); err != nil || len(m.Times) != 2 || len(m.Series) != 8 {
		t.Errorf("stored: %+v, %v", m, err)
	}
	if _, err := r.Report(t.Context(), "n1", api.Report{Jobs: make([]api.NodeJob, jobsMax+1)}); err == nil {
		t.Error("a flood was taken")
	}
}
