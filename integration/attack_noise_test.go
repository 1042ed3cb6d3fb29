//go:build integration

package integration

import (
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// silentScript is an app that is healthy and otherwise hangs up.
const silentScript = `
import os, socketserver, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        if b" /health " in self.rfile.readline():
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True; request_queue_size = 128
os.umask(0o077)
Server(sys.argv[1], Handler).serve_forever()
`

const silentApp = `name: silent
title: Silent
description: Hangs up
command: [python3, "{{home}}/it-silent.py", "{{socket}}"]
health: {path: /health, status: [200], timeout_seconds: 30}
path: /
`

// noise is the number of lines in a daemon's log.
func noise(t *testing.T, machine, daemon string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.Fields(sh(t, machine, "wc -l </var/log/testbed/"+daemon+".log"))[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAttack_A9_W14_what_a_user_can_repeat_does_not_fill_the_logs(t *testing.T) {
	forgetAttempts(t)
	labImage(t)
	for _, machine := range everywhere {
		place(t, machine, "/etc/carme/apps.d/silent.yaml", []byte(silentApp))
	}
	v := visit(t, "mallory").login()
	put(t, "mallory", "it-silent.py", silentScript)
	app := v.session("silent")
	v.enter(app.origin + "/") // for its cookie
	own := "Cookie: " + appCookie + "=" + v.cookie(app.origin, appCookie)
	csrf := v.token("/security")
	// Each is done by eight at once for a while. most is what a log may grow by in
	// a second: what is left to each line's own bound is one a second, and other
	// things happen too; what a login may ask the backend is fifty a second.
	for _, c := range []struct {
		name   string
		before func()
		do     func(*visitor)
		most   int
	}{
		{"an app that hangs up", func() {}, func(v *visitor) { _, _ = v.try("POST", app.origin+"/", "x", "Sec-Fetch-Site: same-origin") }, 5},
		{"websockets to it", func() {}, func(v *visitor) {
			if l := v.dialled(app.host()); l != nil {
				_ = l.ask(handshake(app.host(), "Origin: "+app.origin, own))
				_ = l.Close()
			}
		}, 5},
		{"requests that are given up", func() {}, func(v *visitor) {
			if l := v.dialled(portalHost); l != nil {
				_, _ = l.Write([]byte("GET /jobs HTTP/1.1\r\nHost: " + portalHost + ":" + portalPort + "\r\nCookie: " + portalCookie + "=" + v.cookie(portalURL, portalCookie) + "\r\n\r\n"))
				_ = l.Close()
			}
		}, 5},
		{"cookies that are made up", func() {}, func(v *visitor) {
			if l := v.dialled(app.host()); l != nil {
				_ = l.ask("GET / HTTP/1.1\r\nHost: " + app.host() + "\r\nCookie: " + appCookie + "=" + newID(t) + "\r\n\r\n")
				_ = l.Close()
			}
		}, 5},
		{"starts that are refused", func() {}, func(v *visitor) { _, _ = v.form(newID(t), csrf, "nodes", "99") }, 5},
		{"jobs that are not there", func() {}, func(v *visitor) { _, _ = v.try("GET", "/jobs/999999", "") }, 60},
		{"an app that is not there", func() {
			root(t, node1, "sh", "-c", "rm /run/carme/jobs/"+app.job+"/sess/*.sock").ok(t)
		}, func(v *visitor) { _, _ = v.try("POST", app.origin+"/", "x", "Sec-Fetch-Site: same-origin") }, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.before()
			logs := []struct{ machine, daemon string }{{login, "carme-portal"}, {ctl, "carme-backend"}, {ctl, "carme-signer"}, {node1, "carme-agent"}}
			before := make([]int, len(logs))
			for i, l := range logs {
				before[i] = noise(t, l.machine, l.daemon)
			}
			var done atomic.Int64
			start := time.Now()
			atOnce(8, func(int) {
				for time.Since(start) < 2*time.Second {
					c.do(v)
					done.Add(1)
				}
			})
			seconds := time.Since(start).Seconds()
			for i, l := range logs {
				n := noise(t, l.machine, l.daemon) - before[i]
				t.Logf("%s: %d lines in %.1f s, of %d", l.daemon, n, seconds, done.Load())
				if float64(n) > float64(c.most)*(seconds+1) {
					t.Errorf("%s wrote %d lines in %.1f s, of %d", l.daemon, n, seconds, done.Load())
				}
			}
			// The answer about a job that is not there waits for Slurm's next picture.
			least := int64(100)
			if strings.HasPrefix(c.name, "jobs that") {
				least = 8
			}
			if done.Load() < least {
				t.Errorf("only %d were done", done.Load())
			}
		})
	}
}
