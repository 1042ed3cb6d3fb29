package slurm

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// Gres is what gres.conf says of the GPUs of one node.
type Gres struct {
	// AutoDetect is true if slurmd finds the GPUs itself (AutoDetect=nvml and
	// the like), so that Files need not name them.
	AutoDetect bool
	// Files are the device files of GPUs, expanded.
	Files []string
}

// ParseGres reads the text of a gres.conf(5) for the node of that name. Lines
// for other nodes and for other resources than gpu are left out. Node lists in
// brackets are understood as Slurm writes them: node[01-16,20].
func ParseGres(text, node string) Gres {
	var g Gres
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		set := map[string]string{}
		for word := range strings.FieldsSeq(line) {
			key, value, _ := strings.Cut(word, "=")
			set[strings.ToLower(key)] = value
		}
		if nodes, ok := set["nodename"]; ok && !contains(Expand(nodes), node) {
			continue
		}
		if auto, ok := set["autodetect"]; ok {
			g.AutoDetect = !strings.EqualFold(auto, "off")
		}
		if !strings.EqualFold(set["name"], "gpu") {
			continue
		}
		for _, key := range []string{"file", "multiplefiles"} {
			g.Files = append(g.Files, Expand(set[key])...)
		}
	}
	return g
}

var span = regexp.MustCompile(`^(\d+)-(\d+)$`)

// expandMax is how many names one expression may stand for.
const expandMax = 1 << 16

// Expand lists what an expression such as /dev/nvidia[0-3,7],/dev/x stands for
// (hostlist of slurm.conf(5)), nothing for one that cannot be read.
func Expand(expression string) []string {
	var all []string
	for _, part := range splitOutside(expression) {
		before, rest, bracket := strings.Cut(part, "[")
		inner, after, closed := strings.Cut(rest, "]")
		switch {
		case part == "":
		case !bracket:
			all = append(all, part)
		case closed:
			for _, tail := range orOne(Expand(after)) {
				for _, n := range numbers(inner) {
					if len(all) > expandMax {
						return nil
					}
					all = append(all, before+n+tail)
				}
			}
		}
	}
	return all
}

func orOne(list []string) []string {
	if len(list) == 0 {
		return []string{""}
	}
	return list
}

// numbers lists what stands between brackets: 0-3,07.
func numbers(inner string) []string {
	var all []string
	for part := range strings.SplitSeq(inner, ",") {
		m := span.FindStringSubmatch(part)
		if m == nil {
			all = append(all, part)
			continue
		}
		from, errFrom := strconv.Atoi(m[1])
		to, errTo := strconv.Atoi(m[2])
		if errFrom != nil || errTo != nil || to-from > expandMax {
			return nil
		}
		for n := from; n <= to; n++ {
			all = append(all, fmt.Sprintf("%0*d", len(m[1]), n))
		}
	}
	return all
}

// splitOutside splits at commas that are not in brackets.
func splitOutside(s string) []string {
	var parts []string
	depth, start := 0, 0
	for i, c := range s {
		switch c {
		case '[':
			depth++
		case ']':
			depth--
		case ',':
			if depth == 0 {
				parts = append(parts, s[start:i])
				start = i + 1
			}
		}
	}
	return append(parts, s[start:])
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name || strings.EqualFold(n, "ALL") {
			return true
		}
	}
	return false
}

// Include is a line of plugstack.conf(5).
type Include struct {
	// Kind is include, optional or required.
	Kind string
	// Path is what follows it: a pattern of files, or a plugin.
	Path string
}

// ParsePlugstack reads the text of a plugstack.conf(5). Lines it does not
// understand are left out.
func ParsePlugstack(text string) []Include {
	var all []Include
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch kind := strings.ToLower(words[0]); kind {
		case "include", "optional", "required":
			all = append(all, Include{Kind: kind, Path: path.Clean(words[1])})
		}
	}
	return all
}
