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
	if last := *table.beat.Load(); last == last.Round(0) {
		t.Error("the monotonic reading is lost")
	}
	if got := table.silence(now.Add(7 * time.Second)); got != 7*time.Second {
		t.Errorf("after 7 s the silence is %v", got)
	}
}
