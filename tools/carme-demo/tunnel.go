package main

import (
	"bytes"
	"cmp"
	"net"
	"os"
	"strconv"
	"strings"
)

// sshLogin is how somebody reached this machine by ssh.
type sshLogin struct{ user, host, port string }

// sshOf reads SSH_CONNECTION (ssh(1)): addresses and ports of both ends.
func sshOf(env map[string]string) (sshLogin, bool) {
	words := strings.Fields(env["SSH_CONNECTION"])
	if len(words) != 4 || net.ParseIP(strings.SplitN(words[2], "%", 2)[0]) == nil {
		return sshLogin{}, false
	}
	if _, err := strconv.ParseUint(words[3], 10, 16); err != nil {
		return sshLogin{}, false
	}
	return sshLogin{user: cmp.Or(env["SUDO_USER"], env["USER"], env["LOGNAME"]), host: words[2], port: words[3]}, true
}

func (l sshLogin) at(host string) string {
	if l.user == "" {
		return host
	}
	return l.user + "@" + host
}

// tunnel is the command that makes the portal's port one of the own machine.
func (l sshLogin) tunnel() string {
	line := "ssh -L " + portalPort + ":127.0.0.1:" + portalPort
	if l.port != "22" {
		line += " -p " + l.port
	}
	return line + " " + l.at(l.host)
}

// fetch is the command that brings a file there.
func (l sshLogin) fetch(file string) string {
	line := "scp"
	if l.port != "22" {
		line += " -P " + l.port
	}
	host := l.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return line + " " + l.at(host) + ":" + file + " ."
}

// generations is how far up a login shell is looked for.
const generations = 16

// sshHere looks for the ssh login that this process came from: in its own
// environment or, as sudo and su clear that, in those of the processes above it.
func sshHere() (sshLogin, bool) {
	own := map[string]string{}
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		own[name] = value
	}
	if login, ok := sshOf(own); ok {
		return login, true
	}
	pid := os.Getppid()
	for range generations {
		if pid <= 1 {
			break
		}
		dir := "/proc/" + strconv.Itoa(pid)
		// What cannot be read is somebody else's; above it there may be our own.
		text, _ := os.ReadFile(dir + "/environ")
		env := map[string]string{}
		for pair := range bytes.SplitSeq(text, []byte{0}) {
			name, value, _ := strings.Cut(string(pair), "=")
			env[name] = value
		}
		if login, ok := sshOf(env); ok {
			return login, true
		}
		pid = parentOf(dir)
	}
	return sshLogin{}, false
}

// parentOf reads the parent's id out of stat (proc_pid_stat(5)), 0 if it cannot.
func parentOf(dir string) int {
	text, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const parent = 1 // behind the state
	if len(fields) <= parent {
		return 0
	}
	pid, err := strconv.Atoi(fields[parent])
	if err != nil {
		return 0
	}
	return pid
}
