package proxy

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// A clock that is set shows in the wall reading of a time alone; what the lease
// is counted by is the other one, which Sub prefers where both have it.
func TestFault_lease_is_counted_by_the_clock_that_is_not_set(t *testing.T) {
	now := time.Now()
	table := newTable(nil, func() time.Time { return now })
	if got := table.silence(now); got <= leaseOpen {
		t.Errorf("before the first sign of life the silence is %v", got)
	}
	table.heartbeat()
	if last := *table.beat.Load(); last.String() == last.Round(0).String() {
		t.Error("the monotonic reading is lost")
	}
	if got := table.silence(now.Add(7 * time.Second)); got != 7*time.Second {
		t.Errorf("after 7 s the silence is %v", got)
	}
}

func TestFault_the_first_request_waits_for_the_first_sign_of_life(t *testing.T) {
	table := newTable(nil, time.Now)
	begun := make(chan struct{})
	go func() {
		table.begin()
		close(begun)
	}()
	select {
	case <-begun:
		t.Fatal("it does not wait")
	case <-time.After(50 * time.Millisecond):
	}
	table.heartbeat()
	table.heartbeat()
	<-begun
	table.begin()
	later := newTable(nil, time.Now)
	later.started = time.Now().Add(-time.Minute)
	later.begin() // the start is long past: nobody is kept waiting
}

// The backend counts a grant by its own clock, the agent by its. A portal whose
// clock is wrong lets in nobody whom they would not, and shuts out nobody else.
func TestFault_a_portal_whose_clock_is_wrong_serves_all_the_same(t *testing.T) {
	for name, off := range map[string]time.Duration{
		"a minute behind": -time.Minute, "an hour behind": -time.Hour, "a minute ahead": time.Minute, "half an hour ahead": 30 * time.Minute,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, http.HandlerFunc(mirror))
			host, cookie := w.session("alice", "a")
			conn, r, answer := w.socket(host, cookie, "Origin: https://"+host)
			if answer.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(answer.StatusCode)
			}
			w.clock.Store(int64(off)) // set while it runs
			w.proxy.table.heartbeat() // the real clock has another hand for that
			w.proxy.table.sweep()
			c := w.client(true)
			for range 3 {
				if answer := w.ask(c, "GET", host, "/", cookie, nil); answer.StatusCode != http.StatusOK {
					t.Fatalf("status %d", answer.StatusCode)
				}
			}
			// A token that has run out, which a clock that is behind does not see.
			w.agent.stale.Store(1)
			second, _, answer := w.socket(host, cookie, "Origin: https://"+host)
			if answer.StatusCode != http.StatusSwitchingProtocols {
				t.Errorf("with a token that has run out: %d", answer.StatusCode)
			}
			_ = second.Close()
			if w.agent.stale.Load() >= 0 {
				t.Error("the agent has refused no token")
			}
			w.proxy.table.sweep()
			if _, err := conn.Write([]byte("still")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(r, got); err != nil || string(got) != "still" {
				t.Errorf("what was open says %q, %v", got, err)
			}
			w.backend.Revoke(api.RevokeUser, "alice")
			if _, err := r.ReadByte(); err == nil {
				t.Error("a revocation ends nothing")
			}
		})
	}
}
