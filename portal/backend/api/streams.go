package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/jobs"
	"github.com/carme-hpc/carme/portal/backend/problem"
)

const (
	// heartbeat is for revocations: a portal that hears nothing for 5 s gives no
	// new way to an app.
	heartbeat = 2 * time.Second
	// eventBeat keeps an idle stream of events open.
	eventBeat = 15 * time.Second
	// eventWait is how long one write may take.
	eventWait = 5 * time.Second
)

func micro(t int64) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.UnixMicro(t).UTC()
}

// stream writes pieces, each within a deadline.
type stream struct {
	w    http.ResponseWriter
	ctrl *http.ResponseController
}

func (r *request) stream(kind string) *stream {
	h := r.w.Header()
	h.Set("Content-Type", kind)
	h.Set("X-Accel-Buffering", "no")
	s := &stream{w: r.w, ctrl: http.NewResponseController(r.w)}
	_ = s.ctrl.SetReadDeadline(time.Time{}) // the request has been read
	r.w.WriteHeader(http.StatusOK)
	return s
}

func (s *stream) send(piece string) error {
	if err := s.ctrl.SetWriteDeadline(time.Now().Add(eventWait)); err != nil {
		return err
	}
	if _, err := io.WriteString(s.w, piece); err != nil {
		return err
	}
	return s.ctrl.Flush()
}

// revocations tells a portal what is over, and that the backend is there.
func revocations(r *request) error {
	ctx, feed := r.Context(), r.server.Feed
	// The number first: what comes after it is sent, whenever.
	seq, err := feed.Last(ctx)
	if err != nil {
		return err
	}
	if text := r.URL.Query().Get("after"); text != "" {
		var since int64
		if _, err := fmt.Sscan(text, &since); err == nil && since >= 0 && since < seq {
			seq = since
		}
	}
	out := r.stream("application/x-ndjson")
	line := func(v api.Revocation) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return out.send(string(b) + "\n")
	}
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		bell := feed.Bell()
		list, err := feed.After(ctx, seq)
		if err != nil {
			return err // no heartbeat: the portal must not believe all is well
		}
		for _, v := range list {
			if err := line(v); err != nil {
				return nil
			}
			seq = v.Seq
		}
		if err := line(api.Revocation{Seq: seq, Kind: api.Heartbeat}); err != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.server.Stopping:
			return nil
		case <-bell:
		case <-tick.C:
		}
	}
}

// events tells a browser which of its pages are old.
func events(r *request) error {
	ctx, s := r.Context(), r.server
	user, uid := r.session.UserName, r.session.User().UID
	w, ok := s.Jobs.Hub.Join(user, r.session.ID)
	if !ok {
		return problem.SlowDown(eventBeat)
	}
	defer s.Jobs.Hub.Leave(w)
	out := r.stream("text/event-stream")
	s.Jobs.Touch(uid)
	said := map[string]string{}
	if r.Header.Get("Last-Event-ID") == "" { // the page was made just now
		for _, n := range s.Jobs.Hub.Versions(user) {
			said[n.Topic] = n.Version
		}
	}
	if err := out.send(": carme\n\n"); err != nil {
		return nil // the browser went away
	}
	beat := time.NewTicker(eventBeat)
	defer beat.Stop()
	for {
		bell := s.Feed.Bell()
		switch _, err := s.Auth.Alive(ctx, r.session.ID); {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, new(*problem.Error)):
			_ = out.send("event: logout\ndata: session\n\n") // it ends either way
			return nil
		case err != nil: // nobody can tell: the browser asks again
			return err
		}
		if err := out.news(s.Jobs.Hub.Versions(user), said); err != nil {
			return nil // the browser went away
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.Stopping:
			return nil
		case <-w.Wake:
		case <-bell:
		case <-beat.C:
			s.Jobs.Touch(uid)
			// An event and no comment: scripts in the page see only events, and take
			// silence for an end.
			if err := out.send("event: beat\ndata: 1\n\n"); err != nil {
				return nil // the browser went away
			}
		}
	}
}

// news sends the versions that were not said yet.
func (s *stream) news(now []jobs.News, said map[string]string) error {
	for _, n := range now {
		if said[n.Topic] == n.Version {
			continue
		}
		if err := s.send("id: " + n.Version + "\nevent: change\ndata: " + n.Topic + " " + n.Version + "\n\n"); err != nil {
			return err
		}
		said[n.Topic] = n.Version
	}
	return nil
}
