package config

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Ways in which a session of an app can be shared.
const (
	SharingNone = "none" // with nobody
	SharingView = "view" // others may look on
	SharingFull = "full" // others may work in it
)

// appFileMax is the longest of an app's Files, in bytes.
const appFileMax = 64 << 10

// SessionDir is where a job sees the directory of its session's socket.
const SessionDir = "/run/carme/sess"

// App describes a web application that a job can start: one file in apps.d, the
// same on the nodes, which start it, and on the head node, which offers it.
type App struct {
	Name        string `yaml:"name"`
	Title       string `yaml:"title"`
	Description Text   `yaml:"description"`
	// Icon is the name of one of the portal's icons.
	Icon string `yaml:"icon"`
	// Command and its arguments; {{socket}}, {{dir}}, {{home}}, {{user}},
	// {{job}}, {{runtime}}, {{files}} and {{session}} stand for the socket to listen on, the
	// session's directory, the user's home directory and name, the job's id,
	// XDG_RUNTIME_DIR, where Files are, and the program that runs the app.
	Command []string `yaml:"command"`
	// Socket is the name of the unix socket in the session's directory.
	Socket string `yaml:"socket"`
	// Path is where a browser starts.
	Path   string    `yaml:"path"`
	Health AppHealth `yaml:"health"`
	// Env is set for the app.
	Env map[string]string `yaml:"env"`
	// Files are written for the app before it starts, by their path below
	// {{files}}.
	Files map[string]string `yaml:"files"`
	// PythonHidden are Python modules that open ports of their own: with the
	// node's network, where others could reach them, the app does not find them.
	PythonHidden []string `yaml:"python_hidden"`
	// Images of the catalogue that have the app; all if empty.
	Images []string `yaml:"images"`
	// Sharing is none, view or full.
	Sharing string `yaml:"sharing"`
	// NetPrivate says that the app opens TCP ports that others on the node
	// could reach, so that it starts with --carme-net=private only.
	NetPrivate bool `yaml:"net_private"`
}

// AppHealth says when an app is ready.
type AppHealth struct {
	// Path that is asked for by GET over the socket.
	Path string `yaml:"path"`
	// Status codes that mean: ready.
	Status []int `yaml:"status"`
	// TimeoutSeconds after which the app is called slow; it is not ended.
	TimeoutSeconds int `yaml:"timeout_seconds"`
}

// RunsIn reports whether the image of that name has the app; "" is no image of
// the catalogue.
func (a *App) RunsIn(image string) bool {
	return len(a.Images) == 0 || slices.Contains(a.Images, image)
}

// LoadApps reads and checks the app descriptions, sorted by file. Without
// apps.d there are none. Those that are sound come beside the error, which is a
// ProblemsError, or that of opening Root.
func LoadApps(src Source) ([]App, error) {
	l, err := newLoader(src)
	if err != nil {
		return nil, err
	}
	defer l.close()
	var apps []App
	for _, name := range l.files(AppsDir) {
		data, ok := l.read(name)
		if !ok {
			continue
		}
		app := App{
			Socket: "app.sock", Path: "/", Sharing: SharingNone,
			Health: AppHealth{Path: "/", Status: []int{200}, TimeoutSeconds: 120},
		}
		f := l.decode(name, data, &app)
		if f == nil {
			continue
		}
		before := len(l.problems)
		f.checkApp(&app)
		if slices.ContainsFunc(apps, func(a App) bool { return a.Name == app.Name }) {
			f.fail("another file has an app of that name already", "name")
			continue
		}
		if len(l.problems) == before {
			apps = append(apps, app)
		}
	}
	return apps, l.problems.sorted()
}

var blank = pattern(`\{\{([^}]*)\}\}`)

// appBlanks are the words that Command may have in double braces.
func appBlanks() []string {
	return []string{"socket", "dir", "home", "user", "job", "runtime", "files", "session"}
}

func (f *file) checkApp(a *App) {
	switch {
	case a.Name == "":
		f.fail("the app has no name; add name: NAME")
	case !isImageName(a.Name):
		f.fail("is no name for an app; use letters, digits and ._+-", "name")
	}
	if a.Title == "" {
		a.Title = a.Name
	}
	for key, text := range map[string]string{"title": a.Title, "icon": a.Icon} {
		if !printable(text) {
			f.fail("must be one line of characters that can be printed", key)
		}
	}
	f.checkText(a.Description, "description")
	f.checkCommand(a.Command)
	if !isWord(a.Socket, 32, letters+digits, "._-") {
		f.fail("is no name of a socket; use up to 32 letters, digits and ._-", "socket")
	}
	for key, p := range map[string]string{"path": a.Path, "health": a.Health.Path} {
		if !path.IsAbs(p) || !printable(p) || strings.ContainsAny(p, " \\") || strings.HasPrefix(p, "//") {
			f.fail("must be a path of the app, from / on", key)
		}
	}
	if a.Health.TimeoutSeconds < 1 {
		f.fail("must be a second at least", "health", "timeout_seconds")
	}
	for i, code := range a.Health.Status {
		if code < 100 || code > 599 {
			f.fail("is no status of HTTP", "health", "status", i)
		}
	}
	f.checkAppFiles(a.Files)
	for i, name := range a.PythonHidden {
		// A module at the top, since it is hidden by a directory of its name.
		if !isWord(name, 64, letters+"_", digits) {
			f.fail("is no name of a Python module", "python_hidden", i)
		}
	}
	for name, value := range a.Env {
		f.checkVariable(name, value)
	}
	if !slices.Contains([]string{SharingNone, SharingView, SharingFull}, a.Sharing) {
		f.fail("is unknown; use none, view or full", "sharing")
	}
}

func (f *file) checkAppFiles(files map[string]string) {
	for name, text := range files {
		if !filepath.IsLocal(name) || path.Clean(name) != name || !printable(name) {
			f.fail("must be a path of a file below {{files}}, without .. in it", "files", name)
		}
		if len(text) > appFileMax {
			f.fail(fmt.Sprintf("is longer than %d bytes", appFileMax), "files", name)
		}
	}
}

func (f *file) checkCommand(command []string) {
	if len(command) == 0 || command[0] == "" {
		f.fail("the app has no command; add command: [PROGRAM, ARGUMENT...]")
	}
	for i, word := range command {
		if strings.ContainsRune(word, 0) {
			f.fail("has a NUL character", "command", i)
		}
		if !strings.Contains(word, "{{") {
			continue
		}
		for _, m := range blank().FindAllStringSubmatch(word, -1) {
			if !slices.Contains(appBlanks(), m[1]) {
				f.fail(fmt.Sprintf("{{%s}} is unknown; there are %s", m[1], strings.Join(appBlanks(), ", ")), "command", i)
			}
		}
	}
}
