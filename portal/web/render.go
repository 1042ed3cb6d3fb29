package web

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/carme-hpc/carme/internal/version"
	"github.com/carme-hpc/carme/internal/wire/api"
)

//go:embed templates/*.html
var templateFiles embed.FS

// view is what every template gets.
type view struct {
	Lang, Theme, CSRF, Title, Nav, Here, Version string
	Wide                                         bool
	Once                                         bool // what the page shows is shown no second time
	Me                                           *api.Me
	Notice                                       *notice
	Data                                         any
}

// notice is one line above a page's content.
type notice struct {
	Kind string // ok, busy, bad
	Text string
}

// loadTemplates finds the pages. Each is parsed with the shared templates, once per
// language, when it is asked for first: all of them are nine tenths of the portal's
// heap at rest, and many sites never show half of them.
func (s *Server) loadTemplates() error {
	s.pages = map[string]func() (*template.Template, error){}
	names, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return fmt.Errorf("list templates: %w", err)
	}
	for lang, texts := range s.texts {
		for _, name := range names {
			page := strings.TrimSuffix(strings.TrimPrefix(name, "templates/"), ".html")
			if page == "layout" || page == "fragments" {
				continue
			}
			s.pages[lang+"/"+page] = sync.OnceValues(func() (*template.Template, error) {
				return template.New(page).Funcs(s.functions(texts)).
					ParseFS(templateFiles, "templates/layout.html", "templates/fragments.html", name)
			})
		}
	}
	return nil
}

// page answers with a whole page.
func (s *Server) page(c *gin.Context, status int, name string, v view) {
	s.render(c, status, name, "main", v)
}

// fragment answers with a part of a page, which a browser that has it already
// is not sent again.
func (s *Server) fragment(c *gin.Context, page, name string, v view) {
	s.render(c, http.StatusOK, page, name, v)
}

func (s *Server) render(c *gin.Context, status int, page, name string, v view) {
	r := c.Request
	v.CSRF = csrfToken(c)
	out, ok := s.made(c, page, name, v)
	if !ok {
		return
	}
	h := c.Writer.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	if name != "main" && status == http.StatusOK {
		sum := sha256.Sum256(out.Bytes())
		tag := `"` + hex.EncodeToString(sum[:12]) + `"`
		h.Set("ETag", tag) // scripts keep it: the browser stores no part of a page
		if r.Header.Get("If-None-Match") == tag {
			c.Status(http.StatusNotModified)
			c.Writer.WriteHeaderNow()
			return
		}
	}
	c.Status(status)
	_, _ = c.Writer.Write(out.Bytes()) // the browser is gone or not
}

// made is a page for this request, not sent yet. If it cannot be made, that was
// answered.
func (s *Server) made(c *gin.Context, page, name string, v view) (out bytes.Buffer, ok bool) {
	r := c.Request
	v.Lang, v.Theme, v.Version, v.Here = chooseLanguage(r), theme(r), version.String(), here(r)
	parsed, err := s.pages[v.Lang+"/"+page]()
	if err == nil {
		err = parsed.ExecuteTemplate(&out, name, v)
	}
	if err != nil {
		s.log.ErrorContext(r.Context(), "page: cannot be made", "page", page, "error", err)
		c.AbortWithStatus(http.StatusInternalServerError)
		return out, false
	}
	return out, true
}

// here is the page to come back to after a choice of language or colours. A step
// of the login is one of its own, also after a wrong code.
func here(r *http.Request) string {
	switch {
	case r.Method == http.MethodGet:
		return r.URL.RequestURI()
	case !strings.HasPrefix(r.URL.Path, "/login"):
		return "/"
	}
	query := url.Values{}
	if next := nextPath(r.PostFormValue("next")); next != "/" {
		query.Set("next", next)
	}
	if r.PostFormValue("recovery") != "" {
		query.Set("recovery", "1")
	}
	return strings.TrimSuffix(r.URL.Path+"?"+query.Encode(), "?")
}

func (s *Server) functions(texts catalogue) template.FuncMap {
	t := texts.text
	return template.FuncMap{
		"t":         t,
		"asset":     s.assets.url,
		"icon":      s.icon,
		"appicon":   s.appIcon,
		"time":      func(at time.Time) template.HTML { return timeTag(at, "", "2006-01-02 15:04 UTC") },
		"shorttime": func(at time.Time) template.HTML { return timeTag(at, " data-short", "15:04:05 UTC") },
		"neartime":  func(at time.Time) template.HTML { return timeTag(at, " data-near", "2006-01-02 15:04 UTC") },
		"minutes":   func(n int) string { return minutes(texts, n) },
		"megabytes": megabytes,
		"gigabytes": func(mb int64) int64 { return mb / 1024 },
		"percent":   percent,
		"limit":     limit,
		"gpus":      gpuText,
		"upper":     strings.ToUpper,
		"resources": func(j api.Job) string { return resources(texts, j) },
		"stage":     func(v any) string { return stageText(texts, v) },
		"stagekind": stageKind,
		"steps":     func(j api.Job) []step { return steps(texts, j) },
		"alive":     alive,
		"failed":    failed,
		"said":      func(code string, args []string, text string) string { return said(texts, code, args, text) },
		"jobref":    jobRef,
		"jobname":   func(j api.Job) string { return jobName(texts, j) },
		"appurl":    s.appURL,
		"apptitle":  appTitle,
		"nodesup":   nodesUp,
		"invalid":   invalid,
		"why":       why,
		"timing":    func(j api.Job) timing { return timingOf(texts, j, s.now()) },
		"reason":    func(r string) string { return reason(texts, r) },
		"inFours":   inFours,
		"future":    func(at time.Time) bool { return at.After(s.now()) },
		"onscreen":  onScreen,
		"arrayof":   arrayOf,
		"jobcalled": func(j api.Job) string { return jobCalled(texts, j) },
		"stoptext":  func(j api.Job) string { return stopText(texts, j) },
		"browser":   func(agent string) string { return browserName(texts, agent) },
	}
}

// icon is one of the icons that build.mjs collected; its content is from the
// build, not from anybody's input.
func (s *Server) icon(name string) template.HTML {
	return template.HTML(`<svg class="icon" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">` + s.assets.icons[name] + `</svg>`) //nolint:gosec // as above
}

// appIcon is the icon of an app by the name in its description.
func (s *Server) appIcon(name string) template.HTML {
	for _, known := range appIcons {
		if strings.Contains(strings.ToLower(name), known.part) {
			return s.icon(known.icon)
		}
	}
	return s.icon("app-window")
}

// appIcons are named here as build.mjs looks for them: icon "notebook",
// icon "code", icon "terminal-2", icon "chart-line", icon "app-window".
var appIcons = []struct{ part, icon string }{
	{"jupyter", "notebook"}, {"notebook", "notebook"}, {"code", "code"}, {"terminal", "terminal-2"}, {"board", "chart-line"}, {"plot", "chart-line"},
}

// timeTag is a time as it is without scripts; the kind tells scripts how they
// say it in the browser's own zone.
func timeTag(at time.Time, kind, layout string) template.HTML {
	if at.IsZero() {
		return "–"
	}
	at = at.UTC()
	return template.HTML(`<time datetime="` + at.Format(time.RFC3339) + `"` + kind + `>` + at.Format(layout) + `</time>`) //nolint:gosec // digits, and the templates' own words
}

func minutes(texts catalogue, n int) string {
	switch {
	case n >= 24*60 && n%(24*60) == 0:
		return texts.number("time.days", n/(24*60))
	case n >= 60 && n%60 == 0:
		return texts.number("time.hours", n/60)
	case n > 60:
		return texts.text("time.mixed", n/60, n%60)
	}
	return texts.number("time.minutes", n)
}

func megabytes(mb int64) string {
	switch {
	case mb >= 10<<20:
		return fmt.Sprintf("%.0f TB", float64(mb)/(1<<20))
	case mb >= 1<<20:
		return fmt.Sprintf("%.1f TB", float64(mb)/(1<<20))
	case mb >= 1<<10:
		return fmt.Sprintf("%.0f GB", float64(mb)/(1<<10))
	}
	return fmt.Sprintf("%d MB", mb)
}

func percent(part, whole int) int {
	if whole <= 0 {
		return 0
	}
	return int(math.Round(100 * float64(min(part, whole)) / float64(whole)))
}

func limit(used, most int) string {
	if most == 0 {
		return fmt.Sprint(used)
	}
	return fmt.Sprintf("%d / %d", used, most)
}

func gpuText(gpus []api.JobGPUs) string {
	var parts []string
	for _, g := range gpus {
		if g.Count > 0 {
			parts = append(parts, fmt.Sprintf("%d × %s", g.Count, cmp.Or(strings.ToUpper(g.Type), "GPU")))
		}
	}
	return strings.Join(parts, ", ")
}

func resources(texts catalogue, j api.Job) string {
	parts := []string{}
	if text := gpuText(j.GPUs); text != "" {
		parts = append(parts, text)
	}
	if j.NodeCount > 1 {
		parts = append(parts, texts.number("nodes", j.NodeCount))
	}
	if j.CPUs > 0 {
		parts = append(parts, texts.number("cpus", j.CPUs))
	}
	if j.MemoryMB > 0 {
		parts = append(parts, megabytes(j.MemoryMB))
	}
	return strings.Join(parts, ", ")
}

var stageOrder = []string{api.StageQueued, api.StageAllocated, api.StageImage, api.StageApp, api.StageReady}

// stageOf is the stage to show: a job that is no session has two.
// stageOf is how far a job is, and whether there is an app to wait for.
func stageOf(v any) (stage, state string, app bool) {
	switch j := v.(type) {
	case api.Job:
		return j.Stage, j.State, j.App != ""
	case *api.Job:
		return j.Stage, j.State, j.App != ""
	}
	return "", "", false
}

func stageText(texts catalogue, v any) string {
	stage, state, app := stageOf(v)
	switch {
	case stage == api.StageEnded && (state == "FAILED" || state == "TIMEOUT" || state == "CANCELLED" || state == "OUT_OF_MEMORY" || state == "NODE_FAIL" || state == "PREEMPTED"):
		return texts.text("state." + strings.ToLower(state))
	case !app && state == "RUNNING":
		return texts.text("state.running")
	case stage == "":
		return state
	}
	return texts.text("stage." + stage)
}

func stageKind(v any) string {
	stage, state, app := stageOf(v)
	switch stage {
	case api.StageReady:
		return "ok"
	case api.StageFailed:
		return "bad"
	case api.StageEnded:
		if state == "FAILED" || state == "TIMEOUT" || state == "OUT_OF_MEMORY" || state == "NODE_FAIL" {
			return "bad"
		}
		return "over"
	}
	if !app && state == "RUNNING" {
		return "ok"
	}
	return "busy"
}

// step is one of a session's way to its app.
type step struct{ Text, Kind string }

func steps(texts catalogue, j api.Job) []step {
	at := slices.Index(stageOrder, j.Stage)
	over := j.Stage == api.StageEnded || j.Stage == api.StageFailed
	if over {
		at = reached(j)
	}
	all := make([]step, 0, len(stageOrder))
	for i, stage := range stageOrder {
		one := step{Text: texts.text("stage." + stage), Kind: "next"}
		switch {
		case i < at, i == at && (over || stage == api.StageReady):
			one.Kind = "done"
		case i == at:
			one.Kind = "now"
		}
		all = append(all, one)
	}
	return all
}

// reached is the last stage in an ended job's log.
func reached(j api.Job) int {
	last := -1
	if j.Detail != nil {
		for _, one := range j.Detail.Log {
			last = max(last, slices.Index(stageOrder, one.Stage))
		}
	}
	return last
}

func alive(j api.Job) bool { return j.Stage != api.StageEnded && j.Stage != api.StageFailed }

func failed(j api.Job) bool { return stageKind(j) == "bad" }

// said is what the backend says by a code, in the page's language; text is what
// it says in English, for codes that are younger than this portal.
func said(texts catalogue, code string, args []string, text string) string {
	known, ok := texts["said."+code]
	if !ok || strings.Count(known, "{") != len(args) {
		return text
	}
	all := make([]any, len(args))
	for i, arg := range args {
		all[i] = arg
	}
	return texts.text("said."+code, all...)
}

// jobRef is how a URL names a job: by Slurm's id, or by its intent as long as
// it has none.
func jobRef(j api.Job) string {
	if j.ID == "" {
		return j.Intent
	}
	// What of an array waits, 123_[4-9], changes with every task that begins.
	array, _, _ := strings.Cut(j.ID, "_[")
	return array
}

// arrayOf is the number of the array to which a job belongs, empty if to none.
func arrayOf(j api.Job) string {
	array, _, is := strings.Cut(j.ID, "_")
	if !is {
		return ""
	}
	return array
}

func jobName(texts catalogue, j api.Job) string {
	switch {
	case j.Name != "" && j.Name != j.App:
		return j.Name
	case j.App != "":
		return appTitle(j.App)
	}
	return texts.text("job.number", j.ID)
}

// jobCalled is a job's name for those who hear one link of many: several sessions may
// have the same name.
func jobCalled(texts catalogue, j api.Job) string {
	if j.ID == "" || jobName(texts, j) == texts.text("job.number", j.ID) {
		return jobName(texts, j)
	}
	return texts.text("job.called", jobName(texts, j), j.ID)
}

// appURL is where a session is entered, empty as long as it cannot be.
func (s *Server) appURL(j api.Job) string {
	if j.Host == "" || j.Stage != api.StageReady {
		return ""
	}
	origin, ok := s.appOrigin(j.Host)
	if !ok {
		return ""
	}
	return origin + "/"
}

// appTitle is an app's name as people write it.
func appTitle(name string) string {
	switch name {
	case "jupyterlab":
		return "JupyterLab"
	case "tensorboard":
		return "TensorBoard"
	case "":
		return ""
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

func nodesUp(nodes []api.ClusterNode) int {
	up := 0
	for _, node := range nodes {
		state := strings.ToUpper(node.State)
		if !strings.Contains(state, "DOWN") && !strings.Contains(state, "DRAIN") && !strings.Contains(state, "FAIL") {
			up++
		}
	}
	return up
}

// reason is why a job waits: what Slurm's word means if that is known, else the
// word.
func reason(texts catalogue, slurm string) string {
	word, _, _ := strings.Cut(slurm, ",") // details may follow
	if text, ok := texts["reason."+word]; ok {
		return text
	}
	for _, family := range []string{"Assoc", "QOS", "Partition", "ReqNodeNotAvail", "Nodes"} {
		if strings.HasPrefix(word, family) {
			return texts.text("reason."+family+"…", slurm)
		}
	}
	return texts.text("reason", slurm)
}

// invalid marks a field of the start form that has a problem.
func invalid(d homeData, name string) template.HTMLAttr {
	if d.Problems[name] == "" {
		return ""
	}
	focus := ""
	if name == d.First {
		focus = " autofocus"
	}
	return template.HTMLAttr(`aria-invalid="true" aria-describedby="` + name + `-problem"` + focus) //nolint:gosec // the templates' own names
}

// why is the line below such a field.
func why(d homeData, name string) template.HTML {
	text := d.Problems[name]
	if text == "" {
		return ""
	}
	return template.HTML(`<p class="field-problem" id="` + name + `-problem">` + template.HTMLEscapeString(text) + `</p>`) //nolint:gosec // escaped
}

// timing is how a job stands in time.
type timing struct {
	From, Till time.Time // Till is the limit of one that runs
	Took       string
	Used       int // percent of the limit
	Running    bool
}

func timingOf(texts catalogue, j api.Job, now time.Time) timing {
	t := timing{From: j.Started}
	switch {
	case j.Started.IsZero():
	case alive(j):
		t.Running = true
		if j.Minutes > 0 {
			t.Till = j.Started.Add(time.Duration(j.Minutes) * time.Minute)
			t.Used = percent(int(now.Sub(j.Started).Minutes()), j.Minutes)
		}
	case !j.Ended.Before(j.Started):
		took := max(time.Second, j.Ended.Sub(j.Started).Round(time.Second)) // Slurm counts in seconds
		if took < time.Minute {
			t.Took = texts.number("time.seconds", int(took.Seconds()))
		} else {
			t.Took = minutes(texts, int(took.Round(time.Minute).Minutes()))
		}
	}
	return t
}

// browserName is what a person calls the browser with this User-Agent.
func browserName(texts catalogue, agent string) string {
	find := func(parts [][2]string) string {
		for _, part := range parts {
			if strings.Contains(agent, part[0]) {
				return part[1]
			}
		}
		return ""
	}
	browser := find([][2]string{{"Edg/", "Edge"}, {"OPR/", "Opera"}, {"Firefox/", "Firefox"}, {"Chrome/", "Chrome"}, {"Safari/", "Safari"}})
	system := find([][2]string{{"Android", "Android"}, {"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Windows", "Windows"}, {"Mac OS", "macOS"}, {"Linux", "Linux"}})
	switch {
	case browser == "":
		return texts.text("browser.unknown")
	case system == "":
		return browser
	}
	return texts.text("browser", browser, system)
}

// inFours is a key as people copy it by hand.
func inFours(key string) string {
	var parts []string
	for part := range slices.Chunk([]byte(key), 4) {
		parts = append(parts, string(part))
	}
	return strings.Join(parts, " ")
}

// stopText is what happens when a job is stopped. Of an array the row that waits is one
// of its own.
func stopText(texts catalogue, j api.Job) string {
	if strings.Contains(j.ID, "[") {
		return texts.text("stop.text.waiting")
	}
	return texts.text("stop.text", j.ID)
}
