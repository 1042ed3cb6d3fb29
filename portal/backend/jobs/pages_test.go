package jobs

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"reflect"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/store"
)

// restd is a slurmrestd that counts what it is asked for.
type restd struct {
	Slurm

	asked atomic.Int32
}

func (r *restd) Job(_ context.Context, _ string, id uint32) (rest.Job, error) {
	r.asked.Add(1)
	return rest.Job{ID: id, WorkDir: "/home/alice", Stdout: "/home/alice/out"}, nil
}

func (r *restd) Nodes(context.Context, string) ([]rest.Node, error)           { return nil, nil }
func (r *restd) Partitions(context.Context, string) ([]rest.Partition, error) { return nil, nil }

// quiet are nodes that have nothing to say; each listed job asks them once.
type quiet struct{ found atomic.Int32 }

func (q *quiet) Find(uint32) map[string]api.NodeJob { q.found.Add(1); return nil }
func (q *quiet) Heard(string) (bool, time.Time)     { return false, time.Time{} }
func (q *quiet) Metrics(context.Context, uint32) (api.Metrics, error) {
	return api.Metrics{}, errors.ErrUnsupported
}

// closed are no sessions' hosts.
type closed struct{ Origins }

func (closed) Hosts(context.Context, string) (map[uint32]string, error) { return nil, nil }
func (closed) LiveJobs(context.Context) ([]uint32, error)               { return nil, nil }

// crowd is a service over a queue.
func crowd(t *testing.T, rows []slurm.QueueRow) (*Service, *restd, *quiet) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "carme.db")
	if err := store.Create(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	asked, nodes := &restd{}, &quiet{}
	return &Service{
		DB: db, Log: slog.New(slog.DiscardHandler), Now: time.Now, Slurm: asked, Nodes: nodes, Routes: closed{}, Hub: &Hub{}, Timeout: time.Minute,
		Queue:     func(context.Context) ([]slurm.QueueRow, error) { return rows, nil },
		Catalogue: func() (*config.Config, error) { return &config.Config{Spank: config.Default()}, nil },
	}, asked, nodes
}

// waiting are n jobs of a user that wait.
func waiting(n int, uid uint32) []slurm.QueueRow {
	var rows []slurm.QueueRow
	for i := range n {
		id := 1000*uid + uint32(i)
		rows = append(rows, slurm.QueueRow{ID: id, Shown: strconv.FormatUint(uint64(id), 10), State: statePending, UID: uid, Partition: "debug", Nodes: 1})
	}
	return rows
}

func session(name string, uid int64) *auth.Session {
	return &auth.Session{UserName: name, UID: uid, Roles: `["user"]`, GroupsOf: "[]"}
}

func TestPage_of_one_job_does_not_make_the_list_of_all(t *testing.T) {
	s, restd, nodes := crowd(t, append(waiting(900, 1), slurm.QueueRow{ID: 7, Shown: "7", State: "RUNNING", UID: 1}))
	s.Refresh(t.Context())
	before := nodes.found.Load()
	for range 10 {
		if j, err := s.Get(t.Context(), session("alice", 1), "7"); err != nil || j.ID != "7" || j.Detail.Output != "/home/alice/out" {
			t.Fatalf("%+v, %v", j, err)
		}
	}
	if made := nodes.found.Load() - before; made > 30 {
		t.Errorf("ten pages made %d jobs", made)
	}
	if asked := restd.asked.Load(); asked != 1 {
		t.Errorf("and asked Slurm %d times", asked)
	}
}

func TestPage_of_a_job_asks_for_it_again_when_its_state_is_another(t *testing.T) {
	queue := []slurm.QueueRow{{ID: 7, Shown: "7", State: statePending, UID: 1}}
	s, restd, _ := crowd(t, queue)
	for i, state := range []string{statePending, statePending, "RUNNING", "RUNNING", "FAILED"} {
		queue[0].State = state
		s.Refresh(t.Context())
		if j, err := s.Get(t.Context(), session("alice", 1), "7"); err != nil || j.State != state {
			t.Errorf("%d: %+v, %v", i, j, err)
		}
	}
	if asked := restd.asked.Load(); asked != 3 {
		t.Errorf("it was asked for %d times", asked)
	}
}

func TestList_says_what_the_queue_says_of_jobs_that_nobody_has_asked_for(t *testing.T) {
	at := time.Unix(1795404172, 0).UTC()
	s, restd, _ := crowd(t, []slurm.QueueRow{
		{ID: 1, Shown: "1", State: "FAILED", UID: 1, ExitCode: 3, NodeList: "n1", Started: at, Ended: at.Add(time.Hour), Name: "a\x1bb"},
		{ID: 2, Shown: "2", State: "FAILED", UID: 1, Signal: 9},
		{ID: 3, Shown: "3", State: "TIMEOUT", UID: 1, Minutes: 5},
		{ID: 4, Shown: "4", State: statePending, UID: 1, Reason: "JobHeldUser", Started: at, TRES: "cpu=1,mem=2G,node=1,gres/gpu:a100=2", Account: "x"},
		{ID: 5, Shown: "5", State: statePending, UID: 2, Reason: "Priority", Name: "bob's own"},
		{ID: 6, Shown: "6", State: "CANCELLED", UID: 1, Started: at, Ended: at},
	})
	s.Refresh(t.Context())
	all, err := s.List(t.Context(), "alice", 1)
	if err != nil || len(all.Jobs) != 5 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, j := range all.Jobs {
		switch {
		case j.ID == "1" && j.EndCode == "end.exit" && j.EndArgs[0] == "3" && j.Ended.Equal(at.Add(time.Hour)) && j.Started.Equal(at) && j.Nodes[0] == "n1" && j.Name == "a\uFFFDb":
		case j.ID == "6" && j.EndCode == "end.cancelled" && j.Started.IsZero() && j.Ended.Equal(at):
		case j.ID == "2" && j.EndCode == "end.signal" && j.EndArgs[0] == "9":
		case j.ID == "3" && j.EndCode == "end.timeout" && j.Minutes == 5:
		case j.ID == "4" && j.Reason == "JobHeldUser" && j.Started.IsZero() && j.Expected.Equal(at) && j.MemoryMB == 2048 && j.GPUs[0] == (api.JobGPUs{Type: "a100", Count: 2}) && j.Account == "x":
		default:
			t.Errorf("%+v", j)
		}
	}
	if asked := restd.asked.Load(); asked != 0 {
		t.Errorf("%d jobs were asked for", asked)
	}
}

func TestJob_is_found_by_whatever_the_list_calls_it_and_by_its_owner_alone(t *testing.T) {
	rows := []slurm.QueueRow{
		{ID: 12, Shown: "12_[3-9]", State: statePending, UID: 1},
		{ID: 13, Shown: "12_1", State: "RUNNING", UID: 1},
		{ID: 14, Shown: "12_2", State: "RUNNING", UID: 1},
		{ID: 120, Shown: "120", State: "RUNNING", UID: 1},
		{ID: 21, Shown: "20_1", State: "RUNNING", UID: 1},
		{ID: 30, Shown: "30", State: "RUNNING", UID: 2},
		{ID: 31, Shown: "31", State: "RUNNING", UID: 1},
	}
	s, _, _ := crowd(t, rows)
	started, sent := "0190a0a0-0000-7000-8000-000000000001", "0190a0a0-0000-7000-8000-000000000002"
	if err := s.DB.Write(t.Context(), func(tx store.Tx) error {
		if _, err := store.Exec(t.Context(), tx, "INSERT INTO users (name, uid, gid, home, full_name, mail, roles, groups_of, stamp) VALUES ('alice', 1, 1, '/', '', '', '[]', '[]', '')"); err != nil {
			return err
		}
		for id, job := range map[string]int64{started: 31, sent: 77} {
			now := time.Now().UnixMicro()
			if _, err := store.Exec(t.Context(), tx, "INSERT INTO intents (id, user_name, uid, body, state, job, created, updated) VALUES (?, 'alice', 1, '{}', 'job', ?, ?, ?)", id, job, now, now); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.Refresh(t.Context())
	// Who asks for what is not there need not wait for a picture that may have it.
	late := time.Now()
	s.Now = func() time.Time {
		late = late.Add(2 * pokedEvery)
		return late
	}
	alice, bob := session("alice", 1), session("bob", 2)
	all, err := s.List(t.Context(), "alice", 1)
	if err != nil || len(all.Jobs) != 7 {
		t.Fatalf("%d jobs, %v", len(all.Jobs), err)
	}
	for id, want := range map[string]string{
		"12": "12_[3-9]", "12_1": "12_1", "12_[3-9]": "12_[3-9]", "120": "120", "20": "20_1", started: "31", "31": "31", sent: "77", "77": "77",
	} {
		j, err := s.find(t.Context(), alice, id)
		whole, _ := pick(all, id)
		if err != nil || j.ID != want || !reflect.DeepEqual(j, whole) {
			t.Errorf("%s: %+v, %v; the list has %+v", id, j, err, whole)
		}
		if j, err := s.find(t.Context(), bob, id); err == nil {
			t.Errorf("bob finds %s: %+v", id, j)
		}
	}
	for _, id := range []string{"30", "1", "12_", "2", "", "0", "12_9"} {
		if j, err := s.find(t.Context(), alice, id); err == nil {
			t.Errorf("alice finds %s: %+v", id, j)
		}
	}
}

func TestGPUs_in_use_are_as_young_as_the_queue_where_it_agrees_with_the_nodes(t *testing.T) {
	nodes := []rest.Node{
		{Name: "n1", Gres: "gpu:a100:4", GresUsed: "gpu:a100:2(IDX:0-1)", States: []string{"MIXED"}},
		{Name: "n2", Gres: "gpu:a100:4", GresUsed: "gpu:a100:1(IDX:0)", States: []string{"MIXED"}},
	}
	one := slurm.QueueRow{ID: 1, State: "RUNNING", NodeList: "n[1-2]", TRES: "cpu=2,gres/gpu=2,gres/gpu:a100=2"}
	two := slurm.QueueRow{ID: 2, State: "RUNNING", NodeList: "n1", TRES: "gres/gpu:a100=1"}
	begun := slurm.QueueRow{ID: 3, State: "RUNNING", NodeList: "n2", TRES: "gres/gpu:a100=3"}
	for name, c := range map[string]struct {
		then, now []slurm.QueueRow
		free      int
	}{
		"nothing has changed":     {[]slurm.QueueRow{one, two}, []slurm.QueueRow{one, two}, 5},
		"one has begun":           {[]slurm.QueueRow{one, two}, []slurm.QueueRow{one, two, begun}, 2},
		"one has ended":           {[]slurm.QueueRow{one, two}, []slurm.QueueRow{one, {ID: 2, State: "COMPLETED", NodeList: "n1", TRES: two.TRES}}, 6},
		"one is not to be seen":   {[]slurm.QueueRow{one}, []slurm.QueueRow{one, begun}, 5},
		"types are not told":      {[]slurm.QueueRow{one, two}, []slurm.QueueRow{one, two, {ID: 4, State: "RUNNING", NodeList: "n2", TRES: "gres/gpu=1"}}, 5},
		"nodes are not told":      {[]slurm.QueueRow{one, two}, []slurm.QueueRow{one, two, {ID: 4, State: "RUNNING", NodeList: "n[1-2]", TRES: "gres/gpu:a100=3"}}, 5},
		"one may have let go":     {[]slurm.QueueRow{one, two}, []slurm.QueueRow{one, {ID: 2, State: "SUSPENDED", NodeList: "n1", TRES: two.TRES}}, 5},
		"one waits, asks for all": {[]slurm.QueueRow{one, two}, []slurm.QueueRow{one, two, {ID: 5, State: statePending, TRES: "gres/gpu:a100=8"}}, 5},
	} {
		s := &Service{}
		s.pic.nodes, s.pic.agreed, s.pic.held = nodes, agree(nodes, heldGPUs(c.then)), heldGPUs(c.now)
		if got := s.gpus(false); len(got) != 1 || got[0].Free != c.free || got[0].Used != 8-c.free {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
