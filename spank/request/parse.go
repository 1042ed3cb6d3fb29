package request

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/carme-hpc/carme/internal/wire"
)

// Context is the program in which the options are read, as spank_context tells
// the plugin (slurm/spank.h).
type Context string

// Contexts.
const (
	ContextLocal     Context = "local"     // srun
	ContextAllocator Context = "allocator" // sbatch, salloc
	ContextRemote    Context = "remote"    // slurmstepd
)

// Limits of the grammar.
const (
	// valueMax is the longest value of an option in bytes.
	valueMax = 64 << 10
	// bindsMax is how many binds one request may have.
	bindsMax = 128
)

// modeCheck is what spank/cshim/local.c sends as `mode`.
const modeCheck = "check"

// NoValue is how Slurm hands over an option that has no value when it forwards it
// through the environment.
const NoValue = "(null)"

// Given is one option as typed: its name without dashes, and its value, which
// is empty or "(null)" if there was none.
type Given struct {
	Name, Value string
	// Inherited says that nobody typed it: the plugin and sbatch leave
	// options in the environment (SLURM_SPANK__SLURM_SPANK_OPTION_carme_*),
	// where srun finds them. What is typed there wins.
	Inherited bool
}

// Input is everything that a request is made from.
type Input struct {
	Context Context
	// Options in the order typed, each occurrence: Slurm itself keeps only
	// the last and tells nobody.
	Options []Given
	// Env holds the defaults by the names in Option.Env, and the variables in
	// ApptainerBinds. Others are ignored.
	Env map[string]string
	// Defaults are the options among Options whose value the plugin has found in
	// their variable: on a node, where all arrive alike, those that say the same.
	Defaults map[string]bool
}

// isDefault says whether what counts of an option stems from its variable.
func (in Input) isDefault(name string) bool {
	typed := in.Context != ContextRemote && slices.ContainsFunc(in.Options, func(g Given) bool { return g.Name == name && !g.Inherited })
	return in.Defaults[name] && !typed
}

// label is the name under which the user knows the value of an option.
func (in Input) label(g Given) string {
	if o, ok := find(g.Name); ok && in.Defaults[g.Name] && (g.Inherited || in.Context == ContextRemote) {
		return o.Env
	}
	return "--" + g.Name
}

// InputFromRecord reads an Input that the plugin sent: `mode`, which is "check"
// in srun, sbatch and salloc and anything else on a node, then RecordKey(name) per option as typed, InheritedKey(name) per option found in
// the job's environment, DefaultKey(name) per option whose value its variable has, and `env.CARME...` per variable.
func InputFromRecord(rec *wire.Record) Input {
	in := Input{Context: ContextRemote, Env: map[string]string{}}
	if mode, _ := rec.Get("mode"); mode == modeCheck {
		in.Context = ContextLocal
	}
	keys, defaults := map[string]Given{}, map[string]string{}
	for _, o := range Options() {
		keys[RecordKey(o.Name)] = Given{Name: o.Name}
		keys[InheritedKey(o.Name)] = Given{Name: o.Name, Inherited: true}
		defaults[DefaultKey(o.Name)] = o.Name
	}
	for _, f := range rec.Fields() {
		if g, ok := keys[f.Key]; ok {
			g.Value = f.Value
			in.Options = append(in.Options, g)
		}
		if name, ok := defaults[f.Key]; ok {
			if in.Defaults == nil {
				in.Defaults = map[string]bool{}
			}
			in.Defaults[name] = true
		}
		if name, ok := strings.CutPrefix(f.Key, "env."); ok {
			in.Env[name] = f.Value
		}
	}
	return in
}

// Parse makes the request that the options and the defaults ask for. What is
// typed wins over the environment, option by option; a default matters only if
// the job is to be isolated. The error is an Errors with everything that is
// wrong.
func Parse(in Input) (Request, error) {
	p := parser{}
	typed, inherited := p.collect(in)
	r := p.switches(in, typed, inherited)
	if !r.Enabled {
		return Request{}, p.err()
	}
	get := func(name string) value {
		if v, ok := typed[name]; ok {
			return v
		}
		if v, ok := inherited[name]; ok {
			return v
		}
		return fromEnv(name, in.Env)
	}
	r.Net = p.net(get(OptNet))
	r.Workdir = p.path(get(OptWorkdir))
	r.Home = p.yesno(get(OptHome))
	r.Overlay = p.overlay(get(OptOverlay))
	r.Conda = p.conda(get(OptConda))
	r.App = p.app(get(OptApp))
	r.Debug = p.debug(get(OptDebug))
	if v := get(OptBind); p.filled(v, "SRC[:DST[:ro]]") {
		r.Binds = p.binds(v.label, strings.Split(v.text, ","))
	}
	if r.Image != ImageNone {
		r.ImageBinds = p.apptainerBinds(in.Env)
	}
	if err := p.err(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// value is one value with the name under which the user knows it.
type value struct {
	label string // --carme-net, or CARME_NET
	text  string
	given bool
}

// fromEnv returns the default of an option. An empty variable is none.
func fromEnv(name string, env map[string]string) value {
	o, _ := find(name)
	if o.Env == "" {
		return value{}
	}
	text := env[o.Env]
	return value{label: o.Env, text: text, given: text != ""}
}

// parser collects errors, so that a user reads all of them at once.
type parser struct {
	errs Errors
}

func (p *parser) failf(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

func (p *parser) err() error {
	if len(p.errs) == 0 {
		return nil
	}
	return p.errs
}

// collect returns the options by name, those typed and those inherited, and
// refuses what is unknown, typed twice, or has a value it cannot have.
func (p *parser) collect(in Input) (typed, inherited map[string]value) {
	typed, inherited = map[string]value{}, map[string]value{}
	count := map[string]int{}
	for _, g := range in.Options {
		o, ok := find(g.Name)
		if !ok {
			p.failf("there is no option %s; see --carme=help", Quote(g.Name))
			continue
		}
		v := value{label: in.label(g), text: g.Value, given: true}
		if v.text == NoValue {
			v.text = ""
		}
		if o.Arg == "" && v.text != "" && v.label != o.Env { // a variable has a value in any case
			p.failf("%s takes no value; write it alone", v.label)
		}
		if g.Inherited {
			inherited[g.Name] = v
			continue
		}
		typed[g.Name] = v
		count[g.Name]++
	}
	for _, o := range Options() {
		if count[o.Name] > 1 {
			p.failf("--%s is given %d times; give it once%s (#SBATCH lines count, and all components of a heterogeneous job)", o.Name, count[o.Name], onceHint(o.Name))
		}
	}
	return typed, inherited
}

func onceHint(name string) string {
	if name == OptBind {
		return ", with commas between the binds"
	}
	return ""
}

// switches decides whether the job is isolated, and in which image.
func (p *parser) switches(in Input, typed, inherited map[string]value) Request {
	carme, on := typed[OptCarme]
	_, off := typed[OptNoCarme]
	if !on && !off {
		carme, on = inherited[OptCarme]
	}
	if on && off {
		p.failf("--carme and --no-carme are both given; give one of them")
		return Request{}
	}
	var r Request
	switch {
	case off:
	case on:
		r.Enabled = true
	case has(inherited, OptNoCarme):
	default:
		carme = fromEnv(OptCarme, in.Env)
		r.Enabled = carme.given
	}
	if r.Enabled {
		r.Enabled, carme.text = onOff(carme.text)
	}
	if !r.Enabled {
		if in.Context != ContextRemote {
			p.needless(typed, off)
		}
		return r
	}
	switch a := Action(carme.text); a {
	case ActionList, ActionHelp:
		if in.Context == ContextRemote || !on || inherited[OptCarme] == carme {
			p.failf("%s=%s only shows something; give it to srun or sbatch as an option", carme.label, a)
		}
		r.Action = a
	default:
		r.Image = p.image(carme)
	}
	return r
}

func has(values map[string]value, name string) bool {
	_, ok := values[name]
	return ok
}

// onOff reads a value of --carme or CARME: whether it switches isolation on,
// and the image. A default in the environment reaches the plugin as an option,
// so both take the words for on and off.
func onOff(text string) (on bool, image string) {
	switch text {
	case No, "0":
		return false, ""
	case Yes, "1", NoValue:
		return true, ""
	}
	return true, text
}

// needless refuses options that say how to isolate a job that is not to be.
func (p *parser) needless(typed map[string]value, off bool) {
	for _, o := range Options() {
		if _, ok := typed[o.Name]; !ok || o.Name == OptNoCarme || o.Name == OptCarme {
			continue
		}
		if off {
			p.failf("--%s and --no-carme are both given; leave one of them out", o.Name)
		} else {
			p.failf("--%s has no effect without --carme; add --carme or --carme=IMAGE", o.Name)
		}
	}
}

// filled reports whether v has a value to look at, and refuses an option that
// was typed without the value it needs, or with one too long to look at.
func (p *parser) filled(v value, want string) bool {
	if !v.given {
		return false
	}
	if v.text == "" {
		p.failf("%s needs a value: %s", v.label, want)
		return false
	}
	return p.sized(v)
}

func (p *parser) sized(v value) bool {
	if len(v.text) > valueMax {
		p.failf("%s is %d bytes long; %d is the most", v.label, len(v.text), valueMax)
		return false
	}
	return true
}

func (p *parser) image(v value) string {
	if v.text == "" || !p.sized(v) {
		return ""
	}
	at := v.label + "=" + Quote(v.text)
	scheme, _, isURI := strings.Cut(v.text, "://")
	switch {
	case isURI && ValidName(scheme):
		p.failf("%s: images by %s:// are not available yet; name one of --carme=list or a file", at, scheme)
	case strings.ContainsAny(v.text, "/~"):
		path, err := CleanPath(v.text)
		if err != nil {
			p.failf("%s: %w", at, err)
			return ""
		}
		if err := CheckSource(path); err != nil {
			p.failf("%s: %w", at, err)
			return ""
		}
		return path
	case !ValidName(v.text):
		p.failf("%s is no name of an image; --carme=list shows those there are, a file is written from / on", at)
	default:
		return v.text
	}
	return ""
}

func (p *parser) net(v value) string {
	if !p.filled(v, "host or private") {
		return ""
	}
	mode, _, _ := strings.Cut(v.text, ":")
	switch {
	case v.text == NetHost, v.text == NetPrivate:
		return v.text
	case mode == "nat":
		p.failf("%s=%s: network mode nat is not available yet; use host or private", v.label, Quote(v.text))
	default:
		p.failf("%s=%s is unknown; use host or private", v.label, Quote(v.text))
	}
	return ""
}

func (p *parser) yesno(v value) string {
	if !p.filled(v, "yes or no") {
		return ""
	}
	if v.text != Yes && v.text != No {
		p.failf("%s=%s is unknown; use yes or no", v.label, Quote(v.text))
		return ""
	}
	return v.text
}

func (p *parser) path(v value) string {
	if !p.filled(v, "a directory, written from / on") {
		return ""
	}
	path, err := CleanPath(v.text)
	if err != nil {
		p.failf("%s=%s: %w", v.label, Quote(v.text), err)
	}
	return path
}

func (p *parser) overlay(v value) string {
	if !p.filled(v, "none, tmpfs or a directory") {
		return ""
	}
	if v.text == OverlayNone || v.text == OverlayTmpfs {
		return v.text
	}
	if !strings.ContainsAny(v.text, "/~") {
		p.failf("%s=%s is unknown; use none, tmpfs or a directory written from / on", v.label, Quote(v.text))
		return ""
	}
	path := p.path(v)
	if path == "" {
		return ""
	}
	// Apptainer would read them as an option, and as the end of this one.
	if strings.ContainsAny(path, ":,") {
		p.failf("%s=%s: a directory for it has no : or , in its name; use another one", v.label, Quote(v.text))
		return ""
	}
	if err := CheckSource(path); err != nil {
		p.failf("%s=%s: %w", v.label, Quote(v.text), err)
		return ""
	}
	return path
}

func (p *parser) conda(v value) string {
	if !p.filled(v, "a name or a directory") {
		return ""
	}
	if strings.ContainsAny(v.text, "/~") {
		return p.path(v)
	}
	if !ValidName(v.text) {
		p.failf("%s=%s is no name of an environment; use a name, or its directory written from / on", v.label, Quote(v.text))
		return ""
	}
	return v.text
}

func (p *parser) app(v value) string {
	if !p.filled(v, "the name of an app") {
		return ""
	}
	if !ValidName(v.text) {
		p.failf("%s=%s is no name of an app; the portal shows those there are", v.label, Quote(v.text))
		return ""
	}
	return v.text
}

// debug is on if the option is given, or its variable says so.
func (p *parser) debug(v value) bool {
	if !v.given || strings.HasPrefix(v.label, "--") {
		return v.given
	}
	switch v.text {
	case Yes, "1", "": // the plugin makes nothing of yes
		return true
	case No, "0":
		return false
	}
	p.failf("%s=%s is unknown; use yes or no", v.label, Quote(v.text))
	return false
}

// flag reads a boolean of a record.
func (p *parser) flag(v value) bool { return p.yesno(v) == Yes }

// binds reads each entry as SRC[:DST[:ro]], and refuses two for one place.
func (p *parser) binds(label string, entries []string) []Bind {
	if len(entries) > bindsMax {
		p.failf("%s has %d entries; %d is the most", label, len(entries), bindsMax)
		return nil
	}
	var binds []Bind
	taken := map[string]bool{}
	empty := false
	for _, entry := range entries {
		b, err := ParseBind(entry)
		switch {
		case entry == "" && empty: // was said
		case entry == "":
			empty = true
			p.failf("%s: %w", label, err)
		case err != nil:
			p.failf("%s: %s: %w", label, Quote(entry), err)
		case taken[b.Dst]:
			p.failf("%s: %s: something else is at that place already; choose another", label, Quote(entry))
		default:
			taken[b.Dst] = true
			binds = append(binds, b)
		}
	}
	return binds
}

// apptainerBinds reads the binds in Apptainer's own variables. The same bind
// may stand in several of them.
func (p *parser) apptainerBinds(env map[string]string) []Bind {
	var entries []string
	for _, name := range ApptainerBinds() {
		v := value{label: name, text: env[name]}
		if v.text == "" || !p.sized(v) {
			continue
		}
		for entry := range strings.SplitSeq(v.text, ",") {
			if !slices.Contains(entries, entry) {
				entries = append(entries, entry)
			}
		}
	}
	return p.binds(ApptainerBinds()[0], entries)
}

// ParseBind reads SRC[:DST[:ro]]; `rw`, the default, is taken too. The paths
// are checked by CleanPath, CheckSource and CheckTarget.
func ParseBind(entry string) (Bind, error) {
	if entry == "" {
		return Bind{}, errors.New("an entry is empty; write SRC[:DST[:ro]], with single commas between entries")
	}
	parts := strings.Split(entry, ":")
	if len(parts) > 3 {
		return Bind{}, errors.New("too many colons; write SRC[:DST[:ro]]")
	}
	b := Bind{Src: parts[0], Dst: parts[0]}
	if len(parts) > 1 {
		b.Dst = parts[1]
	}
	if len(parts) == 2 && (b.Dst == "ro" || b.Dst == "rw") {
		return Bind{}, fmt.Errorf("the place in the job is missing; write SRC:DST:%s", b.Dst)
	}
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			b.ReadOnly = true
		case "rw":
		default:
			return Bind{}, fmt.Errorf("%s is unknown; use ro, or leave it out", Quote(parts[2]))
		}
	}
	var err error
	if b.Src, err = CleanPath(b.Src); err != nil {
		return Bind{}, fmt.Errorf("source: %w", err)
	}
	if b.Dst, err = CleanPath(b.Dst); err != nil {
		return Bind{}, fmt.Errorf("place in the job: %w", err)
	}
	if err := CheckSource(b.Src); err != nil {
		return Bind{}, err
	}
	if err := CheckTarget(b.Dst); err != nil {
		return Bind{}, err
	}
	return b, nil
}
