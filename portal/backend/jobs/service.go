package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/audit"
	"github.com/carme-hpc/carme/portal/backend/nodes"
	"github.com/carme-hpc/carme/portal/backend/policy"
	"github.com/carme-hpc/carme/portal/backend/problem"
	"github.com/carme-hpc/carme/portal/backend/store"
)

const (
	// pollEvery is how often Slurm is asked while somebody looks, idleEvery
	// while nobody does but sessions are open.
	pollEvery = 5 * time.Second
	idleEvery = 30 * time.Second
	// viewerFor is how long a request makes its user a viewer.
	viewerFor = time.Minute
	// waitFor is how long a request waits for a picture that is old.
	waitFor = 3 * time.Second
	// nodesEvery is how often nodes and partitions are asked for: two calls to
	// slurmctld. A poll is two as well, since squeue asks for partitions too, so that
	// slurmctld has a call in two seconds, whoever looks.
	nodesEvery = 30 * time.Second
	// detailsMax is how many jobs are asked for one by one in one poll.
	detailsMax    = 100
	detailsAtOnce = 4
	// pokedEvery is how often news of nodes and users can make Slurm be asked.
	pokedEvery = time.Second
	// cleanEvery is how often what is older than samplesFor and recordsFor is
	// removed.
	cleanEvery = time.Hour
	samplesFor = 14 * 24 * time.Hour
	recordsFor = 90 * 24 * time.Hour
	// forgetAfter is how long an ended job's detail stays in memory.
	forgetAfter = time.Hour
)

// Slurm is slurmrestd (internal/slurm/rest).
type Slurm interface {
	Submit(ctx context.Context, user string, s rest.Submission) (uint32, error)
	Cancel(ctx context.Context, user, id string) error
	Job(ctx context.Context, user string, id uint32) (rest.Job, error)
	Recorded(ctx context.Context, user string, since time.Time) ([]rest.Past, error)
	Cluster
}

// Cluster is what all users share of it.
type Cluster interface {
	Ping(ctx context.Context, user string) error
	Nodes(ctx context.Context, user string) ([]rest.Node, error)
	Partitions(ctx context.Context, user string) ([]rest.Partition, error)
}

// Nodes is what agents said (portal/backend/nodes).
type Nodes interface {
	Find(job uint32) map[string]api.NodeJob
	Heard(node string) (bool, time.Time)
	Metrics(ctx context.Context, job uint32) (api.Metrics, error)
}

// Origins are the sessions' hosts (portal/backend/routes).
type Origins interface {
	Begin(ctx context.Context, node string, job api.NodeJob, owner string) error
	End(ctx context.Context, job uint32) error
	EndInstance(ctx context.Context, node string, job uint32, instance string) error
	Hosts(ctx context.Context, viewer string) (map[uint32]string, error)
	LiveJobs(ctx context.Context) ([]uint32, error)
}

// Agents are asked for files (portal/backend/nodes).
type Agents interface {
	Tail(ctx context.Context, node string, as nodes.As, path string, offset, most int64) (nodes.Tail, error)
	Home(ctx context.Context, node string, as nodes.As, path string) (nodes.HomeState, error)
}

// Service is the jobs.
type Service struct {
	DB     *store.DB
	Audit  *audit.Log
	Log    *slog.Logger
	Now    func() time.Time
	Slurm  Slurm
	Queue  func(ctx context.Context) ([]slurm.QueueRow, error)
	Nodes  Nodes
	Routes Origins
	Agents Agents
	Hub    *Hub
	Limits policy.Limits
	// Default is what the site wants the start form to begin with.
	Default Default
	// Catalogue reads images and apps as they are now.
	Catalogue func() (*config.Config, error)
	// Identity returns the numeric groups of a user.
	Identity func(ctx context.Context, user string) ([]uint32, error)
	// ServiceUser looks at Slurm for everybody.
	ServiceUser string
	AgentPort   string
	// Timeout is how long Slurm may take for one answer.
	Timeout time.Duration

	// changed counts what changes pages beside the database.
	changed atomic.Uint64
	boards  boards

	mu       sync.Mutex
	pic      picture
	details  map[uint32]detail
	viewers  map[uint32]time.Time
	began    map[string]bool
	reported map[uint32]time.Time
	starved  map[uint32]string // jobs out of memory, and the node that says so
	was      map[uint32]was
	shown    map[string][]api.Job
	homes    map[string]homeState
	gids     map[string]membership
	heard    map[string]time.Time // by intent (answers)
	flight   *flight
	poke     chan struct{}
	submits  map[string]*sync.Mutex
	plots    queue

	unread, unseen logx.Seldom // files of users that no agent shows

	looking sync.Mutex
	looked  time.Time // when nodes were last asked for because one was not known
}

// picture is Slurm at one time.
type picture struct {
	rows       map[uint32]slurm.QueueRow
	byUID      map[uint32][]uint32
	queued     map[string]int // GPUs that waiting jobs ask for, by type
	at         time.Time
	tried      time.Time // when Slurm was last asked, with or without success
	problem    string
	nodes      []rest.Node
	partitions []rest.Partition
	nodesAt    time.Time
	held       map[string]map[string]int // GPUs in use by node and type, nil if the queue does not tell
	agreed     bool                      // the nodes said the same when they were asked
}

// detail is what slurmrestd says of one job: where it writes to, and for whom it is.
type detail struct {
	job   rest.Job
	state string // of the row when it was asked for
	// row is the last one, of the queue or made of the job.
	row slurm.QueueRow
	at  time.Time // of that
}

// row is what Slurm said last of a job in the picture. The caller holds the lock.
func (s *Service) row(id uint32) slurm.QueueRow {
	if d, ok := s.details[id]; ok && d.at.After(s.pic.at) {
		return d.row
	}
	return s.pic.rows[id]
}

// rowOf is the queue's row of a job that slurmrestd told of.
func rowOf(j *rest.Job) slurm.QueueRow {
	shown, state := strconv.FormatUint(uint64(j.ID), 10), j.State
	if j.Array != "" {
		shown = j.Array
	}
	if slices.Contains(j.Flags, stateCompleting) {
		state = stateCompleting
	}
	return slurm.QueueRow{
		ID: j.ID, Shown: shown, State: state, UID: j.UID, Partition: j.Partition, Nodes: j.NodeCount, TRES: j.TRES, CPUs: j.CPUs, Minutes: j.Minutes,
		Submitted: j.Submitted, Started: j.Started, Ended: j.Ended, NodeList: j.Nodes, BatchHost: j.BatchHost, Reason: j.Reason, Account: j.Account,
		QOS: j.QOS, Comment: j.Comment, Name: j.Name, ExitCode: j.ExitCode, Signal: j.Signal,
	}
}

// was is a job on its nodes as they last said it was, once they have it no more.
type was struct {
	nodes map[string]api.NodeJob
	at    time.Time
}

type flight struct {
	done chan struct{}
}

// pokes is the channel that makes Run look at once.
func (s *Service) pokes() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.poke == nil {
		s.poke = make(chan struct{}, 1)
	}
	return s.poke
}

func (s *Service) pokeNow() {
	select {
	case s.pokes() <- struct{}{}:
	default: // it is awake
	}
}

// Run keeps the picture as fresh as somebody needs it, until ctx ends.
func (s *Service) Run(ctx context.Context) {
	if err := s.recover(ctx); err != nil {
		s.Log.ErrorContext(ctx, "submissions of an earlier life could not be read", "err", err.Error())
	}
	poke := s.pokes()
	timer := time.NewTimer(0)
	defer timer.Stop()
	clean := time.NewTicker(cleanEvery)
	defer clean.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-clean.C:
			if err := s.Clean(ctx); err != nil && ctx.Err() == nil {
				s.Log.ErrorContext(ctx, "old records could not be removed", "err", err.Error())
			}
			continue
		case <-timer.C:
		case <-poke:
			if left := pokedEvery - s.Now().Sub(s.tried()).Abs(); left > 0 {
				timer.Reset(left)
				continue
			}
		}
		if s.wanted(ctx) {
			s.Refresh(ctx)
			if err := s.resolve(ctx); err != nil && ctx.Err() == nil {
				s.Log.WarnContext(ctx, "submissions could not be looked up", "err", err.Error())
			}
		}
		timer.Reset(pollEvery)
	}
}

// tried is when Slurm was last asked.
func (s *Service) tried() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pic.tried
}

// Clean removes what is older than its use. The audit log stays.
func (s *Service) Clean(ctx context.Context) error {
	now := s.Now()
	return s.DB.Write(ctx, func(tx store.Tx) error {
		for query, before := range map[string]int64{
			"DELETE FROM samples WHERE at < ?":                                     now.Add(-samplesFor).Unix(),
			"DELETE FROM job_events WHERE at < ?":                                  now.Add(-recordsFor).UnixMicro(),
			"DELETE FROM hosts WHERE ended > 0 AND ended < ?":                      now.Add(-recordsFor).UnixMicro(),
			"DELETE FROM intents WHERE state IN ('job', 'failed') AND created < ?": now.Add(-recordsFor).UnixMicro(),
		} {
			if _, err := store.Exec(ctx, tx, query, before); err != nil {
				return fmt.Errorf("remove old records: %w", err)
			}
		}
		return nil
	})
}

// wanted says whether the picture is worth asking Slurm for.
func (s *Service) wanted(ctx context.Context) bool {
	now := s.Now()
	s.mu.Lock()
	age := now.Sub(s.pic.at)
	for uid, seen := range s.viewers {
		if now.Sub(seen) > viewerFor {
			delete(s.viewers, uid)
		}
	}
	looking := len(s.viewers) > 0
	s.mu.Unlock()
	if looking || s.Hub.Watching() > 0 {
		return true
	}
	open, err := s.open(ctx)
	if err == nil && len(open) > 0 {
		return true
	}
	if age < idleEvery {
		return false
	}
	live, err := s.Routes.LiveJobs(ctx)
	return err == nil && len(live) > 0
}

// Look makes the user a viewer and waits a moment for a picture that is old.
func (s *Service) Look(ctx context.Context, uid uint32) {
	s.mu.Lock()
	if s.viewers == nil {
		s.viewers = map[uint32]time.Time{}
	}
	s.viewers[uid] = s.Now()
	now := s.Now()
	// A Slurm that does not answer is not waited for by every request.
	old := now.Sub(s.pic.at) > 2*pollEvery && (now.Sub(s.pic.tried) > pollEvery || s.flight != nil && s.pic.problem == "")
	s.mu.Unlock()
	if old {
		limit, cancel := context.WithTimeout(ctx, waitFor)
		defer cancel()
		s.Refresh(limit)
	}
}

// adopt puts a job that was submitted just now into the picture.
func (s *Service) adopt(ctx context.Context, id uint32) {
	job, err := s.detail(ctx, id)
	if err != nil {
		s.Log.InfoContext(ctx, "new job could not be read", "job", id, "err", err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.pic.rows[id]; there {
		return
	}
	// Others read the maps of a picture without the lock: they are replaced.
	rows, by := maps.Clone(s.pic.rows), maps.Clone(s.pic.byUID)
	if rows == nil {
		rows, by = map[uint32]slurm.QueueRow{}, map[uint32][]uint32{}
	}
	rows[id] = rowOf(&job)
	by[job.UID] = append(slices.Clone(by[job.UID]), id)
	s.pic.rows, s.pic.byUID = rows, by
	s.changed.Add(1)
}

// Refresh asks Slurm now, once for all who want it at the same time.
func (s *Service) Refresh(ctx context.Context) {
	s.mu.Lock()
	f := s.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		s.flight = f
		go func() {
			defer close(f.done)
			limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*s.Timeout)
			defer cancel()
			s.refresh(limit)
			s.mu.Lock()
			s.flight = nil
			s.mu.Unlock()
		}()
	}
	s.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
	}
}

func (s *Service) refresh(ctx context.Context) {
	limit, cancel := context.WithTimeout(ctx, s.Timeout)
	rows, err := s.Queue(limit)
	cancel()
	defer s.changed.Add(1)
	now := s.Now()
	s.mu.Lock()
	before := s.pic.problem
	s.pic.tried = now
	if err != nil {
		s.pic.problem = "Slurm does not answer; this is what it was before."
		s.mu.Unlock()
		if before == "" {
			s.Hub.bumpAll()
		}
		s.Log.WarnContext(ctx, "slurm's queue could not be read", "err", err.Error())
		return
	}
	s.pic.rows, s.pic.byUID, s.pic.at, s.pic.problem = make(map[uint32]slurm.QueueRow, len(rows)), map[uint32][]uint32{}, now, ""
	for _, r := range rows {
		s.pic.rows[r.ID] = r
		s.pic.byUID[r.UID] = append(s.pic.byUID[r.UID], r.ID)
	}
	s.pic.queued, s.pic.held = queuedGPUs(rows), heldGPUs(rows)
	for id, d := range s.details {
		if row, ok := s.pic.rows[id]; ok {
			d.row, d.at = row, now
			s.details[id] = d
		} else if now.Sub(d.at) > forgetAfter {
			delete(s.details, id)
		}
	}
	for id, w := range s.was {
		if _, ok := s.pic.rows[id]; !ok && now.Sub(w.at) > forgetAfter {
			delete(s.was, id)
		}
	}
	nodesOld := now.Sub(s.pic.nodesAt) > nodesEvery
	s.mu.Unlock()
	s.changed.Add(1)
	if before != "" {
		s.Hub.bumpAll()
	}
	if nodesOld {
		s.refreshNodes(ctx)
	}
	s.refreshDetails(ctx)
	s.reconcile(ctx)
	s.publish(ctx)
}

func (s *Service) refreshNodes(ctx context.Context) {
	list, err := s.Slurm.Nodes(ctx, s.ServiceUser)
	if err != nil {
		s.Log.WarnContext(ctx, "slurm's nodes could not be read", "err", err.Error())
		return
	}
	parts, err := s.Slurm.Partitions(ctx, s.ServiceUser)
	if err != nil {
		s.Log.WarnContext(ctx, "slurm's partitions could not be read", "err", err.Error())
		return
	}
	s.mu.Lock()
	same := reflect.DeepEqual(s.pic.nodes, list) && reflect.DeepEqual(s.pic.partitions, parts)
	s.pic.nodes, s.pic.partitions, s.pic.nodesAt = list, parts, s.Now()
	s.pic.agreed = agree(list, s.pic.held)
	s.mu.Unlock()
	s.changed.Add(1)
	if !same {
		s.Hub.bump(TopicCluster)
	}
}

// refreshDetails asks for the jobs with a session that are new or have changed. Of
// all others the queue says what lists show, however many there are.
func (s *Service) refreshDetails(ctx context.Context) {
	s.mu.Lock()
	var ids []uint32
	for id := range s.reported {
		row, there := s.pic.rows[id]
		if d, ok := s.details[id]; there && (!ok || d.state != row.State) {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	slices.Sort(ids)
	slices.Reverse(ids) // the newest first
	if len(ids) > detailsMax {
		ids = ids[:detailsMax]
	}
	s.ask(ctx, ids)
}

// ask reads jobs one by one, a few at once.
func (s *Service) ask(ctx context.Context, ids []uint32) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, detailsAtOnce)
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if _, err := s.detail(ctx, id); err != nil && !errors.Is(err, rest.ErrNotFound) {
				s.Log.WarnContext(ctx, "job could not be read", "job", id, "err", err.Error())
			}
		})
	}
	wg.Wait()
}

// detail asks for one job now.
func (s *Service) detail(ctx context.Context, id uint32) (rest.Job, error) {
	job, err := s.Slurm.Job(ctx, s.ServiceUser, id)
	if err != nil {
		return job, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.details == nil {
		s.details = map[uint32]detail{}
	}
	row, state := rowOf(&job), job.State
	if last, ok := s.pic.rows[id]; ok {
		row.Gres, row.Shown, state = last.Gres, last.Shown, last.State
	}
	s.details[id] = detail{job: job, state: state, row: row, at: s.Now()}
	s.changed.Add(1)
	return job, nil
}

// known returns a job's detail, asked for if it is not there.
func (s *Service) known(ctx context.Context, id uint32) (rest.Job, bool) {
	s.mu.Lock()
	d, ok := s.details[id]
	s.mu.Unlock()
	if ok {
		return d.job, true
	}
	job, err := s.detail(ctx, id)
	return job, err == nil
}

// current is known for a page: a job is asked for again once its state is another.
func (s *Service) current(ctx context.Context, id uint32) (rest.Job, bool) {
	s.mu.Lock()
	d, ok := s.details[id]
	row, there := s.pic.rows[id]
	s.mu.Unlock()
	if ok && (!there || d.state == row.State) {
		return d.job, true
	}
	if job, err := s.detail(ctx, id); err == nil || !ok {
		return job, err == nil
	}
	return d.job, true
}

// reconcile opens origins for sessions on nodes and closes those whose job is
// over, whoever forgot to say so.
func (s *Service) reconcile(ctx context.Context) {
	live, err := s.Routes.LiveJobs(ctx)
	if err != nil {
		s.Log.ErrorContext(ctx, "sessions could not be read", "err", err.Error())
		return
	}
	s.mu.Lock()
	rows := s.pic.rows
	at := s.pic.at
	sealed := maps.Clone(s.reported)
	s.mu.Unlock()
	for _, id := range live {
		row, ok := rows[id]
		// A session may be younger than the picture.
		if seen, known := sealed[id]; (!ok || slurm.Over(row.State)) && (!known || at.Sub(seen) > pollEvery) {
			if err := s.Routes.End(ctx, id); err != nil {
				s.Log.ErrorContext(ctx, "session could not be ended", "job", id, "err", err.Error())
			}
		}
	}
	for id := range sealed {
		if row, ok := rows[id]; ok && !slurm.Over(row.State) {
			for node, j := range s.Nodes.Find(id) {
				if err := s.begin(ctx, node, j); err != nil {
					s.Log.ErrorContext(ctx, "session could not be begun", "job", id, "err", err.Error())
				}
			}
		}
	}
}

// begin opens the origin of a job's app on the node that runs it: its first.
func (s *Service) begin(ctx context.Context, node string, j api.NodeJob) error {
	if j.App == "" || j.Instance == "" {
		return nil
	}
	s.mu.Lock()
	done := s.began[j.Instance]
	s.mu.Unlock()
	if done {
		return nil
	}
	job, ok := s.known(ctx, j.Job)
	if !ok || job.User == "" || job.UID != j.UID {
		return nil // Slurm is asked again at the next poll
	}
	if job.BatchHost == "" { // it was read while the job waited
		var err error
		if job, err = s.detail(ctx, j.Job); err != nil {
			return nil
		}
	}
	if job.BatchHost != node {
		return nil
	}
	if err := s.Routes.Begin(ctx, node, j, job.User); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.began == nil {
		s.began = map[string]bool{}
	}
	s.began[j.Instance] = true
	return nil
}

// JobOnNode takes the news of a node (nodes.Changes).
func (s *Service) JobOnNode(ctx context.Context, node string, j api.NodeJob) error {
	defer s.changed.Add(1)
	s.mu.Lock()
	if s.reported == nil {
		s.reported = map[uint32]time.Time{}
	}
	if _, ok := s.reported[j.Job]; !ok {
		s.reported[j.Job] = s.Now()
	}
	s.mu.Unlock()
	if err := s.begin(ctx, node, j); err != nil {
		return err
	}
	stage := j.Stage
	if j.App == "" {
		stage = api.StageSealed
	}
	if err := s.event(ctx, j.Job, node, stage); err != nil {
		return err
	}
	if job, ok := s.known(ctx, j.Job); ok {
		s.Hub.bump(userKey(job.User))
	}
	s.pokeNow()
	return nil
}

// JobEnded takes the news of a node (nodes.Changes).
func (s *Service) JobEnded(ctx context.Context, node string, j api.NodeJob, end api.NodeEnd) error {
	defer s.changed.Add(1)
	s.mu.Lock()
	if s.starved == nil {
		s.starved = map[uint32]string{}
	}
	if end.OOM {
		s.starved[j.Job] = node
	}
	delete(s.reported, j.Job)
	delete(s.began, j.Instance)
	s.remember(node, j)
	s.mu.Unlock()
	if j.Instance == "" {
		return nil
	}
	if err := s.Routes.EndInstance(ctx, node, j.Job, j.Instance); err != nil {
		return err
	}
	if job, ok := s.known(ctx, j.Job); ok {
		s.Hub.bump(userKey(job.User))
	}
	s.pokeNow()
	return nil
}

// remember keeps what a job was on a node: a job from the command line has no
// submission here that would tell of image and app. The caller holds the lock.
func (s *Service) remember(node string, j api.NodeJob) {
	if j.UID == 0 && j.App == "" && j.Image == "" {
		return // it ended before its node could tell of it
	}
	if s.was == nil {
		s.was = map[uint32]was{}
	}
	w, ok := s.was[j.Job]
	if !ok {
		w.nodes = map[string]api.NodeJob{}
	}
	w.nodes[node], w.at = j, s.Now()
	s.was[j.Job] = w
}

// onNodes is what the nodes say of a job, or have said before it ended there: then
// nothing in it is news. The caller holds the lock.
func (s *Service) onNodes(id uint32) (all map[string]api.NodeJob, now bool) {
	if all = s.Nodes.Find(id); len(all) > 0 {
		return all, true
	}
	return s.was[id].nodes, false
}

// Gone says whether Slurm is known not to know the job (nodes.Changes).
func (s *Service) Gone(job uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, ok := s.reported[job]
	if !ok || s.pic.rows == nil || s.pic.problem != "" || s.pic.at.Sub(seen) < 2*pollEvery {
		return false
	}
	_, there := s.pic.rows[job]
	return !there
}

// Addr returns where a node's agent listens, by Slurm's address of the node.
func (s *Service) Addr(ctx context.Context, node string) (string, error) {
	find := func() string {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, n := range s.pic.nodes {
			if n.Name == node {
				return n.Address
			}
		}
		return ""
	}
	addr := find()
	if addr == "" {
		s.lookAtNodes(ctx)
		addr = find()
	}
	if addr == "" {
		return "", problem.NotFound()
	}
	return joinPort(addr, s.AgentPort), nil
}

// lookAtNodes asks Slurm for its nodes, unless that was tried just now: strangers
// can ask for any name.
func (s *Service) lookAtNodes(ctx context.Context) {
	s.looking.Lock()
	defer s.looking.Unlock()
	if now := s.Now(); now.Sub(s.looked).Abs() >= pollEvery {
		s.looked = now
		s.refreshNodes(ctx)
	}
}

// Place tells where a job's instance is served (routes.Jobs).
func (s *Service) Place(ctx context.Context, job uint32, instance string) (node, addr string, end time.Time, ok bool) {
	for name, j := range s.Nodes.Find(job) {
		heard, _ := s.Nodes.Heard(name)
		if j.Instance != instance || !heard {
			continue
		}
		at, err := s.Addr(ctx, name)
		if err != nil {
			return "", "", time.Time{}, false
		}
		if d, ok := s.known(ctx, job); ok && d.Minutes > 0 && !d.Started.IsZero() {
			end = d.Started.Add(time.Duration(d.Minutes)*time.Minute + overtime)
		}
		return name, at, end, true
	}
	return "", "", time.Time{}, false
}

// overtime is how long Slurm may let a job run over its limit (OverTimeLimit and
// KillWait are minutes); the end of the job itself closes its streams.
const overtime = time.Hour

func (s *Service) event(ctx context.Context, job uint32, node, stage string) error {
	text := staged(node, stage).text
	return s.DB.Write(ctx, func(tx store.Tx) error {
		_, err := store.Exec(ctx, tx, `INSERT INTO job_events (job, at, stage, text, node) SELECT ?, ?, ?, ?, ?
			WHERE NOT EXISTS (SELECT 1 FROM job_events WHERE job = ? AND stage = ? AND text = ?)`,
			int64(job), s.Now().UnixMicro(), stage, text, node, int64(job), stage, text)
		if err != nil {
			return fmt.Errorf("store event: %w", err)
		}
		return nil
	})
}

// Touch says that the user still looks.
func (s *Service) Touch(uid uint32) {
	s.mu.Lock()
	if s.viewers == nil {
		s.viewers = map[uint32]time.Time{}
	}
	s.viewers[uid] = s.Now()
	old := s.Now().Sub(s.pic.tried).Abs() > pollEvery
	s.mu.Unlock()
	if old { // else the next poll is soon enough, for however many who look
		s.pokeNow()
	}
}

// PictureAge is how old the picture of Slurm is.
func (s *Service) PictureAge() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Now().Sub(s.pic.at)
}
