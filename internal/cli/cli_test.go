package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/carme-hpc/carme/internal/cli/doctor"
	"github.com/carme-hpc/carme/internal/wire"
)

// noNVML is a machine without the library.
type noNVML struct{}

func (noNVML) Init() nvml.Return                  { return nvml.ERROR_LIBRARY_NOT_FOUND }
func (noNVML) Shutdown() nvml.Return              { return nvml.SUCCESS }
func (noNVML) DeviceGetCount() (int, nvml.Return) { return 0, nvml.SUCCESS }
func (noNVML) DeviceGetHandleByIndex(int) (device nvml.Device, ret nvml.Return) {
	return device, nvml.SUCCESS
}

// machine has these files below its root.
func machine(t *testing.T, files map[string]string) Machine {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(file), 0o755))
		must(t, os.WriteFile(file, []byte(text), 0o644))
	}
	return Machine{
		Root: root, Node: "node1", NVML: noNVML{}, TrustOwner: true, Now: time.Now,
		Groups: func() ([]string, error) { return []string{"users"}, nil },
		Open:   func(string) error { return syscall.ENOENT },
		Object: func(string) (doctor.Object, error) { return doctor.Object{}, errors.New("none") },
		Run:    func(context.Context, string, ...string) ([]byte, error) { return nil, errors.New("not found") },
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run returns the exit status, and what was printed where.
func run(t *testing.T, m Machine, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = Run(t.Context(), m, args, &out, &errs)
	return status, out.String(), errs.String()
}

func record(t *testing.T, ok bool) string {
	t.Helper()
	p := wire.Proof{Version: wire.ProofVersion, JobID: 7, User: "alice", Node: "node1", Checks: []wire.Check{{Name: "devices", OK: ok}}}
	var out bytes.Buffer
	must(t, p.Encode(&out))
	return out.String()
}

func TestMistakesOnTheCommandLineAreOneLine(t *testing.T) {
	cases := map[string]struct {
		args   []string
		status int
		says   string
	}{
		"unknown command":    {[]string{"prove"}, 2, `carme: carme has no command "prove"`},
		"unknown flag":       {[]string{"proof", "--yaml"}, 2, "carme: unknown flag: --yaml"},
		"too many arguments": {[]string{"proof", "1", "2"}, 2, "carme: carme proof: 2 arguments are not what it takes; usage:"},
		"not in a job":       {[]string{"proof"}, 1, "carme: this is not inside an isolated job"},
		"no such job":        {[]string{"proof", "9"}, 1, "carme: job 9 is not isolated on this node"},
		"needless argument":  {[]string{"version", "x"}, 2, `carme: carme version: "x" is not what it takes`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			status, out, errs := run(t, machine(t, nil), c.args...)
			if status != c.status || !strings.HasPrefix(errs, c.says) || strings.Count(errs, "\n") != 1 || out != "" {
				t.Errorf("status %d, %q, %q", status, out, errs)
			}
		})
	}
}

func TestProofOfAnotherJobIsItsRecord(t *testing.T) {
	m := machine(t, map[string]string{"run/carme/jobs/7/proof.json": record(t, true)})
	status, out, errs := run(t, m, "proof", "7")
	if status != 0 || !strings.Contains(out, "job 7 of alice") || strings.Contains(out, "Checks now") || errs != "" {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
	status, out, _ = run(t, m, "proof", "--json", "7")
	var report struct {
		OK   bool         `json:"ok"`
		Live []wire.Check `json:"live"`
	}
	must(t, json.Unmarshal([]byte(out), &report))
	if status != 0 || !report.OK || report.Live != nil {
		t.Errorf("status %d, %+v", status, report)
	}
}

func TestProofThatFailsHasAStatusOfItsOwn(t *testing.T) {
	m := machine(t, map[string]string{"run/carme/job/proof.json": record(t, false)})
	for _, args := range [][]string{{"proof"}, {"proof", "7"}} {
		status, out, errs := run(t, m, args...)
		if status != 1 || !strings.Contains(out, "Checks now, from inside") || !strings.Contains(out, "FAILED") || errs != "" {
			t.Errorf("status %d, %q, %q", status, out, errs)
		}
	}
}

func TestDoctorPrintsItsReport(t *testing.T) {
	m := machine(t, map[string]string{"run/carme/jobs/7/extern": "1 1", "proc/self/mountinfo": ""})
	status, out, errs := run(t, m, "doctor", "--clean")
	if status != 1 || !strings.HasPrefix(out, "removed what was left of job 7\nnode node1\n") || errs != "" {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
	status, out, _ = run(t, m, "doctor", "--json", "--clean", "--root", m.Root)
	var report doctor.Report
	must(t, json.Unmarshal([]byte(out), &report))
	if status != 1 || report.OK || report.Node != "node1" {
		t.Errorf("status %d, %+v", status, report)
	}
	if status, _, errs = run(t, m, "doctor", "--clean", "--root", "/nowhere/at/all"); status != 1 || !strings.HasPrefix(errs, "carme: list mounts") {
		t.Errorf("status %d, %q", status, errs)
	}
}

func TestImagesAreThoseOfTheCaller(t *testing.T) {
	m := machine(t, map[string]string{
		"etc/carme/images.d/a.yaml": "{name: base, path: /a, description: Debian}",
		"etc/carme/images.d/b.yaml": "{name: secret, path: /b, groups: [others]}",
	})
	if status, out, _ := run(t, m, "images"); status != 0 || out != "IMAGE  DESCRIPTION\nbase   Debian\n" {
		t.Errorf("status %d, %q", status, out)
	}
	m.Groups = func() ([]string, error) { return nil, errors.New("no name service") }
	if status, _, errs := run(t, m, "images"); status != 1 || errs != "carme: no name service\n" {
		t.Errorf("status %d, %q", status, errs)
	}
	m = machine(t, map[string]string{"etc/carme/spank.yaml": "x: 1"})
	if status, _, errs := run(t, m, "images"); status != 1 || !strings.Contains(errs, "spank.yaml:1: there is no setting") {
		t.Errorf("status %d, %q", status, errs)
	}
}

func TestInsideAJobOneIsToldWhereToAsk(t *testing.T) {
	inside := map[string]string{"run/carme/job/proof.json": record(t, true)}
	m := machine(t, inside)
	if status, out, errs := run(t, m, "doctor"); status != 1 || out != "" || !strings.HasPrefix(errs, "carme: this is inside isolated job 7, ") || !strings.Contains(errs, "carme proof examines the job") {
		t.Errorf("doctor ends with %d\n%s%s", status, out, errs)
	}
	if status, out, errs := run(t, m, "images"); status != 1 || out != "" || !strings.HasPrefix(errs, "carme: this is inside isolated job 7, in an image ") || !strings.Contains(errs, "srun --carme=list") {
		t.Errorf("images, in an image, ends with %d\n%s%s", status, out, errs)
	}
	inside["etc/carme/images.d/a.yaml"] = "{name: base, path: /a}"
	if status, out, errs := run(t, machine(t, inside), "images"); status != 0 || !strings.Contains(out, "base") {
		t.Errorf("images, in a job with the node's files, ends with %d\n%s%s", status, out, errs)
	}
}

func TestACallThatIsWrongSaysWhatItTakes(t *testing.T) {
	for call, want := range map[string]string{
		"end-logins":   "carme: carme end-logins: something is missing; usage: carme end-logins USER [flags]\n",
		"proof a b":    "carme: carme proof: 2 arguments are not what it takes; usage: carme proof [JOBID] [flags]\n",
		"proof abc":    "carme: \"abc\" is no id of a job; for a task",
		"doctor x":     "carme: carme doctor: \"x\" is not what it takes; usage: carme doctor [flags]\n",
		"prof":         "carme: carme has no command \"prof\"; did you mean \"proof\"? carme --help lists them\n",
		"frobnicate":   "carme: carme has no command \"frobnicate\"; carme --help lists them\n",
		"audit lst":    "carme: carme audit has no command \"lst\"; did you mean \"list\"? carme audit --help lists them\n",
		"images --xml": "carme: unknown flag: --xml; carme images --help lists the options\n",
	} {
		if status, out, errs := run(t, machine(t, nil), strings.Fields(call)...); status != 2 || out != "" || !strings.HasPrefix(errs, want) {
			t.Errorf("%s: status %d, %q, %q", call, status, out, errs)
		}
	}
}

func TestDoctorDoesNotJudgeANodeThatItCannotSee(t *testing.T) {
	m := machine(t, nil)
	m.Root, m.UID = "/", 10001
	if status, out, errs := run(t, m, "doctor"); status != 1 || out != "" || !strings.Contains(errs, "cannot be told") || !strings.Contains(errs, "as root") {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
}

func TestDoctorSaysWhereThereIsNothingToExamine(t *testing.T) {
	for name, c := range map[string]struct {
		slurmd, scontrol error
		says             string
		want             bool
	}{
		"a login host":         {exec.ErrNotFound, errors.New("exit status 1"), "Node node1 not found\n", true},
		"a node without PATH":  {exec.ErrNotFound, nil, "NodeName=node1", false},
		"slurmctld is silent":  {exec.ErrNotFound, errors.New("Unable to contact slurm controller"), "", false},
		"slurmd does not run":  {errors.New("exit status 1"), errors.New("exit status 1"), "Node node1 not found\n", false},
		"of another directory": {exec.ErrNotFound, exec.ErrNotFound, "", false},
	} {
		m := machine(t, nil)
		m.Run = func(_ context.Context, program string, _ ...string) ([]byte, error) {
			if program == "slurmd" {
				return nil, fmt.Errorf("run slurmd: %w", c.slurmd)
			}
			return []byte(c.says), c.scontrol
		}
		status, out, errs := run(t, m, "doctor")
		if got := strings.HasPrefix(errs, "carme: node1 is no compute node"); got != c.want || status != 1 || got != (out == "") {
			t.Errorf("%s: status %d, %q, %q", name, status, out, errs)
		}
	}
}

func TestImagesAreListedAsJSON(t *testing.T) {
	m := machine(t, map[string]string{
		"etc/carme/spank.yaml":      "default_image: base",
		"etc/carme/images.d/a.yaml": "{name: base, path: /a, description: The base}",
		"etc/carme/images.d/b.yaml": "{name: torch, path: /b, groups: [ml]}",
	})
	status, out, errs := run(t, m, "images", "--json")
	var got []struct {
		Name, Description string
		Default           bool
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 {
		t.Fatalf("status %d, %v, %q", status, err, errs)
	}
	if len(got) != 1 || got[0].Name != "base" || got[0].Description != "The base" || !got[0].Default {
		t.Errorf("%+v", got)
	}
}

func TestVersionAndHelpAreShown(t *testing.T) {
	if status, out, _ := run(t, machine(t, nil), "--version"); status != 0 || !strings.HasPrefix(out, "carme 0.") {
		t.Errorf("--version: status %d, %q", status, out)
	}
	if status, out, _ := run(t, machine(t, nil), "version"); status != 0 || !strings.HasPrefix(out, "carme 0.") {
		t.Errorf("status %d, %q", status, out)
	}
	status, out, _ := run(t, machine(t, nil))
	for _, word := range []string{"proof", "doctor", "images", "version"} {
		if status != 0 || !strings.Contains(out, word) {
			t.Errorf("%s is missing in %q", word, out)
		}
	}
}

func TestRealMachineIsThisOne(t *testing.T) {
	m := Real()
	if m.Root != "/" || m.Node == "" || m.NVML == nil || m.Now().IsZero() {
		t.Errorf("got %+v", m)
	}
	if names, err := m.Groups(); err != nil {
		t.Errorf("got %q, %v", names, err)
	}
}
