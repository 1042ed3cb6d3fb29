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
