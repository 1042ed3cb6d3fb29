package policy

import (
	"reflect"
	"strings"
	"testing"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/spank/request"
)

func site() *config.Config {
	s := config.Default()
	s.Binds.Allow = []config.BindRule{
		{Source: "/data/*", Mode: "ro"},
		{Source: "/scratch/$USER", Mode: "rw"},
		{Source: "/licences", Target: "/opt/licences", Mode: "ro"},
	}
	s.Binds.Default = []config.Bind{{Source: "/sw", Target: "/sw", Mode: "ro"}, {Source: "/models", Target: "/models", Mode: "ro"}}
	s.Images.AllowPaths = []string{"/home/$USER/*"}
	s.Env.Pass = []string{"PYTHONPATH"}
	return &config.Config{Spank: s, Images: []config.Image{
		{Name: "base", Path: "/images/base.sif", AllowBinds: true, NV: true, Format: "auto"},
		{
			Name: "torch", Path: "/images/torch.sif", Groups: []string{"ml"}, Env: map[string]string{"B": "2", "A": "1"},
			Binds: []config.Bind{{Source: "/fast/models", Target: "/models", Mode: "rw"}}, Format: "sif",
		},
	}}
}

func alice() User {
	return User{Name: "alice", UID: 1001, GID: 1001, Groups: []string{"alice", "users"}}
}

func TestRequestGetsTheDefaultsOfTheSite(t *testing.T) {
	got, err := New(site()).Resolve(request.Request{Enabled: true}, alice())
	if err != nil {
		t.Fatal(err)
	}
	want := request.Request{Enabled: true, Image: request.ImageNone, Net: "host", Home: "yes", Overlay: "none"}
	if !reflect.DeepEqual(got.Request, want) || got.Image != nil {
		t.Errorf("got %+v", got)
	}
	if len(got.Binds) != 2 || got.Binds[0].String() != "/sw:/sw:ro" || got.Binds[0].Own {
		t.Errorf("binds are %v", got.Binds)
	}
	cfg := site()
	cfg.Spank.DefaultImage = "base"
	got, err = New(cfg).Resolve(request.Request{Enabled: true}, alice())
	if err != nil || got.Image == nil || got.Request.Image != "base" {
		t.Errorf("default image: got %+v, %v", got, err)
	}
	got, err = New(cfg).Resolve(request.Request{Enabled: true, Image: request.ImageNone}, alice())
	if err != nil || got.Image != nil {
		t.Errorf("no image asked for: got %+v, %v", got, err)
	}
	if got, err := New(cfg).Resolve(request.Request{}, alice()); err != nil || got.Request.Enabled {
		t.Errorf("not enabled: got %+v, %v", got, err)
	}
}

func TestRequestIsRefusedOrAllowedByThePolicy(t *testing.T) {
	ml := alice()
	ml.Groups = append(ml.Groups, "ml")
	bind := func(src, dst string, ro bool) request.Request {
		return request.Request{Enabled: true, Binds: []request.Bind{{Src: src, Dst: dst, ReadOnly: ro}}}
	}
	cases := map[string]struct {
		r    request.Request
		u    User
		says string
	}{
		"an image":                   {request.Request{Image: "base"}, alice(), ""},
		"no such image":              {request.Request{Image: "bass"}, alice(), `there is no image "bass" that you may use; there are: base`},
		"image of a group":           {request.Request{Image: "torch"}, alice(), `there is no image "torch" that you may use; there are: base`},
		"image of one's own group":   {request.Request{Image: "torch"}, ml, ""},
		"image by a file's name":     {request.Request{Image: "x.sif"}, alice(), `there is no image "x.sif" that you may use; a file is written from / on`},
		"image by path":              {request.Request{Image: "/home/alice/x.sif"}, alice(), ""},
		"image in another home":      {request.Request{Image: "/home/bob/x.sif"}, alice(), "put it below /home/alice/*, or name one of --carme=list"},
		"net":                        {request.Request{Net: "private"}, alice(), ""},
		"overlay without image":      {request.Request{Overlay: "tmpfs"}, alice(), "this job has none"},
		"overlay none without image": {request.Request{Overlay: "none"}, alice(), ""},
		"overlay":                    {request.Request{Image: "base", Overlay: "tmpfs"}, alice(), ""},
		"overlay directory":          {request.Request{Image: "base", Overlay: "/scratch/o"}, alice(), "not allowed on this cluster; use none or tmpfs"},
		"bind":                       {bind("/data/x", "/mnt", true), alice(), ""},
		"bind too writable":          {bind("/data/x", "/mnt", false), alice(), `bind "/data/x:/mnt" is allowed read-only; write /data/x:/mnt:ro`},
		"bind of all":                {bind("/data", "/mnt", true), alice(), "what can be bound: /data/*, /scratch/alice, /licences at /opt/licences"},
		"bind of a secret":           {bind("/etc/shadow", "/mnt", true), alice(), "not allowed"},
		"bind of another home":       {bind("/scratch/bob", "/mnt", true), alice(), "not allowed"},
		"bind, writable":             {bind("/scratch/alice/x", "/mnt", false), alice(), ""},
		"bind at its place":          {bind("/licences", "/opt/licences/a", true), alice(), ""},
		"bind at another place":      {bind("/licences", "/mnt", true), alice(), "not allowed"},
		"bind over the site's":       {bind("/data/x", "/sw", true), alice(), "the site puts something else there"},
		"bind in a strict image":     {request.Request{Image: "torch", Binds: bind("/data/x", "/mnt", true).Binds}, ml, "image torch takes no binds"},
		"bind by Apptainer":          {request.Request{Image: "base", ImageBinds: bind("/data/x", "/mnt", true).Binds}, alice(), ""},
		"secret by Apptainer":        {request.Request{Image: "base", ImageBinds: bind("/etc/shadow", "/mnt", true).Binds}, alice(), `APPTAINER_BIND: bind "/etc/shadow:/mnt:ro": not allowed`},
		"Apptainer without image":    {request.Request{ImageBinds: bind("/etc/shadow", "/mnt", true).Binds}, alice(), ""},
		"option before Apptainer": {
			request.Request{Image: "base", Binds: bind("/data/x", "/mnt", true).Binds, ImageBinds: bind("/data/y", "/mnt", false).Binds}, alice(), "",
		},
		"all at once": {
			request.Request{Net: "x", Home: "y", Image: "z"},
			alice(),
			`--carme-net=x is not allowed on this cluster; use host or private; --carme-home=y is not allowed on this cluster; use yes or no; there is no image "z"`,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.r.Enabled = true
			got, err := New(site()).Resolve(c.r, c.u)
			if c.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %+v, %v, want %q", got, err, c.says)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func TestImageBringsItsBindsAndEnvironment(t *testing.T) {
	u := alice()
	u.Groups = []string{"ml"}
	got, err := New(site()).Resolve(request.Request{Enabled: true, Image: "torch"}, u)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Env, []string{"A=1", "B=2"}) {
		t.Errorf("environment is %q", got.Env)
	}
	if len(got.Binds) != 2 || got.Binds[1].String() != "/fast/models:/models" {
		t.Errorf("binds are %v", got.Binds)
	}
}

func TestSiteThatAllowsNothingSaysSo(t *testing.T) {
	p := New(&config.Config{Spank: config.Default()})
	cases := map[string]struct {
		r    request.Request
		says string
	}{
		"image": {request.Request{Image: "/home/alice/x.sif"}, "images by path are not allowed on this cluster"},
		"name":  {request.Request{Image: "base"}, "--carme=none isolates without an image"},
		"bind":  {request.Request{Binds: []request.Bind{{Src: "/data", Dst: "/data"}}}, "users cannot bind paths on this cluster"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.r.Enabled = true
			if _, err := p.Resolve(c.r, alice()); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

func TestGuardedPathIsNeverAllowedWhateverThePolicySays(t *testing.T) {
	cfg := site()
	cfg.Spank.Binds.Allow = []config.BindRule{{Source: "/*", Mode: "rw"}}
	cfg.Spank.Images.AllowPaths = []string{"/*"}
	p := New(cfg)
	for _, path := range []string{"/dev/nvidia1", "/proc/1/root", "/run/carme/jobs", "/run", "/"} {
		if allowed, _ := p.AllowsSource(path, "/mnt", alice()); allowed || p.AllowsImage(path, alice()) {
			t.Errorf("%s is allowed", path)
		}
	}
}

func TestListHasTheCatalogueWithItsDefault(t *testing.T) {
	cfg := site()
	cfg.Spank.DefaultImage = "base"
	images := New(cfg).Images()
	if len(images) != 2 || !images[0].Default || images[1].Default {
		t.Errorf("got %+v", images)
	}
	if names := New(cfg).ImageNames([]string{"ml"}); !reflect.DeepEqual(names, []string{"base", "torch"}) {
		t.Errorf("got %q", names)
	}
}

func TestEnvironmentOfTheHostStaysOnTheHost(t *testing.T) {
	p := New(site())
	cases := map[string]struct{ inImage, without bool }{
		"HOME":               {true, true},
		"SLURM_JOB_ID":       {true, true},
		"LD_LIBRARY_PATH":    {false, true},
		"CONDA_PREFIX":       {false, true},
		"_LMFILES_":          {false, true},
		"BASH_FUNC_module%%": {false, true},
		"PYTHONPATH":         {true, true}, // the site passes it
		"APPTAINER_BIND":     {false, true},
		"SINGULARITYENV_X":   {false, true},
	}
	for name, c := range cases {
		if got := p.KeepsEnv(name, true); got != c.inImage {
			t.Errorf("%s in an image: kept is %v", name, got)
		}
		if got := p.KeepsEnv(name, false); got != c.without {
			t.Errorf("%s without an image: kept is %v", name, got)
		}
	}
}

func TestAppsRunInImagesThatHaveThem(t *testing.T) {
	cfg := site()
	cfg.Apps = []config.App{
		{Name: "terminal"},
		{Name: "lab", Images: []string{"torch"}},
		{Name: "board", NetPrivate: true},
	}
	ml := alice()
	ml.Groups = append(ml.Groups, "ml")
	cases := map[string]struct {
		r    request.Request
		want string // empty: allowed
	}{
		"everywhere":         {request.Request{App: "terminal"}, ""},
		"in an image":        {request.Request{App: "terminal", Image: "base"}, ""},
		"in its image":       {request.Request{App: "lab", Image: "torch"}, ""},
		"in one's own image": {request.Request{App: "lab", Image: "/home/alice/x.sif"}, ""},
		"in another image":   {request.Request{App: "lab", Image: "base"}, "use --carme=torch"},
		"without an image":   {request.Request{App: "lab"}, "use --carme=torch"},
		"unknown":            {request.Request{App: "x"}, "there are: terminal, lab, board"},
		"private by itself":  {request.Request{App: "board"}, ""},
		"not on the host":    {request.Request{App: "board", Net: "host"}, "--carme-net=private"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.r.Enabled = true
			got, err := New(cfg).Resolve(c.r, ml)
			switch {
			case c.want == "" && (err != nil || got.App == nil || got.App.Name != c.r.App):
				t.Errorf("got %+v, %v", got.App, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v", err)
			case c.r.App == "board" && c.want == "" && got.Request.Net != "private":
				t.Errorf("the network is %s", got.Request.Net)
			}
		})
	}
	if _, err := New(site()).Resolve(request.Request{Enabled: true, App: "x"}, ml); err == nil || !strings.Contains(err.Error(), "no apps") {
		t.Errorf("without apps: %v", err)
	}
}
