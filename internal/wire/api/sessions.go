package api

import "time"

// Open is the body of POST /v1/open: a full session asks to enter an app's
// origin.
type Open struct {
	Host string `json:"host"` // label, s-…
	// Nonce is the SHA-256 of the nonce that the app's origin keeps, in hex.
	Nonce string `json:"nonce"`
}

// Opened is a one-time code, good for 30 s.
type Opened struct {
	Code string `json:"code"`
}

// Redeem is the body of POST /v1/redeem: the app's origin shows code and nonce.
type Redeem struct {
	Host  string `json:"host"`
	Code  string `json:"code"`
	Nonce string `json:"nonce"` // the nonce itself
}

// Redeemed is what the app's cookie will hold.
type Redeemed struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	// ExpiresIn is the same in seconds from now, for those whose clock may be wrong.
	ExpiresIn int `json:"expires_in"`
}

// GrantRequest is the body of POST /v1/grants: a portal asks for the way to an
// app. The backend binds the grant to the key of the client certificate.
type GrantRequest struct {
	Host  string `json:"host"`
	Token string `json:"token"` // the app cookie's
}

// Grant is the way to an app for one viewer, for at most 120 s.
type Grant struct {
	ID      string `json:"id"`
	Session string `json:"session"` // login session's id
	User    string `json:"user"`
	Viewer  string `json:"viewer"`
	Mode    string `json:"mode"` // full, view
	Job     string `json:"job"`
	App     string `json:"app"`
	// Addr is the agent's host:port, Node the name in its certificate.
	Addr string `json:"addr"`
	Node string `json:"node"`
	// Token is for the agent (internal/token), not for the browser.
	Token   []byte    `json:"token"`
	Expires time.Time `json:"expires"`
	// End is when every stream must be closed at the latest.
	End time.Time `json:"end"`
}

// Kinds of a revocation: what is revoked is every grant with that value.
const (
	RevokeSession = "session"
	RevokeUser    = "user"
	RevokeJob     = "job"
	RevokeHost    = "host"
	Heartbeat     = "heartbeat" // every 2 s, revokes nothing
)

// Revocation is one line of GET /v1/revocations, a stream of JSON lines.
type Revocation struct {
	Seq   int64  `json:"seq"`
	Kind  string `json:"kind"`
	Value string `json:"value,omitempty"`
}
