package clienttest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// beat is how often the streams give a sign of life.
const beat = time.Second

// events is the stream of one session. It is not under the lock that as holds.
func (b *Backend) events(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	state := func() (version int, changed chan struct{}, alive bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		s := b.sessions[token]
		return b.version, b.changed, s != nil && s.State == api.SessionFull
	}
	if _, _, alive := state(); !alive {
		fail(w, http.StatusUnauthorized, "no_session", "log in first")
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for {
		version, changed, alive := state()
		if !alive {
			_, _ = fmt.Fprint(w, "event: logout\ndata: session\n\n")
			return
		}
		_, _ = fmt.Fprintf(w, "id: boot-%d\nevent: change\ndata: jobs %d\n\n", version, version)
		_ = http.NewResponseController(w).Flush() // the next write says so too
		select {
		case <-changed:
		case <-time.After(15 * time.Second):
		case <-r.Context().Done():
			return
		}
	}
}

func (b *Backend) openApp(w http.ResponseWriter, r *http.Request, s *session) {
	in, ok := read[api.Open](w, r)
	if !ok {
		return
	}
	for _, job := range b.jobs {
		if job.Host == in.Host && in.Host != "" && job.User == s.user.Name && job.Stage != api.StageEnded {
			code := random()
			b.codes[code] = opened{host: in.Host, nonce: in.Nonce, session: s}
			answer(w, http.StatusOK, api.Opened{Code: code})
			return
		}
	}
	fail(w, http.StatusNotFound, "not_found", "you have no such session")
}

func (b *Backend) redeem(w http.ResponseWriter, r *http.Request) {
	in, ok := read[api.Redeem](w, r)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known, found := b.codes[in.Code]
	delete(b.codes, in.Code)
	sum := sha256.Sum256([]byte(in.Nonce))
	if !found || known.host != in.Host || known.nonce != hex.EncodeToString(sum[:]) {
		fail(w, http.StatusForbidden, "forbidden", "the code is used or not for this browser")
		return
	}
	token := random()
	b.apps[token] = known
	answer(w, http.StatusOK, api.Redeemed{Token: token, Expires: known.session.Expires, ExpiresIn: left(known.session.Expires)})
}

func (b *Backend) grant(w http.ResponseWriter, r *http.Request) {
	in, ok := read[api.GrantRequest](w, r)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	known, found := b.apps[in.Token]
	if !found || known.host != in.Host || b.sessions[known.session.token] == nil {
		fail(w, http.StatusUnauthorized, "no_session", "log in again")
		return
	}
	var job *api.Job
	for _, one := range b.jobs {
		if one.Host == in.Host && one.User == known.session.user.Name {
			job = one
		}
	}
	if job == nil || job.Stage == api.StageEnded {
		fail(w, http.StatusNotFound, "not_found", "the job has ended")
		return
	}
	b.grants++
	answer(w, http.StatusOK, api.Grant{
		ID: random()[:16], Session: known.session.ID, User: known.session.user.Name, Viewer: known.session.user.Name, Mode: "full",
		Job: job.ID, App: job.App, Addr: b.Addr, Node: b.Node, Token: []byte("token for " + job.ID),
		Expires: time.Now().Add(b.GrantFor), End: time.Now().Add(time.Hour),
	})
}

// App opens a full app session on a host without a browser and returns what
// the app's cookie holds.
func (b *Backend) App(name, host string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	token := random()
	b.apps[token] = opened{host: host, session: b.open(b.users[name], api.SessionFull, "192.0.2.1", "test")}
	return token
}

// SessionOf is the id of the login session behind what an app's cookie holds.
func (b *Backend) SessionOf(app string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.apps[app].session.ID
}

func (b *Backend) revocations(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/jsonl")
	sent := -1
	for {
		b.mu.Lock()
		if sent < 0 {
			sent = len(b.revoked)
		}
		fresh, changed, silent := b.revoked[sent:], b.changed, b.silent
		sent = len(b.revoked)
		b.mu.Unlock()
		lines := json.NewEncoder(w)
		for _, one := range fresh {
			_ = lines.Encode(one) //nolint:errchkjson // the portal notices
		}
		if !silent {
			_ = lines.Encode(api.Revocation{Kind: api.Heartbeat}) //nolint:errchkjson // the portal notices
		}
		_ = http.NewResponseController(w).Flush() // the next write says so too
		select {
		case <-changed:
		case <-time.After(beat):
		case <-r.Context().Done():
			return
		}
	}
}
