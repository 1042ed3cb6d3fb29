package proxy

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	labelPrefix = "s-"
	labelLen    = len(labelPrefix) + 26 // 128 bits in base32
)

// Names are the hosts that are answered for, in lower case.
type Names struct {
	Portal string // portal.carme.example
	Apps   string // apps.carme.example: sessions are one label below it
	Port   int    // as browsers see it
}

func (n Names) authority(host string) string {
	if n.Port == 443 {
		return host
	}
	return host + ":" + strconv.Itoa(n.Port)
}

// PortalOrigin is the origin of the pages.
func (n Names) PortalOrigin() string { return "https://" + n.authority(n.Portal) }

// AppOrigin is the origin of a session's host.
func (n Names) AppOrigin(label string) string { return "https://" + n.authority(label+"."+n.Apps) }

// AppsPattern is every origin of a session, as a Content-Security-Policy has it.
func (n Names) AppsPattern() string { return n.AppOrigin("*") }

// Label is the label of a session's host, given exactly as browsers send it:
// in lower case, with the port, without a dot at the end.
func (n Names) Label(host string) (string, bool) {
	label, ok := strings.CutSuffix(host, "."+n.authority(n.Apps))
	if !ok || !ValidLabel(label) {
		return "", false
	}
	return label, true
}

// ValidLabel says whether a label has the form of those that the backend makes.
func ValidLabel(label string) bool {
	if len(label) != labelLen || !strings.HasPrefix(label, labelPrefix) {
		return false
	}
	for _, c := range []byte(label[len(labelPrefix):]) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// Dispatch sends a request to the handler of its host. Neither the name in the
// TLS handshake nor the connection counts: browsers use one connection for all
// names of a certificate.
func (n Names) Dispatch(portal, apps http.Handler) http.Handler {
	own := n.authority(n.Portal)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !wellFormed(r) {
			refuse(w, "malformed request", http.StatusBadRequest)
			return
		}
		control := http.NewResponseController(w)
		if r.ContentLength != 0 { // the server has no time for bodies: those of apps may take hours, piece by piece
			_ = control.SetReadDeadline(time.Now().Add(writePatience)) // if it fails, so does the read
		}
		if r.Host == own {
			hurry(w)
			portal.ServeHTTP(w, r)
			return
		}
		if _, ok := n.Label(r.Host); ok {
			if r.ProtoMajor == 1 {
				_ = control.SetWriteDeadline(time.Time{}) // that of an answer of ours before, on the same connection
			}
			apps.ServeHTTP(w, r)
			return
		}
		refuse(w, "no such host here", http.StatusMisdirectedRequest)
	})
}

// hurry gives the reader of an answer of ours some time, not for ever: in HTTP/2
// it costs a stranger nothing to ask and leave no room for the answer.
func hurry(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writePatience)) // if it fails, so does the write
}

// refuse answers in plain text.
func refuse(w http.ResponseWriter, text string, status int) {
	hurry(w)
	ownHeaders(w.Header())
	http.Error(w, text, status)
}

// wellFormed refuses what could be read in two ways further on: a target that
// is not a path, and bytes in it that HTTP/2 lets through but that would end a
// request line of HTTP/1.
func wellFormed(r *http.Request) bool {
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace || !method(r.Method) || !strings.HasPrefix(r.RequestURI, "/") {
		return false
	}
	for _, c := range []byte(r.RequestURI) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}

// method says whether a text can be one: letters and hyphens, as all have that are
// registered (RFC 9110, 16.1), and none is long.
func method(text string) bool {
	const most = 32
	return text != "" && len(text) <= most && !strings.ContainsFunc(text, func(c rune) bool {
		return (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-'
	})
}
