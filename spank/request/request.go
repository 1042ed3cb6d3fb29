package request

import (
	"fmt"
	"slices"
	"strings"

	"github.com/carme-hpc/carme/internal/wire"
)

// Action is what `--carme` asks for.
type Action string

// Actions. The zero value is ActionRun.
const (
	ActionRun  Action = ""
	ActionList Action = "list"
	ActionHelp Action = "help"
)

// Values of Request fields.
const (
	// ImageNone is the image's name for: isolated, without an image, also
	// where the site has a default image.
	ImageNone = "none"

	NetHost    = "host"
	NetPrivate = "private"

	Yes = "yes"
	No  = "no"

	OverlayNone  = "none"
	OverlayTmpfs = "tmpfs"
)

// Request is what a user asks for, checked against the grammar but not yet
// against the site's policy. Fields that were not given are empty: the policy
// has their default. The zero value is a job without Carme.
type Request struct {
	// Enabled says that the job is to be isolated.
	Enabled bool
	// Action other than ActionRun is done by srun and sbatch, then they end.
	Action Action
	// Image is a name in the catalogue, an absolute path, ImageNone, or empty
	// for the site's default.
	Image string
	// Net is NetHost or NetPrivate.
	Net string
	// Binds in the order given.
	Binds []Bind
	// ImageBinds come from the variables in ApptainerBinds, and count only in
	// an image.
	ImageBinds []Bind
	// Workdir is an absolute path inside the job.
	Workdir string
	// Home is Yes or No.
	Home string
	// Overlay is OverlayNone, OverlayTmpfs or an absolute path.
	Overlay string
	// Conda is a name or an absolute path.
	Conda string
	// App is the name of an app to start in the job.
	App string
	// Debug shows the set-up's steps.
	Debug bool
}

// Bind is a path of the node to be shown in a job.
type Bind struct {
	// Src and Dst are clean absolute paths: on the node, in the job.
	Src, Dst string
	ReadOnly bool
}

// String is the bind as `--carme-bind` takes it: SRC:DST or SRC:DST:ro.
func (b Bind) String() string {
	s := b.Src + ":" + b.Dst
	if b.ReadOnly {
		s += ":ro"
	}
	return s
}

// ImageIsPath reports whether the image is given by path.
func (r *Request) ImageIsPath() bool { return strings.HasPrefix(r.Image, "/") }

// Keys of a request in a record.
const (
	keyEnabled = "request.enabled"
	keyAction  = "request.action"
	keyImage   = "request.image"
	keyNet     = "request.net"
	keyBind    = "request.bind"
	keyImgBind = "request.image_bind"
	keyWorkdir = "request.workdir"
	keyHome    = "request.home"
	keyOverlay = "request.overlay"
	keyConda   = "request.conda"
	keyApp     = "request.app"
	keyDebug   = "request.debug"
)

// Record returns the request as fields `request.*`, those that are empty left
// out, `request.bind` once per bind as SRC:DST[:ro]. The values are canonical:
// two requests ask for the same if their fields are equal.
func (r *Request) Record() *wire.Record {
	rec := new(wire.Record)
	r.AppendTo(rec)
	return rec
}

// AppendTo adds the fields of Record to rec, which may hold others.
func (r *Request) AppendTo(rec *wire.Record) {
	add := func(key, value string) {
		if value != "" {
			rec.Add(key, value)
		}
	}
	flag := func(on bool) string {
		if on {
			return Yes
		}
		return ""
	}
	add(keyEnabled, flag(r.Enabled))
	add(keyAction, string(r.Action))
	add(keyImage, r.Image)
	add(keyNet, r.Net)
	for _, b := range r.Binds {
		add(keyBind, b.String())
	}
	for _, b := range r.ImageBinds {
		add(keyImgBind, b.String())
	}
	add(keyWorkdir, r.Workdir)
	add(keyHome, r.Home)
	add(keyOverlay, r.Overlay)
	add(keyConda, r.Conda)
	add(keyApp, r.App)
	add(keyDebug, flag(r.Debug))
}

// FromRecord reads the fields of Record and checks them with the same grammar
// as options, since a record may come from a process of a user. Fields with
// other keys are left alone. Errors are an Errors.
func FromRecord(rec *wire.Record) (Request, error) {
	p := parser{}
	one := func(key string) value {
		all := rec.All(key)
		if len(all) > 1 {
			p.failf("%s is given %d times", key, len(all))
		}
		if len(all) == 0 {
			return value{label: key}
		}
		return value{label: key, text: all[0], given: true}
	}
	var r Request
	r.Enabled = p.flag(one(keyEnabled))
	switch a := one(keyAction); Action(a.text) {
	case ActionRun, ActionList, ActionHelp:
		r.Action = Action(a.text)
	default:
		p.failf("%s=%s is unknown", keyAction, Quote(a.text))
	}
	r.Image = p.image(one(keyImage))
	r.Net = p.net(one(keyNet))
	r.Binds = p.binds(keyBind, rec.All(keyBind))
	r.ImageBinds = p.binds(keyImgBind, rec.All(keyImgBind))
	r.Workdir = p.path(one(keyWorkdir))
	r.Home = p.yesno(one(keyHome))
	r.Overlay = p.overlay(one(keyOverlay))
	r.Conda = p.conda(one(keyConda))
	r.App = p.app(one(keyApp))
	r.Debug = p.flag(one(keyDebug))
	if err := p.err(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// jobLevel are the options that belong to the job, with what r has of each.
func (r *Request) jobLevel() [][2]string {
	return [][2]string{
		{OptNet, r.Net},
		{OptBind, bindList(r.Binds)},
		{OptHome, r.Home},
		{OptOverlay, r.Overlay},
		{OptApp, r.App},
	}
}

// JobLevelDiff compares r, what the job's first step on the node got, with what
// a later step asks for. Network, binds, home, overlay and app belong to the job: it
// returns an error of one line that names the first of them that differs, nil
// if none does. What the later step does not give follows the first step.
func (r *Request) JobLevelDiff(later Request) error {
	now := later.jobLevel()
	for i, o := range r.jobLevel() {
		if now[i][1] == "" || now[i][1] == o[1] {
			continue
		}
		first := o[1]
		if first == "" {
			first = "not set"
		}
		return fmt.Errorf("--%s is fixed by the job's first step (%s), this step asks for %s; leave it out, or use a job of its own",
			o[0], clip(first), clip(now[i][1]))
	}
	return nil
}

// Contradicts compares r, what the job was submitted with, with what its first
// step on a node asks for. What the submission left open is the step's to say.
func (r *Request) Contradicts(step Request) error {
	now := step.jobLevel()
	for i, o := range r.jobLevel() {
		if o[1] != "" && now[i][1] != o[1] {
			return fmt.Errorf("--%s is fixed by the job's submission (%s), this step asks for %s; leave it out, or use a job of its own",
				o[0], clip(o[1]), clip(now[i][1]))
		}
	}
	return nil
}

// clip keeps a checked value, in which everything is printable, short.
func clip(s string) string {
	if len(s) <= quoteMax {
		return s
	}
	return Quote(s)
}

// bindList is the binds in an order that does not depend on how they were
// typed.
func bindList(binds []Bind) string {
	list := make([]string, 0, len(binds))
	for _, b := range binds {
		list = append(list, b.String())
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}
