package policy

import (
	"slices"
	"strings"
)

// hostOnly are variables that mean something on the host only: where its
// libraries, its Python, its modules and its conda are. An asterisk at the end
// stands for any rest.
func hostOnly() []string {
	return []string{
		"LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT", "LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "PKG_CONFIG_PATH",
		"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_*", "_CE_*", "MAMBA_*", "PERL5LIB", "R_LIBS", "R_LIBS_USER", "JULIA_LOAD_PATH",
		"MODULEPATH*", "MODULESHOME", "MODULES_*", "LOADEDMODULES", "_LMFILES_*", "LMOD_*", "__LMOD_*", "__MODULES_*", "MANPATH", "INFOPATH",
		"BASH_FUNC_module%%", "BASH_FUNC_ml%%", "BASH_FUNC__module_raw%%", "BASH_ENV",
	}
}

// runtimeOnly are variables with which a user would steer the container
// runtime past the policy. They never enter an image.
func runtimeOnly() []string {
	return []string{"APPTAINER_*", "APPTAINERENV_*", "SINGULARITY_*", "SINGULARITYENV_*"}
}

// KeepsEnv reports whether a job keeps the host's variable of that name. A job
// without an image keeps all of them.
func (p *Policy) KeepsEnv(name string, inImage bool) bool {
	switch {
	case !inImage:
		return true
	case matchesAny(runtimeOnly(), name):
		return false
	case matchesAny(hostOnly(), name):
		return matchesAny(p.cfg.Spank.Env.Pass, name)
	}
	return true
}

// EnvPatterns are the rules of KeepsEnv for a job in an image, for the plugin,
// which applies them to a task's environment (spank/cshim/task.c): what matches
// dropped goes unless it matches passed, what matches always goes in any case.
func (p *Policy) EnvPatterns() (dropped, always, passed []string) {
	return hostOnly(), runtimeOnly(), p.cfg.Spank.Env.Pass
}

func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if start, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(name, start)
		}
		return pattern == name
	})
}
