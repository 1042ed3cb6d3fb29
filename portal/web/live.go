package web

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/carme-hpc/carme/internal/wire/api"
)

const (
	eventPatience = 20 * time.Second
	hexNonce      = 64
	eventIDMax    = 128 // bytes; the backend's are shorter
)

// events passes the backend's events on. They say only what changed; the page
// fetches the rest.
func (s *Server) events(c *gin.Context) {
	ctx, cancel := context.WithCancel(c.Request.Context())
	defer cancel()
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	last := c.GetHeader("Last-Event-ID")
	if len(last) > eventIDMax { // the backend takes no such head
		last = ""
	}
	clear(c.Request.Header) // up to a megabyte, for as long as the page is open
	stream, err := s.backend.Events(ctx, token(c), last)
	if err != nil {
		s.json(c, nil, err)
		return
	}
	defer stream.Close() //nolint:errcheck // nothing was written
	h := c.Writer.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no")
	c.Status(http.StatusOK)
	control := http.NewResponseController(c.Writer)
	buffer := make([]byte, 1024)
	for {
		n, err := stream.Read(buffer)
		if n > 0 {
			_ = control.SetWriteDeadline(s.now().Add(eventPatience)) // if it fails, so does the write
			if _, err := c.Writer.Write(buffer[:n]); err != nil {
				return
			}
			if err := control.Flush(); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// open hands a logged-in person over to an app's origin, which asked for it with
// the hash of a nonce that it keeps in their browser.
func (s *Server) open(c *gin.Context) {
	origin, ok := s.appOrigin(c.Query("host"))
	nonce := c.Query("n")
	if !ok || !isHex(nonce) {
		s.lost(c)
		return
	}
	opened, err := s.backend.Open(c.Request.Context(), token(c), api.Open{Host: c.Query("host"), Nonce: nonce})
	if err != nil {
		s.fail(c, err)
		return
	}
	c.Redirect(http.StatusSeeOther, origin+"/.carme/cb?code="+url.QueryEscape(opened.Code))
}

func isHex(text string) bool {
	if len(text) != hexNonce {
		return false
	}
	for _, r := range []byte(text) {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return true
}
