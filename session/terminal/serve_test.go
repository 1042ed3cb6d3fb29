package terminal

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func serve(t *testing.T) (*server, *httptest.Server) {
	t.Helper()
	s := newServer(append(os.Environ(), "SHELL=/bin/sh", "PS1=$ "))
	t.Cleanup(func() { signal.Stop(s.hangup) })
	web := httptest.NewServer(s.routes())
	t.Cleanup(func() {
		s.endAll()
		web.Close()
		for _, sh := range s.all() {
			<-sh.done
		}
	})
	return s, web
}

func (s *server) all() []*shell {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*shell
	for _, sh := range s.shells {
		all = append(all, sh)
	}
	return all
}

func dial(t *testing.T, web *httptest.Server, name string) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, web.URL+"/t/"+name+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body != nil {
		_ = resp.Body.Close()
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

func typed(t *testing.T, conn *websocket.Conn, text string) {
	t.Helper()
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("i"+text)); err != nil {
		t.Fatal(err)
	}
}

func awaits(t *testing.T, conn *websocket.Conn, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var seen strings.Builder
	for !strings.Contains(seen.String(), want) {
		_, data, err := conn.Read(ctx)
		if err != nil {
			t.Fatalf("%q never came (%v); seen: %q", want, err, seen.String())
		}
		seen.Write(data)
	}
}

func TestA_shell_runs_what_is_typed(t *testing.T) {
	_, web := serve(t)
	conn := dial(t, web, "1")
	typed(t, conn, "echo $((6*7))x\n")
	awaits(t, conn, "42x")
}

func TestA_shell_lives_on_and_shows_its_past_to_who_comes_back(t *testing.T) {
	_, web := serve(t)
	first := dial(t, web, "1")
	typed(t, first, "WORD=kept; echo $((20+3))y\n")
	awaits(t, first, "23y")
	if err := first.CloseNow(); err != nil {
		t.Log(err)
	}
	second := dial(t, web, "1")
	awaits(t, second, "23y")
	typed(t, second, "echo +$WORD+\n")
	awaits(t, second, "+kept+")
}

func TestA_shell_ends_with_its_server_also_where_nohup_has_started_it(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	s, web := serve(t)
	conn := dial(t, web, "1")
	typed(t, conn, "echo $((6*7))x\n")
	awaits(t, conn, "42x")
	shells := s.all()
	s.endAll()
	for _, sh := range shells {
		select {
		case <-sh.done:
		case <-time.After(20 * time.Second):
			_ = sh.cmd.Process.Kill()
			t.Error("a shell lives on")
		}
	}
}

func TestTwo_names_are_two_shells(t *testing.T) {
	s, web := serve(t)
	dial(t, web, "1")
	dial(t, web, "2")
	for deadline := time.Now().Add(10 * time.Second); len(s.all()) < 2 && time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
	}
	if n := len(s.all()); n != 2 {
		t.Errorf("%d shells", n)
	}
}

func TestA_size_reaches_the_shell(t *testing.T) {
	_, web := serve(t)
	conn := dial(t, web, "1")
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte(`r{"rows":33,"cols":111}`)); err != nil {
		t.Fatal(err)
	}
	typed(t, conn, "stty size\n")
	awaits(t, conn, "33 111")
}

func TestA_shell_that_ends_says_so_and_is_replaced(t *testing.T) {
	_, web := serve(t)
	conn := dial(t, web, "1")
	typed(t, conn, "exit\n")
	for {
		if _, _, err := conn.Read(t.Context()); err != nil {
			if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
				t.Errorf("closed with %v", err)
			}
			break
		}
	}
	again := dial(t, web, "1")
	typed(t, again, "echo $((1+1))z\n")
	awaits(t, again, "2z")
}

func TestAnother_origin_is_refused(t *testing.T) {
	_, web := serve(t)
	_, resp, err := websocket.Dial(t.Context(), web.URL+"/t/1/ws", &websocket.DialOptions{
		HTTPHeader: http.Header{"Origin": {"https://evil.example"}},
	})
	if err == nil {
		t.Fatal("it was let in")
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestPages_and_names(t *testing.T) {
	_, web := serve(t)
	for path, want := range map[string]int{
		"/health": 204, "/t/1": 200, "/t/0": 404, "/t/x": 404, "/src/terminal.js": 200, "/src/": 404, "/dist/": 404, "/src//": 404, "/t/../../etc/passwd": 404,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, web.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := web.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, not %d", path, resp.StatusCode, want)
		}
		if !strings.Contains(resp.Header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s has no policy", path)
		}
	}
}

func TestPage_says_which_job_it_is_of(t *testing.T) {
	s := newServer([]string{"SLURM_JOB_ID=42"})
	t.Cleanup(func() { signal.Stop(s.hangup) })
	w := httptest.NewRecorder()
	s.routes().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/t/1", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `<body data-job="42">`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
