package doctor

import (
	"encoding/binary"
	"os"
	"path/filepath"
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

func TestNoteOfAJobsEndAgreesWithThePlugin(t *testing.T) {
	for text, file := range map[string]string{
		"#define PLACES 4096\n":                  "common/ended.c",
		"uint32_t job;\n\tuint32_t when;":        "common/ended.c",
		"CLOCK_BOOTTIME":                         "common/ended.c",
		`#define CARME_ENDED "/run/carme/ended"`: "common/ended.h",
		`#define JOB_ASKED "asked"`:              "common/jobfiles.h",
	} {
		if !strings.Contains(source(t, file), text) {
			t.Errorf("%s no longer says %q", file, text)
		}
	}
	p := healthy(t)
	for _, id := range []string{"7", "4105"} {
		p.write(t, "run/carme/jobs/"+id+"/extern", "1 1")
		p.write(t, "run/carme/jobs/"+id+"/asked", "x")
	}
	p.write(t, "run/carme/jobs/8/extern", "1 1") // nobody has submitted it with --carme
	p.write(t, "proc/self/mountinfo", "")
	if removed, err := p.doctor().Clean(t.Context()); err != nil || len(removed) != 3 {
		t.Fatalf("removed %q, %v", removed, err)
	}
	data, err := os.ReadFile(filepath.Join(p.root, endedFile))
	must(t, err)
	if len(data) != 10*endedSize || binary.NativeEndian.Uint32(data[7*endedSize:]) != 7 || binary.NativeEndian.Uint32(data[9*endedSize:]) != 4105 ||
		binary.NativeEndian.Uint32(data[8*endedSize:]) != 0 || binary.NativeEndian.Uint32(data[9*endedSize+4:]) == 0 {
		t.Errorf("noted %v", data)
	}
}

func TestCallbacksAgreeWithTheVersionScript(t *testing.T) {
	got := regexp.MustCompile(`slurm_spank_\w+`).FindAllString(source(t, "version.map"), -1)
	if want := callbacks(); !slices.Equal(got, want) {
		t.Errorf("the version script exports %s, the doctor expects %s", strings.Join(got, " "), strings.Join(want, " "))
	}
}
