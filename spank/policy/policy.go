package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/spank/request"
)

// User is who the job belongs to, as the node knows him or her.
type User struct {
	Name     string
	UID, GID uint32
	// Groups are the names of all groups, the primary one included.
	Groups []string
}

// Resolved is a request that the policy allows, with every default filled in.
type Resolved struct {
	// Request has Net, Home and Overlay set, and Image as named, or
	// request.ImageNone. Binds are the user's own.
	Request request.Request
	// Image to run in, nil for none. For an image given by path it has no
	// name.
	Image *config.Image
	// Binds are all binds of the job: the site's, the image's, the user's.
	// Those not of the user are left out where the node lacks the source.
	Binds []Bind
	// App to start in the job, nil for none.
	App *config.App
	// Env is what the image's entry sets, as NAME=value, sorted.
	Env []string
}

// Bind is a bind with its origin.
type Bind struct {
	request.Bind
	// Own says that the user asked for it: it is opened as the user, and a
	// source that is missing is an error.
	Own bool
}

// Policy is the configuration of a node, as decisions.
type Policy struct {
	cfg *config.Config
}

// New returns the policy that cfg describes.
func New(cfg *config.Config) *Policy { return &Policy{cfg: cfg} }

// Resolve fills in the defaults of r and decides whether the user may have it.
// The error is a request.Errors: one line with everything that is refused, and
// what to write instead.
func (p *Policy) Resolve(r request.Request, u User) (Resolved, error) {
	if !r.Enabled {
		return Resolved{Request: r}, nil
	}
	out := Resolved{Request: r}
	var errs request.Errors
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	var err error
	s := p.cfg.Spank
	if r.App != "" {
		out.App, err = p.app(r.App)
		note(about(request.OptApp, err))
		if out.App != nil && out.App.NetPrivate && r.Net == "" {
			r.Net = request.NetPrivate
		}
	}
	out.Request.Net, err = choose(request.OptNet, r.Net, s.Net)
	note(err)
	out.Request.Home, err = choose(request.OptHome, r.Home, s.Home)
	note(err)
	out.Image, err = p.image(r.Image, u)
	note(about(request.OptCarme, err))
	if out.Image == nil {
		out.Request.Image = request.ImageNone
	} else if r.Image == "" {
		out.Request.Image = out.Image.Name
	}
	if err == nil {
		out.Request.Overlay, err = p.overlay(r.Overlay, out.Image)
		note(err)
		out.Binds, err = p.binds(ownBinds(r, out.Image), r.Binds, out.Image, u)
		note(err)
	}
	note(about(request.OptApp, fits(out.App, out.Image, out.Request.Net)))
	if len(errs) > 0 {
		return Resolved{}, errs
	}
	out.Env = env(out.Image)
	return out, nil
}

// about says which option an error is about.
func about(option string, err error) error {
	if err == nil {
		return nil
	}
	return &request.AboutError{Option: option, Err: err}
}

// Images are the entries of the catalogue for request.List.
func (p *Policy) Images() []request.Image {
	images := make([]request.Image, 0, len(p.cfg.Images))
	for _, i := range p.cfg.Images {
		images = append(images, request.Image{
			Name: i.Name, Description: i.Description.String(), Groups: i.Groups, Default: i.Name == p.cfg.Spank.DefaultImage,
		})
	}
	return images
}

// ImageNames are the names of the catalogue's entries that the user may use.
func (p *Policy) ImageNames(groups []string) []string {
	var names []string
	for _, i := range p.Images() {
		if i.VisibleTo(groups) {
			names = append(names, i.Name)
		}
	}
	return names
}

// AllowsSource reports whether the user may show the clean absolute path in a
// job at target, and whether read-only only. It is asked again with the path
// that a link led to.
func (p *Policy) AllowsSource(source, target string, u User) (allowed, readOnly bool) {
	if request.CheckSource(source) != nil {
		return false, false
	}
	readOnly = true
	for _, rule := range p.cfg.Spank.Binds.Allow {
		if !config.Match(rule.Source, source, u.Name) || rule.Target != "" && !config.Match(rule.Target, target, u.Name) {
			continue
		}
		allowed = true
		if rule.Mode == config.ReadWrite {
			readOnly = false
		}
	}
	return allowed, readOnly
}

// AllowsImage reports whether the user may run the image file or directory at
// the clean absolute path. It is asked again with the path that a link led to.
func (p *Policy) AllowsImage(path string, u User) bool {
	if request.CheckSource(path) != nil {
		return false
	}
	return slices.ContainsFunc(p.cfg.Spank.Images.AllowPaths, func(pattern string) bool {
		return config.Match(pattern, path, u.Name)
	})
}

// choose returns what is asked for if it is allowed, the default if nothing is.
func choose(option, asked string, c config.Choice) (string, error) {
	if asked == "" {
		return c.Default, nil
	}
	if !slices.Contains(c.Allowed, asked) {
		return "", fmt.Errorf("--%s=%s is not allowed on this cluster; use %s", option, asked, strings.Join(c.Allowed, " or "))
	}
	return asked, nil
}

// image finds the image asked for, nil for none.
func (p *Policy) image(name string, u User) (*config.Image, error) {
	switch {
	case name == request.ImageNone:
		return nil, nil
	case name == "" && p.cfg.Spank.DefaultImage == "":
		return nil, nil
	case name == "":
		return p.named(p.cfg.Spank.DefaultImage, u)
	case name[0] != '/':
		return p.named(name, u)
	case !p.AllowsImage(name, u):
		return nil, fmt.Errorf("image %s: %s", request.Quote(name), p.imagePlaces(u))
	}
	return &config.Image{Path: name, AllowBinds: true, NV: true, Format: config.FormatAuto}, nil
}

func (p *Policy) imagePlaces(u User) string {
	var places []string
	for _, pattern := range p.cfg.Spank.Images.AllowPaths {
		places = append(places, place(pattern, u))
	}
	if len(places) == 0 {
		return "images by path are not allowed on this cluster; name one of --carme=list"
	}
	return "images are not allowed there; put it below " + strings.Join(places, " or ") + ", or name one of --carme=list"
}

// named finds an image of the catalogue. Whether a name does not exist or the
// user may not use it is not told apart.
func (p *Policy) named(name string, u User) (*config.Image, error) {
	img := p.cfg.Image(name)
	visible := p.ImageNames(u.Groups)
	if img != nil && slices.Contains(visible, name) {
		return img, nil
	}
	const most = 8
	switch {
	case strings.HasSuffix(name, ".sif"):
		return nil, fmt.Errorf("there is no image %s that you may use; a file is written from / on, a name is one of --carme=list", request.Quote(name))
	case len(visible) == 0:
		return nil, fmt.Errorf("there is no image %s that you may use; --carme=none isolates without an image", request.Quote(name))
	case len(visible) > most:
		return nil, fmt.Errorf("there is no image %s that you may use; --carme=list shows those there are", request.Quote(name))
	}
	slices.Sort(visible)
	return nil, fmt.Errorf("there is no image %s that you may use; there are: %s", request.Quote(name), strings.Join(visible, ", "))
}

// app finds the app asked for.
func (p *Policy) app(name string) (*config.App, error) {
	if a := p.cfg.App(name); a != nil {
		return a, nil
	}
	names := make([]string, 0, len(p.cfg.Apps))
	for _, a := range p.cfg.Apps {
		names = append(names, a.Name)
	}
	if len(names) == 0 {
		return nil, errors.New("this cluster offers no apps; leave --carme-app out")
	}
	return nil, fmt.Errorf("there is no app %s; there are: %s", request.Quote(name), strings.Join(names, ", "))
}

// fits refuses an app that the image does not have, or that would be within
// others' reach on the node's network.
func fits(a *config.App, img *config.Image, net string) error {
	if a == nil {
		return nil
	}
	name := ""
	if img != nil {
		name = img.Name
	}
	switch {
	case img == nil && len(a.Images) > 0, name != "" && !a.RunsIn(name):
		return fmt.Errorf("app %s needs an image that has it; use --carme=%s", a.Name, strings.Join(a.Images, " or --carme="))
	case a.NetPrivate && net != request.NetPrivate:
		return fmt.Errorf("app %s opens ports that others on the node could reach; use --carme-net=private", a.Name)
	}
	return nil
}

// overlay decides where writes to the image go.
func (p *Policy) overlay(asked string, img *config.Image) (string, error) {
	if img == nil {
		if asked != "" && asked != request.OverlayNone {
			return "", errors.New("--carme-overlay is for images, and this job has none; add --carme=IMAGE or leave it out")
		}
		return request.OverlayNone, nil
	}
	if !strings.HasPrefix(asked, "/") {
		return choose(request.OptOverlay, asked, p.cfg.Spank.Overlay)
	}
	if slices.Contains(p.cfg.Spank.Overlay.Allowed, config.OverlayDir) {
		return asked, nil
	}
	return "", fmt.Errorf("--carme-overlay with a directory is not allowed on this cluster; use %s", strings.Join(p.cfg.Spank.Overlay.Allowed, " or "))
}

// ownBinds are the binds of the user that count: those of Apptainer's variables
// in an image only, and not at a place where an option puts something.
func ownBinds(r request.Request, img *config.Image) []request.Bind {
	if img == nil {
		return r.Binds
	}
	own := slices.Clone(r.Binds)
	for _, b := range r.ImageBinds {
		if !slices.ContainsFunc(own, func(a request.Bind) bool { return a.Dst == b.Dst }) {
			own = append(own, b)
		}
	}
	return own
}

// binds joins the binds of the site, the image and the user. Those of the image
// replace those of the site at the same place. asked are those of the user's that
// an option names.
func (p *Policy) binds(own, asked []request.Bind, img *config.Image, u User) ([]Bind, error) {
	binds := given(p.cfg.Spank.Binds.Default)
	if img != nil {
		for _, b := range given(img.Binds) {
			binds = slices.DeleteFunc(binds, func(a Bind) bool { return a.Dst == b.Dst })
			binds = append(binds, b)
		}
		if !img.AllowBinds && len(own) > 0 {
			return nil, aboutBind(own[0], asked, fmt.Errorf("image %s takes no binds; leave --carme-bind out", img.Name))
		}
	}
	var errs request.Errors
	for _, b := range own {
		allowed, readOnly := p.AllowsSource(b.Src, b.Dst, u)
		refuse := func(format string, args ...any) {
			errs = append(errs, aboutBind(b, asked, fmt.Errorf("bind %s"+format, append([]any{request.Quote(b.String())}, args...)...)))
		}
		switch {
		case !allowed:
			refuse(": %s", p.bindPlaces(u))
		case readOnly && !b.ReadOnly:
			refuse(" is allowed read-only; write %s:%s:ro", shown(b.Src), shown(b.Dst))
		case slices.ContainsFunc(binds, func(a Bind) bool { return a.Dst == b.Dst }):
			refuse(": the site puts something else there; choose another place")
		default:
			binds = append(binds, Bind{Bind: b, Own: true})
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return binds, nil
}

// aboutBind says where a bind that is refused comes from.
func aboutBind(b request.Bind, asked []request.Bind, err error) error {
	if slices.Contains(asked, b) {
		return about(request.OptBind, err)
	}
	name := request.ApptainerBinds()[0]
	return fmt.Errorf("%s: %s", name, strings.ReplaceAll(err.Error(), "--"+request.OptBind, name))
}

func (p *Policy) bindPlaces(u User) string {
	const most = 6
	var places []string
	for _, rule := range p.cfg.Spank.Binds.Allow {
		text := place(rule.Source, u)
		if rule.Target != "" {
			text += " at " + place(rule.Target, u)
		}
		places = append(places, text)
	}
	switch {
	case len(places) == 0:
		return "users cannot bind paths on this cluster; leave --carme-bind out"
	case len(places) > most:
		places = append(places[:most], "...")
	}
	return "not allowed on this cluster; what can be bound: " + strings.Join(places, ", ")
}

// place is a pattern as a message shows it to the user. A name that is a trap
// is not repeated.
func place(pattern string, u User) string {
	if !request.ValidName(u.Name) {
		return pattern
	}
	return strings.ReplaceAll(pattern, "$USER", u.Name)
}

// shown is a path in a remedy, shortened like one in a cause.
func shown(path string) string {
	q := request.Quote(path)
	if strings.HasSuffix(q, "...") {
		return "..."
	}
	return path
}

func given(binds []config.Bind) []Bind {
	out := make([]Bind, 0, len(binds))
	for _, b := range binds {
		out = append(out, Bind{Bind: request.Bind{Src: b.Source, Dst: b.Target, ReadOnly: b.Mode != config.ReadWrite}})
	}
	return out
}

func env(img *config.Image) []string {
	if img == nil {
		return nil
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(img.Env)) {
		out = append(out, name+"="+img.Env[name])
	}
	return out
}
