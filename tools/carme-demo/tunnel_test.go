package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestTunnel_is_for_who_came_by_ssh_as_they_came(t *testing.T) {
	for name, c := range map[string]struct {
		env         map[string]string
		line, fetch string
	}{
		"as root":      {map[string]string{"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.1 22", "USER": "root"}, "ssh -L 8443:127.0.0.1:8443 root@192.0.2.1", "scp root@192.0.2.1:/ca.pem ."},
		"by sudo":      {map[string]string{"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.1 22", "USER": "root", "SUDO_USER": "alice"}, "ssh -L 8443:127.0.0.1:8443 alice@192.0.2.1", "scp alice@192.0.2.1:/ca.pem ."},
		"another port": {map[string]string{"SSH_CONNECTION": "192.0.2.7 50000 192.0.2.1 2222", "LOGNAME": "alice"}, "ssh -L 8443:127.0.0.1:8443 -p 2222 alice@192.0.2.1", "scp -P 2222 alice@192.0.2.1:/ca.pem ."},
		"IPv6":         {map[string]string{"SSH_CONNECTION": "2001:db8::7 50000 2001:db8::1 22"}, "ssh -L 8443:127.0.0.1:8443 2001:db8::1", "scp [2001:db8::1]:/ca.pem ."},
		"not by ssh":   {map[string]string{"USER": "alice"}, "", ""},
		"made up":      {map[string]string{"SSH_CONNECTION": "a b $(reboot) 22"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			login, ok := sshOf(c.env)
			if ok != (c.line != "") {
				t.Fatalf("found: %v", ok)
			}
			if ok && (login.tunnel() != c.line || login.fetch("/ca.pem") != c.fetch) {
				t.Errorf("got %q and %q", login.tunnel(), login.fetch("/ca.pem"))
			}
		})
	}
}

// sudo and su clear the environment; the shell that sshd started is still there.
func TestTunnel_is_found_above_a_process_without_the_variable(t *testing.T) {
	if os.Getenv("CARME_TEST_CHILD") != "" {
		login, ok := sshHere()
		if !ok || login.tunnel() != "ssh -L 8443:127.0.0.1:8443 alice@192.0.2.1" {
			t.Fatalf("got %+v, %v", login, ok)
		}
		return
	}
	// A command after it keeps the shell from becoming the child.
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `env -u SSH_CONNECTION "$0" -test.run '^`+t.Name()+`$'; exit $?`, os.Args[0]) //nolint:gosec // G702: this test itself
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, "SSH_CONNECTION=") && !strings.HasPrefix(pair, "SUDO_USER=") && !strings.HasPrefix(pair, "USER=") {
			cmd.Env = append(cmd.Env, pair)
		}
	}
	cmd.Env = append(cmd.Env, "CARME_TEST_CHILD=yes", "SSH_CONNECTION=192.0.2.7 50000 192.0.2.1 22", "USER=alice")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
