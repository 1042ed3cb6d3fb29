package api_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	wire "github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/api"
	"github.com/carme-hpc/carme/portal/backend/store"
)

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.After(15 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			w.t.Fatalf("%s: not within the time", what)
		case <-tick.C:
		}
	}
}

func TestStart_of_one_form_is_one_job_however_often_it_is_sent(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	in := newStart()
	var created atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var j wire.Job
			status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, in, &j)
			switch {
			case status == http.StatusCreated:
				created.Add(1)
			case status != http.StatusOK || j.Intent != in.ID:
				t.Errorf("status %d %+v job %+v", status, e, j)
			}
		})
	}
	wg.Wait()
	if created.Load() != 1 || len(w.slurm.sent) != 1 {
		t.Errorf("%d created, %d submitted", created.Load(), len(w.slurm.sent))
	}
	bob, _ := w.login("bob")
	if status, _ := w.ask(w.portal, "POST", "/v1/jobs", bob, in, nil); status != http.StatusConflict {
		t.Errorf("another user with the same id: %d", status)
	}
}

func TestStart_whose_answer_is_lost_is_looked_up_and_never_sent_again(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.slurm.lost = true
	in := newStart()
	var j wire.Job
	if status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, in, &j); status != http.StatusAccepted && j.Stage != wire.StageQueued { // found already
		t.Fatalf("status %d %+v job %+v", status, e, j)
	}
	w.eventually("the job is found", func() bool {
		w.must(w.portal, "GET", "/v1/jobs/"+in.ID, tok, nil, &j)
		return j.ID != "" && j.Stage == wire.StageQueued
	})
	if len(w.slurm.sent) != 1 {
		t.Errorf("sent %d times", len(w.slurm.sent))
	}
}

func TestFault_a_submission_is_looked_up_though_the_clock_was_put_back(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.slurm.hang(true) // not found at once
	w.slurm.submit = func() error { return rest.ErrUnknown }
	in := newStart()
	if status, _ := w.ask(w.portal, "POST", "/v1/jobs", tok, in, nil); status != http.StatusAccepted {
		t.Fatalf("status %d", status)
	}
	w.clock.add(-time.Hour)
	w.slurm.mu.Lock()
	w.slurm.jobs[777] = rest.Job{ID: 777, Comment: "carme:" + in.ID, User: "alice", UID: 10001, State: "PENDING", Partition: "debug"}
	w.slurm.mu.Unlock()
	w.slurm.hang(false)
	var j wire.Job
	w.eventually("the job is found", func() bool {
		w.clock.add(time.Second)
		w.must(w.portal, "GET", "/v1/jobs/"+in.ID, tok, nil, &j)
		return j.ID == "777"
	})
}

func TestStart_that_never_arrived_fails_and_may_be_pressed_again(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.slurm.submit = func() error { return rest.ErrUnknown }
	in := newStart()
	if status, _ := w.ask(w.portal, "POST", "/v1/jobs", tok, in, nil); status != http.StatusAccepted {
		t.Fatalf("status %d", status)
	}
	var j wire.Job
	w.eventually("the loss is noticed", func() bool {
		w.clock.add(10 * time.Second)
		w.must(w.portal, "GET", "/v1/jobs/"+in.ID, tok, nil, &j)
		return j.Stage == wire.StageFailed
	})
	w.slurm.submit = nil
	if status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, in, &j); status != http.StatusCreated {
		t.Errorf("pressed again: %d %+v", status, e)
	}
}

func TestStart_is_not_called_lost_while_what_hangs_may_still_act_on_it(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.slurm.hang(true)
	w.slurm.submit = func() error { return rest.ErrUnknown }
	in := newStart()
	if status, _ := w.ask(w.portal, "POST", "/v1/jobs", tok, in, nil); status != http.StatusAccepted {
		t.Fatalf("status %d", status)
	}
	var j wire.Job
	looked := w.slurm.asked.Load()
	w.eventually("looks", func() bool {
		w.clock.add(10 * time.Second)
		w.must(w.portal, "GET", "/v1/jobs/"+in.ID, tok, nil, &j)
		return w.slurm.asked.Load() > looked+3
	})
	if j.Stage != wire.StageSending {
		t.Fatalf("while slurmrestd hangs the job is %s", j.Stage)
	}
	w.slurm.mu.Lock()
	w.slurm.jobs[777] = rest.Job{ID: 777, Comment: "carme:" + in.ID, User: "alice", UID: 10001, State: "PENDING", Partition: "debug"}
	w.slurm.mu.Unlock()
	w.slurm.hang(false)
	w.eventually("the job is found", func() bool {
		w.must(w.portal, "GET", "/v1/jobs/"+in.ID, tok, nil, &j)
		return j.ID == "777"
	})
}

func TestStart_in_flight_when_the_process_died_is_looked_up(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	j := w.submit(tok)
	w.forget(j.Intent)
	w.stop()
	w.start()
	w.eventually("the job is found", func() bool {
		w.must(w.portal, "GET", "/v1/jobs/"+j.Intent, tok, nil, &j)
		return j.Stage == wire.StageQueued
	})
	if len(w.slurm.sent) != 1 {
		t.Errorf("sent %d times", len(w.slurm.sent))
	}
}

func TestStart_refuses(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	for name, c := range map[string]struct {
		change func(*wire.Start)
		field  string
	}{
		"no id":                     {func(s *wire.Start) { s.ID = "" }, "id"},
		"an id that is no UUID":     {func(s *wire.Start) { s.ID = strings.Repeat("x", 36) }, "id"},
		"an image of other groups":  {func(s *wire.Start) { s.Image = "secret" }, "image"},
		"an image by path":          {func(s *wire.Start) { s.Image = "/etc/shadow" }, "image"},
		"an unknown app":            {func(s *wire.Start) { s.App = "x" }, "app"},
		"an app the image has not":  {func(s *wire.Start) { s.App = "terminal" }, "app"},
		"an unknown GPU":            {func(s *wire.Start) { s.GPUType = "h100" }, "gpu_type"},
		"more GPUs than a node has": {func(s *wire.Start) { s.GPUs = 3 }, "gpus"},
		"negative GPUs":             {func(s *wire.Start) { s.GPUs = -1 }, "gpus"},
		"more GPUs than allowed":    {func(s *wire.Start) { s.GPUs, s.Nodes = 2, 2 }, "gpus"},
		"more nodes than allowed":   {func(s *wire.Start) { s.Nodes = 3 }, "nodes"},
		"more minutes than allowed": {func(s *wire.Start) { s.Minutes = 601 }, "minutes"},
		"negative minutes":          {func(s *wire.Start) { s.Minutes = -5 }, "minutes"},
		"a name with a newline":     {func(s *wire.Start) { s.Name = "x\n#SBATCH --uid=0" }, "name"},
		"a partition that is down":  {func(s *wire.Start) { s.Partition = "off" }, "partition"},
		"an account with a comma":   {func(s *wire.Start) { s.Account = "a,b" }, "account"},
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			in := newStart()
			c.change(&in)
			status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, in, nil)
			if status != http.StatusUnprocessableEntity || e.Fields[c.field] == "" {
				t.Errorf("status %d, %+v", status, e)
			}
		})
	}
	w.t = t
	all := newStart()
	all.Partition, all.CPUs, all.MemoryMB, all.Minutes, all.Nodes, all.Account = "nosuch", 60000, 1<<29, -5, 99, "a,b"
	_, e := w.ask(w.portal, "POST", "/v1/jobs", tok, all, nil)
	for _, field := range []string{"partition", "cpus", "memory_mb", "minutes", "nodes", "account"} {
		if e.Fields[field] == "" {
			t.Errorf("with the others, %s is not named: %+v", field, e.Fields)
		}
	}
	if len(w.slurm.sent) != 0 {
		t.Errorf("submitted %+v", w.slurm.sent)
	}
	w.submit(tok)
	w.submit(tok)
	if status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, newStart(), nil); status != http.StatusUnprocessableEntity || e.Code != "limit" || e.Fields["running"] == "" {
		t.Errorf("a third job of two: %d %+v", status, e)
	}
}

func TestStart_says_what_Slurm_says(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.slurm.submit = func() error { return rest.RefusedError{Text: "Invalid account"} }
	if status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, newStart(), nil); status != http.StatusUnprocessableEntity || !strings.Contains(e.Message, "Invalid account") {
		t.Errorf("%d %+v", status, e)
	}
	w.slurm.submit = func() error { return rest.ErrUnavailable }
	if status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, newStart(), nil); status != http.StatusServiceUnavailable {
		t.Errorf("%d %+v", status, e)
	}
	w.slurm.submit = func() error { return errors.New("signer is down") }
	if status, e := w.ask(w.portal, "POST", "/v1/jobs", tok, newStart(), nil); status != http.StatusServiceUnavailable {
		t.Errorf("%d %+v", status, e)
	}
}

func TestScript_does_what_the_form_does(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	in := newStart()
	in.ID, in.Name, in.Minutes = "", `a "b`, 90
	var s wire.Script
	w.must(w.portal, "POST", "/v1/script", tok, in, &s)
	want := "#!/bin/sh\n#SBATCH --job-name=\"a \\\"b\"\n#SBATCH --carme=base\n#SBATCH --carme-app=jupyterlab\n#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n" +
		"#SBATCH --gres=gpu:a100:1\n#SBATCH --time=1:30:00\n#SBATCH --cpus-per-task=2\n#SBATCH --mem=3000M\n#SBATCH --chdir=/home/alice\n#SBATCH --output=/home/alice/carme-%j.out\n:\n"
	if s.Script != want {
		t.Errorf("script is\n%s", s.Script)
	}
}

func TestArray_is_shown_by_task_and_only_what_was_meant_is_cancelled(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.slurm.mu.Lock()
	for id, j := range map[uint32]rest.Job{500: {Array: "500_[3-9]", State: "PENDING"}, 501: {Array: "500_1", State: "RUNNING"}, 502: {Array: "500_2", State: "RUNNING"}} {
		j.ID, j.User, j.UID, j.Partition, j.Submitted = id, "alice", 10001, "debug", time.Now()
		w.slurm.jobs[id] = j
	}
	w.slurm.mu.Unlock()
	states := func() map[string]string {
		var all wire.Jobs
		w.must(w.portal, "GET", "/v1/jobs", tok, nil, &all)
		out := map[string]string{}
		for _, j := range all.Jobs {
			if out[j.ID] != "" {
				t.Errorf("%s is shown twice", j.ID)
			}
			out[j.ID] = j.State
		}
		return out
	}
	w.eventually("the tasks", func() bool { w.clock.add(15 * time.Second); return len(states()) == 3 })
	var waiting wire.Job
	if w.must(w.portal, "GET", "/v1/jobs/500", tok, nil, &waiting); waiting.ID != "500_[3-9]" {
		t.Errorf("by its number the array is %s", waiting.ID)
	}
	if status, e := w.ask(w.portal, "DELETE", "/v1/jobs/500_2", tok, nil, nil); status != http.StatusNoContent {
		t.Fatalf("cancel: %d %+v", status, e)
	}
	w.eventually("one is cancelled", func() bool { w.clock.add(15 * time.Second); return states()["500_2"] == "CANCELLED" })
	if s := states(); s["500_1"] != "RUNNING" || s["500_[3-9]"] != "PENDING" {
		t.Errorf("the others: %v", s)
	}
	// Whoever looks at a page on which some still waited means none of those that run.
	w.slurm.mu.Lock()
	delete(w.slurm.jobs, 500)
	w.slurm.mu.Unlock()
	w.eventually("no more waiting tasks", func() bool { w.clock.add(15 * time.Second); return states()["500_[3-9]"] == "" })
	if status, e := w.ask(w.portal, "DELETE", "/v1/jobs/500", tok, nil, nil); status != http.StatusConflict || e.Words == nil || e.Words.Code != "conflict.array" {
		t.Errorf("what waited: %d %+v", status, e)
	}
	if s := states(); s["500_1"] != "RUNNING" {
		t.Errorf("a task that was not meant: %v", s)
	}
	bob, _ := w.login("bob")
	if status, _ := w.ask(w.portal, "DELETE", "/v1/jobs/500_1?array=all", bob, nil, nil); status != http.StatusNotFound {
		t.Errorf("bob ends alice's array: %d", status)
	}
	if s := states(); s["500_1"] != "RUNNING" {
		t.Errorf("of alice's array there is %v", s)
	}
	w.must(w.portal, "DELETE", "/v1/jobs/500_2?array=all", tok, nil, nil)
	w.eventually("all tasks are cancelled", func() bool { w.clock.add(15 * time.Second); return states()["500_1"] == "CANCELLED" })
	if status, _ := w.ask(w.portal, "DELETE", "/v1/jobs/777?array=all", tok, nil, nil); status != http.StatusNotFound {
		t.Errorf("an array that is not there: %d", status)
	}
}

func TestRefusal_has_words_for_clients_with_their_own(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	in := newStart()
	in.Nodes, in.GPUType = 3, "h100"
	_, e := w.ask(w.portal, "POST", "/v1/jobs", tok, in, nil)
	for field, code := range map[string]string{"nodes": "field.range", "gpu_type": "field.gpu_type"} {
		if e.FieldCodes[field].Code != code || e.Fields[field] == "" {
			t.Errorf("%s: %+v", field, e)
		}
	}
	w.slurm.submit = func() error { return rest.RefusedError{Text: "Invalid account"} }
	if _, e := w.ask(w.portal, "POST", "/v1/jobs", tok, newStart(), nil); e.Words == nil || e.Words.Code != "end.refused" || len(e.Words.Args) != 1 || e.Words.Args[0] != "Invalid account" {
		t.Errorf("%+v", e)
	}
	w.slurm.submit = nil
	used := newStart()
	w.must(w.portal, "POST", "/v1/jobs", tok, used, nil)
	other, _ := w.login("bob")
	if _, e := w.ask(w.portal, "POST", "/v1/jobs", other, used, nil); e.Code != "conflict" || e.Words == nil || e.Words.Code != "conflict.form" {
		t.Errorf("%+v", e)
	}
}

func TestWhat_is_another_users_does_not_exist(t *testing.T) {
	w := newWorld(t)
	alice, _ := w.login("alice")
	bob, _ := w.login("bob")
	job := w.session(alice)
	var sessions []wire.LoginSession
	w.must(w.portal, "GET", "/v1/me/sessions", alice, nil, &sessions)
	for _, c := range []struct{ method, path string }{
		{"GET", "/v1/jobs/" + job.ID},
		{"GET", "/v1/jobs/" + job.Intent},
		{"DELETE", "/v1/jobs/" + job.ID},
		{"GET", "/v1/jobs/" + job.ID + "/metrics"},
		{"GET", "/v1/jobs/" + job.ID + "/output?stream=out"},
		{"DELETE", "/v1/me/sessions/" + sessions[0].ID},
	} {
		if status, _ := w.ask(w.portal, c.method, c.path, bob, nil, nil); status != http.StatusNotFound {
			t.Errorf("%s %s: %d", c.method, c.path, status)
		}
	}
	if status, _ := w.ask(w.portal, "POST", "/v1/open", bob, wire.Open{Host: job.Host, Nonce: sha("n")}, nil); status != http.StatusNotFound {
		t.Errorf("open: %d", status)
	}
	var list wire.Jobs
	w.must(w.portal, "GET", "/v1/jobs", bob, nil, &list)
	if len(list.Jobs) != 0 {
		t.Errorf("bob sees %+v", list.Jobs)
	}
}

func TestAttack_texts_of_a_job_are_shown_without_control_characters(t *testing.T) {
	w := newWorld(t)
	alice, _ := w.login("alice")
	const evil = "a\x1b[31m\u202eb\n\u0085\x07"
	w.slurm.jobs[77] = rest.Job{
		ID: 77, Name: evil, Account: evil, QOS: evil, Reason: evil, User: "alice", UID: 10001, State: "RUNNING", Partition: "debug", Submitted: time.Now(),
		WorkDir: "/home/" + evil, Stdout: "/home/alice/" + evil, Stderr: "/home/alice/" + evil,
	}
	for _, path := range []string{"/v1/jobs", "/v1/jobs/77", "/v1/jobs/77/output?stream=out"} {
		var text json.RawMessage
		w.must(w.portal, "GET", path, alice, nil, &text)
		if path != "/v1/jobs/77/output?stream=out" && !strings.Contains(string(text), "a\uFFFD[31m\uFFFDb") {
			t.Errorf("%s: %s", path, text)
		}
		for _, bad := range []string{`\u001b`, `\n`, `\u0007`, "\u0085", "\u202e"} {
			if strings.Contains(string(text), bad) {
				t.Errorf("%s has %q: %s", path, bad, text)
			}
		}
	}
}

func TestCancelled_job_closes_its_session(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	job := w.session(tok)
	next := w.revocations()
	w.must(w.portal, "DELETE", "/v1/jobs/"+job.ID, tok, nil, nil)
	if r := next(); r.Kind != wire.RevokeHost || r.Value != job.Host {
		t.Errorf("told %+v", r)
	}
	w.eventually("the end is seen", func() bool {
		var now wire.Job
		w.must(w.portal, "GET", "/v1/jobs/"+job.ID, tok, nil, &now)
		return now.Stage == wire.StageEnded && now.Host == "" && now.End != ""
	})
}

// A job from the command line has no submission here that would tell of it.
func TestJob_from_the_command_line_keeps_what_its_nodes_said_once_it_has_ended(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.submit(tok)
	id := w.slurm.next + 1
	w.slurm.mu.Lock()
	job := w.slurm.jobs[w.slurm.next]
	job.ID, job.Comment, job.Name = id, "", "by hand"
	w.slurm.jobs[id] = job
	w.slurm.mu.Unlock()
	w.slurm.run(id)
	device := wire.Device{UUID: "GPU-1", Model: "A100"}
	w.must(w.node, "POST", "/v1/agent/report", "", wire.Report{Boot: "x", Jobs: []wire.NodeJob{
		{Job: id, UID: 10001, Instance: instance, App: "jupyterlab", Image: "base", Stage: wire.StageReady, Devices: []wire.Device{device}},
	}}, nil)
	at := "/v1/jobs/" + strconv.FormatUint(uint64(id), 10)
	var before, after wire.Job
	// The first answer is for a job that the picture, which was made a moment ago,
	// does not have.
	w.eventually("the session", func() bool {
		w.must(w.portal, "GET", at, tok, nil, &before)
		return before.Stage == wire.StageReady
	})
	w.must(w.portal, "DELETE", at, tok, nil, nil)
	w.must(w.node, "POST", "/v1/agent/report", "", wire.Report{Boot: "x", Ended: []wire.NodeEnd{{Job: id, Instance: instance}}}, nil)
	w.eventually("the end", func() bool {
		w.must(w.portal, "GET", at, tok, nil, &after)
		return after.Stage == wire.StageEnded
	})
	if !after.Carme || after.App != "jupyterlab" || after.Image != "base" || len(after.Detail.Devices) != 1 || len(after.Detail.Log) <= len(before.Detail.Log) || after.Host != "" {
		t.Errorf("it is %+v %+v\nbefore it ended it was %+v %+v", after, after.Detail, before, before.Detail)
	}
}

func TestRequeued_job_has_another_origin(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	job := w.session(tok)
	id := w.slurm.next
	other := strings.Repeat("ab", 16)
	w.report(id, 10001, other)
	var again wire.Job
	w.must(w.portal, "GET", "/v1/jobs/"+job.ID, tok, nil, &again)
	if again.Host == "" || again.Host == job.Host {
		t.Errorf("host %q, before %q", again.Host, job.Host)
	}
	if status, _ := w.ask(w.portal, "POST", "/v1/open", tok, wire.Open{Host: job.Host, Nonce: sha("n")}, nil); status != http.StatusNotFound {
		t.Errorf("the old origin opens: %d", status)
	}
	// Its cookie's token is gone with it; a new login would lead nowhere.
	if status, _ := w.ask(w.portal, "POST", "/v1/grants", "", wire.GrantRequest{Host: job.Host, Token: "old"}, nil); status != http.StatusNotFound {
		t.Errorf("the old origin asks for a login: %d", status)
	}
	if status, _ := w.ask(w.portal, "POST", "/v1/grants", "", wire.GrantRequest{Host: again.Host, Token: "old"}, nil); status != http.StatusUnauthorized {
		t.Errorf("the new origin with the old token: %d", status)
	}
}

func TestJob_that_a_node_invents_for_a_user_has_no_origin(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	bob, _ := w.login("bob")
	job := w.submit(tok)
	w.slurm.run(w.slurm.next)
	w.report(w.slurm.next, 10002, instance) // says that it is bob's
	for _, who := range []string{tok, bob} {
		var list wire.Jobs
		w.must(w.portal, "GET", "/v1/jobs", who, nil, &list)
		for _, j := range list.Jobs {
			if j.Host != "" || j.Stage == wire.StageReady {
				t.Errorf("job %s has %+v", job.ID, j)
			}
		}
	}
}

func TestAttack_a_node_writes_into_the_log_of_no_job_but_its_own(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	job := w.session(tok)
	evil := client(w.ca.Open(t, mtls.RoleNode, "n9"))
	id := w.slurm.next
	w.must(evil, "POST", "/v1/agent/report", "", wire.Report{Boot: "x", Jobs: []wire.NodeJob{
		{Job: id, UID: 10001, Instance: strings.Repeat("e", 32), App: "jupyterlab", Stage: "Log in again at evil.example", Text: "or at evil.test"},
	}}, nil)
	var got wire.Job
	w.must(w.portal, "GET", "/v1/jobs/"+job.ID, tok, nil, &got)
	own := 0
	for _, e := range got.Detail.Log {
		if strings.Contains(e.Text, "evil") {
			t.Errorf("the log says %q", e.Text)
		}
		if e.Code == "event.ready" || e.Code == "event.app" {
			own++
		}
	}
	if own == 0 {
		t.Errorf("its own node's words are missing: %+v", got.Detail.Log)
	}
}

func TestAttack_strangers_who_name_nodes_that_are_none_do_not_send_the_backend_to_Slurm(t *testing.T) {
	w := newWorld(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if status, _ := w.ask(w.bare, "POST", "/v1/agent/enrol", "", wire.Enrol{Role: mtls.RoleNode, Name: "none" + itoa(uint32(i)), CSR: csr}, nil); status != http.StatusNotFound {
			t.Fatalf("%d: %d", i, status)
		}
	}
	if got := w.slurm.listed.Load(); got > 5 {
		t.Errorf("Slurm was asked for its nodes %d times", got)
	}
}

func TestCode_is_bound(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	job := w.session(tok)
	nonce := "the nonce of the browser"
	open := func() string {
		var o wire.Opened
		w.must(w.portal, "POST", "/v1/open", tok, wire.Open{Host: job.Host, Nonce: sha(nonce)}, &o)
		return o.Code
	}
	for name, in := range map[string]wire.Redeem{
		"to its nonce": {Host: job.Host, Nonce: "another"}, "to its host": {Host: "s-" + strings.Repeat("a", 26), Nonce: nonce},
	} {
		in.Code = open()
		if status, _ := w.ask(w.portal, "POST", "/v1/redeem", "", in, nil); status != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, status)
		}
	}
	code := open()
	w.clock.add(31 * time.Second)
	if status, _ := w.ask(w.portal, "POST", "/v1/redeem", "", wire.Redeem{Host: job.Host, Nonce: nonce, Code: code}, nil); status != http.StatusUnauthorized {
		t.Errorf("to 30 s: %d", status)
	}
	code = open()
	w.clock.add(-10 * time.Minute)
	if status, _ := w.ask(w.portal, "POST", "/v1/redeem", "", wire.Redeem{Host: job.Host, Nonce: nonce, Code: code}, nil); status != http.StatusUnauthorized {
		t.Errorf("to 30 s, though the clock was put back: %d", status)
	}
	code = open()
	w.must(w.portal, "POST", "/v1/logout", tok, nil, nil)
	if status, _ := w.ask(w.portal, "POST", "/v1/redeem", "", wire.Redeem{Host: job.Host, Nonce: nonce, Code: code}, nil); status != http.StatusUnauthorized {
		t.Errorf("to its session: %d", status)
	}
	if status, _ := w.ask(w.bare, "POST", "/v1/redeem", "", wire.Redeem{}, nil); status != http.StatusForbidden {
		t.Errorf("to a portal: %d", status)
	}
}

func TestAttack_made_up_codes_do_not_queue_for_the_database(t *testing.T) {
	w := newWorld(t)
	held, free, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		done <- w.db.Write(t.Context(), func(store.Tx) error {
			close(held)
			<-free
			return nil
		})
	}()
	<-held
	const patience = 3 * time.Second
	late := time.AfterFunc(patience, func() { close(free) })
	begun := time.Now()
	status, _ := w.ask(w.portal, "POST", "/v1/redeem", "", wire.Redeem{Host: "s-" + strings.Repeat("a", 26), Code: "made up", Nonce: "n"}, nil)
	if took := time.Since(begun); status != http.StatusUnauthorized || took >= patience {
		t.Errorf("%d after %v", status, took)
	}
	if late.Stop() {
		close(free)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFault_a_database_that_does_not_answer_logs_no_open_page_out(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	_, in, _ := w.events(tok)
	if !in.Scan() || !strings.HasPrefix(in.Text(), ": carme") {
		t.Fatalf("it begins with %q", in.Text())
	}
	if err := w.db.Close(); err != nil {
		t.Fatal(err)
	}
	w.server.Feed.Wake()
	for in.Scan() {
		if strings.Contains(in.Text(), "logout") {
			t.Error("the page is sent to the login")
		}
	}
	w.stop()
	w.start()
	w.must(w.portal, "GET", "/v1/me", tok, nil, nil)
}

func TestEvents_tell_of_changes_and_of_the_logout(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	_, in, _ := w.events(tok)
	until := func(want string) {
		t.Helper()
		for in.Scan() {
			if strings.HasPrefix(in.Text(), want) {
				return
			}
		}
		t.Fatalf("no %q: %v", want, in.Err())
	}
	until(": carme")
	job := w.submit(tok)
	until("data: jobs b-")
	w.must(w.portal, "GET", "/v1/jobs/"+job.ID, tok, nil, nil)
	w.must(w.portal, "POST", "/v1/logout", tok, nil, nil)
	until("event: logout")
	rest := 0
	for in.Scan() {
		rest++
	}
	if rest > 2 { // the data of the event, and an empty line
		t.Errorf("the stream goes on for %d lines", rest)
	}
}

// events opens a stream of events, which ends with shut or the test.
func (w *world) events(tok string) (status int, lines *bufio.Scanner, shut func()) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.addr+"/v1/events", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+tok)
	res, err := w.portal.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	shut = func() { _ = res.Body.Close() }
	w.t.Cleanup(shut)
	return res.StatusCode, bufio.NewScanner(res.Body), shut
}

func TestAttack_one_login_holds_so_many_streams_of_events_and_no_more(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	other, _ := w.login("bob")
	status := func(tok string) int {
		status, _, _ := w.events(tok)
		return status
	}
	got, _, shut := w.events(tok)
	for i := 1; got == http.StatusOK && i < 64; i++ {
		got = status(tok)
	}
	if got != http.StatusOK {
		t.Fatalf("one of the first: %d", got)
	}
	if got := status(tok); got != http.StatusTooManyRequests {
		t.Errorf("one more: %d", got)
	}
	if got := status(other); got != http.StatusOK {
		t.Errorf("somebody else: %d", got)
	}
	shut()
	w.eventually("the place of one that was closed", func() bool { return status(tok) == http.StatusOK })
}

func TestBodies_are_read_strictly(t *testing.T) {
	w := newWorld(t)
	for name, body := range map[string]string{
		"an unknown field": `{"username":"a","password":"b","admin":true}`, "two values": `{} {}`, "no JSON": `<a>`, "nothing": ``,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.addr+"/v1/login", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := w.portal.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}
	tok, _ := w.login("alice")
	if status, _ := w.ask(w.portal, "GET", "/v1/nothing", tok, nil, nil); status != http.StatusNotFound {
		t.Errorf("unknown path: %d", status)
	}
	if status, _ := w.ask(w.portal, "GET", "/v1/jobs/"+uuid.NewString(), tok, nil, nil); status != http.StatusNotFound {
		t.Errorf("unknown job: %d", status)
	}
}

func TestList_when_Slurm_does_not_answer_is_the_last_one_and_quick(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.submit(tok)
	w.slurm.mu.Lock()
	w.slurm.down = true
	w.slurm.mu.Unlock()
	w.clock.add(time.Minute)
	var list wire.Jobs
	w.eventually("the trouble is said", func() bool {
		w.must(w.portal, "GET", "/v1/jobs", tok, nil, &list)
		return list.Problem != "" && list.Age >= 50 && len(list.Jobs) == 1
	})
	before, start := w.slurm.asked.Load(), time.Now()
	for range 50 {
		w.must(w.portal, "GET", "/v1/jobs", tok, nil, &list)
	}
	if n := w.slurm.asked.Load() - before; n > 3 || time.Since(start) > 2*time.Second {
		t.Errorf("asked %d times in %v", n, time.Since(start))
	}
}

func TestOld_records_are_removed_and_the_audit_log_is_not(t *testing.T) {
	w := newWorld(t)
	tok, _ := w.login("alice")
	w.session(tok)
	count := func(table string) int {
		t.Helper()
		var n int
		if err := store.One(t.Context(), w.db.Read(), &n, "SELECT COUNT(*) FROM "+table); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := w.jobs.Clean(t.Context()); err != nil || count("intents") != 1 || count("job_events") == 0 {
		t.Errorf("young records went: %v", err)
	}
	audited := count("audit")
	w.clock.add(100 * 24 * time.Hour)
	if err := w.jobs.Clean(t.Context()); err != nil || count("intents") != 0 || count("job_events") != 0 || count("hosts") != 1 || count("audit") != audited {
		t.Errorf("%v: %d intents, %d events, %d hosts, %d audited", err, count("intents"), count("job_events"), count("hosts"), count("audit"))
	}
}

func TestStreams_end_when_the_backend_stops(t *testing.T) {
	w := newWorld(t)
	stopping := make(chan struct{})
	w.server.Stopping = stopping
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.addr+"/v1/revocations", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.portal.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // a test's
	close(stopping)
	in := bufio.NewScanner(res.Body)
	for in.Scan() {
		if in.Text() == "" {
			t.Error("an empty line")
		}
	}
	if in.Err() != nil {
		t.Errorf("the stream was cut: %v", in.Err())
	}
}

func TestMetrics_count_the_requests_of_every_server(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := &api.Server{Metrics: registry, Log: slog.New(slog.DiscardHandler), Now: time.Now}
	for _, handler := range []http.Handler{s.Handler(), s.Handler()} { // public and admin
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/openapi.yaml", nil))
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := 0.0
	for _, f := range families {
		if f.GetName() == "carme_backend_requests_total" {
			for _, m := range f.GetMetric() {
				counted += m.GetCounter().GetValue()
			}
		}
	}
	if counted != 2 {
		t.Errorf("%v requests were counted", counted)
	}
}
