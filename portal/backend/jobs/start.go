package jobs

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/nodes"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
	carme "github.com/carme-hpc/carme/spank/policy"
	"github.com/carme-hpc/carme/spank/request"
)

const (
	nameMax = 64
	// script is what the job runs beside its app: nothing. No user's text is in it.
	script = "#!/bin/sh\n:\n"
	// option is how an option of the plugin travels in an environment.
	option = "_SLURM_SPANK_OPTION_carme_"

	commentPrefix = "carme:"
	// Bounds against nonsense, far above any cluster.
	countMax  = 1 << 16
	memoryMax = 1 << 30
	tailMax   = 64 << 10
	homeFor   = 15 * time.Second
	homeFewMB = 100
)

// word is a name of Slurm's: partition, account, QOS, GPU type.
var word = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

// checked is a request that may be submitted.
type checked struct {
	in  api.Start
	app *config.App
}

// check fills in defaults and refuses by field, with the same rules as srun.
func (s *Service) check(ctx context.Context, sess *auth.Session, in api.Start) (checked, error) {
	c, err := s.Catalogue()
	if err != nil {
		return checked{}, err
	}
	offer, err := s.Offer(ctx, sess)
	if err != nil {
		return checked{}, err
	}
	d := offer.Default
	if in.Image == "" {
		in.Image = d.Image
	}
	if in.App == "" {
		in.App = d.App
	}
	in.Nodes, in.Minutes, in.Name = orDefault(in.Nodes, d.Nodes), orDefault(in.Minutes, d.Minutes), orDefault(strings.TrimSpace(in.Name), in.App)
	wrong := wrongs{}
	if _, err := uuid.Parse(in.ID); err != nil || len(in.ID) != 36 || in.ID != strings.ToLower(in.ID) {
		wrong["id"] = say("field.id", "is no UUID")
	}
	app := c.App(in.App)
	switch {
	case app == nil:
		wrong["app"] = say("field.app", "There is no such app.")
	case !app.RunsIn(in.Image):
		wrong["app"] = say("field.app.image", "The image does not have this app; choose another image.")
	}
	if !slices.Contains(s.images(c, sess), in.Image) {
		wrong["image"] = say("field.image", "There is no such image, or you may not use it.")
	} else if err := s.plugin(c, sess, in, app); err != nil {
		wrong["image"] = words{text: err.Error()}
	}
	s.checkNumbers(&in, &offer, wrong)
	checkWords(&in, &offer, wrong)
	within := len(wrong) == 0
	for field, e := range s.Limits.For(sess.User().Roles).Check(in.Nodes, in.GPUs*in.Nodes, in.Minutes, offer.Used.Running) {
		if _, known := wrong[field]; !known {
			wrong[field] = say(e.Code, e.Text, e.Args...)
		}
	}
	switch {
	case !within:
		return checked{}, wrong.in(problem.Invalid("Some of it cannot be started like this; see the marked fields.", nil))
	case len(wrong) > 0:
		return checked{}, wrong.in(problem.Limit("That is more than you may have; see the marked fields.", nil))
	}
	s.derive(&in)
	return checked{in: in, app: app}, nil
}

func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

// plugin asks the plugin's own grammar and policy: REST goes past those in srun.
func (s *Service) plugin(c *config.Config, sess *auth.Session, in api.Start, app *config.App) error {
	given := []request.Given{{Name: request.OptCarme, Value: in.Image}, {Name: request.OptApp, Value: in.App}}
	if app != nil && app.NetPrivate {
		given = append(given, request.Given{Name: request.OptNet, Value: request.NetPrivate})
	}
	r, err := request.Parse(request.Input{Context: request.ContextAllocator, Options: given})
	if err != nil {
		return err
	}
	u := sess.User()
	_, err = carme.New(c).Resolve(r, carme.User{Name: u.Name, UID: u.UID, GID: uint32(sess.GID), Groups: sess.Groups()}) //nolint:gosec // it came from a uint32
	return err
}

func (s *Service) checkNumbers(in *api.Start, offer *api.Offer, wrong wrongs) {
	ranged := func(field string, n, least, most int) {
		if n < least || n > most {
			wrong[field] = say("field.range", "It must be %s to %s.", strconv.Itoa(least), strconv.Itoa(most))
		}
	}
	partition := in.Partition
	if !slices.Contains(offer.Partitions, partition) {
		partition = "" // which is refused for itself, and hides nothing else
	}
	ranged("nodes", in.Nodes, 1, orDefault(offer.Nodes, countMax))
	ranged("minutes", in.Minutes, 1, orDefault(s.longest(partition), countMax*60))
	cpus, memory := s.largest(partition)
	ranged("cpus", in.CPUs, 0, orDefault(cpus, countMax))
	if most := orDefault(memory, memoryMax); in.MemoryMB < 0 || in.MemoryMB > most {
		wrong["memory_mb"] = say("field.memory", "No node has more than %s GB.", strconv.FormatInt(most/1024, 10))
	}
	most, found := 0, in.GPUType == ""
	for _, g := range offer.GPUs {
		if in.GPUType == "" || g.Type == in.GPUType {
			found = true
			most = max(most, g.PerNode)
		}
	}
	switch {
	case !found:
		wrong["gpu_type"] = say("field.gpu_type", "The cluster has no such GPU.")
	case in.GPUs < 0 || in.GPUs > most && len(offer.GPUs) > 0 || in.GPUs > countMax:
		wrong["gpus"] = say("field.gpus", "It must be 0 to %s: no node has more.", strconv.Itoa(most))
	}
}

func checkWords(in *api.Start, offer *api.Offer, wrong wrongs) {
	if utf8.RuneCountInString(in.Name) > nameMax || strings.ContainsFunc(in.Name, func(c rune) bool { return !unicode.IsPrint(c) }) {
		wrong["name"] = say("field.name", "It must be at most %s characters that can be printed.", strconv.Itoa(nameMax))
	}
	for field, text := range map[string]string{"account": in.Account, "qos": in.QOS, "gpu_type": in.GPUType} {
		if text != "" && !word.MatchString(text) {
			wrong[field] = say("field.word", "Letters, digits and ._- only.")
		}
	}
	if in.Partition != "" && !slices.Contains(offer.Partitions, in.Partition) {
		wrong["partition"] = say("field.partition", "There is no such partition.")
	}
}

// gres is the GPUs as Slurm takes them.
func gres(in *api.Start) string {
	switch {
	case in.GPUs == 0:
		return ""
	case in.GPUType == "":
		return fmt.Sprintf("gres/gpu:%d", in.GPUs)
	}
	return fmt.Sprintf("gres/gpu:%s:%d", in.GPUType, in.GPUs)
}

// Script is an sbatch script that does what Start does.
func (s *Service) Script(ctx context.Context, sess *auth.Session, in api.Start) (api.Script, error) {
	if in.ID == "" {
		in.ID = uuid.NewString()
	}
	c, err := s.check(ctx, sess, in)
	if err != nil {
		return api.Script{}, err
	}
	in = c.in
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "#SBATCH --%s=%s\n", name, value)
		}
	}
	line("job-name", quoted(in.Name))
	line("carme", in.Image)
	line("carme-app", in.App)
	if c.app.NetPrivate {
		line("carme-net", request.NetPrivate)
	}
	line("nodes", strconv.Itoa(in.Nodes))
	line("ntasks-per-node", "1")
	line("gres", strings.TrimPrefix(gres(&in), "gres/"))
	line("time", fmt.Sprintf("%d:%02d:00", in.Minutes/60, in.Minutes%60))
	line("partition", in.Partition)
	line("account", in.Account)
	line("qos", in.QOS)
	if in.CPUs > 0 {
		line("cpus-per-task", strconv.Itoa(in.CPUs))
	}
	if in.MemoryMB > 0 {
		line("mem", fmt.Sprintf("%dM", in.MemoryMB))
	}
	line("chdir", sess.Home)
	line("output", outputPath(sess))
	b.WriteString(":\n")
	return api.Script{Script: b.String()}, nil
}

// quoted is a name as an #SBATCH line takes it: sbatch splits at blanks and
// understands quotes and backslashes there.
func quoted(name string) string {
	if word.MatchString(name) {
		return name
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`
}

func outputPath(sess *auth.Session) string { return path.Join(sess.Home, "carme-%j.out") }

func (c *checked) submission(sess *auth.Session) rest.Submission {
	in := c.in
	options := []string{option + "carme=" + in.Image, option + "carme_app=" + in.App}
	if c.app.NetPrivate {
		options = append(options, option+"carme_net="+request.NetPrivate)
	}
	env := append([]string{
		"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=" + sess.Home, "USER=" + sess.UserName, "LOGNAME=" + sess.UserName,
	}, options...)
	return rest.Submission{
		Name: in.Name, Comment: commentPrefix + in.ID, Script: script, WorkDir: sess.Home, Output: outputPath(sess), Constraint: featureCarme,
		Partition: in.Partition, Account: in.Account, QOS: in.QOS, Environment: env, SpankEnvironment: options, Nodes: in.Nodes,
		Minutes: in.Minutes, CPUs: in.CPUs, MemoryMB: in.MemoryMB, TRESPerNode: gres(&in),
	}
}

// turn lets one submission of a user at a time through, so that limits count.
func (s *Service) turn(user string) *sync.Mutex {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.submits == nil {
		s.submits = map[string]*sync.Mutex{}
	}
	if s.submits[user] == nil {
		s.submits[user] = new(sync.Mutex)
	}
	return s.submits[user]
}

// Start submits a job once per id. created is false if the id was submitted
// before. The job's stage is StageSending while the outcome is not known.
func (s *Service) Start(ctx context.Context, sess *auth.Session, in api.Start) (job api.Job, created bool, err error) {
	lock := s.turn(sess.UserName)
	lock.Lock()
	defer lock.Unlock()
	// Who has left the page still wants the job, and an outcome must be stored.
	ctx = context.WithoutCancel(ctx)
	old, err := s.intent(ctx, in.ID)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return api.Job{}, false, err
	}
	if err == nil {
		switch {
		case old.UserName != sess.UserName:
			return api.Job{}, false, conflict(say("conflict.form", "That form was used by somebody else; load the page again."))
		case old.State != intentFailed:
			job, err := s.find(ctx, sess, in.ID)
			return job, false, err
		}
	}
	c, err := s.check(ctx, sess, in)
	if err != nil {
		return api.Job{}, false, err
	}
	if err := s.intend(ctx, sess, c.in); err != nil {
		return api.Job{}, false, err
	}
	id, err := s.Slurm.Submit(ctx, sess.UserName, c.submission(sess))
	if err := s.outcome(ctx, sess.UserName, c.in.ID, id, err); err != nil {
		return api.Job{}, false, err
	}
	s.Hub.bump(userKey(sess.UserName))
	if id != 0 {
		s.adopt(ctx, id)
	}
	s.pokeNow()
	job, err = s.find(ctx, sess, in.ID)
	return job, true, err
}

func (s *Service) intent(ctx context.Context, id string) (intent, error) {
	var i intent
	err := store.One(ctx, s.DB.Read(), &i, "SELECT "+intentColumns+" FROM intents WHERE id = ?", id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("read submission: %w", err)
	}
	return i, err
}

// intend stores what will be sent, before it is.
func (s *Service) intend(ctx context.Context, sess *auth.Session, in api.Start) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("store submission: %w", err)
	}
	return s.DB.Write(ctx, func(tx store.Tx) error {
		now := s.Now().UnixMicro()
		n, err := store.Exec(ctx, tx, `INSERT INTO intents (id, user_name, uid, body, state, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET body = excluded.body, state = excluded.state, problem = '', updated = excluded.updated, created = excluded.created
			WHERE intents.state = ? AND intents.user_name = excluded.user_name`,
			in.ID, sess.UserName, sess.UID, string(body), intentSending, now, now, intentFailed)
		if err != nil {
			return fmt.Errorf("store submission: %w", err)
		}
		if n != 1 {
			return conflict(say("conflict.sent", "That form was sent already; see the list of jobs."))
		}
		return s.Audit.Write(ctx, tx, sess.UserName, "job submit", in.ID, map[string]string{
			"image": in.Image, "app": in.App, "nodes": strconv.Itoa(in.Nodes), "gres": gres(&in), "minutes": strconv.Itoa(in.Minutes),
		})
	})
}

// outcome stores what became of a submission. The error is for the user.
func (s *Service) outcome(ctx context.Context, user, intent string, job uint32, cause error) error {
	var refused rest.RefusedError
	state, text := intentJob, ""
	var answer error
	switch {
	case cause == nil:
	case errors.Is(cause, rest.ErrUnknown):
		state = intentUnknown
	case errors.As(cause, &refused):
		state, text = intentFailed, slurmRefused+refused.Text
		answer = notSubmitted(text).in(problem.Invalid(text, nil))
	default:
		state, text = intentFailed, slurmSilent
		answer = unavailableSlurm()
	}
	if cause != nil {
		s.Log.WarnContext(ctx, "submission failed", "intent", intent, "state", state, "err", cause.Error())
	}
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		if _, err := store.Exec(ctx, tx, "UPDATE intents SET state = ?, job = ?, problem = ?, updated = ? WHERE id = ?",
			state, int64(job), text, s.Now().UnixMicro(), intent); err != nil {
			return fmt.Errorf("store outcome: %w", err)
		}
		return s.Audit.Write(ctx, tx, user, "job "+state, intent, map[string]string{"job": strconv.FormatUint(uint64(job), 10), "problem": text})
	})
	return errors.Join(err, answer)
}

// recover turns submissions that a dead process was sending into unknown ones.
func (s *Service) recover(ctx context.Context) error {
	return s.DB.Write(ctx, func(tx store.Tx) error {
		_, err := store.Exec(ctx, tx, "UPDATE intents SET state = ? WHERE state = ?", intentUnknown, intentSending)
		return err
	})
}

func (s *Service) open(ctx context.Context) ([]intent, error) {
	var list []intent
	if err := store.One(ctx, s.DB.Read(), &list, "SELECT "+intentColumns+" FROM intents WHERE state = ? ORDER BY created LIMIT 100", intentUnknown); err != nil {
		return nil, fmt.Errorf("read submissions: %w", err)
	}
	return list, nil
}

// resolve looks for the jobs of submissions whose answer was lost, by their
// comment. It never submits.
func (s *Service) resolve(ctx context.Context) error {
	list, err := s.open(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for i := range list {
		errs = append(errs, s.lookup(ctx, &list[i]))
	}
	return errors.Join(errs...)
}

func (s *Service) lookup(ctx context.Context, i *intent) error {
	if now := s.Now(); time.UnixMicro(i.Updated).After(now) {
		return s.rewind(ctx, i, now)
	}
	s.mu.Lock()
	healthy := s.pic.problem == "" && s.pic.at.After(time.UnixMicro(i.Updated))
	rows, ids := s.pic.rows, slices.Clone(s.pic.byUID[uint32(i.UID)]) //nolint:gosec // it came from a uint32
	s.mu.Unlock()
	if !healthy {
		s.silent(i.ID)
		return nil // the queue is older than the question
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	want := commentPrefix + i.ID
	for _, id := range ids {
		if rows[id].Comment == want {
			return s.settle(ctx, i, intentJob, id, "")
		}
	}
	// slurmctld may forget a job that ended at once; the database may not.
	past, err := s.Slurm.Recorded(ctx, i.UserName, time.UnixMicro(min(i.Created, i.Updated)).Add(-time.Minute))
	for _, p := range past {
		if p.Comment == want {
			return s.settle(ctx, i, intentJob, p.ID, "")
		}
	}
	if err != nil {
		s.Log.InfoContext(ctx, "slurm's database could not be asked", "err", err.Error())
	}
	// What hung may still act on what it was sent, once it goes on: only when all
	// of Slurm has answered for a while does it not have the job.
	if since, ok := s.answers(ctx, i.ID); !ok || s.Now().Sub(since) < max(2*s.Timeout, 2*pollEvery) {
		return nil
	}
	return s.settle(ctx, i, intentFailed, 0, slurmNever)
}

// rewind moves a submission from a time to come to now: the clock was put back
// since, and no picture of the queue would be newer than it.
func (s *Service) rewind(ctx context.Context, i *intent, now time.Time) error {
	s.silent(i.ID)
	return s.DB.Write(ctx, func(tx store.Tx) error {
		if _, err := store.Exec(ctx, tx, "UPDATE intents SET updated = ? WHERE id = ? AND state = ?", now.UnixMicro(), i.ID, intentUnknown); err != nil {
			return fmt.Errorf("move submission: %w", err)
		}
		return nil
	})
}

// answers says since when Slurm has answered whenever a submission was looked for.
func (s *Service) answers(ctx context.Context, intent string) (since time.Time, ok bool) {
	err := s.Slurm.Ping(ctx, s.ServiceUser)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.heard, intent)
		return time.Time{}, false
	}
	if s.heard == nil {
		s.heard = map[string]time.Time{}
	}
	if _, ok := s.heard[intent]; !ok {
		s.heard[intent] = s.Now()
	}
	return s.heard[intent], true
}

func (s *Service) settle(ctx context.Context, i *intent, state string, job uint32, text string) error {
	err := s.DB.Write(ctx, func(tx store.Tx) error {
		n, err := store.Exec(ctx, tx, "UPDATE intents SET state = ?, job = ?, problem = ?, updated = ? WHERE id = ? AND state = ?",
			state, int64(job), text, s.Now().UnixMicro(), i.ID, intentUnknown)
		if err != nil || n == 0 {
			return err
		}
		return s.Audit.Write(ctx, tx, i.UserName, "job "+state+" after lookup", i.ID, map[string]string{"job": strconv.FormatUint(uint64(job), 10)})
	})
	s.silent(i.ID)
	s.Hub.bump(userKey(i.UserName))
	return err
}

// silent forgets since when Slurm has answered.
func (s *Service) silent(intent string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.heard, intent)
}

// Cancel cancels one of the user's jobs.
func (s *Service) Cancel(ctx context.Context, sess *auth.Session, id string) error {
	j, err := s.find(ctx, sess, id)
	if err != nil {
		return err
	}
	// The number alone means what of an array waits; if none does, it has found a
	// task, and that one was not meant.
	if array, _, isTask := strings.Cut(j.ID, "_"); isTask && id == array && !strings.Contains(j.ID, "[") {
		return conflict(say("conflict.array", "No task of this array waits any more; stop those that run in their own rows."))
	}
	if j.Stage == api.StageEnded || j.Stage == api.StageFailed {
		return nil
	}
	n, ok := s.number(&j)
	if !ok || j.ID == "" {
		return conflict(say("conflict.unknown", "Slurm has not answered yet whether it has the job; try again in a moment."))
	}
	err = s.DB.Write(ctx, func(tx store.Tx) error {
		return s.Audit.Write(ctx, tx, sess.UserName, "job cancel", j.ID, map[string]string{"intent": j.Intent})
	})
	if err != nil {
		return err
	}
	return s.end(ctx, sess, j.ID, n)
}

// CancelArray cancels all tasks of an array of the user's, those that wait and those that
// run. The id is the array's number or that of any of them.
func (s *Service) CancelArray(ctx context.Context, sess *auth.Session, id string) error {
	array, _, _ := strings.Cut(id, "_")
	all, err := s.named(ctx, sess, array)
	if err != nil {
		return err
	}
	tasks := slices.DeleteFunc(all.Jobs, func(j api.Job) bool { return !strings.HasPrefix(j.ID, array+"_") })
	if len(tasks) == 0 {
		return problem.NotFound()
	}
	var numbers []uint32
	for i := range tasks {
		if n, ok := s.number(&tasks[i]); ok && tasks[i].Stage != api.StageEnded {
			numbers = append(numbers, n)
		}
	}
	err = s.DB.Write(ctx, func(tx store.Tx) error {
		return s.Audit.Write(ctx, tx, sess.UserName, "job cancel", array, map[string]string{"tasks": "all"})
	})
	if err != nil {
		return err
	}
	return s.end(ctx, sess, array, numbers...)
}

// end cancels what Slurm knows by an id, and ends the sessions of those jobs.
func (s *Service) end(ctx context.Context, sess *auth.Session, id string, jobs ...uint32) error {
	switch err := s.Slurm.Cancel(ctx, sess.UserName, id); {
	case errors.Is(err, rest.ErrNotFound):
	case errors.Is(err, rest.ErrUnavailable):
		return problem.Unavailable("Slurm does not answer now; the job goes on. Try again in a minute.")
	case err != nil:
		return err
	}
	for _, n := range jobs {
		if err := s.Routes.End(ctx, n); err != nil {
			return err
		}
		if err := s.event(ctx, n, "", api.StageEnded); err != nil {
			return err
		}
	}
	s.mu.Lock()
	for _, n := range jobs {
		delete(s.details, n)
	}
	s.mu.Unlock()
	s.changed.Add(1)
	s.Hub.bump(userKey(sess.UserName))
	s.pokeNow()
	return nil
}

// as is the user with his or her numbers.
func (s *Service) as(ctx context.Context, sess *auth.Session) (nodes.As, error) {
	gids, err := s.groups(ctx, sess.UserName)
	if err != nil {
		return nodes.As{}, err
	}
	return nodes.As{UID: sess.User().UID, GID: uint32(sess.GID), GIDs: gids}, nil //nolint:gosec // it came from a uint32
}

// groupsFor is how long a user's groups are believed: each page of a running job
// asks for its output every two seconds, and NSS is asked by a program.
const groupsFor = 30 * time.Second

type membership struct {
	gids []uint32
	at   time.Time
}

// groups are the numbers of a user's groups.
func (s *Service) groups(ctx context.Context, user string) ([]uint32, error) {
	now := s.Now()
	s.mu.Lock()
	last, ok := s.gids[user]
	s.mu.Unlock()
	if ok && now.Sub(last.at).Abs() < groupsFor {
		return last.gids, nil
	}
	gids, err := s.Identity(ctx, user)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gids == nil {
		s.gids = map[string]membership{}
	}
	s.gids[user] = membership{gids, now}
	return gids, nil
}

// Output is a part of the job's output, read on one of its nodes as the user.
func (s *Service) Output(ctx context.Context, sess *auth.Session, id, stream string, offset int64) (api.Output, error) {
	j, err := s.get(ctx, sess, id)
	if err != nil {
		return api.Output{}, err
	}
	file := j.Detail.Output
	if stream == "err" {
		file = j.Detail.Error
	}
	switch {
	case file == "" || !path.IsAbs(file):
		return noOutput(say("output.none", "There is no output yet.")), nil
	case j.Stage == api.StageQueued || j.Stage == api.StageSending || j.Stage == api.StageFailed:
		return noOutput(say("output.waiting", "There is no output yet: the job has not started.")), nil
	}
	node, ok := s.anyNode(j.Nodes)
	if !ok {
		return noOutput(say("output.agents", "No agent answers that could read the output: %s", plain(file))), nil
	}
	as, err := s.as(ctx, sess)
	if err != nil {
		return api.Output{}, err
	}
	t, err := s.Agents.Tail(ctx, node, as, file, offset, tailMax)
	var refused nodes.RefusedError
	switch {
	case errors.As(err, &refused):
		return noOutput(unreadable(refused, plain(file))), nil
	case err != nil:
		if left, ok := s.unread.Turn(s.Now()); ok {
			s.Log.WarnContext(ctx, "output could not be read", "node", node, "err", err.Error(), "left_out", left)
		}
		return noOutput(say("output.node", "The node does not answer; its file is %s", plain(file))), nil
	}
	data := whole(t.Data)
	return api.Output{Text: strings.ToValidUTF8(string(data), "\uFFFD"), Offset: t.Offset, Next: t.Offset + int64(len(data)), Size: t.Size}, nil
}

// whole leaves out a character at the end that is not all there yet: the next
// part begins with it.
func whole(data []byte) []byte {
	for n := 1; n < utf8.UTFMax && n <= len(data); n++ {
		if at := len(data) - n; utf8.RuneStart(data[at]) {
			if !utf8.FullRune(data[at:]) && at > 0 {
				return data[:at]
			}
			break
		}
	}
	return data
}

// anyNode is the first of them whose agent was heard of, else any such node:
// homes are the same everywhere.
func (s *Service) anyNode(names []string) (string, bool) {
	for _, n := range names {
		if heard, _ := s.Nodes.Heard(n); heard {
			return n, true
		}
	}
	s.mu.Lock()
	all := s.pic.nodes
	s.mu.Unlock()
	for _, n := range all {
		if heard, _ := s.Nodes.Heard(n.Name); heard {
			return n.Name, true
		}
	}
	return "", false
}

// Metrics are the job's measurements.
func (s *Service) Metrics(ctx context.Context, sess *auth.Session, id string) (api.Metrics, error) {
	j, err := s.find(ctx, sess, id)
	if err != nil {
		return api.Metrics{}, err
	}
	n, ok := s.number(&j)
	if !ok {
		return api.Metrics{Times: []int64{}, Series: []api.Series{}}, nil
	}
	leave, err := s.plots.enter(ctx, sess.UserName)
	if err != nil {
		return api.Metrics{}, err
	}
	defer leave()
	out, err := s.Nodes.Metrics(ctx, n)
	// A node speaks of its own jobs only.
	out.Series = slices.DeleteFunc(out.Series, func(one api.Series) bool { return !slices.Contains(j.Nodes, one.Node) })
	return out, err
}

type homeState struct {
	home api.Home
	at   time.Time
}

// Home looks whether the user's home is there and has room, on one node.
func (s *Service) Home(ctx context.Context, sess *auth.Session) (api.Home, error) {
	s.mu.Lock()
	last, ok := s.homes[sess.UserName]
	s.mu.Unlock()
	if ok && s.Now().Sub(last.at) < homeFor {
		return last.home, nil
	}
	s.Look(ctx, sess.User().UID)
	node, ok := s.anyNode(nil)
	if !ok {
		return api.Home{OK: true}, nil // nobody can tell; Slurm will
	}
	as, err := s.as(ctx, sess)
	if err != nil {
		return api.Home{}, err
	}
	st, err := s.Agents.Home(ctx, node, as, sess.Home)
	home := api.Home{OK: true, FreeMB: st.FreeMB, TotalMB: st.TotalMB}
	var refused nodes.RefusedError
	switch {
	case errors.As(err, &refused):
		badHome(&home, unusableHome(refused.Code, refused.Text))
	case err != nil:
		if left, ok := s.unseen.Turn(s.Now()); ok {
			s.Log.WarnContext(ctx, "home could not be looked at", "node", node, "err", err.Error(), "left_out", left)
		}
		return home, nil
	case st.Problem != "":
		badHome(&home, unusableHome(st.Code, st.Problem))
	case st.FreeMB < homeFewMB:
		badHome(&home, fewMB(st.FreeMB))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.homes == nil {
		s.homes = map[string]homeState{}
	}
	s.homes[sess.UserName] = homeState{home, s.Now()}
	s.changed.Add(1)
	return home, nil
}
