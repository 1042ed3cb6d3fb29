package api_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/slurm/rest"
	wire "github.com/carme-hpc/carme/internal/wire/api"
)

func TestList_of_jobs_asks_Slurm_no_more_for_many_viewers_than_for_one(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	for i := range uint32(5000) {
		w.slurm.jobs[i+1000] = rest.Job{ID: i + 1000, Name: fmt.Sprint(i), User: "x", UID: 20000 + i%100, State: "RUNNING", Partition: "debug", Submitted: time.Now()}
	}
	for i := range uint32(20) {
		w.slurm.jobs[i+9000] = rest.Job{ID: i + 9000, Name: "mine", User: "alice", UID: 10001, State: "RUNNING", Partition: "debug", Submitted: time.Now()}
	}
	var list wire.Jobs
	w.must(w.portal, http.MethodGet, "/v1/jobs", tok, nil, &list)
	if len(list.Jobs) != 20 {
		t.Fatalf("%d jobs", len(list.Jobs))
	}
	before := w.slurm.asked.Load()
	start := time.Now()
	const n = 150 // below what one session may send at once
	for range n {
		w.must(w.portal, http.MethodGet, "/v1/jobs", tok, nil, &list)
	}
	each := time.Since(start) / n
	if more := w.slurm.asked.Load() - before; more > 2+int32(time.Since(start)/time.Second) {
		t.Errorf("%d lists made %d requests to Slurm", n, more)
	}
	t.Logf("%v each with 5020 jobs in the cluster", each)
}

func TestWaiting_jobs_are_asked_for_again_one_at_a_time(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	const waiting = 40
	for i := range uint32(waiting) {
		w.slurm.jobs[i+1000] = rest.Job{ID: i + 1000, Name: "mine", User: "alice", UID: 10001, State: "PENDING", Reason: "Priority", Partition: "debug", Submitted: time.Now()}
	}
	reasons := func() map[string]int {
		var list wire.Jobs
		w.must(w.portal, http.MethodGet, "/v1/jobs", tok, nil, &list)
		all := map[string]int{}
		for _, j := range list.Jobs {
			all[j.Reason]++
		}
		return all
	}
	w.eventually("all are known", func() bool { return reasons()["Priority"] == waiting })
	w.slurm.mu.Lock()
	for id, j := range w.slurm.jobs {
		j.Reason = "Resources"
		w.slurm.jobs[id] = j
	}
	w.slurm.mu.Unlock()
	w.clock.add(time.Minute)
	before := w.slurm.asked.Load()
	polls := int32(0)
	w.eventually("each is asked for again", func() bool {
		w.clock.add(6 * time.Second)
		polls++
		return reasons()["Resources"] == waiting
	})
	// Each list may bring one poll, and the service's own come beside them.
	if asked := w.slurm.asked.Load() - before; asked > 3*polls+waiting || polls < waiting/2 {
		t.Errorf("%d calls in %d polls for %d jobs", asked, polls, waiting)
	}
}

// startTwo starts two sessions, stops the second, and returns the first.
func (w *world) startTwo(tok string) (started wire.Job) {
	w.t.Helper()
	var over wire.Job
	w.must(w.portal, http.MethodPost, "/v1/jobs", tok, newStart(), &started)
	w.must(w.portal, http.MethodPost, "/v1/jobs", tok, newStart(), &over)
	w.must(w.portal, http.MethodDelete, "/v1/jobs/"+over.ID, tok, nil, nil)
	return started
}

func TestLive_jobs_are_those_with_an_app_that_are_not_over(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	started := w.startTwo(tok)
	w.slurm.mu.Lock()
	for id, state := range map[uint32]string{1000: "PENDING", 1001: "RUNNING", 1002: "FAILED"} {
		w.slurm.jobs[id] = rest.Job{ID: id, Name: "mine", User: "alice", UID: 10001, State: state, Partition: "debug", Submitted: time.Now()}
	}
	w.slurm.mu.Unlock()
	var all, live wire.Jobs
	w.eventually("the end of one", func() bool {
		w.clock.add(6 * time.Second)
		w.must(w.portal, http.MethodGet, "/v1/jobs?live=yes", tok, nil, &live)
		return len(live.Jobs) == 1
	})
	if live.Jobs[0].ID != started.ID || live.Jobs[0].App == "" {
		t.Errorf("live is %+v", live.Jobs[0])
	}
	w.eventually("all five in the whole list", func() bool {
		w.clock.add(6 * time.Second)
		w.must(w.portal, http.MethodGet, "/v1/jobs", tok, nil, &all)
		return len(all.Jobs) == 5
	})
	w.must(w.portal, http.MethodGet, "/v1/jobs?live=yes", tok, nil, &live)
	if len(live.Jobs) != 1 {
		t.Errorf("%d live jobs beside them", len(live.Jobs))
	}
}

func TestOffer_counts_what_the_list_shows_as_not_over(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.startTwo(tok)
	w.slurm.mu.Lock()
	for i, state := range []string{"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "COMPLETED", "FAILED", "REQUEUED"} {
		id := uint32(1000 + i)
		w.slurm.jobs[id] = rest.Job{ID: id, Name: "mine", User: "alice", UID: 10001, State: state, Partition: "debug", Submitted: time.Now(), TRES: "cpu=1,node=1,gres/gpu=2"}
	}
	w.slurm.mu.Unlock()
	var all wire.Jobs
	w.eventually("all in the list", func() bool {
		w.clock.add(6 * time.Second)
		w.must(w.portal, http.MethodGet, "/v1/jobs", tok, nil, &all)
		known := 0
		for _, j := range all.Jobs {
			if len(j.GPUs) > 0 {
				known++
			}
		}
		return known == 9
	})
	want := wire.Used{}
	for _, j := range all.Jobs {
		if j.Stage != wire.StageEnded && j.Stage != wire.StageFailed {
			want.Running++
			want.GPUs += j.GPUs[0].Count
		}
	}
	var offer wire.Offer
	w.must(w.portal, http.MethodGet, "/v1/offer", tok, nil, &offer)
	if offer.Used != want || want.Running != 5 {
		t.Errorf("used is %+v, the list has %+v", offer.Used, want)
	}
}
