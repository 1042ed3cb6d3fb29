package doctor

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func source(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../../spank/cshim/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestNameOfTheNoteAgreesWithThePlugin(t *testing.T) {
	if m := regexp.MustCompile(`#define JOB_EXTERN "(\w+)"`).FindStringSubmatch(source(t, "common/jobfiles.h")); m == nil || m[1] != "extern" {
		t.Errorf("the plugin's note is %q", m)
	}
}

func TestCallbacksAgreeWithTheVersionScript(t *testing.T) {
	got := regexp.MustCompile(`slurm_spank_\w+`).FindAllString(source(t, "version.map"), -1)
	if want := callbacks(); !slices.Equal(got, want) {
		t.Errorf("the version script exports %s, the doctor expects %s", strings.Join(got, " "), strings.Join(want, " "))
	}
}
