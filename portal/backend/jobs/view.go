package jobs

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	statePending = "PENDING"
	// stateCompleting is after the end, while Slurm cleans up.
	stateCompleting = "COMPLETING"
	// historyFor and historyMax bound which ended jobs of the portal are listed.
	historyFor = 14 * 24 * time.Hour
	historyMax = 50
)

func joinPort(addr, port string) string { return net.JoinHostPort(addr, port) }

// gpuTRES is gres/gpu:a100=2 or gres/gpu=2, in TRES strings.
var gpuTRES = regexp.MustCompile(`^gres/gpu(?::([A-Za-z0-9_.-]+))?[=:](\d+)$`)

// gpusOf reads how many GPUs a TRES string has, by type. The count without type
// includes those with one.
func gpusOf(tres string) []api.JobGPUs {
	if !strings.Contains(tres, "gres/gpu") { // most jobs of most clusters, and there may be thousands
		return []api.JobGPUs{}
	}
	counts := map[string]int{}
	for part := range strings.SplitSeq(tres, ",") {
		if m := gpuTRES.FindStringSubmatch(part); m != nil {
			n, err := strconv.Atoi(m[2])
			if err == nil {
				counts[m[1]] += n
			}
		}
	}
	typed := 0
	for kind, n := range counts {
		if kind != "" {
			typed += n
		}
	}
	if counts[""] -= typed; counts[""] <= 0 {
		delete(counts, "")
	}
	out := []api.JobGPUs{}
	for kind, n := range counts {
		out = append(out, api.JobGPUs{Type: kind, Count: n})
	}
	slices.SortFunc(out, func(a, b api.JobGPUs) int { return strings.Compare(a.Type, b.Type) })
	return out
}

// intent is a row of a submission.
type intent struct {
	ID       string
	UserName string
	UID      int64
	Body     string
	State    string
	Job      int64
	Problem  string
	Created  int64
	Updated  int64
	Final    string
}

const intentColumns = "id, user_name, uid, body, state, job, problem, created, updated, final"

// States of an intent.
const (
	intentSending = "sending"
	intentUnknown = "unknown"
	intentJob     = "job"
	intentFailed  = "failed"
)

func (i *intent) start() api.Start {
	var in api.Start
	_ = json.Unmarshal([]byte(i.Body), &in) // written by Start
	return in
}

// asJob is a submission that Slurm does not have, or has forgotten.
// at is when Slurm was last asked.
func (i *intent) asJob(at time.Time) api.Job {
	var j api.Job
	if i.Final != "" && json.Unmarshal([]byte(i.Final), &j) == nil {
		return j
	}
	in := i.start()
	j = api.Job{
		Intent: i.ID, Name: in.Name, User: i.UserName, Partition: in.Partition, Account: in.Account, QOS: in.QOS, NodeCount: in.Nodes,
		Minutes: in.Minutes, Carme: true, Image: in.Image, App: in.App, Submitted: time.UnixMicro(i.Created).UTC(), Nodes: []string{},
		GPUs: []api.JobGPUs{},
	}
	if in.GPUs > 0 {
		j.GPUs = append(j.GPUs, api.JobGPUs{Type: in.GPUType, Count: in.GPUs * max(1, in.Nodes)})
	}
	switch i.State {
	case intentFailed:
		j.Stage, j.State = api.StageFailed, "FAILED"
		notSubmitted(i.Problem).end(&j)
	case intentJob:
		j.ID, j.Stage, j.State = strconv.FormatInt(i.Job, 10), api.StageQueued, statePending
		if at.After(time.UnixMicro(i.Updated)) { // the picture is younger than the job, and lacks it
			j.Stage, j.State = api.StageEnded, "UNKNOWN"
			say("end.forgotten", "It has ended; Slurm no longer says how.").end(&j)
		}
	default:
		j.Stage, j.State = api.StageSending, "SENDING"
	}
	return j
}

// List is the user's jobs, the newest first.
func (s *Service) List(ctx context.Context, user string, uid uint32) (api.Jobs, error) {
	s.Look(ctx, uid)
	return s.list(ctx, user, uid, nil)
}

// Live are those of the user's jobs that have an app and are not over: what a
// dashboard shows of what may be thousands.
func (s *Service) Live(ctx context.Context, user string, uid uint32) (api.Jobs, error) {
	s.Look(ctx, uid)
	// Jobs of which neither a submission of the portal's nor a node tells have no
	// session. The lock is held.
	all, err := s.list(ctx, user, uid, func(row *slurm.QueueRow, i *intent) bool {
		if i != nil {
			return true
		}
		_, reported := s.reported[row.ID]
		return reported
	})
	all.Jobs = slices.DeleteFunc(all.Jobs, func(j api.Job) bool {
		return !j.Carme || j.App == "" || j.Stage == api.StageEnded || j.Stage == api.StageFailed
	})
	return all, err
}

// wants says whether a job is worth making a listed job of: one may be wanted of
// thousands. It is told the job's row in the queue, nil if it is not there, and its
// submission, nil if it is none of the portal's. The lock is held.
type wants func(row *slurm.QueueRow, i *intent) bool

// list has those of the user's jobs that are wanted; nil: all.
func (s *Service) list(ctx context.Context, user string, uid uint32, wanted wants) (api.Jobs, error) {
	hosts, err := s.Routes.Hosts(ctx, user)
	if err != nil {
		return api.Jobs{}, err
	}
	intents, err := s.submitted(ctx, user)
	if err != nil {
		return api.Jobs{}, err
	}
	by := map[uint32]*intent{}
	for i := range intents {
		if intents[i].Job > 0 {
			by[uint32(intents[i].Job)] = &intents[i] //nolint:gosec // Slurm's are 32 bits
		}
	}
	s.mu.Lock()
	out := api.Jobs{Jobs: []api.Job{}, Problem: s.pic.problem, Age: s.age()}
	if out.Problem != "" {
		out.ProblemCode = "problem.slurm"
	}
	there := map[uint32]bool{}
	for _, id := range s.pic.byUID[uid] {
		there[id] = true
		if row := s.row(id); wanted == nil || wanted(&row, by[id]) {
			out.Jobs = append(out.Jobs, s.assemble(row, user, by[id], hosts[id]))
		}
	}
	for _, i := range intents {
		id := uint32(i.Job) //nolint:gosec // as above
		d, remembered := s.details[id]
		switch {
		case there[id] && i.Job > 0, wanted != nil && !wanted(nil, &i):
		case i.Job > 0 && remembered && i.Final == "":
			out.Jobs = append(out.Jobs, s.assemble(d.row, user, &i, hosts[id]))
		default:
			out.Jobs = append(out.Jobs, i.asJob(s.pic.at))
		}
	}
	s.mu.Unlock()
	s.nameImages(out.Jobs)
	sort.SliceStable(out.Jobs, func(a, b int) bool { return newer(out.Jobs[a], out.Jobs[b]) })
	return out, nil
}

// submitted is what the user has lately started in the portal, the newest first.
func (s *Service) submitted(ctx context.Context, user string) ([]intent, error) {
	var intents []intent
	if err := store.One(ctx, s.DB.Read(), &intents, "SELECT "+intentColumns+" FROM intents WHERE user_name = ? AND created > ? ORDER BY created DESC LIMIT ?",
		user, s.Now().Add(-historyFor).UnixMicro(), historyMax); err != nil {
		return nil, fmt.Errorf("read submissions: %w", err)
	}
	return intents, nil
}

// nameImages gives images their names in the catalogue: nodes know files. Of
// several names for one file it is one that is open to everybody.
func (s *Service) nameImages(list []api.Job) {
	if !slices.ContainsFunc(list, func(j api.Job) bool { return strings.HasPrefix(j.Image, "/") }) {
		return
	}
	c, err := s.Catalogue()
	if err != nil {
		return // the offer says so
	}
	names := map[string]string{}
	for _, img := range c.Images {
		if names[img.Path] == "" || len(img.Groups) == 0 {
			names[img.Path] = img.Name
		}
	}
	for i := range list {
		if name := names[list[i].Image]; name != "" {
			list[i].Image = name
		}
	}
}

func newer(a, b api.Job) bool {
	if !a.Submitted.Equal(b.Submitted) {
		return a.Submitted.After(b.Submitted)
	}
	ofA, ofB := idNumbers(a.ID), idNumbers(b.ID)
	return slices.Compare(ofA[:], ofB[:]) > 0
}

// idNumbers are the numbers of a job and of its task, by which ids are in order:
// as texts 9 comes behind 10. What of an array waits is the newest of it.
func idNumbers(id string) [2]int {
	job, task, _ := strings.Cut(id, "_")
	number, err := strconv.Atoi(job)
	if err != nil { // Slurm has not numbered it yet
		return [2]int{math.MaxInt}
	}
	of, err := strconv.Atoi(task)
	if err != nil && task != "" {
		of = math.MaxInt
	}
	return [2]int{number, of}
}

// age is that of the picture in seconds.
func (s *Service) age() int {
	if s.pic.at.IsZero() {
		return 0
	}
	return max(0, int(s.Now().Sub(s.pic.at).Seconds()))
}

// plain is a text of a user as it may be shown: Slurm takes any byte in a name,
// and terminals obey some, as browsers do those that turn the direction of
// writing.
func plain(text string) string {
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return unicode.ReplacementChar
		}
		return c
	}, text)
}

// assemble joins what Slurm, the submission and the nodes say of a job. The
// caller holds the lock.
func (s *Service) assemble(row slurm.QueueRow, user string, i *intent, host string) api.Job {
	j := api.Job{
		ID: row.Shown, Name: plain(row.Name), User: user, State: row.State, Reason: plain(row.Reason), Partition: row.Partition, Account: plain(row.Account), QOS: plain(row.QOS),
		Nodes: slurm.Expand(row.NodeList), NodeCount: row.Nodes, CPUs: row.CPUs, MemoryMB: rest.Memory(row.TRES), GPUs: gpusOf(row.TRES), Submitted: row.Submitted,
		Started: row.Started, Minutes: row.Minutes, ExitCode: row.ExitCode, Signal: row.Signal,
	}
	if j.Reason == "None" {
		j.Reason = ""
	}
	if j.Nodes == nil {
		j.Nodes = []string{}
	}
	switch {
	case row.State == statePending: // Slurm's guess, not a time that has been
		j.Started, j.Expected = time.Time{}, row.Started
	case slurm.Over(row.State) && row.NodeList == "": // it ended waiting, and Slurm calls that its start too
		j.Started = time.Time{}
	}
	if i != nil {
		in := i.start()
		j.Intent, j.Image, j.App, j.Carme = i.ID, in.Image, in.App, true
	}
	j.Stage = s.stage(&j, row)
	switch {
	case slurm.Over(row.State):
		j.Ended = row.Ended
		s.reason(&row).end(&j)
		return j
	case row.State == stateCompleting:
		j.Stage = api.StageEnded
		say("end.ending", "It is ending.").end(&j)
		return j
	}
	j.Host = host
	return j
}

// stage is how far a job has come; it fills in what its nodes say.
func (s *Service) stage(j *api.Job, row slurm.QueueRow) string {
	stage := api.StageQueued
	switch row.State {
	case statePending, "REQUEUED", "SPECIAL_EXIT", "REQUEUE_HOLD", "REQUEUE_FED":
	default:
		stage = api.StageAllocated
	}
	order := []string{api.StageQueued, api.StageAllocated, api.StageImage, api.StageApp, api.StageReady}
	nodes, now := s.onNodes(row.ID)
	for node, n := range nodes {
		if n.UID != row.UID || !slices.Contains(j.Nodes, node) { // a node speaks of its own jobs only
			continue
		}
		j.Carme = true
		if j.App == "" {
			j.App = plain(n.App)
		}
		if j.Image == "" {
			j.Image = plain(n.Image)
		}
		if !now || slurm.Over(row.State) {
			continue
		}
		if n.App != "" && slices.Index(order, n.Stage) > slices.Index(order, stage) { // without an app there is nothing to wait for
			stage = n.Stage
		}
		if heard, since := s.Nodes.Heard(node); !heard {
			w := silent(node, since)
			j.Problem, j.ProblemCode, j.ProblemArgs = w.text, w.code, w.args
		}
	}
	if slurm.Over(row.State) {
		return api.StageEnded
	}
	return stage
}

// publish compares what users saw with what they would see now, tells them, and
// keeps how submitted jobs ended.
func (s *Service) publish(ctx context.Context) {
	var users []struct {
		Name string
		UID  int64
	}
	if err := store.One(ctx, s.DB.Read(), &users, "SELECT DISTINCT u.name, u.uid FROM users u JOIN login_sessions l ON l.user_name = u.name WHERE l.state = ?", api.SessionFull); err != nil {
		s.Log.ErrorContext(ctx, "live users could not be read", "err", err.Error())
		return
	}
	for _, u := range users {
		now, err := s.list(ctx, u.Name, uint32(u.UID), nil) //nolint:gosec // it came from a uint32
		if err != nil {
			s.Log.ErrorContext(ctx, "jobs could not be read", "err", err.Error())
			continue
		}
		s.mu.Lock()
		if s.shown == nil {
			s.shown = map[string][]api.Job{}
		}
		same := reflect.DeepEqual(s.shown[u.Name], now.Jobs)
		s.shown[u.Name] = now.Jobs
		s.mu.Unlock()
		if !same {
			s.Hub.bump(userKey(u.Name))
			s.finish(ctx, now.Jobs)
		}
	}
}

// finish stores how jobs of the portal ended: Slurm forgets it.
func (s *Service) finish(ctx context.Context, list []api.Job) {
	for _, j := range list {
		if j.Intent == "" || !slurm.Over(j.State) || j.Submitted.IsZero() {
			continue
		}
		text, err := json.Marshal(j)
		if err == nil {
			err = s.DB.Write(ctx, func(tx store.Tx) error {
				_, err := store.Exec(ctx, tx, "UPDATE intents SET final = ? WHERE id = ? AND final = ''", string(text), j.Intent)
				return err
			})
		}
		if err != nil {
			s.Log.ErrorContext(ctx, "end of job could not be stored", "job", j.ID, "err", err.Error())
		}
	}
}

// find returns one of the user's jobs, by Slurm's id or the submission's. What is
// somebody else's does not exist.
func (s *Service) find(ctx context.Context, sess *auth.Session, id string) (api.Job, error) {
	all, err := s.named(ctx, sess, id)
	if err != nil {
		return api.Job{}, err
	}
	return pick(all, id)
}

// named are those of the user's jobs that an id may mean (pick). One that is not in
// the picture may be younger than that: the answer waits for the next one.
func (s *Service) named(ctx context.Context, sess *auth.Session, id string) (api.Jobs, error) {
	uid := sess.User().UID
	s.Look(ctx, uid)
	wanted := func(row *slurm.QueueRow, i *intent) bool {
		return row != nil && (row.Shown == id || strings.HasPrefix(row.Shown, id+"_")) ||
			i != nil && (i.ID == id || row == nil && strconv.FormatInt(i.Job, 10) == id)
	}
	all, err := s.list(ctx, sess.UserName, uid, wanted)
	if err != nil || len(all.Jobs) > 0 || all.Problem != "" {
		return all, err
	}
	arrived := s.Now()
	limit, cancel := context.WithTimeout(ctx, waitFor)
	defer cancel()
	if left := pokedEvery - arrived.Sub(s.tried()).Abs(); left > 0 {
		select {
		case <-time.After(left):
		case <-limit.Done():
		}
	}
	// Of those who have waited one asks.
	if !s.tried().After(arrived) {
		s.Refresh(limit)
	}
	return s.list(ctx, sess.UserName, uid, wanted)
}

// pick is the job with an id, Slurm's or the submission's. By its number an array
// is what of it waits, else its first task: a page goes on when the last one begins.
func pick(all api.Jobs, id string) (api.Job, error) {
	if id == "" {
		return api.Job{}, problem.NotFound()
	}
	for _, j := range all.Jobs {
		if j.ID == id || j.Intent == id {
			return j, nil
		}
	}
	if _, err := strconv.ParseUint(id, 10, 32); err == nil {
		for _, array := range []string{id + "_[", id + "_"} {
			for _, j := range all.Jobs {
				if strings.HasPrefix(j.ID, array) {
					return j, nil
				}
			}
		}
	}
	return api.Job{}, problem.NotFound()
}

// number is the id under which Slurm knows a listed job.
func (s *Service) number(j *api.Job) (uint32, bool) {
	if n, err := strconv.ParseUint(j.ID, 10, 32); err == nil {
		return uint32(n), true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, row := range s.pic.rows {
		if row.Shown == j.ID && j.ID != "" {
			return id, true
		}
	}
	return 0, false
}

// Get is one job with everything, to be shown.
func (s *Service) Get(ctx context.Context, sess *auth.Session, id string) (api.Job, error) {
	j, err := s.get(ctx, sess, id)
	if d := j.Detail; d != nil {
		d.WorkDir, d.Output, d.Error = plain(d.WorkDir), plain(d.Output), plain(d.Error)
		for i := range d.Log {
			d.Log[i].Text = plain(d.Log[i].Text)
		}
	}
	return j, err
}

// get is Get with the texts as they are: files are opened by them.
func (s *Service) get(ctx context.Context, sess *auth.Session, id string) (api.Job, error) {
	all, err := s.named(ctx, sess, id)
	if err != nil {
		return api.Job{}, err
	}
	j, err := pick(all, id)
	if err != nil {
		return j, err
	}
	j.Detail = &api.JobDetail{Log: []api.Event{}, Devices: []api.Device{}, Age: all.Age, Problem: all.Problem, ProblemCode: all.ProblemCode}
	n, ok := s.number(&j)
	if !ok {
		return j, nil
	}
	if d, ok := s.current(ctx, n); ok {
		j.Detail.WorkDir, j.Detail.Output, j.Detail.Error = d.WorkDir, s.expand(d.Stdout, d), s.expand(d.Stderr, d)
	}
	s.mu.Lock()
	nodes, now := s.onNodes(n)
	nodes = maps.Clone(nodes)
	s.mu.Unlock()
	for node, nj := range nodes {
		if nj.UID != sess.User().UID || !slices.Contains(j.Nodes, node) {
			continue
		}
		for _, dev := range nj.Devices {
			dev.Node = node
			j.Detail.Devices = append(j.Detail.Devices, dev)
		}
		if now && nj.Text != "" && nj.Stage != api.StageReady {
			j.Detail.Log = append(j.Detail.Log, api.Event{Time: s.Now().UTC(), Stage: nj.Stage, Text: nj.Text})
		}
	}
	slices.SortFunc(j.Detail.Devices, func(a, b api.Device) int { return strings.Compare(a.Node+a.UUID, b.Node+b.UUID) })
	events, err := s.events(ctx, n, &j)
	if err != nil {
		return j, err
	}
	j.Detail.Log = append(events, j.Detail.Log...)
	slices.SortStableFunc(j.Detail.Log, func(a, b api.Event) int { return a.Time.Compare(b.Time) })
	return j, nil
}

func (s *Service) events(ctx context.Context, id uint32, j *api.Job) ([]api.Event, error) {
	var rows []struct {
		At    int64
		Stage string
		Text  string
		Node  string
	}
	err := store.One(ctx, s.DB.Read(), &rows, "SELECT at, stage, text, node FROM job_events WHERE job = ? ORDER BY at LIMIT 200", int64(id))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("read events: %w", err)
	}
	log := []api.Event{}
	if !j.Submitted.IsZero() {
		log = append(log, say("event.queued", "Slurm has the job.").event(j.Submitted, api.StageQueued))
	}
	if !j.Started.IsZero() {
		log = append(log, say("event.allocated", "It has its nodes: %s.", strings.Join(j.Nodes, ", ")).event(j.Started, api.StageAllocated))
	}
	for _, r := range rows {
		if r.Node != "" && !slices.Contains(j.Nodes, r.Node) {
			continue // a node speaks of its own jobs only
		}
		if r.At >= j.Submitted.UnixMicro() { // Slurm's ids come round again
			one := api.Event{Time: time.UnixMicro(r.At).UTC(), Stage: r.Stage, Text: r.Text}
			if w := staged(r.Node, r.Stage); w.text == r.Text {
				one.Code, one.Args = w.code, w.args
			}
			log = append(log, one)
		}
	}
	if slurm.Over(j.State) {
		log = append(log, api.Event{Time: j.Ended, Stage: api.StageEnded, Text: j.End, Code: j.EndCode, Args: j.EndArgs})
	}
	return log, nil
}

// expand fills in a path's patterns (sbatch(1), filename pattern).
func (s *Service) expand(path string, d rest.Job) string {
	if !strings.Contains(path, "%") {
		return path
	}
	id := strconv.FormatUint(uint64(d.ID), 10)
	master, task := id, "4294967294"
	if a, t, ok := strings.Cut(d.Array, "_"); ok {
		master, task = a, t
	}
	return strings.NewReplacer("%%", "%", "%j", id, "%A", master, "%a", task, "%u", d.User, "%x", d.Name, "%N", d.BatchHost, "%n", "0", "%t", "0", "%b", task).Replace(path)
}
