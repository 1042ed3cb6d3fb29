package proxy

import (
	"testing"
	"time"
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
