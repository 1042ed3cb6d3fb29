package config

// Where the configuration is, below the root of the file system.
const (
	Dir       = "etc/carme"
	SpankFile = "etc/carme/spank.yaml"
	ImagesDir = "etc/carme/images.d"
	AppsDir   = "etc/carme/apps.d"
	// DisabledFile is the kill switch: while it exists no job is isolated.
	DisabledFile = "etc/carme/disabled"
)

// Modes of a bind.
const (
	ReadOnly  = "ro"
	ReadWrite = "rw"
)

// Kinds of overlay, and OverlayDir for a directory of the user.
const (
	OverlayNone  = "none"
	OverlayTmpfs = "tmpfs"
	OverlayDir   = "dir"
)

// Formats of an image.
const (
	FormatAuto    = "auto"
	FormatSIF     = "sif"
	FormatSandbox = "sandbox"
)

// Config is the configuration of a node.
type Config struct {
	Spank  Spank
	Images []Image
	// Apps are LoadApps' and read for jobs with an app only: a mistake in one of
	// them is no reason to refuse others.
	Apps []App
}

// App returns the description of that name, nil if there is none.
func (c *Config) App(name string) *App {
	for i := range c.Apps {
		if c.Apps[i].Name == name {
			return &c.Apps[i]
		}
	}
	return nil
}

// Image returns the catalogue's entry of that name, nil if there is none.
func (c *Config) Image(name string) *Image {
	for i := range c.Images {
		if c.Images[i].Name == name {
			return &c.Images[i]
		}
	}
	return nil
}

// Spank is spank.yaml. Default returns it for a file that says nothing.
type Spank struct {
	// DefaultImage is the image for --carme without a name, empty for none.
	DefaultImage string `yaml:"default_image"`
	// Net is which network modes (host, private) users may choose.
	Net Choice `yaml:"net"`
	// Home is whether the home directory is shown: yes, no.
	Home Choice `yaml:"home"`
	// Overlay is where writes to an image may go: none, tmpfs, dir.
	Overlay Choice `yaml:"overlay"`
	Binds   Binds  `yaml:"binds"`
	// Images is which image files users may name by path.
	Images ImagePaths `yaml:"images"`
	Tmp    Tmp        `yaml:"tmp"`
	// Devices are shown in every job beside its GPUs, where they exist.
	Devices   Devices   `yaml:"devices"`
	Apptainer Apptainer `yaml:"apptainer"`
	// TimeoutSeconds is how long the set-up of a job may take, in seconds.
	TimeoutSeconds int `yaml:"timeout_seconds"`
	Env            Env `yaml:"env"`
}

// Choice is what users may choose from, and what they get without choosing.
type Choice struct {
	Allowed []string `yaml:"allowed"`
	Default string   `yaml:"default"`
}

// Binds is which paths of the node users may show in a job, and which are
// always shown.
type Binds struct {
	Allow   []BindRule `yaml:"allow"`
	Default []Bind     `yaml:"default"`
}

// BindRule allows users to bind what Source matches (see Match).
type BindRule struct {
	Source string `yaml:"source"`
	// Target, if set, is a pattern that the place in the job must match.
	Target string `yaml:"target"`
	// Mode is ro: read-only only, or rw: either. Default ro.
	Mode string `yaml:"mode"`
}

// Bind shows Source of the node at Target in the job.
type Bind struct {
	Source string `yaml:"source"`
	// Target is Source if empty.
	Target string `yaml:"target"`
	// Mode is ro, the default, or rw.
	Mode string `yaml:"mode"`
}

// ImagePaths is where image files may be that users name by path.
type ImagePaths struct {
	// AllowPaths are patterns (see Match). None: only the catalogue.
	AllowPaths []string `yaml:"allow_paths"`
}

// Tmp is the private /tmp, /var/tmp and /dev/shm of a job.
type Tmp struct {
	// Kind is tmpfs.
	Kind string `yaml:"kind"`
	// Size of each: percent of the node's memory ("50%") or bytes with one of
	// K, M, G, T after it ("8G"), as tmpfs(5) takes it.
	Size string `yaml:"size"`
}

// Devices is which device nodes a job gets beside its GPUs.
type Devices struct {
	// Extra are paths below /dev; an asterisk stands for any name in a
	// directory. What a node does not have is left out.
	Extra []string `yaml:"extra"`
}

// Apptainer is the container runtime.
type Apptainer struct {
	// Path of the program.
	Path string `yaml:"path"`
}

// Env is the environment of a job in an image.
type Env struct {
	// Pass are variables of the host that a job in an image keeps although
	// they would be dropped (LD_LIBRARY_PATH, PYTHONPATH, those of modules
	// and conda); an asterisk at the end stands for any rest.
	Pass []string `yaml:"pass"`
}

// Image is one entry of the catalogue, a file in images.d.
type Image struct {
	Name        string `yaml:"name"`
	Path        string `yaml:"path"`
	Description Text   `yaml:"description"`
	// Groups that may use it; everyone if empty.
	Groups []string `yaml:"groups"`
	// Binds are shown in every job in this image.
	Binds []Bind `yaml:"binds"`
	// AllowBinds says whether users may add their own. Default true.
	AllowBinds bool `yaml:"allow_binds"`
	// Env is set in every job in this image.
	Env map[string]string `yaml:"env"`
	// NV says whether the NVIDIA libraries of the node are shown. Default true.
	NV bool `yaml:"nv"`
	// Format is sif, sandbox or auto, the default: told from the file.
	Format string `yaml:"format"`
}

// Default returns the configuration of a node without spank.yaml: isolation
// works, and users may bind nothing and use only images of the catalogue.
func Default() Spank {
	return Spank{
		Net:            Choice{Allowed: []string{"host", "private"}, Default: "host"},
		Home:           Choice{Allowed: []string{"yes", "no"}, Default: "yes"},
		Overlay:        Choice{Allowed: []string{OverlayNone, OverlayTmpfs}, Default: OverlayNone},
		Tmp:            Tmp{Kind: "tmpfs", Size: "50%"},
		Devices:        Devices{Extra: []string{"/dev/fuse", "/dev/infiniband/*"}},
		Apptainer:      Apptainer{Path: "/usr/bin/apptainer"},
		TimeoutSeconds: 60,
	}
}
