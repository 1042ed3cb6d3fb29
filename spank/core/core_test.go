package core

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/gpu"
	"github.com/carme-hpc/carme/spank/policy"
	"github.com/carme-hpc/carme/spank/request"
)

func TestCgroupsOfTheJobEndBeforeTheStep(t *testing.T) {
	cases := map[string]struct {
		lines   []string
		want    []jobCgroup
		version int
	}{
		"version 1": {
			[]string{"9:name=systemd:/", "6:freezer:/slurm_n1/uid_7/job_12/step_extern", "4:memory:/slurm_n1/uid_7/job_12/step_extern/task_0", "0::/"},
			[]jobCgroup{{"/sys/fs/cgroup/freezer", "/slurm_n1/uid_7/job_12"}, {"/sys/fs/cgroup/memory", "/slurm_n1/uid_7/job_12"}},
			1,
		},
		"version 1, controllers together": {
			[]string{"3:cpu,cpuacct:/slurm/uid_7/job_12/step_0"},
			[]jobCgroup{{"/sys/fs/cgroup/cpu,cpuacct", "/slurm/uid_7/job_12"}},
			1,
		},
		"version 2": {
			[]string{"0::/system.slice/n1_slurmstepd.scope/job_12/step_extern/user/task_0"},
			[]jobCgroup{{"/sys/fs/cgroup", "/system.slice/n1_slurmstepd.scope/job_12"}},
			2,
		},
		"version 2, named after the SLUID": {
			[]string{"0::/system.slice/slurmstepd.scope/s88NM80/step_0/user/task_0"},
			[]jobCgroup{{"/sys/fs/cgroup", "/system.slice/slurmstepd.scope/s88NM80"}},
			2,
		},
		"in no step":  {[]string{"0::/system.slice/slurmd.service"}, nil, 2},
		"not a line":  {[]string{"", "x"}, nil, 2},
		"only a step": {[]string{"0::/step_0"}, nil, 2},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, version := parseCgroups(c.lines)
			if !reflect.DeepEqual(got, c.want) || version != c.version {
				t.Errorf("parseCgroups gives %v, version %d, not %v, version %d", got, version, c.want, c.version)
			}
		})
	}
}

func TestAccountsOfTheNodeAreCompletedByTheUsers(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, []byte("root:x:0:0::/root:/bin/sh\nslurm:x:64030:64030::/:/bin/false\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	extra := []string{"alice:x:10001:10001::/home/alice:/bin/sh", "root:x:1:1::/:/bin/sh", "bad:x:1:1\nroot::0:0::/:/bin/sh", "alice:x:5:5::/:/bin/sh"}
	if err := withLocal(from, to, extra); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	want := "root:x:0:0::/root:/bin/sh\nslurm:x:64030:64030::/:/bin/false\nalice:x:10001:10001::/home/alice:/bin/sh\n"
	if string(got) != want {
		t.Errorf("the file holds\n%s\nnot\n%s", got, want)
	}
}

func TestCondaNamesStandForDirectoriesOfEnvironments(t *testing.T) {
	if got := condaCandidates("/opt/env", "/home/a"); !slices.Equal(got, []string{"/opt/env"}) {
		t.Errorf("a prefix stands for %q", got)
	}
	got := condaCandidates("ml", "/home/a")
	for _, want := range []string{"/home/a/miniconda3/envs/ml", "/home/a/.conda/envs/ml", "/opt/conda/envs/ml"} {
		if !slices.Contains(got, want) {
			t.Errorf("ml is not looked for in %s, but in %q", want, got)
		}
	}
	if slices.Contains(got, "/home/a/miniconda3") {
		t.Error("ml is taken for the installation itself")
	}
	if !slices.Contains(condaCandidates("base", "/home/a"), "/home/a/miniconda3") {
		t.Error("base is not the installation itself")
	}
}

// migGPU is the GPU of minor number 1 with one MIG device, opened by the files cap 21 (GPU
// instance) and cap 22 (compute instance).
func migGPU() gpu.GPU {
	return gpu.GPU{Minor: 1, UUID: "GPU-m", MIG: []gpu.MIG{{UUID: "MIG-a", CapMinors: []uint32{21, 22}}}}
}

func TestCapabilityFilesBelongToTheirGPU(t *testing.T) {
	gpus := []hostGPU{{GPU: gpu.GPU{Minor: 0, UUID: "GPU-0"}}, {GPU: migGPU()}}
	cases := map[string]struct {
		minor uint32
		index int
		uuid  string
	}{
		"GPU instance":     {21, 1, ""},
		"compute instance": {22, 1, "MIG-a"},
		"nobody's":         {99, -1, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if index, uuid := capsOwner(gpus, c.minor); index != c.index || uuid != c.uuid {
				t.Errorf("capsOwner gives %d, %q, not %d, %q", index, uuid, c.index, c.uuid)
			}
		})
	}
}

func TestGPUsHiddenFromNVMLAreTakenFromTheDriversFiles(t *testing.T) {
	proc := []gpu.GPU{{Minor: 0, UUID: "GPU-0"}, {Minor: 1, UUID: "GPU-m"}}
	got := mergeGPUs(proc, []gpu.GPU{migGPU()})
	if len(got) != 2 || len(got[0].MIG) != 1 || got[1].UUID != "GPU-0" {
		t.Errorf("merged to %+v", got)
	}
}

func TestGPUCacheHoldsAsLongAsTheDriverSaysTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpus.json")
	proc := []gpu.GPU{migGPU()}
	if _, ok := readGPUCache(path, proc); ok {
		t.Error("a cache is read that was never written")
	}
	if err := writeGPUCache(path, cachedGPUs{Proc: proc, NVML: []gpu.GPU{migGPU()}}); err != nil {
		t.Fatal(err)
	}
	if got, ok := readGPUCache(path, proc); !ok || len(got) != 1 || got[0].MIG[0].UUID != "MIG-a" {
		t.Errorf("the cache gives %+v, %v", got, ok)
	}
	if _, ok := readGPUCache(path, []gpu.GPU{{Minor: 1, UUID: "GPU-m"}}); ok {
		t.Error("the cache is used although the GPU is no longer partitioned")
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := readGPUCache(path, proc); ok {
		t.Error("a broken cache is used")
	}
}

func TestRuntimeStartsTheHoldProgramWithoutNamespacesOfItsOwn(t *testing.T) {
	j := &job{submitBind: -1, imageView: imageFileView, plan: plan{
		Resolved: policy.Resolved{
			Request: request.Request{Enabled: true, Home: request.No, Overlay: request.OverlayTmpfs},
			Image:   &config.Image{Path: "/img.sif", NV: true},
		},
		Site: config.Default(),
	}}
	args := j.runtimeArgs()
	joined := strings.Join(args, " ")
	for _, want := range []string{"--userns", "--nv", "--writable-tmpfs"} {
		if !slices.Contains(args, want) {
			t.Errorf("%s is missing in %s", want, joined)
		}
	}
	for _, never := range []string{"--pid", "--ipc", "--net", "--contain", "--containall"} {
		if slices.Contains(args, never) {
			t.Errorf("%s in %s: the job has that namespace already", never, joined)
		}
	}
	// The path that the user named was judged, and may lead elsewhere by now.
	if !strings.HasSuffix(joined, imageFileView+" "+holdView) || strings.Contains(joined, "/img.sif") {
		t.Errorf("%s does not end with the mounted image and the hold program", joined)
	}
}

func TestRuntimeGetsNothingOfTheUsersEnvironment(t *testing.T) {
	t.Setenv("LD_PRELOAD", "/evil.so")
	j := &job{person: person{Name: "alice", UID: 7, Home: "/home/alice"}, plan: plan{Resolved: policy.Resolved{Env: []string{"A=b"}}}}
	env := j.runtimeEnv()
	if !slices.Contains(env, "APPTAINERENV_A=b") || !slices.Contains(env, "HOME=/home/alice") {
		t.Errorf("the environment is %q", env)
	}
	for _, e := range env {
		if strings.HasPrefix(e, "LD_") {
			t.Errorf("the environment holds %s", e)
		}
	}
}

func TestDirectoryOfSubmissionIsShownUnlessItIsThereOrMustNotBe(t *testing.T) {
	cases := map[string]struct {
		dir  string
		want bool
	}{
		"project directory":  {"/work/project", true},
		"home":               {"/home/alice", false},
		"below home":         {"/home/alice/x", false},
		"beside home":        {"/home/alicia", true},
		"system":             {"/etc", false},
		"root":               {"/", false},
		"relative":           {"work", false},
		"not clean":          {"/work/../etc", false},
		"a colon splits":     {"/work/a:b", false},
		"a comma splits":     {"/work/a,b", false},
		"below another bind": {"/data/x", false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			j := &job{submitDir: c.dir, submitBind: -1, person: person{Home: "/home/alice"}, plan: plan{Resolved: policy.Resolved{
				Request: request.Request{Home: request.Yes}, Image: &config.Image{Path: "/i"},
				Binds: []policy.Bind{{Bind: request.Bind{Src: "/data", Dst: "/data"}}},
			}}}
			j.showSubmitDir()
			if got := j.submitBind >= 0; got != c.want {
				t.Errorf("%s is shown: %v", c.dir, got)
			}
		})
	}
}

func TestErrorsForUsersAreOneLine(t *testing.T) {
	if got := oneLine(errors.New("a\nb\x1b[31mc")); strings.ContainsAny(got, "\n\x1b") {
		t.Errorf("the line is %q", got)
	}
}

func TestAnswersOfTypeErrorAreErrors(t *testing.T) {
	rec := ofType("error")
	rec.Add("message", "no")
	body, err := rec.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readAnswer(body); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("the answer gives %v", err)
	}
	if _, err := readAnswer(body[:3]); err == nil {
		t.Error("a cut answer is taken")
	}
}

func TestAnchorConnectionCarriesRecordsAndRefusesOthers(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	ours, peer := anchorConn{pair[0]}, anchorConn{pair[1]}
	if err := peer.send(ofType("accepted")); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.call("accepted", ofType("container")); err != nil {
		t.Error(err)
	}
	if err := peer.send(ofType("probed")); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.call("accepted", ofType("container")); err == nil {
		t.Error("an answer of another type is taken")
	}
	if err := unix.Close(pair[1]); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.receive(); err == nil {
		t.Error("the end of the anchor goes unnoticed")
	}
}

func TestStepHasTheOptionsOfItsJobAndItsOwn(t *testing.T) {
	job := func(name, value string) request.Given {
		return request.Given{Name: name, Value: value, Inherited: true}
	}
	step := func(name, value string) request.Given { return request.Given{Name: name, Value: value} }
	private := []request.Given{job(request.OptCarme, "base"), job(request.OptNet, request.NetPrivate)}
	for name, c := range map[string]struct {
		options []request.Given
		want    request.Request
		says    string
	}{
		"none of its own": {private, request.Request{Enabled: true, Image: "base", Net: request.NetPrivate}, ""},
		"another image":   {append([]request.Given{step(request.OptCarme, "none")}, private...), request.Request{Enabled: true, Image: "none", Net: request.NetPrivate}, ""},
		"another network": {append([]request.Given{step(request.OptCarme, "base"), step(request.OptNet, request.NetHost)}, private...), request.Request{}, "submission (private)"},
		"none of the job": {[]request.Given{step(request.OptCarme, "base")}, request.Request{Enabled: true, Image: "base"}, ""},
		"hostile":         {[]request.Given{job(request.OptCarme, "base"), job(request.OptNet, "x\ny")}, request.Request{}, "carme-net"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(request.Input{Context: request.ContextRemote, Options: c.options})
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want %q", err, c.says)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestRequestOfThePluginMustNameTheJobAndItsUser(t *testing.T) {
	for name, fields := range map[string][]wire.Field{
		"no job":         {{Key: "uid", Value: "1"}, {Key: "gid", Value: "1"}},
		"two users":      {{Key: "job", Value: "1"}, {Key: "uid", Value: "1"}, {Key: "uid", Value: "2"}, {Key: "gid", Value: "1"}},
		"not a number":   {{Key: "job", Value: "x"}, {Key: "uid", Value: "1"}, {Key: "gid", Value: "1"}},
		"beyond 32 bits": {{Key: "job", Value: "1"}, {Key: "uid", Value: "4294967296"}, {Key: "gid", Value: "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			rec := new(wire.Record)
			for _, f := range fields {
				rec.Add(f.Key, f.Value)
			}
			if _, err := newJob(rec); err == nil {
				t.Error("the request is taken")
			}
		})
	}
}

func TestGPUsAreKnownByTheirNames(t *testing.T) {
	for name, want := range map[string]int{
		"nvidia0": 0, "nvidia15": 15, "nvidia": -1, "nvidiactl": -1, "nvidia-uvm": -1, "nvidia1a": -1, "nvidia+1": -1,
		"nvidia 1": -1, "xnvidia1": -1, "nvidia99999999999999999999": -1,
	} {
		n, ok := numberOf(name, "nvidia")
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%s is number %d, %v; want %d", name, n, ok, want)
		}
	}
}

func TestEachGroupIsLookedUpOnce(t *testing.T) {
	now, err := lookUp(0, 0, []uint32{0, 0})
	if err != nil {
		t.Fatal(err)
	}
	if len(now.Groups) != 1 || len(now.named) != 1 || now.named[0] != (namedGroup{0, now.Groups[0]}) {
		t.Errorf("root is in %q, %v", now.Groups, now.named)
	}
	later, err := startLookUp(0, 0, []uint32{0, 0})()
	if err != nil || !reflect.DeepEqual(now, later) {
		t.Errorf("later it is %+v, %v, not %+v", later, err, now)
	}
	if _, err := startLookUp(4294967294, 0, nil)(); err == nil {
		t.Error("nobody is somebody")
	}
}

func TestOverlay_is_a_directory_of_the_users_without_links(t *testing.T) {
	top := t.TempDir()
	for name, prepare := range map[string]func(dir string) error{
		"empty": func(string) error { return nil },
		"used": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "upper"), 0o700), os.Mkdir(filepath.Join(dir, "work"), 0o700))
		},
		"link":   func(dir string) error { return os.Symlink("/etc", filepath.Join(dir, "upper")) },
		"file":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "work"), nil, 0o600) },
		"closed": func(dir string) error { return os.Chmod(dir, 0o500) },
	} {
		dir := filepath.Join(top, name)
		if err := errors.Join(os.Mkdir(dir, 0o700), prepare(dir)); err != nil {
			t.Fatal(err)
		}
		good := name == "empty" || name == "used" || name == "closed" && os.Getuid() == 0
		if _, err := overlayDir(dir, "job 1 on node1"); (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "image.sif"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(top, "image.sif"), filepath.Join(top, "none")} {
		if _, err := overlayDir(path, "job 1 on node1"); err == nil {
			t.Errorf("%s is taken", path)
		}
	}
}

func TestOverlay_is_for_one_job_at_a_time(t *testing.T) {
	dir := t.TempDir()
	const one, two = "job 1 on node1", "job 2 on node2"
	take := func(user string) (int, error) {
		t.Helper()
		fd, err := overlayDir(dir, user)
		if fd >= 0 {
			t.Cleanup(func() { unix.Close(fd) })
		}
		return fd, err
	}
	first, err := take(one)
	if err != nil || first < 0 {
		t.Fatalf("an unused directory: %d, %v", first, err)
	}
	var used overlayInUseError
	if _, err := take(two); !errors.As(err, &used) || used.Error() != "in use by job 1 on node1" {
		t.Errorf("another job is told %v", err)
	}
	// The one before may still be about to end.
	next := make(chan error)
	go func() {
		_, err := overlayDir(dir, two)
		next <- err
	}()
	unix.Close(first)
	if err := <-next; err != nil {
		t.Errorf("the next job is told %v", err)
	}
	for text, who := range map[string]string{"": "another job", "x": "another job", "job 1 on \x1b[31mn": "another job", "job 7 on n-1.b": "job 7 on n-1.b"} {
		if got := overlayInUseError(text).Error(); got != "in use by "+who {
			t.Errorf("of %q it says %s", text, got)
		}
	}
}

func TestOverlay_has_a_lock_of_its_own_or_none(t *testing.T) {
	for name, prepare := range map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink("/etc/passwd", path) },
		"pipe":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		dir := t.TempDir()
		if err := prepare(filepath.Join(dir, overlayLock)); err != nil {
			t.Fatal(err)
		}
		if _, err := overlayDir(dir, "job 1 on node1"); err == nil || !strings.Contains(err.Error(), overlayLock) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImage_is_what_the_runtime_knows_as_one(t *testing.T) {
	top := t.TempDir()
	for name, c := range map[string]struct {
		content string   // of a file
		dirs    []string // or a directory's
		format  string
	}{
		"sif":      {content: "#!/usr/bin/env run-singularity\n\x00SIF_MAGIC\x00", format: config.FormatSIF},
		"squashfs": {content: "hsqs and more", format: config.FormatSIF},
		"ext3":     {content: strings.Repeat("\x00", 1080) + "\x53\xef", format: config.FormatSIF},
		"text":     {content: strings.Repeat("nonsense ", 200)},
		"empty":    {},
		"sandbox":  {dirs: []string{".singularity.d"}, format: config.FormatSandbox},
		"rootfs":   {dirs: []string{"usr"}, format: config.FormatSandbox},
		"home":     {dirs: []string{"projects"}},
	} {
		path := filepath.Join(top, name)
		err := os.WriteFile(path, []byte(c.content), 0o600)
		if c.dirs != nil {
			err = errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
		}
		for _, dir := range c.dirs {
			err = errors.Join(err, os.Mkdir(filepath.Join(path, dir), 0o700))
		}
		if err != nil {
			t.Fatal(err)
		}
		fd, format, err := openImage(path)
		if _, none := errors.AsType[noImageError](err); none != (c.format == "") || format != c.format && err == nil {
			t.Errorf("%s is %q, %v", name, format, err)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
	if _, _, err := openImage("/dev/null"); err == nil {
		t.Error("a device is an image")
	}
}

func TestProof_has_the_options_as_they_were_given(t *testing.T) {
	j := &job{options: []wire.Field{{Key: "carme", Value: "(null)"}, {Key: "carme_net", Value: "private"}, {Key: "carme_debug", Value: ""}}}
	want := []wire.ProofOption{{Name: "carme"}, {Name: "carme-net", Value: "private"}, {Name: "carme-debug"}}
	if got := j.proofOptions(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestUser_has_in_an_image_the_full_name_that_the_directory_gives(t *testing.T) {
	for want, p := range map[string]person{
		"alice:x:10001:100:Alice Example:/home/alice:/bin/sh": {Name: "alice", Full: "Alice Example", UID: 10001, GID: 100, Home: "/home/alice"},
		"bob:x:2:3:bob:/home/bob:/bin/sh":                     {Name: "bob", UID: 2, GID: 3, Home: "/home/bob"},
		"eve:x:2:0:a /root /bin/zsh:/home/eve:/bin/sh":        {Name: "eve", Full: "a:/root:/bin/zsh", UID: 2, Home: "/home/eve"},
	} {
		if got := p.passwd(); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}
