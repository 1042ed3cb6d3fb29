package doctor

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/slurm"
)

const (
	pluginPath = "usr/lib/carme/spank_carme.so"
	switchPath = "etc/carme/plugstack.d/carme.conf"

	mendPackage = "install or repair the package carme on this node"
	mendInclude = "add this line to plugstack.conf, then run scontrol reconfigure: include /etc/carme/plugstack.d/*.conf"
)

// installed are the files of a node, below the root.
func installed() []string {
	return []string{
		pluginPath, "usr/lib/carme/libcarme.so",
		"usr/libexec/carme/carme-host", "usr/libexec/carme/carme-anchor", "usr/libexec/carme/carme-hold", "usr/libexec/carme/carme-enter",
		"usr/libexec/carme/carme-slurm", "usr/libexec/carme/carme-prolog", "usr/libexec/carme/carme-filter",
	}
}

func (d Doctor) killSwitch() Finding {
	const name = "kill switch"
	if d.exists(config.DisabledFile) {
		return fail(name, "when it is no longer needed: rm /etc/carme/disabled", "/etc/carme/disabled exists: every --carme job is refused here")
	}
	return ok(name, "off")
}

// files wants each installed file to be one that only root can change.
func (d Doctor) files() []Finding {
	var findings []Finding
	for _, file := range installed() {
		name := "/" + file
		info, err := os.Stat(d.path(file))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			findings = append(findings, fail(name, mendPackage, "is missing"))
		case err != nil:
			findings = append(findings, fail(name, mendPackage, "%v", err))
		case !info.Mode().IsRegular():
			findings = append(findings, fail(name, mendPackage, "is not a file"))
		case info.Mode().Perm()&0o022 != 0:
			findings = append(findings, fail(name, "chmod go-w "+name, "can be written by others (mode %04o)", info.Mode().Perm()))
		case !d.TrustOwner && !rootOwns(info):
			findings = append(findings, fail(name, "chown root:root "+name, "does not belong to root"))
		case strings.Contains(file, "libexec") && info.Mode().Perm()&0o111 != 0o111:
			findings = append(findings, fail(name, "chmod a+x "+name, "cannot be executed by all (mode %04o)", info.Mode().Perm()))
		case info.Mode().Perm()&0o444 != 0o444:
			findings = append(findings, fail(name, "chmod a+r "+name, "cannot be read by all (mode %04o): users' srun cannot load it", info.Mode().Perm()))
		}
	}
	findings = append(findings, d.guards()...)
	if len(findings) == 0 {
		return []Finding{ok("files", "all %d are there, and root's", len(installed()))}
	}
	return findings
}

// guards wants nobody but root to be able to put other files into the place of
// those that Slurm and Carme run as root.
func (d Doctor) guards() []Finding {
	var findings []Finding
	for _, place := range []string{"usr/lib/carme", "usr/libexec/carme", "etc/carme", path.Dir(switchPath), switchPath} {
		name := "/" + place
		info, err := os.Stat(d.path(place))
		switch {
		case err != nil: // what is missing there is reported by its own name
		case info.Mode().Perm()&0o022 != 0:
			findings = append(findings, fail(name, "chmod go-w "+name, "can be written by others (mode %04o)", info.Mode().Perm()))
		case !d.TrustOwner && !rootOwns(info):
			findings = append(findings, fail(name, "chown root:root "+name, "does not belong to root"))
		case strings.HasPrefix(place, "usr/") && info.Mode().Perm()&0o555 != 0o555:
			findings = append(findings, fail(name, "chmod a+rx "+name, "is closed to users (mode %04o), whose tasks and srun need it", info.Mode().Perm()))
		}
	}
	return findings
}

func rootOwns(info fs.FileInfo) bool {
	st, isStat := info.Sys().(*syscall.Stat_t)
	return isStat && st.Uid == 0
}

// callbacks are the SPANK callbacks that the plugin may export. job_prolog and
// job_epilog would make slurmd start slurmstepd twice for every job;
// task_post_fork and task_exit cost plain jobs a process each.
func callbacks() []string {
	return []string{
		"slurm_spank_init", "slurm_spank_init_post_opt", "slurm_spank_user_init", "slurm_spank_task_post_fork",
		"slurm_spank_task_init_privileged", "slurm_spank_task_init", "slurm_spank_exit",
	}
}

// exports wants the plugin to export what Slurm looks for and nothing else.
func (d Doctor) exports() Finding {
	const name = "plugin's symbols"
	o, err := d.Object(d.path(pluginPath))
	if err != nil {
		return fail(name, mendPackage, "/%s is no library that Slurm can load: %v", pluginPath, err)
	}
	var strange, missing []string
	for _, s := range o.Exports {
		if !slices.Contains(callbacks(), s) && !strings.HasPrefix(s, "plugin_") && s != "spank_plugin_version" {
			strange = append(strange, s)
		}
	}
	for _, s := range append(callbacks(), "plugin_name", "plugin_type", "plugin_version") {
		if !o.Has(s) {
			missing = append(missing, s)
		}
	}
	switch {
	case len(missing) > 0:
		return fail(name, mendPackage, "missing: %s", strings.Join(missing, " "))
	case len(strange) > 0:
		return fail(name, mendPackage, "should not be exported: %s", strings.Join(strange, " "))
	}
	return ok(name, "those that Slurm looks for, no others")
}

// NoNode reports whether this is surely no compute node: it has no slurmd, and slurmctld
// says that there is no such node.
func (d Doctor) NoNode(ctx context.Context) bool {
	if _, err := slurm.NodeVersion(ctx, d.run); !errors.Is(err, exec.ErrNotFound) {
		return false
	}
	out, err := d.run(ctx, "scontrol", "show", "node", d.Node)
	return err != nil && strings.Contains(string(out), "Node "+d.Node+" not found")
}

// release compares the Slurm the plugin was built for with the one here.
func (d Doctor) release(ctx context.Context) Finding {
	const name = "plugin's Slurm release"
	o, err := d.Object(d.path(pluginPath))
	if err != nil {
		return skip(name, "the plugin cannot be read")
	}
	here, err := slurm.NodeVersion(ctx, d.run)
	if err != nil {
		return fail(name, "install slurmd, or mend PATH, and ask again", "%v", err)
	}
	built := slurm.VersionFromNumber(o.PluginVersion)
	if !built.SameMajor(here) {
		return fail(name, "install the package carme that is built for Slurm "+here.String(), "built for %s, this node runs %s: Slurm does not load it", built, here)
	}
	return ok(name, "built for %s, this node runs %s", built, here)
}

// plugstack looks for the line that loads the plugin, where Slurm looks.
func (d Doctor) plugstack(cfg slurm.Config) Finding {
	const name = "plugstack line"
	if cfg == nil {
		return skip(name, "Slurm's configuration is not known")
	}
	file, text, err := d.slurmFile(cfg, "plugstack.conf", cfg.Get("PlugStackConfig"))
	if err != nil {
		return fail(name, mendInclude, "there is no plugstack.conf: %v", err)
	}
	for _, line := range slurm.ParsePlugstack(text) {
		target := line.Path
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(file), target)
		}
		loads := path.Base(target) == path.Base(pluginPath)
		matches, _ := path.Match(target, "/"+switchPath) // a bad pattern matches nothing
		switch {
		case loads && line.Kind == "required":
			return fail(name, "write optional instead of required in "+file, "%s requires the plugin: if it is missing or for another Slurm, slurmd stops and all jobs fail", file)
		case loads, line.Kind == "include" && matches:
			return ok(name, "%s: %s %s", file, line.Kind, line.Path)
		}
	}
	return fail(name, mendInclude, "%s does not load the plugin", file)
}

// slurmFile reads one of Slurm's files: the one that is configured, or the one
// beside slurm.conf, or the copy that slurmd keeps on a configless node.
func (d Doctor) slurmFile(cfg slurm.Config, base, configured string) (name, text string, err error) {
	var places []string
	if configured != "" {
		places = append(places, configured)
	}
	if conf := cfg.Get("SLURM_CONF"); conf != "" {
		places = append(places, path.Join(path.Dir(conf), base))
	}
	places = append(places, path.Join("/run/slurm/conf", base), path.Join("/etc/slurm", base))
	if spool := cfg.Get("SlurmdSpoolDir"); spool != "" {
		spool = strings.NewReplacer("%n", d.Node, "%h", d.Node).Replace(spool)
		places = append(places, path.Join(spool, "conf-cache", base))
	}
	for _, place := range places {
		text, readErr := d.included(place, includeDepth)
		if readErr == nil {
			return place, text, nil
		}
		if err == nil {
			err = readErr
		}
	}
	return "", "", err
}

// includeDepth is how deep files of Slurm may include others.
const includeDepth = 4

// included reads a file of Slurm with the files that its Include lines name
// (slurm.conf(5)), which may be relative to it. plugstack.conf's own include
// lines, which have patterns, stay as they are.
func (d Doctor) included(name string, depth int) (string, error) {
	data, err := os.ReadFile(d.path(name))
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if depth == 0 || len(words) != 2 || !strings.EqualFold(words[0], "include") || strings.Contains(words[1], "*") {
			all.WriteString(line)
			continue
		}
		file := words[1]
		if !path.IsAbs(file) {
			file = path.Join(path.Dir(name), file)
		}
		text, err := d.included(file, depth-1)
		if err != nil {
			all.WriteString(line)
			continue
		}
		all.WriteString(text + "\n")
	}
	return all.String(), nil
}

// switchFile looks at the file that takes the node in or out.
func (d Doctor) switchFile() Finding {
	const name = "plugin switched on"
	data, err := os.ReadFile(d.path(switchPath))
	if err != nil {
		return fail(name, mendPackage, "there is no /%s", switchPath)
	}
	for _, line := range slurm.ParsePlugstack(string(data)) {
		if path.Base(line.Path) != path.Base(pluginPath) {
			continue
		}
		switch {
		case line.Kind != "optional":
			return fail(name, "write optional instead of "+line.Kind+" in /"+switchPath, "%s: if the plugin is missing or for another Slurm, slurmd stops and all jobs fail", line.Kind)
		case !d.exists(line.Path):
			return fail(name, "write /"+pluginPath+" there", "/%s names %s, which does not exist", switchPath, line.Path)
		}
		return ok(name, "/%s: %s %s", switchPath, line.Kind, line.Path)
	}
	return fail(name, "write into it: optional /"+pluginPath, "/%s does not name the plugin", switchPath)
}

func (d Doctor) prologFlags(cfg slurm.Config) Finding {
	const name = "PrologFlags"
	if cfg == nil {
		return skip(name, "Slurm's configuration is not known")
	}
	if !cfg.Has(name, "contain") && !cfg.Has(name, "x11") {
		return fail(name, "set PrologFlags=Contain in slurm.conf and restart slurmctld and slurmd", "%q has no Contain: jobs have no extern step, which holds a job's namespaces", cfg.Get(name))
	}
	return ok(name, "%s", cfg.Get(name))
}

// prolog looks for what tells a node of a sealed job before its first step. The
// job's own steps are sealed without it.
func (d Doctor) prolog(cfg slurm.Config) Finding {
	const (
		name    = "Prolog"
		program = "carme-prolog"
		mend    = "put contrib/slurm/prolog on every node as /etc/slurm/carme_prolog, then set Prolog=/etc/slurm/carme_prolog in slurm.conf"
	)
	if cfg == nil {
		return skip(name, "Slurm's configuration is not known")
	}
	for key := range cfg {
		// "prolog[0]" since 24.05, where there may be several.
		if key != "prolog" && !strings.HasPrefix(key, "prolog[") {
			continue
		}
		configured := cfg.Get(key)
		files, _ := filepath.Glob(d.path(configured)) // a bad pattern matches nothing
		if len(files) == 0 && path.IsAbs(configured) && !strings.ContainsAny(configured, "*?[") {
			return fail(name, "put it there (Carme's is contrib/slurm/prolog), or take it out of slurm.conf", "slurm.conf names %s, which does not exist: a job drains this node", configured)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o111 == 0 {
				at := "/" + strings.TrimPrefix(strings.TrimPrefix(file, d.Root), "/")
				return fail(name, "chmod a+x "+at, "%s cannot be executed: a job drains this node", at)
			}
			text, err := os.ReadFile(file) //nolint:gosec // G304: slurm.conf names it, which is root's
			if err == nil && bytes.Contains(text, []byte(program)) {
				return ok(name, "%s runs %s", configured, program)
			}
		}
	}
	return note(name, "does not run "+program+": a step from outside of a sealed job (srun --jobid), on a node where the job has not run yet, is not sealed unless it says --carme", mend)
}

// adoption looks for the calls with which a process is moved into a job's
// extern step, as pam_slurm_adopt does.
func (d Doctor) adoption() Finding {
	const name = "adoption into the extern step"
	calls := []string{"slurm_stepd_connect", "slurm_stepd_add_extern_pid"}
	var looked []string
	for _, pattern := range []string{
		"usr/lib/*/slurm*/libslurmfull.so", "usr/lib/*/libslurm.so*", "usr/lib64/slurm/libslurmfull.so", "usr/lib64/libslurm.so*",
		"usr/lib/slurm*/libslurmfull.so", "usr/lib/libslurm.so*", "usr/local/lib/slurm/libslurmfull.so", "usr/local/lib/libslurm.so*", "usr/sbin/slurmstepd",
	} {
		files, _ := filepath.Glob(d.path(pattern)) // the pattern is constant
		for _, file := range files {
			o, err := d.Object(file)
			if err != nil {
				continue
			}
			looked = append(looked, file)
			if o.Has(calls[0]) && o.Has(calls[1]) {
				return ok(name, "%s has %s", file, strings.Join(calls, " and "))
			}
		}
	}
	if len(looked) == 0 {
		return fail(name, "install Slurm's libraries, or tell us where this Slurm keeps them", "no library of Slurm found")
	}
	return fail(name, "use a Slurm that has them, 22.05 to 26.05; pam_slurm_adopt needs them too", "%s lacks %s", strings.Join(looked, ", "), strings.Join(calls, " and "))
}
