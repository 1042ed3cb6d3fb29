package config

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// timeoutMax is the longest time for a set-up that can be configured, in
// seconds: slurmd gives up on a step that does not start before.
const timeoutMax = 600

// isImageName agrees with ValidName of spank/request.
func isImageName(s string) bool { return isWord(s, 128, letters+digits, "._+-") }

// isEnvName is for names of variables, which may be of any length.
func isEnvName(s string) bool { return isWord(s, len(s), letters+"_", digits) }

func isGroupName(s string) bool {
	return s != "" && utf8.RuneCountInString(s) <= 256 && !strings.ContainsAny(s, ":,") && !strings.ContainsFunc(s, unicode.IsSpace)
}

// reserved are words that --carme and CARME give a meaning of their own.
func reserved() []string { return []string{"list", "help", "none", "yes", "no", "0", "1"} }

func (f *file) checkSpank(s *Spank) {
	if s.DefaultImage != "" && !isImageName(s.DefaultImage) {
		f.fail("is no name of an image", "default_image")
	}
	f.checkChoice("net", s.Net, "host", "private")
	f.checkChoice("home", s.Home, "yes", "no")
	f.checkChoice("overlay", s.Overlay, OverlayNone, OverlayTmpfs, OverlayDir)
	if s.Overlay.Default == OverlayDir {
		f.fail("dir cannot be the default; use none or tmpfs", "overlay", "default")
	}
	for i := range s.Binds.Allow {
		f.checkRule(&s.Binds.Allow[i], "binds", "allow", i)
	}
	f.checkBinds(s.Binds.Default, "binds", "default")
	for i, p := range s.Images.AllowPaths {
		f.checkPattern(p, "images", "allow_paths", i)
	}
	if s.Tmp.Kind != "tmpfs" {
		f.fail("is unknown; use tmpfs", "tmp", "kind")
	}
	f.checkSize(s.Tmp.Size)
	for i, d := range s.Devices.Extra {
		f.checkDevice(d, "devices", "extra", i)
	}
	f.checkPath(s.Apptainer.Path, "apptainer", "path")
	if s.TimeoutSeconds < 1 || s.TimeoutSeconds > timeoutMax {
		f.fail(fmt.Sprintf("must be 1 to %d seconds", timeoutMax), "timeout_seconds")
	}
	for i, name := range s.Env.Pass {
		if !isEnvName(strings.TrimSuffix(name, "*")) {
			f.fail("is no name of a variable; an asterisk may stand at its end", "env", "pass", i)
		}
	}
}

func (f *file) checkImage(img *Image) {
	switch {
	case img.Name == "":
		f.fail("the image has no name; add name: NAME")
	case !isImageName(img.Name):
		f.fail("is no name for an image; use letters, digits and ._+-", "name")
	case slices.Contains(reserved(), img.Name):
		f.fail("is a word with a meaning of its own after --carme=; choose another name", "name")
	}
	if img.Path == "" {
		f.fail("the image has no path; add path: /PATH")
	} else {
		f.checkPath(img.Path, "path")
	}
	f.checkText(img.Description, "description")
	for i, g := range img.Groups {
		if !isGroupName(g) || !printable(g) {
			f.fail("is no name of a group", "groups", i)
		}
	}
	f.checkBinds(img.Binds, "binds")
	for name, value := range img.Env {
		f.checkVariable(name, value)
	}
	if !slices.Contains([]string{FormatAuto, FormatSIF, FormatSandbox}, img.Format) {
		f.fail("is unknown; use sif, sandbox or auto", "format")
	}
}

// checkVariable checks a variable that an image or an app sets.
func (f *file) checkVariable(name, value string) {
	switch {
	case !isEnvName(name):
		f.fail("is no name of a variable", "env", name)
	case strings.HasPrefix(name, "SLURM_") || strings.HasPrefix(name, "_SLURM_") || strings.HasPrefix(name, "LD_"):
		f.fail("is a variable that may not be set here", "env", name)
	case strings.ContainsRune(value, 0):
		f.fail("has a NUL character", "env", name)
	}
}

func (f *file) checkChoice(key string, c Choice, known ...string) {
	if len(c.Allowed) == 0 {
		f.fail("allows nothing; name at least one of "+strings.Join(known, ", "), key, "allowed")
		return
	}
	for i, a := range c.Allowed {
		if !slices.Contains(known, a) {
			f.fail("is unknown; use "+strings.Join(known, ", "), key, "allowed", i)
		}
	}
	if !slices.Contains(c.Allowed, c.Default) {
		f.fail(fmt.Sprintf("the default %s is not among those allowed", strconv.Quote(c.Default)), key, "default")
	}
}

func (f *file) checkRule(r *BindRule, at ...any) {
	f.checkPattern(r.Source, under(at, "source")...)
	if r.Target != "" {
		f.checkPattern(r.Target, under(at, "target")...)
	}
	r.Mode = f.mode(r.Mode, at)
}

// checkBinds checks binds of the admin, and completes them.
func (f *file) checkBinds(binds []Bind, at ...any) {
	targets := map[string]bool{}
	for i := range binds {
		b := &binds[i]
		here := under(at, i)
		f.checkPath(b.Source, under(here, "source")...)
		if b.Target == "" {
			b.Target = b.Source
		} else {
			f.checkPath(b.Target, under(here, "target")...)
		}
		if targets[b.Target] {
			f.fail("something else has that target already", here...)
		}
		targets[b.Target] = true
		b.Mode = f.mode(b.Mode, here)
	}
}

// mode returns the mode, ro if none is given.
func (f *file) mode(mode string, at []any) string {
	switch mode {
	case "":
		return ReadOnly
	case ReadOnly, ReadWrite:
	default:
		f.fail("is unknown; use ro or rw", under(at, "mode")...)
	}
	return mode
}

// checkPath wants a clean absolute path that is not /, and below no directory
// from which a job's isolation is made.
func (f *file) checkPath(p string, at ...any) {
	switch {
	case !path.IsAbs(p):
		f.fail("must be a path from / on", at...)
	case path.Clean(p) != p || p == "/":
		f.fail("must be a path without //, . or .., without a slash at its end, and not /", at...)
	case !printable(p):
		f.fail("must be a path of characters that can be printed", at...)
	}
}

func (f *file) checkPattern(p string, at ...any) {
	f.checkPath(p, at...)
	for part := range strings.SplitSeq(p, "/") {
		if part != "*" && part != "$USER" && strings.ContainsAny(part, "*?[$") {
			f.fail("* and $USER stand for a whole component of a path; other wildcards there are none", at...)
			return
		}
	}
}

// checkDevice wants a path or pattern below /dev that no GPU falls under.
func (f *file) checkDevice(p string, at ...any) {
	f.checkPath(p, at...)
	if !strings.HasPrefix(p, "/dev/") {
		f.fail("must be below /dev", at...)
		return
	}
	if _, err := path.Match(p, ""); err != nil {
		f.fail("is no pattern; close its [", at...)
		return
	}
	if slices.ContainsFunc(gpuNodes(p), func(node string) bool {
		match, _ := path.Match(p, node) // the pattern is known to be one
		return match || strings.HasPrefix(node, p+"/")
	}) {
		f.fail("would show GPUs of other jobs; Slurm gives a job its GPUs, name only other devices here", at...)
	}
}

// gpuNodes are names under which a GPU can be opened, enough of them to know
// the patterns that would catch one; none where what p begins with rules all out.
func gpuNodes(p string) []string {
	begins, _, _ := strings.Cut(p, "*")
	begins, _, _ = strings.Cut(begins, "?")
	begins, _, _ = strings.Cut(begins, "[")
	begins, _, _ = strings.Cut(begins, `\`)
	if !slices.ContainsFunc([]string{"/dev/nvidia", "/dev/kfd", "/dev/dri/"}, func(family string) bool {
		return strings.HasPrefix(family, begins) || strings.HasPrefix(begins, family)
	}) {
		return nil
	}
	nodes := []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/kfd"}
	for i := range 128 {
		nodes = append(nodes,
			fmt.Sprintf("/dev/nvidia%d", i), fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", i),
			fmt.Sprintf("/dev/dri/card%d", i), fmt.Sprintf("/dev/dri/renderD%d", 128+i))
	}
	return nodes
}

// checkSize wants what tmpfs(5) takes as size, in the units documented here.
func (f *file) checkSize(size string) {
	number, percent := strings.CutSuffix(size, "%")
	if !percent && number != "" && strings.Contains("KMGT", number[len(number)-1:]) {
		number = number[:len(number)-1]
	}
	switch {
	case !isWord(number, 16, "123456789", digits) || percent && len(number) > 3:
		f.fail("is no size; use a percentage such as 50%, or a number with K, M, G or T", "tmp", "size")
	case percent && len(number) == 3 && number > "100":
		f.fail("is more than 100%", "tmp", "size")
	}
}

// under is at with one more step, in memory of its own.
func under(at []any, step any) []any { return append(slices.Clone(at), step) }

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })
}
