package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
)

// requestHeadMax bounds what of a request's head is passed on, in bytes. The
// server itself takes more, or there could be no page that says what to do.
const requestHeadMax = 64 << 10

// Backend is what the proxy asks of the backend.
type Backend interface {
	Redeem(ctx context.Context, in api.Redeem) (api.Redeemed, error)
	Grant(ctx context.Context, in api.GrantRequest) (api.Grant, error)
	// Revocations calls handle for each line after the sequence number, until
	// ctx or the stream ends.
	Revocations(ctx context.Context, after int64, handle func(api.Revocation)) error
}

// Options are what a Proxy needs.
type Options struct {
	Names   Names
	Backend Backend
	// AgentTLS returns the configuration for the agent of a node, which shows
	// our certificate and takes only that node's.
	AgentTLS func(node string) *tls.Config
	Log      *slog.Logger
	Now      func() time.Time
}

// Proxy serves the hosts of sessions. Run must be running: without the
// backend's signs of life nothing new is opened.
type Proxy struct {
	names    Names
	backend  Backend
	agentTLS func(string) *tls.Config
	dialer   net.Dialer
	log      *slog.Logger
	now      func() time.Time
	table    *table
	opening  sync.Map // of an agent's address to chan struct{}
	counts   counts
	long     atomic.Int32 // requests with too long a head that are being answered
	// Lines that a viewer, or the app of one, can cause as often as they like.
	strangers logx.Seldom // requests that come from other pages
	ungranted logx.Seldom // grants that the backend does not give
	cut       logx.Seldom // streams that an agent does not give
	silent    logx.Seldom // apps that do not answer
	mute      logx.Seldom // the same on a websocket
	unopened  logx.Seldom // websockets that nobody waits for any more
}

type counts struct{ requests, refused, websockets, open atomic.Int64 }

// New returns a proxy.
func New(o Options) *Proxy {
	return &Proxy{
		names: o.Names, backend: o.Backend, agentTLS: o.AgentTLS, log: o.Log, now: o.Now,
		dialer: newDialer(),
		table:  newTable(o.Backend, o.Now),
	}
}

// Stats are counters since the start, and how many websockets and routes are
// open now.
type Stats struct{ Requests, Refused, Websockets, Open, Routes int64 }

// Stats returns the counters.
func (p *Proxy) Stats() Stats {
	s := Stats{
		Requests: p.counts.requests.Load(), Refused: p.counts.refused.Load(),
		Websockets: p.counts.websockets.Load(), Open: p.counts.open.Load(),
	}
	for range p.table.routes.Range {
		s.Routes++
	}
	return s
}

const (
	sweepEvery = 2 * time.Second
	retryAfter = time.Second
)

// Run follows the backend's revocations until ctx ends, and then closes all
// that is open.
func (p *Proxy) Run(ctx context.Context) {
	defer p.table.closeAll()
	go p.follow(ctx)
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			p.table.sweep()
		}
	}
}

// follow keeps the stream of revocations open. After a gap every grant is asked
// for again, because what was revoked meanwhile may not be repeated.
func (p *Proxy) follow(ctx context.Context) {
	last, connected := int64(0), false
	for ctx.Err() == nil {
		fresh := true
		err := p.backend.Revocations(ctx, last, func(one api.Revocation) {
			p.table.heartbeat()
			if fresh && connected {
				go p.table.review()
			}
			fresh, connected = false, true
			last = max(last, one.Seq)
			if one.Kind != api.Heartbeat {
				p.table.revoke(mark{one.Kind, one.Value})
			}
		})
		if ctx.Err() == nil {
			p.log.WarnContext(ctx, "revocations: stream ended, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
}

// refused says whether the backend has said no, and not merely nothing.
func refused(err error) bool {
	switch client.Code(err) {
	case client.CodeNoSession, client.CodeForbidden, client.CodeNotFound:
		return true
	}
	return errors.Is(err, errEnded)
}

// ServeHTTP answers a request for a session's host.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.counts.requests.Add(1)
	label, ok := p.names.Label(r.Host)
	if !ok || !wellFormed(r) {
		refuse(w, "no such host here", http.StatusMisdirectedRequest)
		return
	}
	// The button against too many cookies comes with all of them.
	if headSize(r) > requestHeadMax && (r.Method != http.MethodPost || r.URL.Path != pathClear) {
		p.tooLong(w, r)
		return
	}
	if isOwnPath(r.URL.Path) {
		p.ownPath(w, r, label)
		return
	}
	upgrade := isUpgrade(r)
	if !admissible(r, "https://"+r.Host, upgrade) {
		p.counts.refused.Add(1)
		p.foreign(r, label)
		p.problem(w, r, pageForeign)
		return
	}
	token := cookie(r, appCookie)
	if token == "" {
		p.enter(w, r)
		return
	}
	rt, err := p.table.find(r.Context(), key{label, token})
	if err != nil {
		p.noRoute(w, r, err)
		return
	}
	if upgrade {
		p.websocket(w, r, rt)
		return
	}
	p.forward(w, r, rt)
}

// foreign notes that another page, a sibling's or anybody's, wanted something of a
// session. A page can ask a thousand times a second.
func (p *Proxy) foreign(r *http.Request, label string) {
	left, ok := p.strangers.Turn(p.now())
	if !ok {
		return
	}
	short := func(name string) string {
		const most = 128
		text := first(r.Header[name])
		return text[:min(len(text), most)]
	}
	p.log.InfoContext(r.Context(), "request: from another page", "host", label, "method", r.Method, "origin", short("Origin"),
		"site", short("Sec-Fetch-Site"), "from", remote(r), "left_out", left)
}

func headSize(r *http.Request) int {
	size := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(value) + 4
		}
	}
	return size
}

// cookie is the value of our cookie, read without the library's leniency for
// other cookies of the request.
func cookie(r *http.Request, name string) string {
	found, err := r.Cookie(name)
	if err != nil || len(found.Value) > 512 {
		return ""
	}
	return found.Value
}

// noRoute answers when there is no way to the app.
func (p *Proxy) noRoute(w http.ResponseWriter, r *http.Request, err error) {
	p.counts.refused.Add(1)
	abortIfGone(r)
	switch client.Code(err) {
	case client.CodeNoSession:
		p.enter(w, r)
		return
	case client.CodeForbidden:
		p.problem(w, r, pageForbidden)
		return
	case client.CodeNotFound:
		p.problem(w, r, pageEnded)
		return
	case client.CodeConflict:
		p.problem(w, r, pageWaiting)
		return
	}
	switch {
	case errors.Is(err, errEnded):
		p.problem(w, r, pageEnded)
	case errors.Is(err, errFull):
		p.problem(w, r, pageBusy)
	default:
		if left, ok := p.ungranted.Turn(p.now()); ok {
			p.log.WarnContext(r.Context(), "grant: backend gave none", "error", err, "left_out", left)
		}
		p.problem(w, r, pageAway)
	}
}

// abortIfGone ends a request whose browser is gone. A handler that returns without a
// word would have said 200.
func abortIfGone(r *http.Request) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
}

// noStream answers when the app cannot be reached.
func (p *Proxy) noStream(w http.ResponseWriter, r *http.Request, rt *route, err error) {
	abortIfGone(r)
	refusal, ok := errors.AsType[relayError](err)
	switch {
	case ok && refusal.status == statusNotListening:
		p.problem(w, r, pageWaiting)
		return
	case ok && refusal.status == statusNoJob, errors.Is(err, errEnded),
		errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed): // revoked while the way was being opened
		p.problem(w, r, pageEnded)
		return
	case ok && refusal.status == statusBusy, errors.Is(err, errFull):
		p.problem(w, r, pageBusy)
		return
	}
	if left, ok := p.cut.Turn(p.now()); ok {
		p.log.WarnContext(r.Context(), "stream: agent gave none", "job", rt.grant.Load().Job, "node", rt.grant.Load().Node, "error", err, "left_out", left)
	}
	p.problem(w, r, pageNode)
}
