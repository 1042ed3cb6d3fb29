package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// sight is a command on the cluster, and what its output must show.
type sight struct {
	says  string // what this is about, in a line
	user  string
	srun  []string // srun's options
	shell string   // what runs on the node

	want  []string // regular expressions that must be found
	never []string // and those that must not
	fails bool     // the command must not succeed
}

// look shows one sight and checks it.
func (d *demo) look(ctx context.Context, s sight) error {
	const patience = "60" // seconds: a step that cannot start makes srun wait for ever
	command := append(append([]string{"srun", "-Q", "-w", node}, s.srun...), "sh", "-c", s.shell)
	fmt.Fprintf(d.out, "\n# %s\n%s@login$ %s\n", s.says, s.user, typed(command))
	output, status, err := d.exec(ctx, d.out, s.user, append([]string{"timeout", patience}, command...)...)
	if err != nil {
		return err
	}
	return s.check(output, status)
}

func (s sight) check(output string, status int) error {
	var wrong []string
	if s.fails && status == 0 {
		wrong = append(wrong, "it succeeded, and must not")
	}
	if !s.fails && status != 0 {
		wrong = append(wrong, fmt.Sprintf("it ended with status %d", status))
	}
	for _, want := range s.want {
		if !regexp.MustCompile(want).MatchString(output) {
			wrong = append(wrong, fmt.Sprintf("%q is missing", want))
		}
	}
	for _, never := range s.never {
		if regexp.MustCompile(never).MatchString(output) {
			wrong = append(wrong, fmt.Sprintf("%q must not be there", never))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("what was shown (%s) is not what was promised: %s", s.says, strings.Join(wrong, "; "))
	}
	return nil
}

// exec runs a command as a user on the login machine.
func (d *demo) exec(ctx context.Context, w io.Writer, user string, args ...string) (string, int, error) {
	return d.run(ctx, w, "docker", append([]string{"exec", "-u", user, "-w", "/home/" + user, d.prefix + "carme-login"}, args...)...)
}

// quiet runs a command whose output is nobody's concern unless it fails.
func (d *demo) quiet(ctx context.Context, name string, args ...string) (string, error) {
	output, status, err := d.run(ctx, io.Discard, name, args...)
	if err == nil && status != 0 {
		err = fmt.Errorf("%s ended with status %d: %s", typed(append([]string{name}, args...)), status, output)
	}
	return strings.TrimSpace(output), err
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// typed is a command as one would type it in a shell.
func typed(words []string) string {
	shown := make([]string, 0, len(words))
	for _, w := range words {
		if !plainWord.MatchString(w) {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		shown = append(shown, w)
	}
	return strings.Join(shown, " ")
}
