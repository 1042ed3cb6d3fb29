package web

import (
	"net/http"
	"slices"
	"strings"
	"unicode"

	"github.com/gin-gonic/gin"

	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/client"
)

type securityData struct{ Sessions []api.LoginSession }

func (s *Server) lost(c *gin.Context) { s.fail(c, &client.RefusedError{What: notFound}) }

func (s *Server) security(c *gin.Context) {
	var said *notice
	switch c.Query("done") {
	case "totp":
		said = &notice{Kind: "ok", Text: s.text(c, "security.totp.done")}
	case "session":
		said = &notice{Kind: "ok", Text: s.text(c, "security.session.done")}
	case "others":
		said = &notice{Kind: "ok", Text: s.text(c, "security.others.done")}
	}
	s.showSecurity(c, http.StatusOK, said)
}

func (s *Server) showSecurity(c *gin.Context, status int, said *notice) {
	sessions, err := s.backend.Sessions(c.Request.Context(), token(c))
	if err != nil {
		s.fail(c, err)
		return
	}
	slices.SortStableFunc(sessions, func(a, b api.LoginSession) int {
		if a.Current != b.Current {
			if a.Current {
				return -1
			}
			return 1
		}
		return b.Seen.Compare(a.Seen)
	})
	s.page(c, status, "security", view{Title: s.text(c, "nav.security"), Nav: "security", Me: me(c), Notice: said, Data: securityData{sessions}})
}

func (s *Server) confirm(c *gin.Context) api.Confirm {
	return api.Confirm{Code: digits(c.PostForm("code")), Source: source(c.Request)}
}

// wrongCode says whether err is one that the person can mend by another code.
func wrongCode(err error) bool {
	switch client.Code(err) {
	case client.CodeFactorRefused, client.CodeSlowDown, client.CodeInvalid:
		return true
	}
	return false
}

// either is a code of the app that is to be replaced, or a recovery code: the
// telephone may be lost.
func either(text string) string {
	if strings.ContainsFunc(text, unicode.IsLetter) {
		return strings.TrimSpace(text)
	}
	return digits(text)
}

func (s *Server) totp(c *gin.Context) {
	in, err := s.backend.RenewTOTP(c.Request.Context(), token(c), api.Confirm{Code: either(c.PostForm("code")), Source: source(c.Request)})
	switch {
	case wrongCode(err):
		s.showSecurity(c, http.StatusUnprocessableEntity, s.bad(c, err))
	case err != nil:
		s.fail(c, err)
	default:
		s.page(c, http.StatusOK, "enrol", view{Title: s.text(c, "enrol.title"), Nav: "security", Me: me(c), Once: true, Data: enrolment(in, "", "/security/totp/confirm")})
	}
}

func (s *Server) totpConfirm(c *gin.Context) {
	err := s.backend.RenewTOTPConfirm(c.Request.Context(), token(c), s.confirm(c))
	switch {
	case wrongCode(err):
		s.page(c, http.StatusUnprocessableEntity, "enrol", view{
			Title: s.text(c, "enrol.title"), Nav: "security", Me: me(c), Once: true, Notice: s.bad(c, err), Data: again(c, "", "/security/totp/confirm"),
		})
	case err != nil:
		s.fail(c, err)
	default:
		c.Redirect(http.StatusSeeOther, "/security?done=totp")
	}
}

func (s *Server) recovery(c *gin.Context) {
	answer, err := s.backend.RenewRecovery(c.Request.Context(), token(c), s.confirm(c))
	switch {
	case wrongCode(err):
		s.showSecurity(c, http.StatusUnprocessableEntity, s.bad(c, err))
	case err != nil:
		s.fail(c, err)
	default:
		s.page(c, http.StatusOK, "recovery", view{
			Title: s.text(c, "recovery.title"), Nav: "security", Me: me(c), Once: true, Data: recoveryData{User: me(c).User.Name, Host: c.Request.Host, Codes: answer.RecoveryCodes, Next: "/security"},
		})
	}
}

func (s *Server) endSession(c *gin.Context) {
	if err := s.backend.EndSession(c.Request.Context(), token(c), c.Param("id")); err != nil {
		s.fail(c, err)
		return
	}
	c.Redirect(http.StatusSeeOther, "/security?done=session")
}

func (s *Server) endOthers(c *gin.Context) {
	if err := s.backend.EndOtherSessions(c.Request.Context(), token(c)); err != nil {
		s.fail(c, err)
		return
	}
	c.Redirect(http.StatusSeeOther, "/security?done=others")
}
