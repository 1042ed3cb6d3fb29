package rest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

type tokens struct{ n atomic.Int32 }

func (t *tokens) Token(_ context.Context, user string) (string, time.Time, error) {
	t.n.Add(1)
	return "token-of-" + user, time.Now().Add(time.Minute), nil
}

// server is a slurmrestd that speaks one version and answers from a table.
func server(t *testing.T, version string, answers map[string]string) (c *Client, tok *tokens, asked func() []string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	var conf net.ListenConfig
	l, err := conf.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu   sync.Mutex
		seen []string
	)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		path, ok := strings.CutPrefix(r.URL.Path, "/slurm/"+version)
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		if user := r.Header.Get("X-SLURM-USER-NAME"); r.Header.Get("X-SLURM-USER-TOKEN") != "token-of-"+user {
			t.Errorf("%s with token %q", user, r.Header.Get("X-SLURM-USER-TOKEN"))
		}
		if path == "/ping/" {
			_, _ = w.Write([]byte(`{"pings":[{"responding":true,"primary":true}]}`))
			return
		}
		mu.Lock()
		seen = append(seen, r.Method+" "+path)
		if body, err := io.ReadAll(r.Body); err == nil && r.Method == http.MethodDelete && len(body) > 0 {
			seen[len(seen)-1] += " " + string(body)
		}
		mu.Unlock()
		text, ok := answers[r.Method+" "+path]
		if !ok {
			t.Errorf("asked %s %s", r.Method, path)
		}
		status := http.StatusOK
		if rest, found := strings.CutPrefix(text, "500 "); found {
			status, text = http.StatusInternalServerError, rest
		}
		if text == "cut" {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}))
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	tok = &tokens{}
	c, err = New("unix:"+socket, 2*time.Second, tok, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return c, tok, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

const jobText = `{"jobs":[{"job_id":7,"name":"a\nb","comment":"carme:x","user_name":"alice","user_id":10001,"job_state":["RUNNING","COMPLETING"],
"state_reason":"None","partition":"debug","nodes":"n[1-2]","batch_host":"n1","node_count":{"set":true,"infinite":false,"number":2},
"priority":{"set":true,"infinite":false,"number":4294901757},"cpus":{"set":true,"number":4},"tres_alloc_str":"cpu=4,mem=2G,node=2,gres/gpu=2,gres/gpu:a100=2",
"time_limit":{"set":false,"infinite":true,"number":0},"start_time":{"set":true,"number":1700000000},"exit_code":{"return_code":{"set":true,"number":1},"signal":{"id":{"set":false,"number":0}}}}]}`

func TestJob_is_read_whatever_its_priority(t *testing.T) {
	c, tok, _ := server(t, "v0.0.42", map[string]string{"GET /job/7": jobText})
	for range 3 {
		j, err := c.Job(t.Context(), "alice", 7)
		if err != nil {
			t.Fatal(err)
		}
		if j.ID != 7 || j.State != "RUNNING" || len(j.Flags) != 1 || j.NodeCount != 2 || j.CPUs != 4 || j.MemoryMB != 2048 || j.Minutes != 0 || j.ExitCode != 1 || j.BatchHost != "n1" || j.Started.Unix() != 1700000000 {
			t.Errorf("job is %+v", j)
		}
	}
	if tok.n.Load() != 1 {
		t.Errorf("%d tokens for three requests", tok.n.Load())
	}
}

func TestClient_finds_the_version_that_the_server_speaks(t *testing.T) {
	c, _, _ := server(t, "v0.0.44", map[string]string{"GET /job/7": jobText})
	if _, err := c.Job(t.Context(), "alice", 7); err != nil {
		t.Error(err)
	}
	old, _, _ := server(t, "v0.0.38", nil)
	if _, err := old.Job(t.Context(), "alice", 7); err == nil || !strings.Contains(err.Error(), "24.05") {
		t.Errorf("an old server: %v", err)
	}
}

func TestJob_that_is_not_there_is_said_so(t *testing.T) {
	c, _, _ := server(t, "v0.0.42", map[string]string{
		"GET /job/8": `500 {"jobs":[],"errors":[{"error_number":2017,"error":"Invalid job id specified"}]}`, "GET /job/9": `{"jobs":[]}`,
	})
	for _, id := range []uint32{8, 9} {
		if _, err := c.Job(t.Context(), "alice", id); !errors.Is(err, ErrNotFound) {
			t.Errorf("job %d: %v", id, err)
		}
	}
}

func TestSubmit_tells_apart_what_happened(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		check  func(id uint32, err error) bool
	}{
		"accepted":              {`{"job_id":12}`, func(id uint32, err error) bool { return id == 12 && err == nil }},
		"held, with an error":   {`{"job_id":13,"errors":[{"error_number":2050,"error":"over a limit"}]}`, func(id uint32, err error) bool { return id == 13 && err == nil }},
		"refused":               {`500 {"errors":[{"error_number":2014,"error":"Requested node configuration is not available"}]}`, refusedWith("Requested node")},
		"refused, described":    {`500 {"errors":[{"description":"Batch job submission failed","error_number":2014,"error":"Requested node configuration is not available"}]}`, refusedWith("Requested node")},
		"refused by lua":        {`500 {"job_submit_user_msg":"carme: no","errors":[{"error_number":9999,"error":"x"}]}`, refusedWith("carme: no")},
		"slurmctld not reached": {`500 {"errors":[{"error_number":1800,"error":"Unable to contact slurm controller"}]}`, unknown},
		"cut off":               {"cut", unknown},
		"no JSON":               {"500 oops", unknown},
		"nothing":               {`{}`, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			client, _, seen := server(t, "v0.0.42", map[string]string{"POST /job/submit": c.answer})
			id, err := client.Submit(t.Context(), "alice", Submission{Name: "n", Nodes: 1, Environment: []string{"A=b"}})
			if !c.check(id, err) {
				t.Errorf("got %d, %v", id, err)
			}
			if sent := seen(); len(sent) != 1 {
				t.Errorf("sent %v", sent)
			}
		})
	}
}

func TestCancel_of_what_waits_of_an_array_ends_nothing_that_runs(t *testing.T) {
	c, _, asked := server(t, "v0.0.42", map[string]string{"DELETE /jobs/": `{}`, "DELETE /job/7_2": `{}`})
	for _, id := range []string{"7_[3-9%2]", "7_2"} {
		if err := c.Cancel(t.Context(), "alice", id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	if got, want := asked(), []string{`DELETE /jobs/ {"job_state":["PENDING"],"jobs":["7_[3-9%2]"]}`, "DELETE /job/7_2"}; !slices.Equal(got, want) {
		t.Errorf("asked %q", got)
	}
}

func refusedWith(text string) func(uint32, error) bool {
	return func(id uint32, err error) bool {
		r, ok := errors.AsType[RefusedError](err)
		return id == 0 && ok && strings.Contains(r.Text, text)
	}
}

func unknown(id uint32, err error) bool { return id == 0 && errors.Is(err, ErrUnknown) }

func TestSubmit_that_cannot_be_sent_is_not_unknown(t *testing.T) {
	c, err := New("unix:"+t.TempDir()+"/none", time.Second, &tokens{}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 { // the breaker opens on the way
		if _, err := c.Submit(t.Context(), "alice", Submission{Nodes: 1}); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknown) {
			t.Errorf("got %v", err)
		}
	}
}

func TestBreaker_keeps_requests_from_a_dead_server_and_closes_again(t *testing.T) {
	now := time.Now()
	c, err := New("unix:"+t.TempDir()+"/none", time.Second, &tokens{}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	for range breakAfter {
		if _, err := c.Nodes(t.Context(), "u"); err == nil || strings.Contains(err.Error(), "a moment ago") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := c.Nodes(t.Context(), "u"); err == nil || !strings.Contains(err.Error(), "a moment ago") {
		t.Errorf("the breaker is not open: %v", err)
	}
	now = now.Add(breakFor)
	if _, err := c.Nodes(t.Context(), "u"); err == nil || strings.Contains(err.Error(), "a moment ago") {
		t.Errorf("the breaker is not closed: %v", err)
	}
}

func TestBody_of_a_submission(t *testing.T) {
	s := Submission{
		Name: "n", Comment: "carme:1", Script: "#!/bin/sh\n:\n", WorkDir: "/home/a", Nodes: 2, Minutes: 30, CPUs: 4, MemoryMB: 1000, TRESPerNode: "gres/gpu:1",
		Environment: []string{"PATH=/bin"}, SpankEnvironment: []string{"_SLURM_SPANK_OPTION_carme_carme=base"}, Constraint: "carme",
	}
	raw, err := json.Marshal(s.body())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"nodes":"2"`, `"tasks":2`, `"tasks_per_node":1`, `"time_limit":{"number":30,"set":true}`, `"cpus_per_task":4`, `"memory_per_node":{"number":1000,"set":true}`,
		`"tres_per_node":"gres/gpu:1"`, `"environment":["PATH=/bin"]`, `"spank_environment":["_SLURM_SPANK_OPTION_carme_carme=base"]`, `"constraints":"carme"`,
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s is missing in %s", want, raw)
		}
	}
	for _, not := range []string{"account", "qos", "partition", "user_id"} {
		if strings.Contains(string(raw), `"`+not+`"`) {
			t.Errorf("%s is in %s", not, raw)
		}
	}
}

func TestFault_token_from_before_the_clock_was_put_back_is_not_kept(t *testing.T) {
	c, tok, _ := server(t, "v0.0.42", map[string]string{})
	var back time.Duration
	c.now = func() time.Time { return time.Now().Add(-back) }
	for i, jump := range []time.Duration{0, 0, time.Hour, -time.Hour} {
		back = jump
		if err := c.Ping(t.Context(), "alice"); err != nil {
			t.Fatal(err)
		}
		if want := []int32{1, 1, 2, 3}[i]; tok.n.Load() != want {
			t.Errorf("request %d: %d tokens, not %d", i+1, tok.n.Load(), want)
		}
	}
}
