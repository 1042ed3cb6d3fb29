package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/problem"
)

const (
	// boardFor is how long a dashboard is good while nothing is known to have
	// changed: some of it depends on the time, as whether a node was heard of.
	boardFor = time.Second
	// boardsMax is how many are kept.
	boardsMax = 1000
	// boardWithin is how long making one may take.
	boardWithin = 20 * time.Second
)

// boards are dashboards as they were sent.
type boards struct {
	mu     sync.Mutex
	all    map[auth.Session]board
	making singleflight.Group
}

// board is one of them, with the state of the world that it was made of.
type board struct {
	state
	at   time.Time
	body []byte
}

// state is another one after each change of what pages show.
type state struct{ written, changed uint64 }

// reader is all of a login session that a dashboard depends on: all logins of a
// user see the same one, and who is in another group since sees another.
func reader(sess *auth.Session) auth.Session {
	return auth.Session{
		UserName: sess.UserName, UID: sess.UID, GID: sess.GID, Home: sess.Home, FullName: sess.FullName, Mail: sess.Mail, Roles: sess.Roles, GroupsOf: sess.GroupsOf,
	}
}

// Dashboard is api.Dashboard in JSON. What many tabs and logins of a user ask for is
// made once, and again after anything has changed.
func (s *Service) Dashboard(ctx context.Context, sess *auth.Session) ([]byte, error) {
	s.Look(ctx, sess.User().UID)
	who, now := reader(sess), s.Now()
	// The state before the reading: a change meanwhile makes it old.
	is := state{s.DB.Written(), s.changed.Load()}
	s.boards.mu.Lock()
	last, ok := s.boards.all[who]
	s.boards.mu.Unlock()
	if ok && last.state == is && now.Sub(last.at).Abs() < boardFor {
		return last.body, nil
	}
	// When it is old, all who ask would make it at the same time, and the more of
	// them the longer it took. Who knows of a later state begins another one.
	key, err := json.Marshal([]any{who, is.written, is.changed})
	if err != nil {
		return nil, fmt.Errorf("name a dashboard: %w", err)
	}
	made, err, _ := s.boards.making.Do(string(key), func() (any, error) {
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), boardWithin) // it is made for others too
		defer cancel()
		body, err := s.board(limit, sess)
		if err == nil {
			s.boards.keep(who, board{is, now, body})
		}
		return body, err
	})
	body, _ := made.([]byte)
	return body, err
}

func (b *boards) keep(who auth.Session, one board) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all == nil || len(b.all) >= boardsMax {
		b.all = map[auth.Session]board{}
	}
	b.all[who] = one
}

func (s *Service) board(ctx context.Context, sess *auth.Session) ([]byte, error) {
	out, err := s.dashboard(ctx, sess)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode dashboard: %w", err)
	}
	return body, nil
}

func (s *Service) dashboard(ctx context.Context, sess *auth.Session) (out api.Dashboard, err error) {
	out.User = sess.User()
	out.Offer, err = s.Offer(ctx, sess)
	if broken, ok := errors.AsType[*problem.Error](err); ok && broken.Body.Code == "misconfigured" { // what runs goes on, and is shown
		out.Broken, err = &broken.Body, nil
	}
	if err != nil {
		return out, err
	}
	if out.Sessions, err = s.Live(ctx, sess.UserName, sess.User().UID); err != nil {
		return out, err
	}
	if out.Home, err = s.Home(ctx, sess); err != nil {
		out.Home = api.Home{OK: true} // not knowing is no reason to warn
	}
	out.Cluster = s.Cluster(ctx, sess.User().UID)
	out.Sessions.Age, out.Cluster.Age = settled(out.Sessions), settled(api.Jobs{Age: out.Cluster.Age})
	return out, nil
}

// settled is the age of a picture, 0 while it is as young as it should be.
func settled(list api.Jobs) int {
	if list.Problem == "" && list.Age <= int(2*pollEvery/time.Second) {
		return 0
	}
	return list.Age
}
