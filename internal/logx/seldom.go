package logx

import (
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// seldomEvery is how often a Seldom lets a line through.
const seldomEvery = time.Second

// Seldom lets one line a second through, for what strangers can cause as often as
// they like: they must not fill the log. Its zero value is ready for use, by
// several goroutines.
type Seldom struct {
	mu   sync.Mutex
	next time.Time
	left int
}

// Turn says whether a line may be written now, and how many were left out since
// the last one.
func (s *Seldom) Turn(now time.Time) (left int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A clock that was put back must not silence the log.
	if wait := s.next.Sub(now); wait > 0 && wait <= seldomEvery {
		s.left++
		return 0, false
	}
	left, s.left, s.next = s.left, 0, now.Add(seldomEvery)
	return left, true
}

// Connections returns a logger for http.Server.ErrorLog: who does not get through
// the handshake, and the like, at level Info and seldom.
func Connections(to *slog.Logger) *log.Logger {
	return log.New(&connections{to: to}, "", 0)
}

type connections struct {
	to     *slog.Logger
	seldom Seldom
}

// Write writes one line of the server's.
func (c *connections) Write(line []byte) (int, error) {
	if left, ok := c.seldom.Turn(time.Now()); ok {
		c.to.Info("connection failed", "reason", strings.TrimSpace(string(line)), "left_out", left)
	}
	return len(line), nil
}
