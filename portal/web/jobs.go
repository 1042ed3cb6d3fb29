package web

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
)

type homeData struct {
	Offer       api.Offer
	Home        api.Home
	Cluster     *api.Cluster
	Sessions    []api.Job
	Stale       string
	Form        api.Start
	Typed       map[string]string // what the fields of numbers hold
	Problems    map[string]string
	First       string // the first field with a problem
	Advanced    bool
	GPUChoices  []int
	TimeChoices []int
	MaxNodes    int
	MaxCPUs     int
	ImageText   string
	AppTitle    string
	Runs        map[string]bool // apps that an offered image has
	Blocked     string
	Broken      string // why there is nothing to choose from
}

// dashboard shows the running sessions, the form for another, and the cluster.
func (s *Server) dashboard(c *gin.Context) {
	s.showHome(c, http.StatusOK, nil, nil)
}

// numbers are the fields of the start form that hold one.
var numbers = []string{"gpus", "minutes", "nodes", "cpus", "memory"}

// fieldOrder are the form's fields from top to bottom.
var fieldOrder = []string{"app", "image", "gpu_type", "gpus", "minutes", "name", "nodes", "cpus", "memory", "partition", "account", "qos"}

// advanced are those of them that are out of sight at first.
var advanced = fieldOrder[5:]

// problems are what is wrong with the fields, by their names in the form.
func problems(texts catalogue, refusal error) map[string]string {
	known, ok := errors.AsType[*client.RefusedError](refusal)
	if !ok {
		return nil
	}
	all := map[string]string{}
	for field, text := range known.What.Fields {
		words := known.What.FieldCodes[field]
		all[strings.TrimSuffix(field, "_mb")] = said(texts, words.Code, words.Args, text)
	}
	return all
}

// showHome shows the dashboard; form is what was sent if it was refused.
func (s *Server) showHome(c *gin.Context, status int, form *api.Start, refusal error) {
	body, err := s.backend.Dashboard(c.Request.Context(), token(c))
	if err != nil {
		s.fail(c, err)
		return
	}
	plain := form == nil && refusal == nil && c.Request.RequestURI == "/"
	if plain && s.again(c, body) {
		return
	}
	var got api.Dashboard
	if err := json.Unmarshal(body, &got); err != nil {
		s.fail(c, fmt.Errorf("read dashboard: %w", err))
		return
	}
	data := homeData{Offer: got.Offer, Home: got.Home, Cluster: &got.Cluster}
	if got.Broken != nil { // what runs goes on, and is shown
		data.Broken = s.say(c, &client.RefusedError{What: *got.Broken})
	}
	speak(&data.Offer, chooseLanguage(c.Request))
	texts, jobs := s.texts[chooseLanguage(c.Request)], got.Sessions
	data.Sessions, data.Stale = liveSessions(jobs.Jobs), stale(texts, jobs.Age, jobs.Problem, jobs.ProblemCode)
	data.Problems = problems(texts, refusal)
	data.fill(texts, form)
	for _, name := range numbers {
		if text, sent := c.GetPostForm(name); sent && form != nil {
			data.Typed[name] = text // as it was typed, a number or not
		}
	}
	v := view{Title: texts.text("nav.home"), Nav: "home", Me: &api.Me{User: got.User}}
	if refusal != nil {
		v.Notice = s.bad(c, refusal)
	}
	v.Data = data
	if plain {
		s.showKept(c, body, data, v)
		return
	}
	s.page(c, status, "dashboard", v)
}

// speak leaves of the site's descriptions those in the page's language, where the
// site has written any.
func speak(offer *api.Offer, language string) {
	for i := range offer.Images {
		image := &offer.Images[i]
		image.Description, image.Descriptions = cmp.Or(image.Descriptions[language], image.Description), nil
	}
	for i := range offer.Apps {
		app := &offer.Apps[i]
		app.Description, app.Descriptions = cmp.Or(app.Descriptions[language], app.Description), nil
	}
}

// fill prepares the form's choices out of the offer.
func (d *homeData) fill(texts catalogue, sent *api.Start) {
	d.Form = d.Offer.Default
	if sent != nil {
		d.Form = *sent
		def := d.Offer.Default
		d.Advanced = sent.Nodes > 1 || sent.CPUs > 0 || sent.MemoryMB > 0 || sent.Partition != def.Partition || sent.Account != "" || sent.QOS != "" || sent.Name != ""
	}
	if d.Form.ID == "" {
		d.Form.ID = newUUID()
	}
	d.Form.Nodes = max(1, d.Form.Nodes)
	filled := func(n int64) string {
		if n == 0 {
			return ""
		}
		return strconv.FormatInt(n, 10)
	}
	d.Typed = map[string]string{
		"gpus": strconv.Itoa(d.Form.GPUs), "minutes": strconv.Itoa(d.Form.Minutes), "nodes": strconv.Itoa(d.Form.Nodes),
		"cpus": filled(int64(d.Form.CPUs)), "memory": filled(d.Form.MemoryMB / mbPerGB),
	}
	for _, field := range fieldOrder {
		if d.Problems[field] == "" {
			continue
		}
		d.First = cmp.Or(d.First, field)
		d.Advanced = d.Advanced || slices.Contains(advanced, field)
	}
	d.choices()
	d.Runs = runnable(d.Offer.Images)
	for _, image := range d.Offer.Images {
		if image.Name == d.Form.Image {
			d.ImageText = image.Description
		}
	}
	d.AppTitle = appTitle(d.Form.App)
	for _, app := range d.Offer.Apps {
		if app.Name == d.Form.App {
			d.AppTitle = app.Title
		}
	}
	if limits := d.Offer.Limits; limits.Running > 0 && d.Offer.Used.Running >= limits.Running {
		d.Blocked = texts.number("start.toomany", limits.Running)
	}
}

// choices are what the form's lists of numbers hold, within the limits.
func (d *homeData) choices() {
	limits := d.Offer.Limits
	most := 0
	for _, g := range d.Offer.GPUs {
		most = max(most, g.PerNode)
	}
	if limits.GPUs > 0 {
		most = min(most, limits.GPUs)
	}
	for n := range most + 1 {
		if n <= 8 || n%4 == 0 {
			d.GPUChoices = append(d.GPUChoices, n)
		}
	}
	for _, n := range []int{30, 60, 120, 240, 480, 720, 1440, 2880, 4320, 10080, d.Form.Minutes} {
		if n > 0 && (limits.Minutes == 0 || n <= limits.Minutes || n == d.Form.Minutes) && !slices.Contains(d.TimeChoices, n) {
			d.TimeChoices = append(d.TimeChoices, n)
		}
	}
	slices.Sort(d.TimeChoices)
	for _, node := range d.Cluster.Nodes {
		d.MaxCPUs = max(d.MaxCPUs, node.CPUs)
	}
	d.MaxCPUs = cmp.Or(d.MaxCPUs, mostCPUs)
	d.MaxNodes = cmp.Or(d.Offer.Nodes, mostNodes)
	if limits.Nodes > 0 {
		d.MaxNodes = min(d.MaxNodes, limits.Nodes)
	}
}

const (
	mbPerGB = 1024
	// mostNodes and mostCPUs are what the form takes if nobody knows how many there are.
	mostNodes = 1024
	mostCPUs  = 4096
)

// runnable are the apps that one of the images has.
func runnable(images []api.OfferImage) map[string]bool {
	apps := map[string]bool{}
	for _, image := range images {
		for _, app := range image.Apps {
			apps[app] = true
		}
	}
	return apps
}

func newUUID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// liveSessions are the jobs with an app that have not ended.
func liveSessions(jobs []api.Job) []api.Job {
	var live []api.Job
	for _, job := range jobs {
		if job.Carme && job.App != "" && alive(job) {
			live = append(live, job)
		}
	}
	return live
}

// staleAfter is the age in seconds from which on a picture is called old.
const staleAfter = 20

func stale(texts catalogue, age int, problem, code string) string {
	switch {
	case problem != "" && age == 0: // there never was a picture
		return said(texts, code, nil, problem)
	case problem == "" && age <= staleAfter:
		return ""
	case age < minute:
		return texts.text("stale", texts.number("time.seconds", age))
	}
	return texts.text("stale", minutes(texts, age/minute))
}

const minute = 60 // seconds

// readForm is the start form as it was sent, and what is wrong with its numbers by
// their fields.
func readForm(c *gin.Context, texts catalogue) (api.Start, map[string]string) {
	problems := map[string]string{}
	number := func(name string, least int) int {
		text := strings.TrimSpace(c.PostForm(name))
		if text == "" {
			return least
		}
		n, err := strconv.Atoi(text)
		switch {
		case err != nil:
			problems[name] = texts.text("start.nonumber")
			return least
		case n < least:
			problems[name] = texts.text("start.least", least)
			return least
		}
		return min(n, numberMax)
	}
	return api.Start{
		ID: c.PostForm("id"), Image: c.PostForm("image"), App: c.PostForm("app"), GPUType: c.PostForm("gpu_type"),
		GPUs: number("gpus", 0), Nodes: number("nodes", 1), Minutes: number("minutes", 0), Name: strings.TrimSpace(c.PostForm("name")),
		Partition: c.PostForm("partition"), Account: strings.TrimSpace(c.PostForm("account")), QOS: strings.TrimSpace(c.PostForm("qos")),
		CPUs: number("cpus", 0), MemoryMB: int64(number("memory", 0)) * mbPerGB,
	}, problems
}

// numberMax is more than anything has: the backend says how much there is.
const numberMax = 1 << 20

// refuse is the refusal of a form with fields that hold no numbers, and with what
// else is wrong with it: all is said at once. To ask for a script starts nothing.
func (s *Server) refuse(c *gin.Context, in api.Start, wrong map[string]string) error {
	what := api.Error{Code: client.CodeInvalid, Message: s.text(c, "start.nonumber"), Fields: map[string]string{}}
	_, err := s.backend.Script(c.Request.Context(), token(c), in)
	if known, ok := errors.AsType[*client.RefusedError](err); ok {
		maps.Copy(what.Fields, known.What.Fields)
		what.FieldCodes = maps.Clone(known.What.FieldCodes)
	}
	for name, why := range wrong {
		field := name
		if name == "memory" {
			field = "memory_mb"
		}
		what.Fields[field] = why
		delete(what.FieldCodes, field)
	}
	return &client.RefusedError{What: what}
}

func (s *Server) start(c *gin.Context) {
	in, wrong := readForm(c, s.texts[chooseLanguage(c.Request)])
	if len(wrong) > 0 {
		s.showHome(c, http.StatusUnprocessableEntity, &in, s.refuse(c, in, wrong))
		return
	}
	job, err := s.backend.Start(c.Request.Context(), token(c), in)
	if s.suit(c, &in, err) {
		job, err = s.backend.Start(c.Request.Context(), token(c), in)
	}
	switch client.Code(err) {
	case "":
		c.Redirect(http.StatusSeeOther, "/jobs/"+cmp.Or(job.Intent, job.ID))
	case client.CodeInvalid, client.CodeLimit, client.CodeConflict:
		in.ID = "" // another try is another job
		s.showHome(c, http.StatusUnprocessableEntity, &in, err)
	case client.CodeUnavailable:
		// The same form, with the same id: sent again it is the same job.
		s.showHome(c, http.StatusServiceUnavailable, &in, err)
	default:
		s.fail(c, err)
	}
}

// suit takes another image if the one of a refused form lacks its app, and says
// whether it has: people choose an app, and without scripts nothing keeps the
// two lists together.
func (s *Server) suit(c *gin.Context, in *api.Start, refusal error) bool {
	known, ok := errors.AsType[*client.RefusedError](refusal)
	if !ok || known.What.Fields["app"] == "" {
		return false
	}
	offer, err := s.backend.Offer(c.Request.Context(), token(c))
	if err != nil {
		return false
	}
	has := func(image api.OfferImage) bool { return slices.Contains(image.Apps, in.App) }
	if slices.ContainsFunc(offer.Images, func(image api.OfferImage) bool { return image.Name == in.Image && has(image) }) {
		return false // that is not what is wrong
	}
	at := slices.IndexFunc(offer.Images, func(image api.OfferImage) bool { return image.Name == offer.Default.Image && has(image) })
	if at < 0 {
		at = slices.IndexFunc(offer.Images, has)
	}
	if at < 0 {
		return false
	}
	in.Image = offer.Images[at].Name
	return true
}

type scriptData struct{ Script string }

// wrongField is what is wrong with one field of the start form.
type wrongField struct{ ID, Label, Text string }

// unscripted is why a form has no script.
type unscripted struct {
	Text   string
	Fields []wrongField
}

func (s *Server) script(c *gin.Context) {
	in, wrong := readForm(c, s.texts[chooseLanguage(c.Request)])
	var script api.Script
	var err error
	if len(wrong) > 0 {
		err = s.refuse(c, in, wrong)
	} else if script, err = s.backend.Script(c.Request.Context(), token(c), in); s.suit(c, &in, err) {
		script, err = s.backend.Script(c.Request.Context(), token(c), in)
	}
	part := c.GetHeader("HX-Request") != ""
	switch code := client.Code(err); {
	case code == "" && part:
		s.fragment(c, "script", "script", view{Data: scriptData(script)})
	case code == "":
		s.page(c, http.StatusOK, "script", view{Title: s.text(c, "start.script"), Nav: "home", Me: me(c), Data: scriptData(script)})
	case code == client.CodeNoSession:
		s.fail(c, err)
	case part: // scripts take over answers of success only
		s.fragment(c, "script", "unscripted", view{Data: s.unscripted(c, err)})
	case code == client.CodeInvalid, code == client.CodeLimit:
		s.showHome(c, http.StatusUnprocessableEntity, &in, err)
	default:
		s.fail(c, err)
	}
}

// unscripted says what is wrong with a form, field by field.
func (s *Server) unscripted(c *gin.Context, refusal error) unscripted {
	texts := s.texts[chooseLanguage(c.Request)]
	all := problems(texts, refusal)
	if len(all) == 0 {
		return unscripted{Text: s.say(c, refusal)}
	}
	out := unscripted{Text: texts.text("script.refused")}
	for _, name := range fieldOrder {
		if text := all[name]; text != "" {
			out.Fields = append(out.Fields, wrongField{ID: name, Label: texts.text("start." + strings.ReplaceAll(name, "_", "")), Text: text})
			delete(all, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) { // of no field of the form
		out.Fields = append(out.Fields, wrongField{Text: all[name]})
	}
	return out
}

type jobsData struct {
	Jobs     []api.Job
	Sessions []api.Job
	Stale    string
}

// listed are the user's jobs that the backend is asked for, nil if an error was
// answered.
func (s *Server) listed(c *gin.Context, ask func(ctx context.Context, token string) (api.Jobs, error)) *jobsData {
	jobs, err := ask(c.Request.Context(), token(c))
	if err != nil {
		s.fail(c, err)
		return nil
	}
	slices.SortStableFunc(jobs.Jobs, func(a, b api.Job) int { // what can still be acted on comes first
		switch {
		case alive(a) == alive(b):
			return 0
		case alive(a):
			return -1
		}
		return 1
	})
	return &jobsData{Jobs: jobs.Jobs, Sessions: liveSessions(jobs.Jobs), Stale: stale(s.texts[chooseLanguage(c.Request)], jobs.Age, jobs.Problem, jobs.ProblemCode)}
}

func (s *Server) jobs(c *gin.Context) {
	if data := s.listed(c, s.backend.Jobs); data != nil {
		s.page(c, http.StatusOK, "jobs", view{Title: s.text(c, "jobs.title"), Nav: "jobs", Me: me(c), Data: *data})
	}
}

func (s *Server) jobsFragment(c *gin.Context) {
	if data := s.listed(c, s.backend.Jobs); data != nil {
		s.fragment(c, "jobs", "jobtable", view{Data: *data})
	}
}

func (s *Server) sessionsFragment(c *gin.Context) {
	if data := s.listed(c, s.backend.LiveJobs); data != nil {
		s.fragment(c, "dashboard", "sessions", view{Data: *data})
	}
}

func (s *Server) clusterFragment(c *gin.Context) {
	cluster, err := s.backend.Cluster(c.Request.Context(), token(c))
	if err != nil {
		s.fail(c, err)
		return
	}
	s.fragment(c, "dashboard", "cluster", view{Data: homeData{Cluster: &cluster}})
}

type jobData struct {
	Job       api.Job
	Stale     string
	Stream    string
	Output    api.Output
	PlotNames map[string]string
	OneFile   bool   // output and errors are one
	File      string // that the output is from
	Stopping  bool   // it was just told to stop
}

func (s *Server) oneJob(c *gin.Context) (api.Job, bool) {
	job, err := s.backend.Job(c.Request.Context(), token(c), c.Param("id"))
	if err != nil {
		s.fail(c, err)
		return job, false
	}
	return job, true
}

// tail is how much of an output a job's page begins with, in bytes.
const tail = 64 << 10

func (s *Server) job(c *gin.Context) {
	job, ok := s.oneJob(c)
	if !ok {
		return
	}
	texts := s.texts[chooseLanguage(c.Request)]
	data := newJobData(c, texts, job)
	id := c.Param("id") // of an array's number there may be another task by now
	data.Stopping = c.Query("done") == "stop" && alive(job) && (jobRef(job) == id || job.Intent == id)
	if job.ID != "" {
		output, err := s.backend.Output(c.Request.Context(), token(c), job.ID, data.Stream, -tail)
		if err != nil {
			output.Problem = s.say(c, err)
		}
		output.Problem = said(texts, output.Code, output.Args, output.Problem)
		data.Output = fromLine(unstyled(output))
	}
	s.page(c, http.StatusOK, "job", view{Title: jobName(texts, job), Nav: "jobs", Me: me(c), Data: data})
}

func newJobData(c *gin.Context, texts catalogue, job api.Job) jobData {
	data := jobData{Job: job, Stream: streamName(c), PlotNames: map[string]string{}}
	for _, name := range []string{"cpu_percent", "memory_mb", "gpu_percent", "gpu_memory_mb", "gpu_power_w", "io_read_mbps", "io_write_mbps", "values", "time"} {
		data.PlotNames[name] = texts.text("plot." + name)
	}
	if d := job.Detail; d != nil {
		data.Stale = stale(texts, d.Age, d.Problem, d.ProblemCode)
		data.OneFile = d.Error == "" || d.Error == d.Output
		data.File = d.Output
		if data.Stream == "err" && !data.OneFile {
			data.File = d.Error
		}
	}
	return data
}

// fromLine is the end of an output without the half of a line that it begins with.
func fromLine(output api.Output) api.Output {
	if output.Offset == 0 {
		return output
	}
	if half, rest, more := strings.Cut(output.Text, "\n"); more && rest != "" {
		output.Offset += int64(len(half) + 1)
		output.Text = rest
	}
	return output
}

// jobFragment is the whole of a job's page as it is now. The output and the
// plots, which scripts keep up to date, stay as the browser has them.
func (s *Server) jobFragment(c *gin.Context) {
	if job, ok := s.oneJob(c); ok {
		s.fragment(c, "job", "jobpage", view{Data: newJobData(c, s.texts[chooseLanguage(c.Request)], job)})
	}
}

func streamName(c *gin.Context) string {
	if c.Query("stream") == "err" {
		return "err"
	}
	return "out"
}

func (s *Server) output(c *gin.Context) {
	offset, err := strconv.ParseInt(c.Query("offset"), 10, 64)
	if err != nil {
		c.AbortWithStatus(http.StatusBadRequest)
		return
	}
	output, err := s.backend.Output(c.Request.Context(), token(c), c.Param("id"), streamName(c), offset)
	output.Problem = said(s.texts[chooseLanguage(c.Request)], output.Code, output.Args, output.Problem)
	s.json(c, unstyled(output), err)
}

func (s *Server) metrics(c *gin.Context) {
	metrics, err := s.backend.Metrics(c.Request.Context(), token(c), c.Param("id"))
	s.json(c, metrics, err)
}

func (s *Server) json(c *gin.Context, v any, err error) {
	switch client.Code(err) {
	case "":
		c.JSON(http.StatusOK, v)
	case client.CodeNoSession:
		c.AbortWithStatus(http.StatusUnauthorized)
	case client.CodeNotFound:
		c.AbortWithStatus(http.StatusNotFound)
	default:
		c.AbortWithStatus(http.StatusServiceUnavailable)
	}
}

type stopData struct {
	Job api.Job
	All bool // the whole array
}

// wholeArray is the value of the field array that means it.
const wholeArray = "all"

func (s *Server) stopPage(c *gin.Context) {
	if job, ok := s.oneJob(c); ok {
		data := stopData{Job: job, All: c.Query("array") == wholeArray && arrayOf(job) != ""}
		s.page(c, http.StatusOK, "stop", view{Title: s.text(c, "stop"), Nav: "jobs", Me: me(c), Data: data})
	}
}

func (s *Server) stop(c *gin.Context) {
	stop := s.backend.Stop
	if c.PostForm("array") == wholeArray {
		stop = s.backend.StopArray
	}
	if err := stop(c.Request.Context(), token(c), c.Param("id")); err != nil {
		s.fail(c, err)
		return
	}
	c.Redirect(http.StatusSeeOther, "/jobs/"+url.PathEscape(c.Param("id"))+"?done=stop")
}
