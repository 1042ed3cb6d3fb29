package proxy

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

const (
	// leaseNew is how long after the backend's last sign of life new ways to
	// apps are still asked for, leaseOpen how long what is open stays open.
	leaseNew  = 5 * time.Second
	leaseOpen = 60 * time.Second
	// grantPatience is how long the backend may take to give a grant.
	grantPatience = 10 * time.Second
	// asking is how many grants are asked for at once, flightsMax how many can be
	// wanted.
	asking     = 64
	flightsMax = 16384
	// remember is how long revocations are kept, for grants that were under way
	// when they came.
	remember = time.Minute
	// streamsMax is how many connections one viewer has to one app.
	streamsMax = 256
	idleMax    = 16               // of them waiting for the next request
	idleFor    = 30 * time.Second // at most
)

var (
	errAway  = errors.New("the backend gives no sign of life")
	errEnded = errors.New("the session was ended")
	errFull  = errors.New("too many connections to one app")
)

// key is what a browser shows: a host, and the token of the cookie for it.
type key struct{ host, token string }

// mark is one property of a grant that a revocation can name.
type mark struct{ kind, value string }

func marks(host string, g *api.Grant) [4]mark {
	return [4]mark{{api.RevokeSession, g.Session}, {api.RevokeUser, g.User}, {api.RevokeJob, g.Job}, {api.RevokeHost, host}}
}

// route is one viewer's way to one app, with every connection that is open on
// it. All that is on it closes when it is killed, by whatever cause.
type route struct {
	key      key
	grant    atomic.Pointer[api.Grant]
	used     atomic.Int64 // unix seconds
	renewing atomic.Bool

	mu      sync.Mutex
	dead    bool
	streams map[*stream]struct{}
	idle    []*upstream // the last one is used next
}

// register puts a stream under the route before it is dialled: one that a
// revocation does not find would stay open for ever.
func (r *route) register(s *stream) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dead {
		return errEnded
	}
	if len(r.streams) >= streamsMax {
		return errFull
	}
	r.streams[s] = struct{}{}
	return nil
}

func (r *route) forget(s *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.streams, s)
}

// kill closes all that is open and lets nothing new begin.
func (r *route) kill() {
	r.mu.Lock()
	streams := r.streams
	r.dead, r.streams, r.idle = true, map[*stream]struct{}{}, nil
	r.mu.Unlock()
	for s := range streams {
		s.close()
	}
}

// take returns an idle connection, nil if there is none.
func (r *route) take() (*upstream, error) {
	for {
		r.mu.Lock()
		if r.dead {
			r.mu.Unlock()
			return nil, errEnded
		}
		last := len(r.idle) - 1
		if last < 0 {
			r.mu.Unlock()
			return nil, nil //nolint:nilnil // none is no error
		}
		up := r.idle[last]
		r.idle[last] = nil
		r.idle = r.idle[:last]
		r.mu.Unlock()
		if !up.quiet.readable() { // it would be the app's farewell
			return up, nil
		}
		up.end()
	}
}

// put makes a connection idle, or closes it.
func (r *route) put(up *upstream, now time.Time) {
	r.mu.Lock()
	keep := !r.dead && len(r.idle) < idleMax
	if keep {
		up.since = now
		r.idle = append(r.idle, up)
	}
	r.mu.Unlock()
	if !keep {
		up.end()
	}
}

// prune closes what was idle for too long and says how many streams are left.
func (r *route) prune(now time.Time) int {
	r.mu.Lock()
	var old []*upstream
	r.idle = slices.DeleteFunc(r.idle, func(up *upstream) bool {
		stale := now.Sub(up.since) > idleFor
		if stale {
			old = append(old, up)
		}
		return stale
	})
	left := len(r.streams)
	r.mu.Unlock()
	for _, up := range old {
		up.end()
	}
	return left - len(old)
}

// table has all routes, and what the backend takes back.
type table struct {
	backend Backend
	now     func() time.Time
	routes  sync.Map                  // of key to *route: read on every request
	beat    atomic.Pointer[time.Time] // the backend's last sign of life
	first   chan struct{}             // closed by the first one
	started time.Time
	slots   chan struct{}

	mu      sync.Mutex
	index   map[mark]map[*route]struct{}
	flights map[key]*flight
	recent  []revoked // oldest first
}

type revoked struct {
	mark mark
	at   time.Time
}

// flight is a grant that is being asked for, by several requests at once.
type flight struct {
	done    chan struct{}
	route   *route
	err     error
	waiting int // requests that still want it
}

func newTable(backend Backend, now func() time.Time) *table {
	return &table{
		backend: backend, now: now, slots: make(chan struct{}, asking), first: make(chan struct{}), started: now(),
		index: map[mark]map[*route]struct{}{}, flights: map[key]*flight{},
	}
}

// find returns the route of a key, asking the backend if it is not known or
// its grant has run out.
func (t *table) find(ctx context.Context, k key) (*route, error) {
	if found, ok := t.routes.Load(k); ok {
		r := found.(*route)
		now := t.now()
		if g := r.grant.Load(); now.Before(g.Expires) && now.Before(g.End) {
			r.used.Store(now.Unix())
			if now.After(half(g)) && r.renewing.CompareAndSwap(false, true) {
				go t.renew(r) //nolint:gosec // G118: it serves the requests to come, not this one
			}
			return r, nil
		}
	}
	return t.ask(ctx, k)
}

// half is when a grant should be renewed: it is good for at most 120 s, and the
// portal does not know since when.
func half(g *api.Grant) time.Time { return g.Expires.Add(-time.Minute) }

func (t *table) renew(r *route) {
	defer r.renewing.Store(false)
	ctx, cancel := context.WithTimeout(context.Background(), grantPatience)
	defer cancel()
	_, _ = t.ask(ctx, r.key) // a refusal has killed the route; silence leaves it its time
}

// ask asks the backend for a grant, once for all requests that want the same.
func (t *table) ask(ctx context.Context, k key) (*route, error) {
	t.mu.Lock()
	f := t.flights[k]
	if f == nil {
		if len(t.flights) >= flightsMax {
			t.mu.Unlock()
			return nil, errFull
		}
		f = &flight{done: make(chan struct{})}
		t.flights[k] = f
		go t.fly(k, f)
	}
	f.waiting++
	t.mu.Unlock()
	select {
	case <-f.done:
		return f.route, f.err
	case <-ctx.Done():
		t.mu.Lock()
		f.waiting--
		t.mu.Unlock()
		return nil, ctx.Err()
	}
}

func (t *table) fly(k key, f *flight) {
	t.slots <- struct{}{}
	if !t.abandoned(k, f) {
		f.route, f.err = t.request(k)
		t.mu.Lock()
		delete(t.flights, k)
		t.mu.Unlock()
	}
	<-t.slots
	close(f.done)
}

// abandoned says whether nobody wants the grant any more, and forgets it then. In
// HTTP/2 a stranger can make up a hundred thousand cookies a second and wait for
// none: those who wait would come after them.
func (t *table) abandoned(k key, f *flight) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.waiting > 0 {
		return false
	}
	delete(t.flights, k)
	f.err = context.Canceled
	return true
}

func (t *table) request(k key) (*route, error) {
	t.begin()
	started := t.now()
	if t.silence(started) > leaseNew {
		return nil, errAway
	}
	ctx, cancel := context.WithTimeout(context.Background(), grantPatience)
	defer cancel()
	g, err := t.backend.Grant(ctx, api.GrantRequest{Host: k.host, Token: k.token})
	if err != nil {
		if refused(err) {
			t.drop(k)
		}
		return nil, err
	}
	return t.insert(k, &g, started)
}

// begin waits for the first sign of life after the start, which browsers that
// were at the portal before may be quicker than.
func (t *table) begin() {
	left := leaseNew - t.now().Sub(t.started)
	if left <= 0 || t.beat.Load() != nil {
		return
	}
	late := time.NewTimer(left)
	defer late.Stop()
	select {
	case <-t.first:
	case <-late.C:
	}
}

// insert makes a grant known, unless it was revoked while it was under way.
func (t *table) insert(k key, g *api.Grant, started time.Time) (*route, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	own := marks(k.host, g)
	for _, one := range slices.Backward(t.recent) {
		if one.at.Before(started) {
			break
		}
		if slices.Contains(own[:], one.mark) {
			return nil, errEnded
		}
	}
	if found, ok := t.routes.Load(k); ok {
		r := found.(*route)
		if marks(k.host, r.grant.Load()) == own {
			r.grant.Store(g)
			r.used.Store(started.Unix())
			return r, nil
		}
		t.remove(r)
		go r.kill() // another job has taken the place: not the way it was
	}
	r := &route{key: k, streams: map[*stream]struct{}{}}
	r.grant.Store(g)
	r.used.Store(started.Unix())
	for _, m := range own {
		if t.index[m] == nil {
			t.index[m] = map[*route]struct{}{}
		}
		t.index[m][r] = struct{}{}
	}
	t.routes.Store(k, r)
	return r, nil
}

// remove takes a route out of the maps. The caller holds the lock, and kills it.
func (t *table) remove(r *route) {
	t.routes.CompareAndDelete(r.key, r)
	for _, m := range marks(r.key.host, r.grant.Load()) {
		delete(t.index[m], r)
		if len(t.index[m]) == 0 {
			delete(t.index, m)
		}
	}
}

func (t *table) drop(k key) {
	if found, ok := t.routes.Load(k); ok {
		t.end(found.(*route))
	}
}

func (t *table) end(r *route) {
	t.mu.Lock()
	t.remove(r)
	t.mu.Unlock()
	r.kill()
}

// revoke ends every route with the mark.
func (t *table) revoke(m mark) {
	now := t.now()
	t.mu.Lock()
	t.recent = append(t.recent, revoked{m, now})
	for len(t.recent) > 0 && now.Sub(t.recent[0].at) > remember {
		t.recent = t.recent[1:]
	}
	var hit []*route
	for r := range t.index[m] {
		hit = append(hit, r)
	}
	for _, r := range hit {
		t.remove(r)
	}
	t.mu.Unlock()
	for _, r := range hit {
		r.kill()
	}
}

// sweep closes what has run its time. It is called every few seconds.
func (t *table) sweep() {
	now := t.now()
	lost := t.silence(now) > leaseOpen
	for _, found := range t.routes.Range {
		r := found.(*route)
		g := r.grant.Load()
		streams := r.prune(now)
		switch {
		case lost, !now.Before(g.End):
			t.end(r)
		case streams == 0 && !now.Before(g.Expires):
			t.end(r) // nobody was here for two minutes
		case streams > 0 && now.After(half(g)) && r.renewing.CompareAndSwap(false, true):
			go t.renew(r) // an open websocket asks the backend too
		}
	}
}

// review asks for every grant again: revocations may have been missed.
func (t *table) review() {
	for _, found := range t.routes.Range {
		if r := found.(*route); r.renewing.CompareAndSwap(false, true) {
			go t.renew(r)
		}
	}
}

// heartbeat notes a sign of life.
func (t *table) heartbeat() {
	now := t.now()
	if t.beat.Swap(&now) == nil {
		close(t.first)
	}
}

// silence is for how long there was none. It is counted by the clock that is
// never set: one that is set back must not prolong the lease, nor one that is
// set forward end every stream.
func (t *table) silence(now time.Time) time.Duration {
	if last := t.beat.Load(); last != nil {
		return now.Sub(*last)
	}
	return math.MaxInt64
}

func (t *table) closeAll() {
	for _, found := range t.routes.Range {
		t.end(found.(*route))
	}
}
