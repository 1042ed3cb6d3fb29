package jobs

import (
	"context"
	"sync"

	"github.com/carme-hpc/carme/portal/backend/problem"
)

const (
	// plotsAtOnce is how many jobs' measurements are put together at once: those of
	// a long job are two hundred thousand values.
	plotsAtOnce = 4
	// plotsMax is how many pages of one user may wait for theirs.
	plotsMax = 16
)

// queue lets a few through at once, of each user one. Its zero value is ready for
// use.
type queue struct {
	mu    sync.Mutex
	slots chan struct{}
	users map[string]*lane
}

// lane is where one user's wait.
type lane struct {
	turn    chan struct{}
	waiting int
}

// enter waits for its turn, or until ctx ends. leave is to be called once.
func (q *queue) enter(ctx context.Context, user string) (leave func(), err error) {
	q.mu.Lock()
	if q.slots == nil {
		q.slots, q.users = make(chan struct{}, plotsAtOnce), map[string]*lane{}
	}
	own := q.users[user]
	if own == nil {
		own = &lane{turn: make(chan struct{}, 1)}
		q.users[user] = own
	}
	if own.waiting >= plotsMax {
		q.mu.Unlock()
		return nil, problem.SlowDown(pollEvery)
	}
	own.waiting++
	q.mu.Unlock()
	gone := func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if own.waiting--; own.waiting == 0 {
			delete(q.users, user)
		}
	}
	for _, place := range []chan struct{}{own.turn, q.slots} {
		select {
		case place <- struct{}{}:
		case <-ctx.Done():
			if place == q.slots {
				<-own.turn
			}
			gone()
			return nil, problem.SlowDown(pollEvery) // nobody reads it
		}
	}
	return func() {
		<-q.slots
		<-own.turn
		gone()
	}, nil
}
