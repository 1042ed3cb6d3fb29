//go:build integration

package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// unreachable is what npm says of a registry that it cannot talk to, or that does
// not have the package.
var unreachable = regexp.MustCompile(`npm (error|ERR!) code (ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT|E404)\b`)

// codeServer makes the image with code-server, which takes minutes the first time,
// and offers it and the app by the very description that Carme brings.
func codeServer(t *testing.T) {
	t.Helper()
	labImage(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "../testbed/bin/code")
	cmd.Stderr = &said
	out, err := cmd.Output()
	// Where npm's registry is out of reach, and for no other reason of npm's.
	if err != nil && unreachable.MatchString(said.String()) {
		t.Skipf("code-server's package cannot be had here: %s", said.String())
	}
	if err != nil {
		t.Fatalf("make an image with code-server: %v\n%s", err, said.String())
	}
	const image = "/opt/carme/images/code.sif"
	undo(t, node1, "rm -f "+image)
	run(t, "docker", "cp", "-q", strings.TrimSpace(string(out)), container(node1)+":"+image).ok(t)
	sh(t, node1, "chmod 644 "+image)
	description, err := os.ReadFile("../contrib/carme/apps.d/code-server.yaml.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, machine := range append([]string{ctl}, everywhere...) {
		place(t, machine, "/etc/carme/images.d/code.yaml", []byte("name: code\npath: "+image+"\ndescription: code-server\n"))
		place(t, machine, "/etc/carme/apps.d/code-server.yaml", description)
	}
}

// ports are those on which somebody listens on node1, by TCP.
func ports(t *testing.T, user string) []string {
	t.Helper()
	uid := as(t, user, node1, "id", "-u").ok(t)
	return lines(sh(t, node1, `cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == "0A" && $8 == `+uid+` {print $2}'`))
}

func TestScenario_W13_an_editor_of_the_sites_choice(t *testing.T) {
	codeServer(t)
	as(t, "alice", login, "sh", "-c", "rm -rf .local/share/code-server .config/code-server it-gpus.txt").ok(t)
	start := func() string {
		return sbatch(t, "alice", "--time=10", "-w", node1, "--mem=1500", "--gres=gpu:1", "--carme=code", "--carme-app=code-server", "--wrap", "true")
	}
	job := start()
	b := open(t)
	b.login("alice")
	b.do(goTo(portalURL + "/jobs/" + job))
	b.within(3*time.Minute, appears(ready))
	b.shot("ready")
	code := b.follows(click(ready))
	code.within(3*time.Minute, appears(".monaco-workbench .explorer-viewlet"))
	// It asks whether the home directory is to be trusted.
	code.within(time.Minute, appears(".monaco-dialog-box"))
	code.shot("code")
	eventually(t, time.Minute, "an editor that trusts", func() bool {
		return ask[bool](code, `[...document.querySelectorAll(".monaco-dialog-box .monaco-button")].filter(b => b.innerText.startsWith("Yes")).forEach(b => b.click()), document.querySelector(".monaco-dialog-box") === null`)
	})
	// A terminal: Ctrl and the key left of 1.
	code.do(chromedp.KeyEvent("`", chromedp.KeyModifiers(chromedp.ModifierCtrl)))
	code.within(time.Minute, appears(".terminal-wrapper .xterm-helper-textarea"))
	code.shot("terminal")
	uuids, node := gpusOf(t, job)
	var told string
	// Its first page takes the keyboard to itself when it is drawn.
	eventually(t, 2*time.Minute, "what was typed in the terminal", func() bool {
		code.do(click(".terminal-wrapper .xterm-screen"))
		code.keys("nvidia-smi -L >it-gpus.new; hostname >>it-gpus.new; mv it-gpus.new it-gpus.txt")
		code.do(chromedp.KeyEvent(kb.Enter))
		told = homeFile(t, "alice", "it-gpus.txt")
		return told != ""
	})
	code.shot("typed")
	if strings.Count("\n"+told, "\nGPU ") != len(uuids) || !strings.Contains(told, node) || slices.ContainsFunc(uuids, func(u string) bool { return !strings.Contains(told, u) }) {
		t.Errorf("the terminal tells of %q; Slurm gave %v on %s", told, uuids, node)
	}
	// Whatever listens on a port of the node is not shown under the session's name.
	if status := ask[int](code, "fetch('/proxy/"+portalPort+"/').then(r => r.status)"); status < 400 || status >= 500 {
		t.Errorf("a port of the node by the session's address: %d", status)
	}
	if open := ports(t, "alice"); len(open) > 0 {
		t.Errorf("neighbours can reach ports %v", open)
	}
	code.clean()
	// A second session at the same time, with the same home.
	b.do(goTo(portalURL + "/jobs/" + start()))
	b.within(3*time.Minute, appears(ready))
	if shared := as(t, "alice", login, "sh", "-c", "find .local/share/code-server .config/code-server -type s").ok(t); shared != "" {
		t.Errorf("sockets of one session that the other takes: %s", shared)
	}
	b.clean()
}
