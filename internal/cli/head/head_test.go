package head

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// backend answers on a socket with what is given for each request.
func backend(t *testing.T, answers map[string]string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, known := answers[r.Method+" "+r.URL.RequestURI()]
		if !known {
			t.Errorf("asked for %s %s", r.Method, r.URL)
		}
		if strings.Contains(text, `"error"`) {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write([]byte(text)) // the client will see
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return socket
}

func TestAudit_log_is_unbroken_or_a_failure(t *testing.T) {
	for what, c := range map[string]struct {
		answer, want string
		failed       bool
	}{
		"unbroken": {`{"ok":true,"records":7,"hash":"abc"}`, "7 records, unbroken; the last one's hash is abc\n", false},
		"broken":   {`{"ok":false,"records":3,"hash":"abc","problem":"record 4 was changed"}`, "broken after 3 records: record 4 was changed\n", true},
	} {
		t.Run(what, func(t *testing.T) {
			var out strings.Builder
			h := Head{Socket: backend(t, map[string]string{"GET /v1/audit/verify": c.answer}), Out: &out}
			if err := h.VerifyAudit(t.Context()); errors.Is(err, ErrFound) != c.failed || out.String() != c.want {
				t.Errorf("got %v, %q", err, &out)
			}
		})
	}
}

func TestAudit_list_is_whole_and_moves_no_cursor(t *testing.T) {
	var out strings.Builder
	h := Head{Socket: backend(t, map[string]string{
		"GET /v1/audit?after=5": `[{"seq":6,"time":"2026-01-01T00:00:00Z","actor":"alice","act":"job submit","object":"\u001b[2Jx","detail":{"b":"2","a":"1\n2"}}]`,
		"GET /v1/audit?after=6": `[{"seq":8,"time":"2026-01-01T00:00:00Z","actor":"bob","act":"login","object":"bob"}]`,
		"GET /v1/audit?after=8": `[]`,
	}), Out: &out}
	if err := h.ListAudit(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"SEQ", "alice", `\x1b[2Jx`, `a=1\n2 b=2`, "bob"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("got\n%s", &out)
	}
}

func TestHealth_names_what_does_not_work(t *testing.T) {
	var out strings.Builder
	h := Head{Socket: backend(t, map[string]string{"GET /v1/health": `{"slurm":"no answer","database":""}`}), Out: &out}
	if err := h.Health(t.Context()); !errors.Is(err, ErrFound) || out.String() != "database  ok\nslurm     FAIL  no answer\n" {
		t.Errorf("got %v, %q", err, &out)
	}
}

func TestErrors_say_what_to_do(t *testing.T) {
	h := Head{Socket: filepath.Join(t.TempDir(), "none"), Out: &strings.Builder{}}
	if err := h.Health(t.Context()); err == nil || !strings.Contains(err.Error(), "root on the head node") || strings.Contains(err.Error(), "http://") {
		t.Errorf("no backend: %v", err)
	}
	h.Socket = backend(t, map[string]string{"DELETE /v1/users/no%2Fbody/factors": `{"error":{"code":"not_found","message":"There is no such user."}}`})
	if err := h.ResetFactors(t.Context(), "no/body"); err == nil || err.Error() != "There is no such user." {
		t.Errorf("no user: %v", err)
	}
}

func TestEndLogins_asks_for_one_user(t *testing.T) {
	var out strings.Builder
	h := Head{Socket: backend(t, map[string]string{"DELETE /v1/users/alice/sessions": ""}), Out: &out}
	if err := h.EndLogins(t.Context(), "alice"); err != nil || out.String() != "all logins of alice have ended, and what they had open\n" {
		t.Errorf("%v, %q", err, &out)
	}
}
