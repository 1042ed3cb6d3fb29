package core

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/carme-hpc/carme/spank/request"
)

// source is one file of the C side.
func source(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../cshim", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// defined is what a #define of the C side says, products worked out.
func defined(t *testing.T, path, name string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^#define ` + name + `[ \t]+(.*?)[ \t]*(?:/\*.*)?$`).FindStringSubmatch(source(t, path))
	if m == nil {
		t.Fatalf("%s does not define %s", path, name)
	}
	value := strings.Trim(m[1], "()")
	if a, b, ok := strings.Cut(value, " * "); ok {
		x, errA := strconv.Atoi(a)
		y, errB := strconv.Atoi(b)
		if errA != nil || errB != nil {
			t.Fatalf("%s: %s is %s, not a product", path, name, value)
		}
		return strconv.Itoa(x * y)
	}
	if text, err := strconv.Unquote(value); err == nil {
		return text
	}
	return value
}

func TestConstantsAgreeWithTheCSide(t *testing.T) {
	cases := map[string]struct{ file, name, want string }{
		"longest message":         {"common/msg.h", "MSG_MAX", strconv.Itoa(messageMax)},
		"check: submit":           {"local.c", "CHECK_OK", strconv.Itoa(checkOK)},
		"check: nothing to do":    {"local.c", "CHECK_DONE", strconv.Itoa(checkDone)},
		"the set-up's record":     {"common/jobfiles.h", "JOB_PROOF", filepath.Base(filepath.Join(jobView, "proof.json"))},
		"the node's directory":    {"plugin.h", "CARME_RUN", runDir},
		"options, inside a job":   {"plugin.h", "CARME_JOB_OPTIONS", `CARME_RUN "` + strings.TrimPrefix(jobView, runDir) + `/options"`},
		"the jobs' directories":   {"plugin.h", "CARME_JOBS", `CARME_RUN "` + strings.TrimPrefix(jobsDir, runDir) + `"`},
		"commands inside a job":   {"anchor/slurm.c", "HOST_USR", hostView},
		"descriptors at the most": {"common/msg.h", "MSG_FDS_MAX", "250"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := defined(t, c.file, c.name); got != c.want {
				t.Errorf("%s in %s is %s, in Go it is %s", c.name, c.file, got, c.want)
			}
		})
	}
}

func TestDescriptorsOfCarmeHostAgreeWithTheCSide(t *testing.T) {
	want := "request on fd " + strconv.Itoa(RequestFD) + ", result on fd " + strconv.Itoa(ResultFD) + ", anchor on fd " + strconv.Itoa(AnchorFD)
	if !strings.Contains(source(t, "host/host.c"), want) {
		t.Errorf("host.c does not say %q", want)
	}
}

// literals are the strings and NULLs of a C initialiser; a NULL is "".
func literals(t *testing.T, text, pattern string) []string {
	t.Helper()
	m := regexp.MustCompile(`(?s)` + pattern + `\s*\{(.*?)\};`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("options.c has no %s", pattern)
	}
	var list []string
	for _, word := range regexp.MustCompile(`"((?:[^"\\]|\\.)*)"|NULL`).FindAllStringSubmatch(m[1], -1) {
		list = append(list, word[1])
	}
	return list
}

func TestOptionsAgreeWithTheCSide(t *testing.T) {
	text := source(t, "options.c")
	var names, keys, variables []string
	for _, o := range request.Options() {
		names = append(names, o.Name)
		keys = append(keys, strings.TrimPrefix(request.RecordKey(o.Name), "opt."))
		variables = append(variables, o.Env)
	}
	entry := regexp.MustCompile(`(?m)^ {4}\{"([a-z-]+)", (?:"([^"]*)"|NULL),`)
	var registered []string
	for i, m := range entry.FindAllStringSubmatch(text, -1) {
		registered = append(registered, m[1])
		if i < len(names) && m[2] != request.Options()[i].Arg && (m[2] == "") != (request.Options()[i].Arg == "") {
			t.Errorf("--%s takes %q in C and %q in Go", m[1], m[2], request.Options()[i].Arg)
		}
	}
	if !slices.Equal(registered, names) {
		t.Errorf("C registers\n%q, Go knows\n%q", registered, names)
	}
	if got := literals(t, text, `key\[OPT_COUNT\] =`); !slices.Equal(got, keys) {
		t.Errorf("C sends\n%q, Go reads\n%q", got, keys)
	}
	if got := literals(t, text, `variable\[OPT_COUNT\] =`); !slices.Equal(got, variables) {
		t.Errorf("C reads\n%q, Go documents\n%q", got, variables)
	}
}
