package terminal

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// assets are the page of this folder and, in dist, xterm.js as "make assets"
// fetches it by its lock file.
//
//go:embed assets/src all:assets/dist
var assets embed.FS

const (
	shellsMax  = 32      // shells of one session
	messageMax = 1 << 20 // bytes of one message from the browser
	pingEvery  = 30 * time.Second
	writeLimit = 30 * time.Second
)

// Kinds of a message from the browser: its first byte.
const (
	kindInput  = 'i'
	kindResize = 'r'
)

// contentPolicy lets xterm.js set its own styles and nothing come from
// elsewhere.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Serve serves terminals on the unix socket until SIGTERM, SIGINT or SIGHUP.
func Serve(socket string, env []string) error {
	if _, err := fs.Stat(assets, "assets/dist/xterm.js"); err != nil {
		return errors.New("this program was built without xterm.js; run \"make assets\" and build it again")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove an old socket: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s := newServer(env)
	defer signal.Stop(s.hangup)
	web := &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(os.Stderr, "terminal: ", 0)}
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	case <-s.hangup:
	}
	s.endAll()
	if err := web.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

// pageTemplate is the page of every terminal; it is given the job's number.
var pageTemplate = template.Must(template.ParseFS(assets, "assets/src/terminal.html"))

// server holds the shells by the name in their address.
type server struct {
	env    []string
	job    string // Slurm's number of it, empty outside of one
	hangup chan os.Signal
	mu     sync.Mutex
	shells map[string]*shell
}

// newServer is a server without shells. It takes SIGHUP: a program that handles it
// starts others with the default, but one that nohup has started hands on that it is
// ignored, and a shell that ignores it outlives its terminal (signal(7)).
func newServer(env []string) *server {
	s := &server{env: env, job: variable(env, "SLURM_JOB_ID"), hangup: make(chan os.Signal, 1), shells: map[string]*shell{}}
	signal.Notify(s.hangup, syscall.SIGHUP)
	return s
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/t/1", http.StatusSeeOther)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /t/{name}", s.page)
	mux.HandleFunc("GET /t/{name}/ws", s.attach)
	for _, dir := range []string{"src", "dist"} {
		sub, err := fs.Sub(assets, "assets/"+dir)
		if err != nil {
			panic(err) // the name is a constant
		}
		mux.Handle("GET /"+dir+"/", http.StripPrefix("/"+dir+"/", onlyFiles(http.FileServerFS(sub))))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		mux.ServeHTTP(w, r)
	})
}

// onlyFiles keeps a file server from listing a directory.
func onlyFiles(files http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "" || strings.HasSuffix(r.URL.Path, "/") {
			http.NotFound(w, r)
			return
		}
		files.ServeHTTP(w, r)
	})
}

var terminalName = regexp.MustCompile(`^[1-9][0-9]{0,2}$`)

func (s *server) page(w http.ResponseWriter, r *http.Request) {
	if !terminalName.MatchString(r.PathValue("name")) {
		http.NotFound(w, r)
		return
	}
	var page bytes.Buffer
	if err := pageTemplate.Execute(&page, s.job); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, "terminal.html", time.Time{}, bytes.NewReader(page.Bytes()))
}

// shell returns the shell of that name, a new one if there is none.
func (s *server) shell(name string) (*shell, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sh, ok := s.shells[name]; ok && !isOver(sh) {
		return sh, nil
	}
	if len(s.shells) >= shellsMax {
		return nil, fmt.Errorf("%d terminals are open; end one by typing exit", len(s.shells))
	}
	sh, err := startShell(s.env)
	if err != nil {
		return nil, err
	}
	s.shells[name] = sh
	go func() {
		<-sh.done
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.shells[name] == sh {
			delete(s.shells, name)
		}
	}()
	return sh, nil
}

func (s *server) endAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sh := range s.shells {
		sh.end()
	}
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !terminalName.MatchString(name) {
		http.NotFound(w, r)
		return
	}
	// Accept refuses an Origin that is not this host.
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow() //nolint:errcheck // whatever was to be said was said
	conn.SetReadLimit(messageMax)
	sh, err := s.shell(name)
	if err != nil {
		_ = conn.Close(websocket.StatusTryAgainLater, err.Error())
		return
	}
	past, v, err := sh.join()
	if err != nil {
		_ = conn.Close(websocket.StatusGoingAway, err.Error())
		return
	}
	defer sh.leave(v)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		defer cancel()
		listen(ctx, conn, sh)
	}()
	show(ctx, conn, past, v, sh)
}

// show sends the shell's output to one browser.
func show(ctx context.Context, conn *websocket.Conn, past []byte, v *viewer, sh *shell) {
	if len(past) > 0 && send(ctx, conn, past) != nil {
		return
	}
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case data, ok := <-v.out:
			switch {
			case !ok && isOver(sh):
				_ = conn.Close(websocket.StatusNormalClosure, "ended")
				return
			case !ok:
				_ = conn.Close(websocket.StatusTryAgainLater, "behind")
				return
			}
			if send(ctx, conn, data) != nil {
				return
			}
		case <-ping.C:
			limit, cancel := context.WithTimeout(ctx, writeLimit)
			err := conn.Ping(limit)
			cancel()
			if err != nil {
				return
			}
		}
	}
}

func isOver(sh *shell) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.over
}

func send(ctx context.Context, conn *websocket.Conn, data []byte) error {
	limit, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	return conn.Write(limit, websocket.MessageBinary, data)
}

// listen takes what one browser types.
func listen(ctx context.Context, conn *websocket.Conn, sh *shell) {
	for {
		_, data, err := conn.Read(ctx)
		if err != nil || len(data) == 0 {
			return
		}
		switch data[0] {
		case kindInput:
			err = sh.write(data[1:])
		case kindResize:
			var size struct{ Rows, Cols uint16 }
			if json.Unmarshal(data[1:], &size) == nil {
				err = sh.resize(size.Rows, size.Cols)
			}
		}
		if err != nil {
			return
		}
	}
}
