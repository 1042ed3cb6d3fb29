package control

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Machines of the testbed.
const (
	ctl   = "carme-ctl"
	login = "carme-login"
	host  = "portal.carme.localhost"
	port  = "8443"
)

// people are users of the testbed whom the portal lets in; the sessions are theirs
// in turn.
var people = []struct {
	name string
	uid  int
}{{"alice", 10001}, {"bob", 10002}, {"carol", 10003}, {"mallory", 10005}} //nolint:gochecknoglobals // a constant that Go cannot write

// Shell runs a script in a machine of the testbed as a user.
type Shell func(ctx context.Context, user, machine, script string) (string, error)

// site is a portal with people who are logged in.
type site struct {
	shell  Shell
	tokens []string
	tls    *tls.Config
	addr   string
}

// sql runs statements on the backend's database as its user.
func (s *site) sql(ctx context.Context, text string) error {
	_, err := s.shell(ctx, "root", ctl, "setpriv --reuid carme-backend --regid carme-backend --clear-groups sqlite3 -bail -cmd '.timeout 20000' /var/lib/carme/backend/carme.db <<'END'\n"+text+"\nEND\n")
	return err
}

// open makes n login sessions. close removes them.
func open(ctx context.Context, shell Shell, address func(context.Context, string) (string, error), n int) (*site, error) {
	s := &site{shell: shell}
	ip, err := address(ctx, login)
	if err != nil {
		return nil, err
	}
	s.addr = net.JoinHostPort(ip, port)
	ca, err := shell(ctx, "root", login, "cat /etc/carme/web-ca/ca.pem")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(ca)) {
		return nil, errors.New("the portal's CA is not PEM")
	}
	s.tls = &tls.Config{RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS13}
	return s, s.enter(ctx, n)
}

// batch is how many sessions are stored at once: a script is one argument of a
// command, and 128 KB at most (execve(2)).
const batch = 200

// enter stores n login sessions of the people.
func (s *site) enter(ctx context.Context, n int) error {
	now := time.Now()
	var b strings.Builder
	for _, p := range people {
		fmt.Fprintf(&b, "INSERT OR IGNORE INTO users (name, uid, gid, home, full_name, mail, roles, groups_of, stamp) VALUES ('%[1]s', %[2]d, %[2]d, '/home/%[1]s', '%[1]s', '', '[\"user\"]', '[\"carme-users\"]', '');\n", p.name, p.uid)
	}
	for i := range n {
		secret := make([]byte, 32)
		_, _ = rand.Read(secret) // it never fails
		token := base64.RawURLEncoding.EncodeToString(secret)
		sum := sha256.Sum256([]byte(token))
		fmt.Fprintf(&b, "INSERT INTO login_sessions VALUES ('bench-%d', '%s', '%s', 'full', %d, %d, %d, '127.0.0.1', 'bench', '', 'carme-login');\n",
			i, hex.EncodeToString(sum[:]), people[i%len(people)].name, now.UnixMicro(), now.UnixMicro(), now.Add(6*time.Hour).UnixMicro())
		s.tokens = append(s.tokens, token)
		if i%batch == batch-1 || i == n-1 {
			if err := s.sql(ctx, "BEGIN;\n"+b.String()+"COMMIT;"); err != nil {
				return err
			}
			b.Reset()
		}
	}
	return nil
}

func (s *site) close(ctx context.Context) error {
	return s.sql(ctx, "DELETE FROM login_sessions WHERE id LIKE 'bench-%'; DELETE FROM users WHERE name LIKE 'bench-%';")
}

// client has one connection, of HTTP/2.
func (s *site) client() *http.Client {
	var d net.Dialer
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: s.tls, ForceAttemptHTTP2: true, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", s.addr) },
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// clients are as many people's browsers.
type clients []*http.Client

func (s *site) clients(n int) clients {
	all := make(clients, n)
	for i := range all {
		all[i] = s.client()
	}
	return all
}

func (all clients) close() {
	for _, c := range all {
		c.CloseIdleConnections()
	}
}

// request is one of the session of that number.
func (s *site) request(ctx context.Context, method, path string, form url.Values, session int) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+net.JoinHostPort(host, port)+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/html")
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Cookie", "__Host-carme="+s.tokens[session%len(s.tokens)])
	return req, nil
}

// get reads a page whole.
func (s *site) get(ctx context.Context, c *http.Client, path string, session int) (string, error) {
	req, err := s.request(ctx, http.MethodGet, path, nil, session)
	if err != nil {
		return "", err
	}
	return answered(c, req, http.StatusOK)
}

func answered(c *http.Client, req *http.Request, want int) (string, error) {
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != want {
		err = fmt.Errorf("%s %s answers %d", req.Method, req.URL.Path, res.StatusCode)
	}
	return string(body), err
}

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// csrf is what the session's forms carry.
func (s *site) csrf(ctx context.Context, c *http.Client, session int) (string, error) {
	page, err := s.get(ctx, c, "/security", session)
	if err != nil {
		return "", err
	}
	m := csrfField.FindStringSubmatch(page)
	if m == nil {
		return "", errors.New("/security has no form")
	}
	return html.UnescapeString(m[1]), nil
}

// memory is the memory of a daemon in megabytes: its own pages and its share of
// others' (PSS of proc_pid_smaps(5)).
func (s *site) memory(ctx context.Context, machine, program string) (float64, error) {
	out, err := s.shell(ctx, "root", machine, "awk '/^Pss:/ {s += $2} END {print s}' /proc/$(pgrep -o -x "+program+")/smaps_rollup")
	if err != nil {
		return 0, err
	}
	kb, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	return kb / 1024, err
}
