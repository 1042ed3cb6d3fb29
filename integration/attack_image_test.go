//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"
)

// tinyImage makes a sandbox of a few programs of the node, for root or a user.
// Its /word tells it from others.
const tinyImage = `
make_image() { # DIRECTORY WORD
	mkdir -p "$1"/bin "$1"/dev "$1"/proc "$1"/sys "$1"/tmp "$1"/etc "$1"/home "$1"/run "$1"/var/tmp "$1"/.singularity.d/env
	for f in /bin/bash /bin/cat /bin/sleep $(ldd /bin/bash /bin/cat /bin/sleep | grep -o '/[^ ]*'); do
		[ -e "$f" ] && cp --parents -L "$f" "$1"
	done
	ln -sf bash "$1/bin/sh"
	echo "$2" >"$1/word"
}
`

// The path of an image is looked at, and later the image is started: a user who
// swaps what stands at that path, or above it, gets what policy allows, or an error.
func TestAttack_J7_an_image_swapped_between_check_and_use(t *testing.T) {
	sh(t, node1, tinyImage+"make_image /srv/it/forbidden/image forbidden; chmod -R a+rX /srv/it")
	undo(t, node1, "rm -rf /srv/it")
	as(t, "mallory", node1, "bash", "-c", tinyImage+"rm -rf swap; make_image ~/swap/own/image own; ln -s own/image swap/image; ln -s own swap/above").ok(t)
	undo(t, node1, "chmod -R u+w /home/mallory/swap; rm -rf /home/mallory/swap")
	// What is swapped in counts only if it can be started at all.
	if out := as(t, "mallory", node1, "apptainer", "exec", "/srv/it/forbidden/image", "/bin/cat", "/word"); out.out != "forbidden" {
		t.Fatalf("the forbidden image does not start: %s", out.err)
	}
	run := func(path string) result {
		return srun(t, "mallory", "-w", node1, "--carme="+path, "-D", "/tmp", "/bin/cat", "/word")
	}
	if out := run("/home/mallory/swap/own/image").ok(t); out != "own" {
		t.Fatalf("the own image prints %q", out)
	}
	run("/srv/it/forbidden/image").fails(t, "not allowed")
	for name, c := range map[string]struct{ path, swap string }{
		"the image":         {"/home/mallory/swap/image", "swap/image own/image"},
		"a directory above": {"/home/mallory/swap/above/image", "swap/above own"},
		"no link, renamed":  {"/home/mallory/swap/own/image", ""},
	} {
		t.Run(name, func(t *testing.T) {
			link, good, _ := strings.Cut(c.swap, " ")
			bad := map[string]string{"own/image": "/srv/it/forbidden/image", "own": "/srv/it/forbidden"}[good]
			script := fmt.Sprintf("cd ~; while :; do ln -sfn %[2]s %[1]s.new; mv -T %[1]s.new %[1]s; ln -sfn %[3]s %[1]s.new; mv -T %[1]s.new %[1]s; done", link, good, bad)
			if link == "" {
				// A directory gives its place to a link, and takes it back.
				script = "cd ~/swap; ln -sfn /srv/it/forbidden/image trap; while :; do mv -T own/image own/away; mv -T trap own/image; mv -T own/image trap; mv -T own/away own/image; done"
			}
			background(t, "mallory", node1, "bash", "-c", ": it-swapper; "+script)
			got := map[string]int{}
			for range 15 {
				r := run(c.path)
				if r.code != 0 {
					r.fails(t)
					got["refused"]++
					continue
				}
				got[r.out]++
			}
			t.Logf("starts: %v", got)
			if got["forbidden"] > 0 || len(got) == 0 {
				t.Errorf("starts: %v", got)
			}
		})
	}
	idle(t)
}
