package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/spank/gpu"
)

// fakeNVML lists GPUs with these minors and UUIDs, in this order.
type fakeNVML struct {
	ret  nvml.Return
	gpus []fakeGPU
}

type fakeGPU struct {
	nvml.Device
	minor int
	uuid  string
}

func (f *fakeNVML) Init() nvml.Return                  { return f.ret }
func (f *fakeNVML) Shutdown() nvml.Return              { return nvml.SUCCESS }
func (f *fakeNVML) DeviceGetCount() (int, nvml.Return) { return len(f.gpus), nvml.SUCCESS }
func (f *fakeNVML) DeviceGetHandleByIndex(i int) (nvml.Device, nvml.Return) {
	return f.gpus[i], nvml.SUCCESS
}

func (g fakeGPU) GetMinorNumber() (int, nvml.Return) { return g.minor, nvml.SUCCESS }
func (g fakeGPU) GetUUID() (string, nvml.Return)     { return g.uuid, nvml.SUCCESS }
func (g fakeGPU) GetName() (string, nvml.Return)     { return "A100", nvml.SUCCESS }
func (g fakeGPU) GetPciInfo() (nvml.PciInfo, nvml.Return) {
	return nvml.PciInfo{}, nvml.SUCCESS
}

func (g fakeGPU) GetMigMode() (current, pending int, ret nvml.Return) {
	return 0, 0, nvml.ERROR_NOT_SUPPORTED
}

// patient is a node and what the doctor meets there.
type patient struct {
	root     string
	nvml     fakeNVML
	answers  map[string]string // of commands
	plugin   Object
	library  Object
	noObject bool
	now      time.Time
}

// healthy is a node where nothing is wrong.
func healthy(t *testing.T) *patient {
	t.Helper()
	p := &patient{
		root: t.TempDir(),
		nvml: fakeNVML{gpus: []fakeGPU{{minor: 1, uuid: "GPU-1"}, {minor: 0, uuid: "GPU-0"}}},
		answers: map[string]string{
			"scontrol":           "SLURM_CONF = /etc/slurm/slurm.conf\nPlugStackConfig = (null)\nProlog[0] = /etc/slurm/prolog.d/*\nPrologFlags = Alloc,Contain\nSlurmdSpoolDir = /var/spool/%n\nConstrainDevices = no\n",
			"slurmd":             "slurm 24.11.5\n",
			"/usr/bin/apptainer": "apptainer version 1.4.5\n",
		},
		plugin:  Object{PluginVersion: 0x180b01, Exports: append(callbacks(), "plugin_name", "plugin_type", "plugin_version", "spank_plugin_version")},
		library: Object{Exports: []string{"slurm_stepd_add_extern_pid", "slurm_stepd_connect"}},
		now:     time.Now().Add(time.Hour),
	}
	slices.Sort(p.plugin.Exports)
	for name, text := range map[string]string{
		"proc/sys/kernel/osrelease":                          "6.1.0-18-amd64\n",
		"proc/sys/user/max_user_namespaces":                  "15000\n",
		"proc/self/mountinfo":                                "1 2 0:1 / / rw - ext4 x rw\n",
		"proc/77/stat":                                       "77 (slurm) stepd) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20\n",
		"sys/fs/cgroup/cgroup.controllers":                   "",
		"etc/slurm/plugstack.conf":                           "include /etc/carme/plugstack.d/*.conf\n",
		"etc/slurm/prolog.d/10-site":                         "exit 0\n",
		"etc/slurm/prolog.d/20-carme":                        "/usr/libexec/carme/carme-prolog || :\n",
		"etc/slurm/cgroup.conf":                              "ConstrainDevices=yes # filter\n",
		"etc/slurm/gres.conf":                                "Name=gpu File=/dev/nvidia[0-1]\n",
		"etc/carme/plugstack.d/carme.conf":                   "optional /usr/lib/carme/spank_carme.so\n",
		"etc/carme/spank.yaml":                               "default_image: base\n",
		"etc/carme/images.d/base.yaml":                       "name: base\npath: /images/base.sif\n",
		"images/base.sif":                                    "",
		"dev/nvidia0":                                        "",
		"dev/nvidia1":                                        "",
		"proc/driver/nvidia/gpus/0000:01:00.0/information":   "GPU UUID: GPU-0\nDevice Minor: 0\n",
		"proc/driver/nvidia/gpus/0000:02:00.0/information":   "GPU UUID: GPU-1\nDevice Minor: 1\n",
		"usr/lib/x86_64-linux-gnu/slurm-wlm/libslurmfull.so": "",
		"run/carme/jobs/5/extern":                            "77 4242\n",
	} {
		p.write(t, name, text)
	}
	for _, name := range installed() {
		p.write(t, name, "")
	}
	for _, name := range append(installed(), "etc/slurm/prolog.d/10-site", "etc/slurm/prolog.d/20-carme") {
		must(t, os.Chmod(filepath.Join(p.root, name), 0o755))
	}
	return p
}

func (p *patient) write(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join(p.root, name)
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte(text), 0o644))
}

func (p *patient) doctor() Doctor {
	return Doctor{
		Root: p.root, Node: "node1", NVML: &p.nvml, TrustOwner: true, Now: func() time.Time { return p.now },
		Run: func(_ context.Context, name string, _ ...string) ([]byte, error) {
			text, found := p.answers[name]
			if !found {
				return nil, errors.New(name + ": executable file not found")
			}
			return []byte(text), nil
		},
		Object: func(path string) (Object, error) {
			switch {
			case p.noObject:
				return Object{}, errors.New("no ELF file")
			case strings.HasSuffix(path, "spank_carme.so"):
				return p.plugin, nil
			}
			return p.library, nil
		},
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHealthyNodePasses(t *testing.T) {
	r := healthy(t).doctor().Examine(t.Context())
	for _, f := range r.Findings {
		if f.Status != OK {
			t.Errorf("%s %s: %s", f.Status, f.Name, f.Detail)
		}
	}
	if !r.OK || len(r.Findings) < 17 {
		t.Errorf("%d findings, OK is %v", len(r.Findings), r.OK)
	}
}

func file(name, text string) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		p.write(t, name, text)
	}
}

func gone(name string) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		must(t, os.RemoveAll(filepath.Join(p.root, name)))
	}
}

func mode(name string, m os.FileMode) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		must(t, os.Chmod(filepath.Join(p.root, name), m))
	}
}

func says(name, text string) func(*testing.T, *patient) { //nolint:unparam // beside silent, which takes others
	return func(_ *testing.T, p *patient) { p.answers[name] = text }
}

func silent(name string) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { delete(p.answers, name) }
}

func change(f func(*patient)) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { f(p) }
}

func TestAilmentIsNamedWithItsRemedy(t *testing.T) {
	cases := map[string]struct {
		ail                func(*testing.T, *patient)
		name, detail, mend string
	}{
		"unreadable plugin":     {change(func(p *patient) { p.noObject = true }), "plugin's symbols", "no library that Slurm can load", "install or repair"},
		"kill switch":           {file("etc/carme/disabled", ""), "kill switch", "every --carme job is refused", "rm /etc/carme/disabled"},
		"old kernel":            {file("proc/sys/kernel/osrelease", "4.18.0-553"), "kernel", "too old", "5.12"},
		"odd kernel":            {file("proc/sys/kernel/osrelease", "x"), "kernel", "no release", "5.12"},
		"no proc":               {gone("proc/sys/kernel/osrelease"), "kernel", "no such file", "mount /proc"},
		"no user namespaces":    {file("proc/sys/user/max_user_namespaces", "0\n"), "user namespaces", "users cannot start images", "sysctl user.max_user_namespaces=15000"},
		"AppArmor":              {file("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"), "user namespaces", "is 1", "AppArmor"},
		"no core":               {gone("usr/lib/carme/libcarme.so"), "/usr/lib/carme/libcarme.so", "is missing", "install or repair"},
		"core for all":          {mode("usr/lib/carme/libcarme.so", 0o666), "/usr/lib/carme/libcarme.so", "written by others", "chmod go-w /usr/lib/carme/libcarme.so"},
		"host not executable":   {mode("usr/libexec/carme/carme-host", 0o644), "/usr/libexec/carme/carme-host", "cannot be executed", "chmod a+x"},
		"host for root alone":   {mode("usr/libexec/carme/carme-host", 0o700), "/usr/libexec/carme/carme-host", "cannot be executed by all (mode 0700)", "chmod a+x"},
		"plugin for root alone": {mode(pluginPath, 0o700), "/" + pluginPath, "cannot be read by all (mode 0700)", "chmod a+r /" + pluginPath},
		"folder for all":        {mode("usr/lib/carme", 0o777), "/usr/lib/carme", "can be written by others (mode 0777)", "chmod go-w /usr/lib/carme"},
		"folder for root alone": {mode("usr/libexec/carme", 0o700), "/usr/libexec/carme", "is closed to users (mode 0700)", "chmod a+rx /usr/libexec/carme"},
		"switch for all":        {mode("etc/carme/plugstack.d/carme.conf", 0o666), "/etc/carme/plugstack.d/carme.conf", "can be written by others", "chmod go-w"},
		"no such Prolog":        {says("scontrol", "SLURM_CONF = /etc/slurm/slurm.conf\nProlog[0] = /etc/slurm/carme_prolog\nPrologFlags = Contain\n"), "Prolog", "names /etc/slurm/carme_prolog, which does not exist", "contrib/slurm/prolog"},
		"Prolog not executable": {mode("etc/slurm/prolog.d/10-site", 0o644), "Prolog", "/etc/slurm/prolog.d/10-site cannot be executed", "chmod a+x /etc/slurm/prolog.d/10-site"},
		"missing callback":      {change(func(p *patient) { p.plugin.Exports = p.plugin.Exports[1:] }), "plugin's symbols", "missing: plugin_name", "repair"},
		"costly callback":       {change(func(p *patient) { p.plugin.Exports = append(p.plugin.Exports, "slurm_spank_zz") }), "plugin's symbols", "should not be exported: slurm_spank_zz", "repair"},
		"plugin for another":    {change(func(p *patient) { p.plugin.PluginVersion = 0x1a0505 }), "plugin's Slurm release", "built for 26.05.5, this node runs 24.11.5", "built for Slurm 24.11.5"},
		"no slurmd":             {silent("slurmd"), "plugin's Slurm release", "not found", "install slurmd"},
		"no slurmctld":          {silent("scontrol"), "Slurm's configuration", "not found", "start slurmctld"},
		"no plugstack":          {gone("etc/slurm/plugstack.conf"), "plugstack line", "no plugstack.conf", "include /etc/carme/plugstack.d/*.conf"},
		"no line":               {file("etc/slurm/plugstack.conf", "include other/*.conf\n"), "plugstack line", "does not load the plugin", "include /etc/carme/plugstack.d/*.conf"},
		"required":              {file("etc/slurm/plugstack.conf", "required /usr/lib/carme/spank_carme.so\n"), "plugstack line", "slurmd stops", "optional instead of required"},
		"switched off":          {gone("etc/carme/plugstack.d/carme.conf"), "plugin switched on", "there is no", "install"},
		"switched on, required": {file("etc/carme/plugstack.d/carme.conf", "required /usr/lib/carme/spank_carme.so\n"), "plugin switched on", "slurmd stops", "optional"},
		"switch leads nowhere":  {file("etc/carme/plugstack.d/carme.conf", "optional /opt/spank_carme.so\n"), "plugin switched on", "does not exist", "/usr/lib/carme"},
		"switch is empty":       {file("etc/carme/plugstack.d/carme.conf", "# off\n"), "plugin switched on", "does not name the plugin", "optional /usr/lib/carme/spank_carme.so"},
		"no Contain":            {says("scontrol", "SLURM_CONF = /etc/slurm/slurm.conf\nPrologFlags = Alloc\n"), "PrologFlags", "no Contain", "PrologFlags=Contain"},
		"no adoption":           {change(func(p *patient) { p.library.Exports = p.library.Exports[1:] }), "adoption into the extern step", "lacks", "22.05"},
		"no library":            {gone("usr/lib/x86_64-linux-gnu"), "adoption into the extern step", "no library", "install"},
		"no cgroups":            {gone("sys"), "cgroups", "neither version", "mount"},
		"wrong configuration":   {file("etc/carme/spank.yaml", "\nnonsense: 1\n"), "configuration", "/etc/carme/spank.yaml:2: there is no setting", "spank.yaml(5)"},
		"image is missing":      {gone("images/base.sif"), "images", "base: ", "put the image there"},
		"no Apptainer":          {silent("/usr/bin/apptainer"), "Apptainer", "not found", "install Apptainer"},
		"no NVML":               {change(func(p *patient) { p.nvml.ret = nvml.ERROR_LIBRARY_NOT_FOUND }), "NVML", "the driver has 2 GPUs", "libnvidia-ml.so.1"},
		"broken NVML":           {change(func(p *patient) { p.nvml.ret = nvml.ERROR_UNKNOWN }), "NVML", "start NVML", "nvidia-smi"},
		"maps differ":           {change(func(p *patient) { p.nvml.gpus[0].uuid = "GPU-x" }), "GPU map", "/dev/nvidia1 is GPU-x for NVML", "mend the driver"},
		"GPU hidden":            {change(func(p *patient) { p.nvml.gpus = p.nvml.gpus[:1] }), "GPU map", "NVML lists 1 GPUs, the driver 2", "as root"},
		"GPU unknown to Slurm":  {file("etc/slurm/gres.conf", "Name=gpu File=/dev/nvidia0\n"), "gres.conf", "does not name /dev/nvidia1 (GPU-1)", "open to every job"},
		"GPU that is not there": {file("etc/slurm/gres.conf", "Name=gpu File=/dev/nvidia[0-2]\n"), "gres.conf", "names /dev/nvidia2, which does not exist", "nvidia-modprobe"},
		"GPU that fell off":     {file("dev/nvidia2", ""), "", "", ""},
		"no gres.conf":          {gone("etc/slurm/gres.conf"), "gres.conf", "but there are 2 GPUs", "AutoDetect=nvml"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := healthy(t)
			c.ail(t, p)
			r := p.doctor().Examine(t.Context())
			if c.name == "" {
				if !r.OK {
					t.Errorf("got %+v", r)
				}
				return
			}
			i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Name == c.name && f.Status == Fail })
			if r.OK || i < 0 {
				t.Fatalf("%q did not fail: %+v", c.name, r.Findings)
			}
			f := r.Findings[i]
			if !strings.Contains(f.Detail, c.detail) || !strings.Contains(f.Mend, c.mend) {
				t.Errorf("got %q -> %q", f.Detail, f.Mend)
			}
			for _, f := range r.Findings {
				if f.Status == Fail && f.Mend == "" {
					t.Errorf("%s fails without a remedy", f.Name)
				}
			}
		})
	}
}

func TestMistakeInAnAppIsNotedAndStopsNoOtherJob(t *testing.T) {
	p := healthy(t)
	file("etc/carme/apps.d/a.yaml", "{name: a, command: [x], port: 1}\n")(t, p)
	r := p.doctor().Examine(t.Context())
	if !r.OK || !slices.ContainsFunc(r.Findings, func(f Finding) bool {
		return f.Name == "apps" && f.Status == Note && strings.Contains(f.Detail, "/etc/carme/apps.d/a.yaml:1: there is no setting")
	}) {
		t.Errorf("got %+v", r)
	}
}

func TestWhatWorksOtherwiseIsNoAilment(t *testing.T) {
	cases := map[string]struct {
		change func(*testing.T, *patient)
		name   string
		status Status
		detail string
	}{
		"cgroup v1":         {both(gone("sys/fs/cgroup/cgroup.controllers"), file("sys/fs/cgroup/devices/x", "")), "cgroups", OK, "v1, Slurm constrains"},
		"own filter":        {gone("etc/slurm/cgroup.conf"), "cgroups", Note, "filter of its own"},
		"included filter":   {both(file("etc/slurm/cgroup.conf", "Include cgroup.conf.d/x.conf\n"), file("etc/slurm/cgroup.conf.d/x.conf", "constraindevices = Yes")), "cgroups", OK, "v2, Slurm constrains"},
		"include of itself": {file("etc/slurm/cgroup.conf", "ConstrainDevices=yes\nInclude /etc/slurm/cgroup.conf\n"), "cgroups", OK, "v2, Slurm constrains"},
		"broken include":    {file("etc/slurm/cgroup.conf", "ConstrainDevices=yes\nInclude /nowhere\n"), "cgroups", OK, "v2, Slurm constrains"},
		"configless":        {both(gone("etc/slurm/plugstack.conf"), file("var/spool/node1/conf-cache/plugstack.conf", "include /etc/carme/plugstack.d/*.conf")), "plugstack line", OK, "conf-cache"},
		"direct line":       {file("etc/slurm/plugstack.conf", "optional ../../usr/lib/carme/spank_carme.so"), "plugstack line", OK, "optional"},
		"own plugstack":     {both(says("scontrol", "PlugStackConfig = /opt/p.conf\nPrologFlags=x11"), file("opt/p.conf", "include /etc/carme/plugstack.d/carme.conf")), "plugstack line", OK, "/opt/p.conf"},
		"no Prolog":         {gone("etc/slurm/prolog.d/20-carme"), "Prolog", Note, "a step from outside of a sealed job"},
		"one Prolog":        {both(says("scontrol", "Prolog = /etc/slurm/carme_prolog\nPrologFlags=x11"), both(file("etc/slurm/carme_prolog", "carme-prolog"), mode("etc/slurm/carme_prolog", 0o755))), "Prolog", OK, "/etc/slurm/carme_prolog runs carme-prolog"},
		"detected GPUs":     {file("etc/slurm/gres.conf", "AutoDetect=nvml\n"), "gres.conf", OK, "slurmd finds"},
		"no driver's files": {gone("proc/driver"), "GPU map", Note, "NVML is asked"},
		"no GPUs": {
			both(change(func(p *patient) { p.nvml = fakeNVML{ret: nvml.ERROR_LIBRARY_NOT_FOUND} }), both(gone("proc/driver"), gone("etc/slurm/gres.conf"))),
			"NVML", OK, "a node without GPUs",
		},
		"leftover":               {file("run/carme/jobs/6/extern", "77 4243\n"), "leftovers", Note, "of ended jobs: 6"},
		"leftover without notes": {file("run/carme/jobs/6/x", ""), "leftovers", Note, "of ended jobs: 6"},
		"leftover, process gone": {file("run/carme/jobs/6/extern", "78 1\n"), "leftovers", Note, "of ended jobs: 6"},
		"leftover, broken notes": {file("run/carme/jobs/6/extern", "x"), "leftovers", Note, "of ended jobs: 6"},
		"one image is missing":   {file("etc/carme/images.d/other.yaml", "name: other\npath: /images/other.sif\n"), "images", Note, "other: "},
		"no images":              {both(silent("/usr/bin/apptainer"), both(gone("etc/carme/images.d"), gone("etc/carme/spank.yaml"))), "Apptainer", Note, "no image is configured"},
		"no jobs":                {gone("run"), "leftovers", OK, "none; 0 jobs"},
		"new job":                {both(file("run/carme/jobs/6/x", ""), change(func(p *patient) { p.now = time.Now() })), "leftovers", OK, "none; 2 jobs"},
		"other name":             {file("run/carme/jobs/lock/x", ""), "leftovers", OK, "none; 1 jobs"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := healthy(t)
			c.change(t, p)
			r := p.doctor().Examine(t.Context())
			i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Name == c.name })
			if i < 0 || r.Findings[i].Status != c.status || !strings.Contains(r.Findings[i].Detail, c.detail) {
				t.Errorf("got %+v", r.Findings)
			}
			if c.status != Skip && !r.OK {
				t.Errorf("not OK: %+v", r.Findings)
			}
		})
	}
}

func both(a, b func(*testing.T, *patient)) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		t.Helper()
		a(t, p)
		b(t, p)
	}
}

func TestCleanRemovesWhatEndedJobsLeft(t *testing.T) {
	p := healthy(t)
	p.write(t, "run/carme/jobs/6/extern", "78 1")
	p.write(t, "run/carme/jobs/8/extern", "78 1")
	p.write(t, "proc/self/mountinfo", "1 2 0:1 / /run/carme/jobs/8/root rw - tmpfs x rw\n")
	removed, err := p.doctor().Clean(t.Context())
	if !slices.Equal(removed, []string{"6"}) || err == nil || !strings.Contains(err.Error(), "something is mounted in /run/carme/jobs/8; unmount it") {
		t.Errorf("got %q, %v", removed, err)
	}
	for id, want := range map[string]bool{"5": true, "6": false, "8": true} {
		if _, err := os.Stat(filepath.Join(p.root, jobsDir, id)); (err == nil) != want {
			t.Errorf("job %s: is there %v, want %v", id, err == nil, want)
		}
	}
	must(t, os.RemoveAll(filepath.Join(p.root, "proc")))
	if _, err := p.doctor().Clean(t.Context()); err == nil {
		t.Error("mounts that cannot be read are no error")
	}
}

// A job that is requeued has the number that it had before, and may be set up in
// what the first run has left.
func TestCleanLeavesADirectoryInWhichAStepIsSetUp(t *testing.T) {
	p := healthy(t)
	p.write(t, "run/carme/jobs/6/extern", "78 1")
	p.write(t, "proc/self/mountinfo", "")
	dir, err := os.Open(filepath.Join(p.root, jobsDir, "6"))
	must(t, err)
	must(t, unix.Flock(int(dir.Fd()), unix.LOCK_EX))
	if removed, err := p.doctor().Clean(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("during a set-up: removed %q, %v", removed, err)
	}
	must(t, dir.Close())
	if removed, err := p.doctor().Clean(t.Context()); err != nil || !slices.Equal(removed, []string{"6"}) {
		t.Errorf("without one: removed %q, %v", removed, err)
	}
}

// What is removed is in part the user's, who may have dug deeper than the agent
// has descriptors, and may be digging still.
func TestAttack_leftovers_of_any_depth_take_few_descriptors_and_little_time(t *testing.T) {
	p := healthy(t)
	p.write(t, "run/carme/jobs/6/extern", "78 1")
	p.write(t, "proc/self/mountinfo", "")
	const deep = 3000
	dir := filepath.Join(p.root, jobsDir, "6")
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range deep {
		must(t, unix.Mkdirat(at, "d", 0o700))
		below, err := unix.Openat(at, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(at))
		at = below
	}
	must(t, unix.Close(at))
	outside := filepath.Join(p.root, "outside")
	must(t, os.Mkdir(outside, 0o700))
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	d := p.doctor()
	start, looks := p.now, 0
	d.Now = func() time.Time {
		looks++
		return start.Add(time.Duration(looks) * removeTime / 100)
	}
	if removed, err := d.Clean(t.Context()); len(removed) > 0 || !errors.Is(err, errLate) || looks > 200 {
		t.Errorf("removed %q, %v, and looked at the time %d times", removed, err, looks)
	}
	if known, alive := d.extern("6"); !known || alive {
		t.Error("what is left of it is not known to be a leftover")
	}
	few := unix.Rlimit{}
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &few))
	many := few
	few.Cur = 1000
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	removed, err := p.doctor().Clean(t.Context())
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &many))
	if err != nil || !slices.Equal(removed, []string{"6"}) {
		t.Errorf("removed %q, %v", removed, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what a link led to is gone: %v", err)
	}
}

// A job that was submitted with --carme has a directory on each of its nodes
// before it runs anything there.
func TestCleanLeavesJobsThatHaveNotRunYet(t *testing.T) {
	p := healthy(t)
	for id, age := range map[string]time.Duration{"11": 0, "12": 30 * time.Minute, "13": 2 * time.Hour, "14": 2 * time.Hour} {
		p.write(t, "run/carme/jobs/"+id+"/asked", "x")
		must(t, os.Chtimes(filepath.Join(p.root, jobsDir, id), p.now.Add(-age), p.now.Add(-age)))
	}
	p.write(t, "proc/4711/cmdline", "slurmstepd: [14.extern]\x00")
	p.write(t, "proc/4712/cmdline", "slurmstepd: [113.extern]\x00")
	p.write(t, "proc/self/mountinfo", "")
	d := p.doctor()
	if os.Getuid() == 0 { // a user's process says what it likes
		d.TrustOwner = false
		p.write(t, "proc/4713/cmdline", "slurmstepd: [13.extern]\x00")
		must(t, os.Chown(filepath.Join(p.root, "proc/4713"), 10001, 10001))
	}
	removed, err := d.Clean(t.Context())
	if err != nil || !slices.Equal(removed, []string{"13"}) {
		t.Errorf("removed %q, %v; only 13 has no extern step and waits for no Prolog", removed, err)
	}
}

// One that is cancelled while its Prolog runs never has an extern step, and no
// epilog of ours.
func TestCleanRemovesWhatSlurmHasGivenUpBeforeItRan(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		err    error
		want   []string
	}{
		"slurmctld knows all":        {"21|RUNNING\n22|COMPLETING\n23|PENDING\n24|SUSPENDED\n", nil, nil},
		"two are over":               {"21|CANCELLED\n22|RUNNING\n23|FAILED\n24|COMPLETING\n", nil, []string{"21", "23"}},
		"one is forgotten":           {"21|RUNNING\n22|RUNNING\n24|RUNNING\n", nil, []string{"23"}},
		"slurmctld does not answer":  {"", errors.New("Unable to contact slurm controller"), nil},
		"it says what it should not": {"21 CANCELLED\n", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := healthy(t)
			for _, id := range []string{"21", "22", "23", "24"} {
				p.write(t, "run/carme/jobs/"+id+"/asked", "x")
				must(t, os.Chtimes(filepath.Join(p.root, jobsDir, id), p.now.Add(-10*time.Second), p.now.Add(-10*time.Second)))
			}
			// Those of which nobody need ask: one in the making, and one that runs.
			p.write(t, "run/carme/jobs/25/asked", "x")
			p.write(t, "run/carme/jobs/26/asked", "x")
			must(t, os.Chtimes(filepath.Join(p.root, jobsDir, "25"), p.now, p.now))
			must(t, os.Chtimes(filepath.Join(p.root, jobsDir, "26"), p.now.Add(-time.Minute), p.now.Add(-time.Minute)))
			p.write(t, "proc/4711/cmdline", "slurmstepd: [26.extern]\x00")
			p.write(t, "proc/self/mountinfo", "")
			d := p.doctor()
			d.Run = func(_ context.Context, name string, args ...string) ([]byte, error) {
				ids := strings.Split(strings.TrimPrefix(args[len(args)-1], "--jobs="), ",")
				if name != "squeue" || slices.Contains(ids, "25") || slices.Contains(ids, "26") {
					t.Errorf("asked %s %q", name, args)
				}
				if len(ids) > 1 || c.err != nil {
					return []byte(c.answer), c.err
				}
				if i := strings.Index(c.answer, ids[0]+"|"); i >= 0 { // before it is removed
					line, _, _ := strings.Cut(c.answer[i:], "\n")
					return []byte(line), nil
				}
				return nil, errors.New("slurm_load_jobs error: Invalid job id specified")
			}
			removed, err := d.Clean(t.Context())
			if err != nil || !slices.Equal(removed, c.want) {
				t.Errorf("removed %q, %v, not %q", removed, err, c.want)
			}
		})
	}
}

// What looks every two seconds asks less often: a Prolog may take minutes, on all nodes
// of a job at once.
func TestCleanAsksSlurmLessOftenTheLongerAJobWaits(t *testing.T) {
	p := healthy(t)
	p.write(t, "run/carme/jobs/21/asked", "x")
	p.write(t, "proc/self/mountinfo", "")
	must(t, os.Chtimes(filepath.Join(p.root, jobsDir, "21"), p.now, p.now))
	var asked []int
	age, state := 0, "RUNNING"
	d := p.doctor()
	d.Asked = NewAsked()
	d.Now = func() time.Time { return p.now.Add(time.Duration(age) * time.Second) }
	d.Run = func(context.Context, string, ...string) ([]byte, error) {
		asked = append(asked, age)
		return []byte("21|" + state + "\n"), nil
	}
	for age = 0; age <= 60; age += 2 {
		if removed, err := d.Clean(t.Context()); err != nil || len(removed) > 0 {
			t.Fatalf("after %d s it removed %q, %v", age, removed, err)
		}
	}
	if want := []int{2, 4, 6, 10, 16, 24, 34, 44, 54}; !slices.Equal(asked, want) {
		t.Errorf("asked after %v s, not %v", asked, want)
	}
	state = "CANCELLED"
	for ; age <= 66; age += 2 {
		removed, err := d.Clean(t.Context())
		if want := age == 64; err != nil || (len(removed) == 1) != want {
			t.Errorf("after %d s it removed %q, %v", age, removed, err)
		}
	}
}

// Between the question and the removal it may have been requeued.
func TestCleanLeavesAJobThatIsBackByThen(t *testing.T) {
	p := healthy(t)
	p.write(t, "run/carme/jobs/21/asked", "x")
	must(t, os.Chtimes(filepath.Join(p.root, jobsDir, "21"), p.now.Add(-time.Minute), p.now.Add(-time.Minute)))
	p.write(t, "proc/self/mountinfo", "")
	d := p.doctor()
	asked := 0
	d.Run = func(context.Context, string, ...string) ([]byte, error) {
		asked++
		return []byte([]string{"21|CANCELLED\n", "21|PENDING\n"}[asked-1]), nil
	}
	if removed, err := d.Clean(t.Context()); err != nil || len(removed) > 0 || asked != 2 {
		t.Errorf("removed %q, %v, after %d questions", removed, err, asked)
	}
}

func TestReportHasTheSameContentAsTextAndJSON(t *testing.T) {
	r := newReport("node1", []Finding{ok("a", "b"), fail("c", "do d", "e"), note("f", "g", "")})
	var text, data bytes.Buffer
	must(t, r.WriteText(&text))
	must(t, r.WriteJSON(&data))
	const want = "node node1\n  OK    a: b\n  FAIL  c: e\n        -> do d\n  NOTE  f: g\nNOT ready for srun --carme: 1 of 3 checks failed\n"
	if text.String() != want {
		t.Errorf("got\n%s", text.String())
	}
	var back Report
	must(t, json.Unmarshal(data.Bytes(), &back))
	if back.OK || len(back.Findings) != 3 || back.Findings[1].Mend != "do d" {
		t.Errorf("got %+v", back)
	}
	for _, write := range []func() error{func() error { return r.WriteText(broken{}) }, func() error { return r.WriteJSON(broken{}) }} {
		if write() == nil {
			t.Error("a report that cannot be written is no error")
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestLibraryIsReadWithoutRunningIt(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler")
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "x.c")
	must(t, os.WriteFile(source, []byte("const unsigned int plugin_version = 0x180b05; const char plugin_name[] = \"x\"; static int hidden; int slurm_spank_init(void) { return hidden; }"), 0o600))
	library := filepath.Join(dir, "x.so")
	if out, err := exec.CommandContext(t.Context(), cc, "-shared", "-fPIC", "-o", library, source).CombinedOutput(); err != nil {
		t.Skipf("no C compiler that works: %v: %s", err, out)
	}
	o, err := ReadObject(library)
	if err != nil || o.PluginVersion != 0x180b05 || !o.Has("slurm_spank_init") || o.Has("hidden") || o.Has("malloc") {
		t.Errorf("got %+v, %v", o, err)
	}
	if _, err := ReadObject(source); err == nil {
		t.Error("a text is taken for a library")
	}
}

func TestNVMLThatHangsIsGivenUp(t *testing.T) {
	p := healthy(t)
	d := p.doctor()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan struct{})
	defer close(done)
	d.NVML = hanging{Library: d.NVML, done: done}
	if _, err := d.listGPUs(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type hanging struct {
	gpu.Library
	done chan struct{}
}

func (h hanging) Init() nvml.Return {
	<-h.done
	return nvml.ERROR_UNKNOWN
}

// A slurmctld that is being restarted answers the next question again.
func TestFeatureStaysWhileNothingButSlurmctldIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		ail  func(*testing.T, *patient)
		want []string
	}{
		"nothing else is wrong": {change(func(*patient) {}), nil},
		"the core is gone too":  {gone("usr/lib/carme/libcarme.so"), []string{"update NodeName=node1 AvailableFeatures= ActiveFeatures="}},
	} {
		t.Run(name, func(t *testing.T) {
			p := healthy(t)
			c.ail(t, p)
			d := p.doctor()
			answer := d.Run
			var told []string
			d.Run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
				switch {
				case name != "scontrol":
					return answer(ctx, name, args...)
				case args[1] == "config":
					return nil, errors.New("slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)")
				case args[0] == "show":
					return []byte("NodeName=node1 ActiveFeatures=carme"), nil
				}
				told = append(told, strings.Join(args, " "))
				return nil, nil
			}
			r := d.Examine(t.Context())
			changed, err := d.KeepFeature(t.Context(), r)
			if r.OK || err != nil || changed != (c.want != nil) || !slices.Equal(told, c.want) {
				t.Errorf("ok %v, changed %v, %v; Slurm is told %q, not %q", r.OK, changed, err, told, c.want)
			}
		})
	}
}
