package web

import (
	"bytes"
	"crypto/sha256"
	"net/http"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
)

const (
	// homesMax is how many dashboards are kept, of some 10 KB each.
	homesMax = 256
	// homeFor is how long one is: it holds nothing that depends on the time.
	homeFor = time.Minute
)

// homes are dashboards as they were made. Each is found by all that it was made of,
// the backend's answer above all, which names the user: it can be shown to nobody
// whose own answer, asked for just now with the browser's own session, is not the
// same to the last byte.
type homes struct {
	mu   sync.Mutex
	made map[homeKey]home
}

type homeKey struct {
	body        [sha256.Size]byte
	lang, theme string
}

// home is a page without what differs in each answer.
type home struct {
	parts []part
	at    time.Time
}

// part is a text, or the place of what is the answer's own.
type part struct {
	text      []byte
	csrf, job bool
}

// Marks stand in a kept page for the token of its forms and for the id of the next
// job. They are where nobody's text can be, as nobody knows them.
type marks struct{ csrf, id string }

func keyOf(c *gin.Context, body []byte) homeKey {
	return homeKey{sha256.Sum256(body), chooseLanguage(c.Request), theme(c.Request)}
}

// again answers with the dashboard of the same answer, if there is one.
func (s *Server) again(c *gin.Context, body []byte) bool {
	key := keyOf(c, body)
	s.homes.mu.Lock()
	last, ok := s.homes.made[key]
	s.homes.mu.Unlock()
	if !ok || s.now().Sub(last.at).Abs() > homeFor {
		return false
	}
	last.send(c)
	return true
}

// showKept makes the dashboard of an answer, keeps it, and answers with it.
func (s *Server) showKept(c *gin.Context, body []byte, data homeData, v view) {
	// Random for each page: what is in one page is in no other's data.
	mark := marks{csrf: "csrf-" + newUUID(), id: newUUID()}
	v.CSRF, data.Form.ID = mark.csrf, mark.id
	v.Data = data
	page, ok := s.made(c, "dashboard", "main", v)
	if !ok {
		return
	}
	made := home{cut(page.Bytes(), mark), s.now()}
	s.homes.mu.Lock()
	if s.homes.made == nil || len(s.homes.made) >= homesMax {
		s.homes.made = map[homeKey]home{}
	}
	s.homes.made[keyOf(c, body)] = made
	s.homes.mu.Unlock()
	made.send(c)
}

// cut takes the marks out.
func cut(page []byte, mark marks) []part {
	var parts []part
	for i, rest := range bytes.Split(page, []byte(mark.csrf)) {
		if i > 0 {
			parts = append(parts, part{csrf: true})
		}
		for j, text := range bytes.Split(rest, []byte(mark.id)) {
			if j > 0 {
				parts = append(parts, part{job: true})
			}
			parts = append(parts, part{text: text})
		}
	}
	return parts
}

// send fills in what is this answer's own.
func (p home) send(c *gin.Context) {
	job := newUUID()
	var out bytes.Buffer
	for _, one := range p.parts {
		switch {
		case one.csrf:
			out.WriteString(csrfToken(c))
		case one.job:
			out.WriteString(job)
		default:
			out.Write(one.text)
		}
	}
	c.Header("Content-Type", "text/html; charset=utf-8")
	c.Status(http.StatusOK)
	_, _ = c.Writer.Write(out.Bytes()) // the browser is gone or not
}
