package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// pipes is a listener for connections in memory, whose deadlines are by the
// clock of synctest.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.done)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

type noBackend struct{}

func (noBackend) Redeem(context.Context, api.Redeem) (api.Redeemed, error) {
	return api.Redeemed{}, errAway
}

func (noBackend) Grant(context.Context, api.GrantRequest) (api.Grant, error) {
	return api.Grant{}, errAway
}
func (noBackend) Revocations(context.Context, int64, func(api.Revocation)) error { return errAway }

func TestAttack_a_body_that_never_comes_and_an_answer_that_nobody_reads_hold_nothing(t *testing.T) {
	names := layouts["one registrable domain"]
	app := "s-" + strings.Repeat("a", 26) + "." + names.authority(names.Apps)
	page := bytes.Repeat([]byte("x"), 1<<20)
	for what, head := range map[string]string{
		"a form for the portal":         "POST /login HTTP/1.1\r\nHost: " + names.authority(names.Portal) + "\r\nContent-Length: 100\r\n\r\ncsrf=",
		"a form that nobody looks at":   "POST /none HTTP/1.1\r\nHost: " + names.authority(names.Portal) + "\r\nContent-Length: 100\r\n\r\n",
		"an upload that is refused":     "POST /x HTTP/1.1\r\nHost: " + app + "\r\nContent-Length: 100\r\n\r\n",
		"a page of the portal":          "GET /page HTTP/1.1\r\nHost: " + names.authority(names.Portal) + "\r\n\r\n",
		"a refusal of a session's host": "GET /x HTTP/1.1\r\nHost: " + app + "\r\n\r\n",
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				pages := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/login" {
						_, _ = io.ReadAll(r.Body)
					}
					_, _ = w.Write(page)
				})
				apps := New(Options{Names: names, Backend: noBackend{}, AgentTLS: func(string) *tls.Config { return nil }, Log: slog.New(slog.DiscardHandler), Now: time.Now})
				l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
				server := &http.Server{Handler: names.Dispatch(pages, apps), ReadHeaderTimeout: headPatience, IdleTimeout: idlePatience, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
				go func() { _ = server.Serve(l) }()
				browser, ours := net.Pipe()
				closed := make(chan struct{})
				l.conns <- &watched{ours, closed}
				if _, err := io.WriteString(browser, head); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				select {
				case <-closed:
				case <-time.After(time.Hour):
					t.Error("it is held for ever")
				}
				if took := time.Since(start); took > 3*writePatience {
					t.Errorf("it is held for %v", took)
				}
				_ = browser.Close()
				_ = server.Close()
			})
		})
	}
}

// watched tells when the server lets go of a connection.
type watched struct {
	net.Conn

	closed chan struct{}
}

func (w *watched) Close() error {
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	return w.Conn.Close()
}

func TestAttack_too_long_a_head_costs_no_more_than_it_is_long(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, _ := w.session("alice", "a")
	pile := make([]string, 0, 2500)
	for i := range cap(pile) {
		pile = append(pile, fmt.Sprintf("c%d=", i))
	}
	start := time.Now()
	answer := w.ask(w.client(false), "GET", host, "/"+strings.Repeat("/", 300<<10), "", nil, "Cookie: "+strings.Join(pile, "; "), "Sec-Fetch-Mode: navigate")
	if took := time.Since(start); answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge || took > 5*time.Second {
		t.Errorf("%d after %v", answer.StatusCode, took)
	}
	if n := len(answer.Header["Set-Cookie"]); n == 0 {
		t.Error("none of the cookies is removed")
	}
}

func TestAttack_not_all_too_long_heads_are_answered_at_length(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, _ := w.session("alice", "a")
	ask := func() *http.Response {
		return w.ask(w.client(true), "GET", host, "/", "", nil, "Cookie: a="+strings.Repeat("x", 70<<10), "Sec-Fetch-Mode: navigate")
	}
	w.proxy.long.Store(longMax)
	if got := ask(); got.StatusCode != http.StatusRequestHeaderFieldsTooLarge || len(got.Header["Set-Cookie"]) != 0 {
		t.Errorf("one too many: %d with %d cookies", got.StatusCode, len(got.Header["Set-Cookie"]))
	}
	w.proxy.long.Store(0)
	if got := ask(); got.StatusCode != http.StatusRequestHeaderFieldsTooLarge || len(got.Header["Set-Cookie"]) == 0 || w.proxy.long.Load() != 0 {
		t.Errorf("after them: %d with %d cookies, %d left", got.StatusCode, len(got.Header["Set-Cookie"]), w.proxy.long.Load())
	}
}

// holding is a backend that gives no grant before it is told to.
type holding struct {
	noBackend

	asked atomic.Int32
	hold  chan struct{}
}

func (b *holding) Grant(context.Context, api.GrantRequest) (api.Grant, error) {
	b.asked.Add(1)
	<-b.hold
	return api.Grant{}, errAway
}

func TestAttack_requests_that_were_given_up_ask_for_no_grant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &holding{hold: make(chan struct{})}
		all := newTable(backend, time.Now)
		all.heartbeat()
		given, giveUp := context.WithCancel(t.Context())
		ask := func(ctx context.Context, who string, i int) {
			_, _ = all.ask(ctx, key{who, fmt.Sprint(i)})
		}
		for i := range asking {
			go ask(t.Context(), "first", i)
		}
		synctest.Wait()
		for i := range 1000 {
			go ask(given, "given up", i)
		}
		synctest.Wait()
		go ask(t.Context(), "last", 0)
		synctest.Wait()
		giveUp()
		synctest.Wait()
		close(backend.hold)
		synctest.Wait()
		if got := backend.asked.Load(); got != asking+1 || len(all.flights) != 0 {
			t.Errorf("%d grants were asked for, %d are still wanted", got, len(all.flights))
		}
	})
}

func TestAttack_more_grants_than_can_be_wanted_are_refused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := &holding{hold: make(chan struct{})}
		all := newTable(backend, time.Now)
		all.heartbeat()
		for i := range flightsMax {
			go func() { _, _ = all.ask(t.Context(), key{"h", fmt.Sprint(i)}) }()
		}
		synctest.Wait()
		if _, err := all.ask(t.Context(), key{"one", "more"}); !errors.Is(err, errFull) {
			t.Errorf("one more: %v", err)
		}
		close(backend.hold)
		synctest.Wait()
	})
}
