package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// tree makes a root with these files and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, ImagesDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, Dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func load(t *testing.T, files map[string]string) (*Config, error) {
	t.Helper()
	return Load(Source{Root: tree(t, files), TrustOwner: true})
}

func TestNodeWithoutFilesHasTheDefaults(t *testing.T) {
	cfg, err := Load(Source{Root: t.TempDir(), TrustOwner: true})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(cfg.Spank, Default()) || len(cfg.Images) != 0 {
		t.Errorf("got %+v", cfg)
	}
	cfg, err = load(t, map[string]string{"spank.yaml": "# nothing\n"})
	if err != nil || !reflect.DeepEqual(cfg.Spank, Default()) {
		t.Errorf("empty file: got %+v, %v", cfg, err)
	}
}

func TestExamplesAreValidAndSayWhatTheDefaultsAre(t *testing.T) {
	files := map[string]string{}
	for _, name := range []string{"spank.yaml", "images.d/base.yaml"} {
		data, err := os.ReadFile(filepath.Join("../../contrib/carme", name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(data)
	}
	cfg, err := load(t, files)
	if err != nil {
		t.Fatal(err)
	}
	got, want := cfg.Spank, Default()
	for _, pair := range [][2]any{
		{got.Net, want.Net},
		{got.Home, want.Home},
		{got.Tmp, want.Tmp},
		{got.Devices, want.Devices},
		{got.Apptainer, want.Apptainer},
		{got.TimeoutSeconds, want.TimeoutSeconds},
		{got.Overlay.Default, want.Overlay.Default},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Errorf("the example has %+v, the default is %+v", pair[0], pair[1])
		}
	}
	base := cfg.Image("base")
	if base == nil || !base.NV || !base.AllowBinds || base.Format != FormatAuto {
		t.Errorf("the example image is %+v", base)
	}
}

func TestFilesAreReadIntoEverySetting(t *testing.T) {
	cfg, err := load(t, map[string]string{
		"spank.yaml": `
default_image: torch
net: {allowed: [private], default: private}
home: {allowed: [no], default: no}
overlay: {allowed: [dir, none], default: none}
binds:
  allow: [{source: /data/*, target: /mnt, mode: rw}, {source: /scratch}]
  default: [{source: /sw}, {source: /a, target: /b, mode: rw}]
images: {allow_paths: [/home/$USER]}
tmp: {size: 8G}
devices: {extra: [/dev/knem, /dev/nvidia-fs*, "/dev/nvidia-caps-imex-channels/*"]}
apptainer: {path: /opt/apptainer/bin/apptainer}
timeout_seconds: 120
env: {pass: [PYTHONPATH, LMOD_*]}
`,
		"images.d/b.yaml":       "{name: torch, path: /images/torch.sif, groups: [ml], nv: false, allow_binds: false, env: {A: b}, binds: [{source: /models}], format: sif}",
		"images.d/a.yaml":       "{name: base, path: /images/base}",
		"images.d/.hidden.yaml": "not read: at all",
		"images.d/a.yaml~":      "not read",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Spank: Spank{
			DefaultImage: "torch",
			Net:          Choice{[]string{"private"}, "private"},
			Home:         Choice{[]string{"no"}, "no"},
			Overlay:      Choice{[]string{"dir", "none"}, "none"},
			Binds: Binds{
				Allow:   []BindRule{{"/data/*", "/mnt", "rw"}, {"/scratch", "", "ro"}},
				Default: []Bind{{"/sw", "/sw", "ro"}, {"/a", "/b", "rw"}},
			},
			Images:         ImagePaths{[]string{"/home/$USER"}},
			Tmp:            Tmp{"tmpfs", "8G"},
			Devices:        Devices{[]string{"/dev/knem", "/dev/nvidia-fs*", "/dev/nvidia-caps-imex-channels/*"}},
			Apptainer:      Apptainer{"/opt/apptainer/bin/apptainer"},
			TimeoutSeconds: 120,
			Env:            Env{[]string{"PYTHONPATH", "LMOD_*"}},
		},
		Images: []Image{
			{Name: "base", Path: "/images/base", AllowBinds: true, NV: true, Format: FormatAuto},
			{
				Name: "torch", Path: "/images/torch.sif", Groups: []string{"ml"}, Env: map[string]string{"A": "b"},
				Binds: []Bind{{"/models", "/models", "ro"}}, Format: FormatSIF,
			},
		},
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %+v\nwant %+v", cfg, want)
	}
}

func TestMistakesAreReportedWithFileAndLine(t *testing.T) {
	const image = "name: a\npath: /a\n"
	cases := map[string]struct {
		files map[string]string
		want  []string
	}{
		"unknown setting": {map[string]string{"spank.yaml": "net:\n  allow: [host]\n"}, []string{`/etc/carme/spank.yaml:2: there is no setting "allow"; see spank.yaml(5)`}},
		"not YAML":        {map[string]string{"spank.yaml": "a: b\n c: [\n"}, []string{"/etc/carme/spank.yaml:2: mapping values"}},
		"wrong type":      {map[string]string{"spank.yaml": "\ntimeout_seconds: soon\n"}, []string{"spank.yaml:2: cannot unmarshal"}},
		"key twice":       {map[string]string{"spank.yaml": "timeout_seconds: 1\ntimeout_seconds: 2\n"}, []string{"spank.yaml:2: mapping key"}},
		"two documents":   {map[string]string{"spank.yaml": "timeout_seconds: 1\n---\nnet: {}\n"}, []string{"a second document"}},
		"terminal codes":  {map[string]string{"spank.yaml": "\"a\\e[31m\": 1\n"}, []string{`spank.yaml:1: there is no setting "a\x1b[31m"`}},
		"too long":        {map[string]string{"spank.yaml": strings.Repeat("#", fileMax+1)}, []string{"/etc/carme/spank.yaml: is longer than"}},
		"no such default": {map[string]string{"spank.yaml": "\ndefault_image: x"}, []string{"spank.yaml:2: there is no image of that name"}},
		"all at once": {
			map[string]string{
				"spank.yaml": `default_image: a/b
net:
  allowed: [host, nat]
  default: private
home: {allowed: [], default: yes}
overlay:
  allowed: [dir]
  default: dir
binds:
  allow:
    - source: data
    - {source: /data/x*, mode: rx}
    - {source: /data, target: /a/../b}
  default:
    - {source: /a, mode: rw}
    - {source: /b, target: /a}
images:
  allow_paths:
    - "/"
tmp: {kind: disk, size: 0}
devices:
  extra:
    - /dev/nvidia0
    - /dev/n*
    - /dev/dri
    - /etc/passwd
    - "/dev/[x"
apptainer: {path: apptainer}
timeout_seconds: 0
env:
  pass: ["A B"]
`,
				"images.d/a.yaml": "name: list\ndescription: \"a\\nb\"\ngroups: [a b]\nenv:\n  SLURM_JOB_ID: 1\n  \"A B\": x\nformat: oci\n",
				"images.d/b.yaml": "path: /a//b\n",
			},
			[]string{
				"spank.yaml:1: is no name of an image", "spank.yaml:1: there is no image of that name",
				"spank.yaml:3: is unknown; use host, private", `spank.yaml:4: the default "private" is not among`,
				"spank.yaml:5: allows nothing", "spank.yaml:8: dir cannot be the default",
				"spank.yaml:11: must be a path from / on", "spank.yaml:12: * and $USER stand", "spank.yaml:12: is unknown; use ro or rw",
				"spank.yaml:13: must be a path without //", "spank.yaml:16: something else has that target",
				"spank.yaml:19: must be a path", "spank.yaml:20: is unknown; use tmpfs", "spank.yaml:20: is no size",
				"spank.yaml:23: would show GPUs", "spank.yaml:24: would show GPUs", "spank.yaml:25: would show GPUs", "spank.yaml:26: must be below /dev",
				"spank.yaml:27: is no pattern", "spank.yaml:28: must be a path from", "spank.yaml:29: must be 1 to 600", "spank.yaml:31: is no name of a variable",
				"images.d/a.yaml:1: the image has no path", "images.d/a.yaml:1: is a word with a meaning",
				"images.d/a.yaml:2: must be one line", "images.d/a.yaml:3: is no name of a group",
				"images.d/a.yaml:5: is a variable that", "images.d/a.yaml:6: is no name of a variable", "images.d/a.yaml:7: is unknown; use sif",
				"images.d/b.yaml:1: the image has no name", "images.d/b.yaml:1: must be a path without //",
			},
		},
		"name of an image": {map[string]string{"images.d/a.yaml": "name: a b\npath: /a"}, []string{"a.yaml:1: is no name for an image"}},
		"image twice":      {map[string]string{"images.d/a.yaml": image, "images.d/b.yaml": image}, []string{"/etc/carme/images.d/b.yaml:1: another file has an image"}},
		"too much":         {map[string]string{"spank.yaml": "tmp: {size: 101%}"}, []string{"is more than 100%"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg, err := load(t, c.files)
			var got ProblemsError
			if !errors.As(err, &got) {
				t.Fatalf("got %+v, %v", cfg, err)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("not one printable line: %q", err)
			}
			for _, w := range c.want {
				if !slices.ContainsFunc(got, func(p Problem) bool { return strings.Contains(p.String(), w) }) {
					t.Errorf("%q is missing in\n%s", w, strings.ReplaceAll(err.Error(), "; /", "\n/"))
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("%d problems, want %d:\n%s", len(got), len(c.want), strings.ReplaceAll(err.Error(), "; /", "\n/"))
			}
		})
	}
}

func TestFilesThatOthersCouldHaveWrittenAreRefused(t *testing.T) {
	const text = "timeout_seconds: 1\n"
	cases := map[string]struct {
		spoil func(t *testing.T, root string)
		says  string
	}{
		"file for all":       {chmod(SpankFile, 0o666), "mode 0666); run: chmod go-w /etc/carme/spank.yaml"},
		"file for a group":   {chmod(SpankFile, 0o664), "can be written by others"},
		"directory for all":  {chmod(Dir, 0o777), "/etc/carme: can be written by others"},
		"catalogue for all":  {chmod(ImagesDir, 0o777), "/etc/carme/images.d: can be written"},
		"link":               {link("../passwd", SpankFile), "spank.yaml: is a link"},
		"link to nowhere":    {link("nowhere", SpankFile), "spank.yaml: is a link"},
		"link as directory":  {link("/tmp", ImagesDir), "images.d: is not a directory"},
		"directory":          {mkdir(SpankFile), "spank.yaml: is not a regular file"},
		"pipe":               {mkfifo(SpankFile), "spank.yaml: is not a regular file"},
		"image in catalogue": {link("/etc/passwd", ImagesDir+"/x.yaml"), "x.yaml: is a link"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root := tree(t, map[string]string{"spank.yaml": text})
			c.spoil(t, root)
			_, err := Load(Source{Root: root, TrustOwner: true})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if err != nil && strings.Count(err.Error(), "; /") > 0 {
				t.Errorf("more than one problem: %v", err)
			}
		})
	}
}

func TestFilesOfSomebodyElseAreRefused(t *testing.T) {
	root := tree(t, map[string]string{"spank.yaml": ""})
	if os.Getuid() == 0 {
		if err := os.Chown(filepath.Join(root, SpankFile), 1, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(Source{Root: root}); err == nil || !strings.Contains(err.Error(), "does not belong to root; run: chown root /etc") {
		t.Errorf("got %v", err)
	}
	if _, err := Load(Source{Root: filepath.Join(root, "missing")}); err == nil {
		t.Error("a root that is missing is no error")
	}
}

func chmod(name string, mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		t.Helper()
		must(t, os.Chmod(filepath.Join(root, name), mode))
	}
}

func link(target, name string) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		t.Helper()
		must(t, os.RemoveAll(filepath.Join(root, name)))
		must(t, os.Symlink(target, filepath.Join(root, name)))
	}
}

func mkdir(name string) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		t.Helper()
		must(t, os.Remove(filepath.Join(root, name)))
		must(t, os.Mkdir(filepath.Join(root, name), 0o755))
	}
}

func mkfifo(name string) func(*testing.T, string) {
	return func(t *testing.T, root string) {
		t.Helper()
		must(t, os.Remove(filepath.Join(root, name)))
		must(t, syscall.Mkfifo(filepath.Join(root, name), 0o644))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPatternsMeanWhatTheManualSays(t *testing.T) {
	cases := map[string]struct {
		pattern, path, user string
		want                bool
	}{
		"itself":                   {"/data", "/data", "a", true},
		"below":                    {"/data", "/data/x/y", "a", true},
		"beginning alike":          {"/data", "/database", "a", false},
		"above":                    {"/data/x", "/data", "a", false},
		"asterisk":                 {"/data/*", "/data/x", "a", true},
		"asterisk, deep":           {"/data/*", "/data/x/y", "a", true},
		"asterisk not itself":      {"/data/*", "/data", "a", false},
		"asterisk within":          {"/p/*/data", "/p/x/data/y", "a", true},
		"asterisk within, differs": {"/p/*/data", "/p/x/y/data", "a", false},
		"own home":                 {"/home/$USER", "/home/alice/x", "alice", true},
		"another home":             {"/home/$USER", "/home/bob", "alice", false},
		"home of a longer name":    {"/home/$USER", "/home/alice2", "alice", false},
		"no user":                  {"/home/$USER", "/home", "", false},
		"user named asterisk":      {"/home/$USER", "/home/bob", "*", false},
		"everything":               {"/*", "/x", "a", true},
		"root":                     {"/x", "/", "a", false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := Match(c.pattern, c.path, c.user); got != c.want {
				t.Errorf("Match(%q, %q, %q) = %v", c.pattern, c.path, c.user, got)
			}
		})
	}
}

func FuzzConfig(f *testing.F) {
	for _, name := range []string{"spank.yaml", "images.d/base.yaml"} {
		data, err := os.ReadFile(filepath.Join("../../contrib/carme", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, data)
	}
	f.Add([]byte("a: &a [*a, *a]"), []byte("name: !!binary x\n<<: {path: 1}"))
	f.Add([]byte("? [x]\n: y"), []byte("- a\n- b"))
	f.Fuzz(func(t *testing.T, spank, image []byte) {
		l := loader{}
		s := Default()
		l.spank(spank, &s)
		img, ok := l.image("i.yaml", image, nil)
		if err := l.problems.sorted(); err != nil {
			if text := err.Error(); !printable(text) {
				t.Fatalf("message cannot be printed: %q", text)
			}
			return
		}
		if !ok || !isImageName(img.Name) || !filepath.IsAbs(img.Path) {
			t.Fatalf("image %+v", img)
		}
	})
}
