package core

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
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
		"the set-up's record":     {"common/jobfiles.h", "JOB_PROOF", proofName},
		"PMIx's directory":        {"common/jobfiles.h", "JOB_PMIX", filepath.Base((&job{}).pmixDir())},
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
