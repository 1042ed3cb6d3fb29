package problem

import (
	"net/http"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// Error is an answer that is not a success. Its text is for the log, too.
type Error struct {
	Status int
	Body   api.Error
}

// Error is the sentence.
func (e *Error) Error() string { return e.Body.Message }

func newError(status int, code, message string) *Error {
	return &Error{Status: status, Body: api.Error{Code: code, Message: message}}
}

// LoginRefused does not say what was wrong.
func LoginRefused() *Error {
	return newError(http.StatusUnauthorized, "login_refused", "Name or password is wrong, or you may not log in here.")
}

// FactorRefused does not say what was wrong with a code.
func FactorRefused() *Error {
	return newError(http.StatusUnauthorized, "factor_refused", "The code is wrong or was used already; wait for the next one.")
}

// SlowDown asks to wait, in whole seconds.
func SlowDown(wait time.Duration) *Error {
	e := newError(http.StatusTooManyRequests, "slow_down", "Too many attempts; wait a moment and try again.")
	e.Body.RetryAfter = max(1, int((wait+time.Second-1)/time.Second))
	return e
}

// NoSession says that the caller is not logged in.
func NoSession() *Error {
	return newError(http.StatusUnauthorized, "no_session", "You are not logged in; log in again.")
}

// NotComplete says that the caller's login is not complete; state is that of its session.
func NotComplete(state string) *Error {
	e := newError(http.StatusUnauthorized, "no_session", "Your login is not complete; show or set up your second factor.")
	e.Body.Step = state
	return e
}

// Forbidden says that this caller may not.
func Forbidden() *Error {
	return newError(http.StatusForbidden, "forbidden", "You may not do that.")
}

// NotFound also stands for what the caller may not see.
func NotFound() *Error {
	return newError(http.StatusNotFound, "not_found", "There is no such thing, or it is not yours.")
}

// Invalid names the fields that are wrong.
func Invalid(message string, fields map[string]string) *Error {
	e := newError(http.StatusUnprocessableEntity, "invalid", message)
	e.Body.Fields = fields
	return e
}

// Limit says which limit would be exceeded.
func Limit(message string, fields map[string]string) *Error {
	e := newError(http.StatusUnprocessableEntity, "limit", message)
	e.Body.Fields = fields
	return e
}

// Unavailable says that something needed for a decision does not answer.
func Unavailable(message string) *Error {
	return newError(http.StatusServiceUnavailable, "unavailable", message)
}

// Misconfigured says that a file of the site has a mistake; only administrators
// are told which, by log and health.
func Misconfigured(message string) *Error {
	return newError(http.StatusServiceUnavailable, "misconfigured", message)
}

// Conflict says that the state is another one than the caller thinks.
func Conflict(message string) *Error { return newError(http.StatusConflict, "conflict", message) }
