package api_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	wire "github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/store"
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

func TestThousands_of_new_jobs_and_why_they_wait_come_with_the_queue(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	const waiting = 2000
	for i := range uint32(waiting) {
		w.slurm.jobs[i+1000] = rest.Job{ID: i + 1000, Name: "mine", User: "alice", UID: 10001, State: "PENDING", Reason: "Priority", Partition: "debug", Submitted: time.Now(), Account: "a", TRES: "mem=1G,gres/gpu=2"}
	}
	listed := func() map[string]int {
		var list wire.Jobs
		w.must(w.portal, http.MethodGet, "/v1/jobs", tok, nil, &list)
		all := map[string]int{}
		for _, j := range list.Jobs {
			if j.Name == "mine" && j.Account == "a" && j.MemoryMB == 1024 && len(j.GPUs) == 1 && j.GPUs[0].Count == 2 && !j.Submitted.IsZero() {
				all[j.Reason]++
			}
		}
		return all
	}
	if got := listed(); got["Priority"] != waiting {
		t.Fatalf("the first list has %v", got)
	}
	w.slurm.mu.Lock()
	for id, j := range w.slurm.jobs {
		j.Reason = "Resources"
		w.slurm.jobs[id] = j
	}
	w.slurm.mu.Unlock()
	w.clock.add(11 * time.Second)
	if got := listed(); got["Resources"] != waiting {
		t.Errorf("the next has %v", got)
	}
	// squeue alone was asked; the service's own polls come beside the lists.
	if asked := w.slurm.asked.Load(); asked > 5 {
		t.Errorf("Slurm was asked %d times", asked)
	}
}

func TestMany_who_begin_to_look_ask_Slurm_no_more_than_one(t *testing.T) {
	w := newWorld(t)
	w.login("alice")
	w.jobs.Refresh(t.Context())
	before := w.slurm.asked.Load()
	viewers := uint32(0)
	for begun := time.Now(); time.Since(begun) < 300*time.Millisecond; viewers++ {
		w.jobs.Touch(20000 + viewers)
		w.jobs.Look(t.Context(), 20000+viewers)
	}
	if more := w.slurm.asked.Load() - before; more > 2 {
		t.Errorf("%d viewers made %d requests", viewers, more)
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

// another is one more login of a user who is logged in.
func (w *world) another(user string) (tok string) {
	w.t.Helper()
	tok = base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))
	sum := sha256.Sum256([]byte(tok))
	now := w.clock.now()
	if err := w.db.Write(w.t.Context(), func(tx store.Tx) error {
		_, err := store.Exec(w.t.Context(), tx, "INSERT INTO login_sessions (id, hash, user_name, state, created, seen, expires, source, agent, device, portal) VALUES ('another', ?, ?, 'full', ?, ?, ?, '', '', '', 'p')",
			hex.EncodeToString(sum[:]), user, now.UnixMicro(), now.UnixMicro(), now.Add(time.Hour).UnixMicro())
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	return tok
}

// dashboard is what a session's first page shows.
func (w *world) dashboard(tok string) (board wire.Dashboard, raw string) {
	w.t.Helper()
	var text json.RawMessage
	w.must(w.portal, http.MethodGet, "/v1/dashboard", tok, nil, &text)
	if err := json.Unmarshal(text, &board); err != nil {
		w.t.Fatal(err)
	}
	return board, string(text)
}

func TestDashboard_shows_at_once_what_has_changed(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	if board, _ := w.dashboard(tok); len(board.Sessions.Jobs) != 0 || board.Offer.Used.Running != 0 || board.User.Name != "alice" || board.Offer.Default.App != "jupyterlab" || len(board.Cluster.Nodes) != 1 || board.Broken != nil {
		t.Fatalf("%+v", board)
	}
	job := w.submit(tok)
	if board, _ := w.dashboard(tok); len(board.Sessions.Jobs) != 1 || board.Sessions.Jobs[0].ID != job.ID || board.Offer.Used != (wire.Used{Running: 1, GPUs: 1}) {
		t.Errorf("after a submission: %+v", board)
	}
	w.slurm.run(w.slurm.next)
	w.report(w.slurm.next, 10001, instance)
	w.eventually("the way in", func() bool {
		board, _ := w.dashboard(tok)
		return len(board.Sessions.Jobs) == 1 && board.Sessions.Jobs[0].Host != "" && board.Sessions.Jobs[0].Stage == wire.StageReady
	})
	w.must(w.portal, http.MethodDelete, "/v1/jobs/"+job.ID, tok, nil, nil)
	w.eventually("the end", func() bool {
		board, _ := w.dashboard(tok)
		return len(board.Sessions.Jobs) == 0 && board.Offer.Used.Running == 0
	})
}

func TestDashboard_is_made_once_for_all_who_wait_for_it(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.dashboard(tok)
	making, done := make(chan struct{}, 100), make(chan struct{})
	read := w.jobs.Catalogue
	w.jobs.Catalogue = func() (*config.Config, error) {
		making <- struct{}{}
		<-done
		return read()
	}
	w.clock.add(2 * time.Second) // old, while Slurm need not be asked
	const n = 20
	answers := make(chan int, n)
	for range n {
		go func() {
			status, _ := w.ask(w.portal, http.MethodGet, "/v1/dashboard", tok, nil, nil)
			answers <- status
		}()
	}
	<-making
	select {
	case <-making:
		t.Error("the dashboard is made twice at a time")
	case <-time.After(300 * time.Millisecond):
	}
	close(done)
	for range n {
		if status := <-answers; status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	}
}

func TestUse_of_a_login_makes_no_dashboard_old(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	seen := func() (at int64) {
		if err := store.One(t.Context(), w.db.Read(), &at, "SELECT MAX(seen) FROM login_sessions"); err != nil {
			t.Fatal(err)
		}
		return at
	}
	w.dashboard(tok)
	first, written := seen(), w.db.Written()
	w.clock.add(2 * time.Minute)
	w.dashboard(tok)
	w.eventually("the use is noted", func() bool { return seen() > first })
	if now := w.db.Written(); now != written {
		t.Errorf("%d writes became %d", written, now)
	}
}

func TestDashboard_is_the_same_to_the_byte_for_all_logins_of_a_user(t *testing.T) {
	w := newWorld(t)
	one, _ := w.login("alice")
	two := w.another("alice")
	w.submit(one)
	same := 0
	for range 20 {
		_, first := w.dashboard(one)
		_, second := w.dashboard(two)
		if first == second {
			same++
		}
	}
	if same < 15 { // a poll may come between the two
		t.Errorf("%d of 20 were the same", same)
	}
}

func TestAttack_a_dashboard_is_its_users_own_and_ends_with_the_login(t *testing.T) {
	w := newWorld(t)
	alice, _ := w.login("alice")
	again := w.another("alice")
	bob, _ := w.login("bob")
	job := w.session(alice)
	for range 3 {
		if board, _ := w.dashboard(alice); len(board.Sessions.Jobs) != 1 {
			t.Fatalf("%+v", board.Sessions)
		}
		if board, raw := w.dashboard(bob); board.User.Name != "bob" || len(board.Sessions.Jobs) != 0 || board.Offer.Used.Running != 0 || strings.Contains(raw, job.Host) || strings.Contains(raw, "alice") {
			t.Errorf("bob sees %s", raw)
		}
	}
	w.must(w.portal, http.MethodPost, "/v1/logout", alice, nil, nil)
	if status, _ := w.ask(w.portal, http.MethodGet, "/v1/dashboard", alice, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("after the logout: %d", status)
	}
	w.dashboard(again) // another login of hers goes on
	w.dir.mu.Lock()
	changed := w.dir.all["alice"]
	changed.Groups = append([]string{"staff"}, changed.Groups...)
	w.dir.all["alice"] = changed
	w.dir.mu.Unlock()
	if err := w.auth.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if board, _ := w.dashboard(again); len(board.Offer.Images) != 2 {
		t.Errorf("in the group of an image alice is offered %+v", board.Offer.Images)
	}
	w.dir.mu.Lock()
	delete(w.dir.all, "alice")
	w.dir.mu.Unlock()
	if err := w.auth.Recheck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if status, _ := w.ask(w.portal, http.MethodGet, "/v1/dashboard", again, nil, nil); status != http.StatusUnauthorized {
		t.Errorf("out of the directory: %d", status)
	}
}
