package web

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
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

// Programs are where what is measured lies.
type Programs struct {
	Portal, Agent, Self string
	// Nginx and CHP are empty if they are not there.
	Nginx, CHP string
	// Before is a directory with a portal and an agent of another build, or empty.
	Before string
}

// chains is everything that runs.
type chains struct {
	programs Programs
	dir      string
	ca       *authority
	backend  *backend
	ports    map[string]string
	listener *os.File // the portal's, as systemd holds it
	running  map[string]*exec.Cmd
	log      *os.File
}

// descriptors allows as many as may be, and returns how many that is.
func descriptors() (int, error) {
	const wanted = 1 << 18
	limit := syscall.Rlimit{Cur: wanted, Max: wanted}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		return wanted, nil
	}
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("ask for the limit of descriptors: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("allow many descriptors: %w", err)
	}
	return int(limit.Max), nil //nolint:gosec // a number of files
}

// start brings all chains up.
func start(ctx context.Context, p Programs) (c *chains, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the agent runs as root: run this as root")
	}
	dir, err := os.MkdirTemp("/var/lib", "carme-bench-") // the product believes no file below /tmp
	if err != nil {
		return nil, err
	}
	c = &chains{programs: p, dir: dir, ports: map[string]string{}, running: map[string]*exec.Cmd{}}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if c.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		return c, err
	}
	for _, name := range []string{"portal", "agent", "backend", "front", "node", "chp", "chpapi"} {
		if c.ports[name], err = freePort(ctx); err != nil {
			return c, err
		}
	}
	if err := c.certificates(); err != nil {
		return c, err
	}
	config, err := c.ca.server(c.at("backend"))
	if err != nil {
		return c, err
	}
	if c.backend, err = startBackend(config, c.addr("backend"), c.addr("agent")); err != nil {
		return c, err
	}
	for _, step := range []func(context.Context) error{c.startApp, c.startAgent, c.startPortal, c.startNginx, c.startCHP} {
		if err := step(ctx); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *chains) at(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}
func (c *chains) addr(name string) string { return "127.0.0.1:" + c.ports[name] }

func (c *chains) certificates() (err error) {
	if c.ca, err = newAuthority(); err != nil {
		return err
	}
	return errors.Join(
		c.ca.issue(c.at("backend"), "carme://backend/b"),
		c.ca.issue(c.at("portal"), "carme://portal/p"),
		c.ca.issue(c.at("agent/certs/current"), "carme://node/"+node),
		c.ca.issue(c.at("browser"), "", "portal.bench.test", "*."+apps),
		c.ca.issue(c.at("nginx"), "", "node", "*."+apps),
	)
}

// run starts a program; its output goes to the log.
func (c *chains) run(ctx context.Context, name string, command ...string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = c.log, c.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Env = append(os.Environ(), "CONFIGPROXY_AUTH_TOKEN=bench")
	if name == "portal" {
		cmd.ExtraFiles = []*os.File{c.listener}
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.running[name] = cmd
	return nil
}

// end ends a program and waits for it.
func (c *chains) end(name string) {
	cmd := c.running[name]
	if cmd == nil {
		return
	}
	delete(c.running, name)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait() // it was ended
	late.Stop()
}

func (c *chains) stop() {
	for _, name := range []string{"chp", "front", "node", "portal", "agent", "check", "app", "anchor"} {
		c.end(name)
	}
	if c.backend != nil {
		c.backend.stop()
	}
	_ = os.RemoveAll(c.dir)
}

// logged is the end of the log, for an error.
func (c *chains) logged() string {
	data, _ := os.ReadFile(c.log.Name())
	return string(data[max(0, len(data)-2000):])
}

func (c *chains) startApp(ctx context.Context) error {
	sess := c.at("run/carme/jobs/7/sess")
	if err := os.MkdirAll(sess, 0o700); err != nil {
		return err
	}
	if err := c.run(ctx, "app", c.programs.Self, "part", "app", filepath.Join(sess, "app.sock")); err != nil {
		return err
	}
	if err := c.run(ctx, "check", c.programs.Self, "part", "check", c.at("check.sock")); err != nil {
		return err
	}
	return errors.Join(reachable(ctx, "unix", filepath.Join(sess, "app.sock")), reachable(ctx, "unix", c.at("check.sock")))
}

// startAgent runs the agent as the real one, in a mount namespace in which /run
// is a directory of ours.
func (c *chains) startAgent(ctx context.Context) error {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		return err
	}
	data, err := os.ReadFile(sleep)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.at("carme-anchor"), data, 0o700); err != nil { //nolint:gosec // a program
		return err
	}
	if err := c.run(ctx, "anchor", c.at("carme-anchor"), "7200"); err != nil {
		return err
	}
	pid := c.running["anchor"].Process.Pid
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	const afterCommand = 22 - 3 // proc_pid_stat(5)
	started := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[afterCommand]
	notes, err := json.Marshal(map[string]any{
		"job": job, "uid": 0, "gid": 0, "instance": instance, "app": appName, "socket": "app.sock", "anchor": pid, "started": time.Now(),
	})
	if err != nil {
		return err
	}
	key := c.backend.key.Public().(ed25519.PublicKey)
	keys, err := json.Marshal(map[string][]byte{keyID: key})
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"run/carme/jobs/7/session.json": string(notes), "run/carme/jobs/7/extern": fmt.Sprintf("%d %s", pid, started), "agent/route_keys.json": string(keys),
		"agent.yaml": fmt.Sprintf("cluster: %s\nnode: %s\nlisten: %q\nbackend: {address: %q, name: b}\nca: %s\nstate: %s\ncarme: /bin/true\nlog_level: warn\nlimits: {job: 100000, user: 100000, total: 100000}\n",
			cluster, node, c.addr("agent"), c.addr("backend"), c.at("backend/ca.pem"), c.at("agent")),
	} {
		if err := os.WriteFile(c.at(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := c.runAgent(ctx); err != nil {
		return err
	}
	return reachable(ctx, "tcp", c.addr("agent"))
}

func (c *chains) runAgent(ctx context.Context) error {
	return c.run(ctx, "agent", "unshare", "--mount", "--propagation", "private", "sh", "-c",
		`mount --bind "$1" /run && exec "$2" --config "$3"`, "sh", c.at("run"), c.programs.Agent, c.at("agent.yaml"))
}

func (c *chains) startPortal(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.addr("portal"))
	if err != nil {
		return err
	}
	if c.listener, err = l.(*net.TCPListener).File(); err != nil {
		return err
	}
	_ = l.Close()
	config := fmt.Sprintf("listen: %q\nportal_host: portal.bench.test\napps_domain: %s\npublic_port: %s\nlog_level: warn\ntls: {cert: %s, key: %s}\nbackend: {url: %q, name: b, cert: %s, key: %s, ca: %s}\n",
		c.addr("portal"), apps, c.ports["portal"], c.at("browser/cert.pem"), c.at("browser/key.pem"),
		"https://"+c.addr("backend"), c.at("portal/cert.pem"), c.at("portal/key.pem"), c.at("portal/ca.pem"))
	if err := os.WriteFile(c.at("portal.yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	return c.runPortal(ctx)
}

// runPortal hands the socket over as systemd does.
func (c *chains) runPortal(ctx context.Context) error {
	return c.run(ctx, "portal", "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$1" --config "$2"`, "sh", c.programs.Portal, c.at("portal.yaml"))
}

const nginxCommon = `worker_processes auto;
daemon off;
pid %[1]s/%[2]s.pid;
error_log stderr crit;
events { worker_connections 8000; }
http {
access_log off;
client_max_body_size 0;
client_body_temp_path %[1]s/tmp; proxy_temp_path %[1]s/tmp; fastcgi_temp_path %[1]s/tmp; uwsgi_temp_path %[1]s/tmp; scgi_temp_path %[1]s/tmp;
keepalive_requests 100000000;
proxy_http_version 1.1;
proxy_max_temp_file_size 0;
proxy_request_buffering off;
proxy_read_timeout 600s;
ssl_session_cache shared:s:8m;
map $http_upgrade $connection_up { default upgrade; '' ''; }
proxy_set_header Host $http_host;
proxy_set_header Connection $connection_up;
proxy_set_header Upgrade $http_upgrade;
`

func (c *chains) startNginx(ctx context.Context) error {
	if c.programs.Nginx == "" {
		return nil
	}
	if err := os.MkdirAll(c.at("tmp"), 0o777); err != nil { //nolint:gosec // its workers are another user
		return err
	}
	if err := os.Chmod(c.dir, 0o711); err != nil { //nolint:gosec // as above
		return err
	}
	front := fmt.Sprintf(nginxCommon, c.dir, "front") + fmt.Sprintf(`
upstream node { server %[1]s; keepalive 512; keepalive_requests 100000000; }
upstream check { server unix:%[2]s/check.sock; keepalive 512; keepalive_requests 100000000; }
server { listen %[3]s ssl backlog=4096; ssl_certificate %[2]s/browser/cert.pem; ssl_certificate_key %[2]s/browser/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
location / { auth_request /check; proxy_pass https://node; proxy_ssl_protocols TLSv1.3; proxy_ssl_certificate %[2]s/portal/cert.pem; proxy_ssl_certificate_key %[2]s/portal/key.pem;
 proxy_ssl_trusted_certificate %[2]s/portal/ca.pem; proxy_ssl_verify on; proxy_ssl_name node; proxy_ssl_server_name on; }
location = /check { internal; proxy_pass http://check; proxy_set_header Connection ""; proxy_set_header Upgrade ""; proxy_pass_request_body off; proxy_set_header Content-Length ""; }
} }
`, c.addr("node"), c.dir, c.addr("front"))
	back := fmt.Sprintf(nginxCommon, c.dir, "node") + fmt.Sprintf(`
upstream app { server unix:%[2]s/run/carme/jobs/7/sess/app.sock; keepalive 512; keepalive_requests 100000000; }
server { listen %[1]s ssl backlog=4096; ssl_certificate %[2]s/nginx/cert.pem; ssl_certificate_key %[2]s/nginx/key.pem; ssl_protocols TLSv1.3;
ssl_client_certificate %[2]s/nginx/ca.pem; ssl_verify_client on;
location / { proxy_pass http://app; } } }
`, c.addr("node"), c.dir)
	for name, text := range map[string]string{"front": front, "node": back} {
		if err := os.WriteFile(c.at(name+".conf"), []byte("user root;\n"+text), 0o600); err != nil {
			return err
		}
		if err := c.run(ctx, name, c.programs.Nginx, "-p", c.dir, "-e", "stderr", "-c", c.at(name+".conf")); err != nil {
			return err
		}
	}
	return errors.Join(reachable(ctx, "tcp", c.addr("front")), reachable(ctx, "tcp", c.addr("node")))
}

func (c *chains) startCHP(ctx context.Context) error {
	if c.programs.CHP == "" || c.programs.Nginx == "" {
		return nil
	}
	err := c.run(ctx, "chp", c.programs.CHP, "--ip", "127.0.0.1", "--port", c.ports["chp"], "--api-ip", "127.0.0.1", "--api-port", c.ports["chpapi"],
		"--ssl-key", c.at("browser/key.pem"), "--ssl-cert", c.at("browser/cert.pem"), "--log-level", "error", "--default-target", "https://localhost:"+c.ports["node"],
		"--client-ssl-key", c.at("portal/key.pem"), "--client-ssl-cert", c.at("portal/cert.pem"), "--client-ssl-ca", c.at("portal/ca.pem"), "--insecure")
	if err != nil {
		return err
	}
	return reachable(ctx, "tcp", c.addr("chp"))
}

func reachable(ctx context.Context, network, address string) error {
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("wait for %s: %w", address, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// target is the way through one of the chains.
func (c *chains) target(name string) target {
	port := c.ports[map[string]string{"carme": "portal", "nginx": "front", "chp": "chp"}[name]]
	host := label + "." + apps
	return target{name: name, address: "127.0.0.1:" + port, host: host + ":" + port, tls: &tls.Config{
		RootCAs: c.ca.pool(), ServerName: host, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS13,
	}, cpu: func() time.Duration { return c.used(onTheWay[name]...) }}
}

// onTheWay are the programs of each chain, without the app.
var onTheWay = map[string][]string{"carme": {"portal", "agent"}, "nginx": {"front", "node", "check"}, "chp": {"chp", "node"}}

// used is the processor time of programs and their children.
func (c *chains) used(names ...string) time.Duration {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	ticks := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:])) // the third of proc_pid_stat(5) and on
		pid, parent := filepath.Base(filepath.Dir(file)), fields[1]
		if !slices.ContainsFunc(names, func(name string) bool {
			own := strconv.Itoa(c.running[name].Process.Pid)
			return own == pid || own == parent
		}) {
			continue
		}
		for _, field := range fields[11:13] {
			n, _ := strconv.Atoi(field)
			ticks += n
		}
	}
	const perSecond = 100 // proc(5)
	return time.Duration(ticks) * time.Second / perSecond
}

// memory is the resident memory of a program in bytes.
func (c *chains) memory(name string) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.running[name].Process.Pid))
	if err != nil {
		return 0
	}
	var kb int64
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, _ = fmt.Sscan(text, &kb)
		}
	}
	return kb << 10
}
