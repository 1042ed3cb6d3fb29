package slurm

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func answer(text string, err error) Runner {
	return func(context.Context, string, ...string) ([]byte, error) { return []byte(text), err }
}

func TestConfigIsReadAsScontrolPrintsIt(t *testing.T) {
	cfg, err := ShowConfig(t.Context(), answer(`Configuration data as of 2026-01-02T03:04:05
PlugStackConfig         = (null)
PrologFlags             = Alloc,Contain,X11
SLURM_CONF              = /etc/slurm/slurm.conf

Cgroup Support Configuration:
ConstrainDevices        = yes
Slurmctld(primary) at ctl is UP
`, nil))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Get("plugstackconfig") != "" || cfg.Get("slurm_conf") != "/etc/slurm/slurm.conf" || cfg.Get("ConstrainDevices") != "yes" {
		t.Errorf("got %q", cfg)
	}
	if !cfg.Has("PrologFlags", "contain") || cfg.Has("PrologFlags", "X1") {
		t.Errorf("flags of %q", cfg.Get("PrologFlags"))
	}
	down := errors.New("slurmctld is down")
	if _, err := ShowConfig(t.Context(), answer("", down)); !errors.Is(err, down) {
		t.Errorf("got %v", err)
	}
	if _, err := ShowConfig(t.Context(), answer("nothing", nil)); err == nil {
		t.Error("an answer without settings is no error")
	}
}

func TestVersionIsReadFromSlurmdAndFromPlugins(t *testing.T) {
	cases := map[string]Version{
		"slurm-wlm 24.11.5\n": {24, 11, 5},
		"slurm 26.05.5-1":     {26, 5, 5},
		"slurm 22.05.8":       {22, 5, 8},
	}
	for text, want := range cases {
		got, err := NodeVersion(t.Context(), answer(text, nil))
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	if got := VersionFromNumber(0x180b05); got != (Version{24, 11, 5}) || got.String() != "24.11.5" {
		t.Errorf("got %v", got)
	}
	if v := (Version{24, 5, 1}); v.String() != "24.05.1" || v.SameMajor(Version{24, 11, 1}) || !v.SameMajor(Version{24, 5, 9}) {
		t.Error("releases are compared wrongly")
	}
	if _, err := NodeVersion(t.Context(), answer("none", nil)); err == nil {
		t.Error("an answer without a version is no error")
	}
	if _, err := NodeVersion(t.Context(), answer("", errors.New("missing"))); err == nil {
		t.Error("a missing slurmd is no error")
	}
	if _, err := NodeVersion(t.Context(), answer("99999999999999999999.1.1", nil)); err == nil {
		t.Error("an absurd version is no error")
	}
}

func TestRunnerTellsWhatTheProgramSaid(t *testing.T) {
	out, err := Exec(t.Context(), "go", "env", "GOOS")
	if err != nil || strings.TrimSpace(string(out)) != "linux" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := Exec(t.Context(), "go", "no-such-command"); err == nil || !strings.Contains(err.Error(), "no-such-command") {
		t.Errorf("got %v", err)
	}
	if _, err := Exec(t.Context(), "/nowhere/at/all"); err == nil {
		t.Error("a missing program is no error")
	}
}

func TestExpressionsAreExpandedAsSlurmDoes(t *testing.T) {
	cases := map[string][]string{
		"":                        nil,
		"/dev/nvidia0":            {"/dev/nvidia0"},
		"/dev/nvidia[0-2,7]":      {"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2", "/dev/nvidia7"},
		"/dev/a,/dev/b[1-2]":      {"/dev/a", "/dev/b1", "/dev/b2"},
		"node[08-11]":             {"node08", "node09", "node10", "node11"},
		"r[1-2]n[1-2]":            {"r1n1", "r2n1", "r1n2", "r2n2"},
		"node[1-2":                nil,
		"node[0-999999]":          nil,
		"n[0-99999999999999999a]": {"n0-99999999999999999a"},
	}
	for expression, want := range cases {
		if got := Expand(expression); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", expression, got, want)
		}
	}
}

func TestGresOfTheNodeAreFound(t *testing.T) {
	const text = `# GPUs
AutoDetect=off
Name=gpu Type=a100 File=/dev/nvidia[0-1]
NodeName=node[1-2] Name=gpu MultipleFiles=/dev/nvidia2,/dev/nvidia-caps/nvidia-cap1
NodeName=node3 Name=gpu File=/dev/nvidia9 # another node's
Name=shard Count=4 File=/dev/nvidia5
`
	got := ParseGres(text, "node1")
	want := Gres{Files: []string{"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2", "/dev/nvidia-caps/nvidia-cap1"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	if got := ParseGres("NodeName=ALL AutoDetect=nvml Name=gpu", "x"); !got.AutoDetect || got.Files != nil {
		t.Errorf("got %+v", got)
	}
}

func TestPlugstackLinesAreRead(t *testing.T) {
	got := ParsePlugstack("# include /x\ninclude /etc/carme/plugstack.d/*.conf # Carme\nOptional a.so arg\nbroken\nrequired\tb.so\nunknown c\n")
	want := []Include{{"include", "/etc/carme/plugstack.d/*.conf"}, {"optional", "a.so"}, {"required", "b.so"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func FuzzGres(f *testing.F) {
	f.Add("Name=gpu File=/dev/nvidia[0-3]")
	f.Add("NodeName=a[1-2,3-4]b[1-2] Name=gpu File=[,]")
	f.Fuzz(func(t *testing.T, text string) {
		if got := ParseGres(text, "node1"); len(got.Files) > len(text)*expandMax*2 {
			t.Errorf("%d files", len(got.Files))
		}
		ParsePlugstack(text)
	})
}

func TestExec_a_program_nobody_waits_for_gives_way(t *testing.T) {
	own, err := Exec(t.Context(), "nice")
	if err != nil {
		t.Fatal(err)
	}
	if string(own) == "10\n" {
		t.Skip("these tests give way themselves")
	}
	// Its priority is set when it runs already: what it has started by then keeps its own.
	const wait = `until [ "$(nice)" = 10 ]; do :; done; echo $A`
	limit, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if out, err := ExecBackground(limit, []string{"A=b"}, "sh", "-c", wait); err != nil || string(out) != "b\n" {
		t.Errorf("it says %q, and %v", out, err)
	}
	if out, err := ExecBackground(t.Context(), nil, "sh", "-c", "echo out; echo why >&2; exit 3"); err == nil || string(out) != "out\n" || !strings.Contains(err.Error(), "why") {
		t.Errorf("a failure says %q, and %v", out, err)
	}
}
