package request

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The plugin registers the options in C and names them in records; both sides
// must mean the same.
func TestOptionsAgreeWithThePlugin(t *testing.T) {
	source, err := os.ReadFile("../cshim/options.c")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(source)), " ")
	entries := regexp.MustCompile(`\{"([a-z-]+)", (NULL|"[^"]+"), (?:"[^"]*" ?)+, (\d), OPT_`).FindAllStringSubmatch(text, -1)
	if len(entries) != len(Options()) {
		t.Fatalf("%d options in C, %d in Go", len(entries), len(Options()))
	}
	keys, variables := array(t, text, "key"), array(t, text, "variable")
	for i, o := range Options() {
		arg, kind := "NULL", "0"
		if o.Arg != "" {
			arg, kind = strconv.Quote(o.Arg), "1"
		}
		if o.Optional {
			kind = "2"
		}
		if got := entries[i][1:]; !slices.Equal(got, []string{o.Name, arg, kind}) {
			t.Errorf("C has %q, Go %q %s %s", got, o.Name, arg, kind)
		}
		if "opt."+keys[i] != RecordKey(o.Name) || "inherited."+keys[i] != InheritedKey(o.Name) {
			t.Errorf("C sends %q, Go reads %q", keys[i], RecordKey(o.Name))
		}
		if variables[i] != o.Env {
			t.Errorf("default of --%s is %q in C, %q in Go", o.Name, variables[i], o.Env)
		}
	}
}

// array reads the strings of an array in C, empty for NULL.
func array(t *testing.T, text, name string) []string {
	t.Helper()
	_, rest, found := strings.Cut(text, " "+name+"[OPT_COUNT] = {")
	body, _, closed := strings.Cut(rest, "}")
	if !found || !closed {
		t.Fatalf("there is no array %s", name)
	}
	var all []string
	for word := range strings.SplitSeq(body, ",") {
		word = strings.TrimSpace(word)
		if word == "NULL" {
			word = `""`
		}
		s, err := strconv.Unquote(word)
		if err != nil {
			t.Fatalf("%s: %v", word, err)
		}
		all = append(all, s)
	}
	if len(all) != len(Options()) {
		t.Fatalf("%s has %d entries", name, len(all))
	}
	return all
}
