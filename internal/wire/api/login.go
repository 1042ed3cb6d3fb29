package api

import "time"

// States of a login session.
const (
	// SessionPending has shown a password and owes a second factor.
	SessionPending = "pending"
	// SessionEnrol has shown a password and must set up a second factor.
	SessionEnrol = "enrol"
	// SessionFull may do what its user may do.
	SessionFull = "full"
)

// Roles of a user.
const (
	RoleUser  = "user"
	RoleAdmin = "admin"
)

// Login is the body of POST /v1/login. Only a portal may send it.
type Login struct {
	Username string `json:"username"`
	Password string `json:"password"`
	// Source is the address of the browser.
	Source string `json:"source"`
	// Device is what an earlier full login on this browser returned, or empty.
	Device string `json:"device,omitempty"`
	// Agent is the User-Agent of the browser, for the list of own sessions.
	Agent string `json:"agent,omitempty"`
}

// LoginAnswer is a session after a step of the login. Token replaces the one
// before; it is 256 random bits in base64url and is shown this once.
type LoginAnswer struct {
	Token   string    `json:"token"`
	State   string    `json:"state"`
	User    User      `json:"user"`
	Expires time.Time `json:"expires"`
	// ExpiresIn is the same in seconds from now, for those whose clock may be wrong.
	ExpiresIn int `json:"expires_in"`
	// Device marks this browser as known to its owner, after a full login.
	Device string `json:"device,omitempty"`
	// RecoveryCodes are shown once, after the confirmation of a factor.
	RecoveryCodes []string `json:"recovery_codes,omitempty"`
}

// Factor is the body of POST /v1/login/factor: one of the two.
type Factor struct {
	Code     string `json:"code,omitempty"`     // six digits
	Recovery string `json:"recovery,omitempty"` // a recovery code
	Source   string `json:"source"`
}

// Enrolment is the answer to POST /v1/login/enrol and /v1/me/factors/totp: a
// new secret that counts once a code of it was confirmed.
type Enrolment struct {
	Secret string `json:"secret"` // base32, as apps take it by hand
	URI    string `json:"uri"`    // otpauth://totp/…
	QR     []byte `json:"qr"`     // PNG
}

// Confirm is the body of POST /v1/login/enrol/confirm and
// /v1/me/factors/totp/confirm.
type Confirm struct {
	Code   string `json:"code"`
	Source string `json:"source"`
}

// User is a person as the directory has them.
type User struct {
	Name  string   `json:"name"`
	Full  string   `json:"full_name"`
	Mail  string   `json:"mail,omitempty"`
	UID   uint32   `json:"uid"`
	Roles []string `json:"roles"`
}

// Me is the answer to GET /v1/me.
type Me struct {
	User    User         `json:"user"`
	Session LoginSession `json:"session"`
	// RecoveryLeft is how many recovery codes are unused.
	RecoveryLeft int       `json:"recovery_left"`
	TOTPSince    time.Time `json:"totp_since"`
}

// LoginSession is one entry of GET /v1/me/sessions.
type LoginSession struct {
	ID      string    `json:"id"`
	State   string    `json:"state"`
	Created time.Time `json:"created"`
	Seen    time.Time `json:"seen"`
	Expires time.Time `json:"expires"`
	Source  string    `json:"source"`
	Agent   string    `json:"agent"`
	Current bool      `json:"current"`
}

// Error is the body of every answer that is not a success.
type Error struct {
	// Code is for programs: "login_refused", "slow_down", "factor_refused",
	// "no_session", "forbidden", "not_found", "invalid", "limit",
	// "unavailable", "misconfigured", "conflict", "internal".
	Code string `json:"code"`
	// Message is one sentence for a person: what is wrong and the way out.
	Message string `json:"message"`
	// Words say the same for a client that has its own words for it.
	Words *Words `json:"words,omitempty"`
	// Fields says which fields of the request are wrong, and why.
	Fields map[string]string `json:"fields,omitempty"`
	// FieldCodes say the same for a client that has its own words for it.
	FieldCodes map[string]Words `json:"field_codes,omitempty"`
	// Step is the state of a login that is not complete, with "no_session": what it
	// waits for.
	Step string `json:"step,omitempty"`
	// RetryAfter is in seconds, with "slow_down".
	RetryAfter int `json:"retry_after,omitempty"`
}

// Words are a sentence by its code and what is filled in.
type Words struct {
	Code string   `json:"code"`
	Args []string `json:"args,omitempty"`
}

// ErrorBody wraps an Error.
type ErrorBody struct {
	Error Error `json:"error"`
}
