package jobs

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/nodes"
	"github.com/carme-hpc/carme/portal/backend/problem"
)

func TestAttack_measurements_are_put_together_for_a_few_at_once(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q queue
		var mu sync.Mutex
		inside, most := map[string]int{}, 0
		ended, refused := 0, 0
		hold := make(chan struct{})
		ask := func(ctx context.Context, user string) {
			leave, err := q.enter(ctx, user)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if errors.As(err, new(*problem.Error)) {
					refused++
				}
				return
			}
			inside[user]++
			all := 0
			for who, n := range inside {
				if all += n; n > 1 {
					t.Errorf("%d of %s at once", n, who)
				}
			}
			most = max(most, all)
			mu.Unlock()
			<-hold
			mu.Lock()
			inside[user]--
			ended++
			leave()
		}
		given, cancel := context.WithCancel(t.Context())
		for range 2 * plotsMax {
			go ask(t.Context(), "mallory")
		}
		go ask(given, "bob")
		go ask(given, "bob")
		for _, user := range []string{"alice", "carol", "dave", "erin"} {
			go ask(t.Context(), user)
		}
		synctest.Wait()
		mu.Lock()
		if most != plotsAtOnce || refused != plotsMax {
			t.Errorf("%d at once, %d refused", most, refused)
		}
		mu.Unlock()
		cancel() // who waits no longer takes no place
		synctest.Wait()
		close(hold)
		synctest.Wait()
		if len(q.users) != 0 || len(q.slots) != 0 || ended < plotsMax+4 {
			t.Errorf("%d users and %d places are left, %d ended", len(q.users), len(q.slots), ended)
		}
	})
}

func TestGroups_are_not_looked_up_for_every_piece_of_output(t *testing.T) {
	now := time.Unix(1700000000, 0)
	asked, broken := 0, false
	s := &Service{Now: func() time.Time { return now }, Identity: func(_ context.Context, user string) ([]uint32, error) {
		asked++
		if broken {
			return nil, errors.New("NSS does not answer")
		}
		return []uint32{uint32(len(user)), uint32(asked)}, nil
	}}
	ask := func(user string) (nodes.As, error) {
		return s.as(t.Context(), &auth.Session{UserName: user, UID: 10001, GID: 7})
	}
	for range 100 {
		if as, err := ask("alice"); err != nil || as.UID != 10001 || as.GID != 7 || len(as.GIDs) != 2 || as.GIDs[0] != 5 {
			t.Fatalf("%+v, %v", as, err)
		}
	}
	if as, err := ask("bob"); err != nil || as.GIDs[0] != 3 || asked != 2 {
		t.Errorf("bob has %+v, %v; asked %d times", as, err, asked)
	}
	now = now.Add(groupsFor)
	if as, err := ask("alice"); err != nil || as.GIDs[1] != 3 {
		t.Errorf("later %+v, %v", as, err)
	}
	broken, now = true, now.Add(groupsFor)
	if as, err := ask("alice"); err == nil {
		t.Errorf("old groups are believed: %+v", as)
	}
}
