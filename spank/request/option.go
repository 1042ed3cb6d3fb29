package request

import "strings"

// Option is one option of srun, sbatch and salloc as the plugin registers it
// with Slurm (spank_option in slurm/spank.h). The table in
// spank/cshim/options.c must agree with Options.
type Option struct {
	// Name without dashes in front.
	Name string
	// Arg is how the value is named in --help, empty for an option without.
	Arg string
	// Optional says that the value may be left out.
	Optional bool
	// Env is the variable that holds the default, empty if there is none.
	Env string
	// Usage is one line for --help.
	Usage string
}

// Names of the options, without dashes in front.
const (
	OptCarme   = "carme"
	OptNoCarme = "no-carme"
	OptNet     = "carme-net"
	OptBind    = "carme-bind"
	OptWorkdir = "carme-workdir"
	OptHome    = "carme-home"
	OptOverlay = "carme-overlay"
	OptConda   = "carme-conda"
	OptApp     = "carme-app"
	OptDebug   = "carme-debug"
)

// Options returns every option in the order of --help.
func Options() []Option {
	return []Option{
		{OptCarme, "IMAGE", true, "CARME", "isolate the job, in IMAGE if given (or list, help)"},
		{OptNoCarme, "", false, "", "do not isolate the job, whatever CARME says"},
		{OptNet, "host|private", false, "CARME_NET", "network: the node's, or loopback only"},
		{OptBind, "SRC[:DST[:ro]],...", false, "CARME_BIND", "paths of the node to show in the job"},
		{OptWorkdir, "DIR", false, "CARME_WORKDIR", "working directory inside the job"},
		{OptHome, "yes|no", false, "CARME_HOME", "show the home directory in the job"},
		{OptOverlay, "none|tmpfs|DIR", false, "CARME_OVERLAY", "where writes to the image go"},
		{OptConda, "NAME|PREFIX", false, "CARME_CONDA", "conda environment to activate"},
		{OptApp, "NAME", false, "CARME_APP", "app to start in the job, for the browser"},
		{OptDebug, "", false, "CARME_DEBUG", "show the steps of the set-up with times"},
	}
}

// ApptainerBinds are the variables in which users of Apptainer keep binds
// (apptainer(1)). In an image they count as binds of the user, and so go
// through the policy; Apptainer itself never sees them.
func ApptainerBinds() []string {
	return []string{"APPTAINER_BIND", "APPTAINER_BINDPATH", "SINGULARITY_BIND", "SINGULARITY_BINDPATH"}
}

// find returns the option of that name.
func find(name string) (Option, bool) {
	for _, o := range Options() {
		if o.Name == name {
			return o, true
		}
	}
	return Option{}, false
}

// RecordKey is the key under which the value of an option travels in a record
// to the core: `opt.` and the name with underscores, as in Slurm's own variable
// _SLURM_SPANK_OPTION_carme_carme_net. spank/cshim/options.c writes it.
func RecordKey(name string) string {
	return "opt." + strings.ReplaceAll(name, "-", "_")
}

// InheritedKey is RecordKey for an option that nobody typed but that stands in
// the environment (Given.Inherited).
func InheritedKey(name string) string {
	return "inherited." + strings.ReplaceAll(name, "-", "_")
}

// DefaultKey is the key that says of an option that its value is that of its
// variable.
func DefaultKey(name string) string {
	return "default." + strings.ReplaceAll(name, "-", "_")
}
