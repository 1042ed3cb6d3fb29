package jobs

import (
	"strconv"
	"sync"
)

// Topics: the cluster is everybody's, the jobs are a user's own.
const (
	TopicJobs    = "jobs"
	TopicCluster = "cluster"
)

// Hub counts versions of what users see, and wakes who waits for a change.
type Hub struct {
	// Boot is a random value of this life of the process.
	Boot string

	mu       sync.Mutex
	versions map[string]int64
	waiters  map[*Waiter]struct{}
	logins   map[string]int // how many waiters each has
}

// waitersMax is how many pages of one login may wait: more than anybody has tabs.
const waitersMax = 64

// Waiter is somebody who looks at the pages of a user.
type Waiter struct {
	// Wake has a value when something has changed.
	Wake  chan struct{}
	user  string
	login string
}

// News is a topic with its version.
type News struct {
	Topic   string
	Version string
}

func userKey(user string) string { return "user:" + user }

// Join begins to wait, unless too many pages of the login do.
func (h *Hub) Join(user, login string) (w *Waiter, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiters == nil {
		h.waiters, h.logins = map[*Waiter]struct{}{}, map[string]int{}
	}
	if h.logins[login] >= waitersMax {
		return nil, false
	}
	w = &Waiter{Wake: make(chan struct{}, 1), user: user, login: login}
	h.waiters[w] = struct{}{}
	h.logins[login]++
	return w, true
}

// Leave ends the wait.
func (h *Hub) Leave(w *Waiter) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.waiters, w)
	if h.logins[w.login]--; h.logins[w.login] == 0 {
		delete(h.logins, w.login)
	}
}

// Watching is how many wait.
func (h *Hub) Watching() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.waiters)
}

// bump counts a topic up and wakes those it concerns.
func (h *Hub) bump(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.versions == nil {
		h.versions = map[string]int64{}
	}
	h.versions[key]++
	for w := range h.waiters {
		if key == TopicCluster || key == userKey(w.user) {
			select {
			case w.Wake <- struct{}{}:
			default: // it will look anyway
			}
		}
	}
}

// bumpAll is for what changes every page: that Slurm has gone, or come back.
func (h *Hub) bumpAll() {
	h.mu.Lock()
	users := map[string]bool{}
	for w := range h.waiters {
		users[w.user] = true
	}
	h.mu.Unlock()
	h.bump(TopicCluster)
	for user := range users {
		h.bump(userKey(user))
	}
}

// Versions are the topics of a user as they are now.
func (h *Hub) Versions(user string) []News {
	h.mu.Lock()
	defer h.mu.Unlock()
	tag := func(n int64) string { return h.Boot + "-" + strconv.FormatInt(n, 10) }
	return []News{
		{TopicJobs, tag(h.versions[userKey(user)])},
		{TopicCluster, tag(h.versions[TopicCluster])},
	}
}
