package proxy

import (
	"net/http"
	"strings"
)

// admissible says whether a request may come from where it says it comes from.
// A host of its own is an origin, not a site: pages of a sibling send requests
// with this host's cookies. So nothing is believed but what browsers say of the
// page that asks.
func admissible(r *http.Request, origin string, upgrade bool) bool {
	origins := r.Header["Origin"]
	site, mode, dest := r.Header["Sec-Fetch-Site"], r.Header["Sec-Fetch-Mode"], r.Header["Sec-Fetch-Dest"]
	if len(origins) > 1 || len(site) > 1 || len(mode) > 1 || len(dest) > 1 {
		return false
	}
	own := len(origins) == 1 && origins[0] == origin
	if upgrade { // carries an Origin, but in Chromium no Sec-Fetch headers
		return own
	}
	if len(site) == 0 {
		if safe(r.Method) {
			return own || len(origins) == 0
		}
		return own
	}
	switch site[0] {
	case "same-origin", "none":
		return true
	}
	// A link from elsewhere: only to a page of its own, never into a frame.
	return r.Method == http.MethodGet && first(mode) == "navigate" && first(dest) == "document"
}

func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// isUpgrade says whether a request asks for a websocket. Any other upgrade is
// passed on as if it had not been asked for.
func isUpgrade(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.Method == http.MethodGet && len(r.Header["Upgrade"]) == 1 &&
		strings.EqualFold(r.Header["Upgrade"][0], "websocket") && listed(r.Header["Connection"], "upgrade")
}

// listed says whether a comma-separated header has the token.
func listed(values []string, token string) bool {
	for _, value := range values {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// isPage says whether a person looks at the answer, who is shown a page or led
// to the login; a script gets a status instead.
func isPage(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	if mode := first(r.Header["Sec-Fetch-Mode"]); mode != "" {
		return mode == "navigate"
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}
