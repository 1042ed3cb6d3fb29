package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/version"
	"github.com/carme-hpc/carme/internal/wire/api"
)

const (
	// patience is how long one call may take.
	patience = 15 * time.Second
	// answerMax is the largest answer that is read, in bytes.
	answerMax = 16 << 20
)

// RefusedError is an answer of the backend that is not a success, or the lack
// of one.
type RefusedError struct {
	// What the backend said.
	What api.Error
	// Status is the HTTP status, 0 if the backend did not answer.
	Status int
	// Cause is why it did not answer, for the log.
	Cause error
}

// Error is for the log; a person is shown What.Message.
func (e *RefusedError) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("call backend: %v", e.Cause)
	}
	return fmt.Sprintf("backend answers %d %s: %s", e.Status, e.What.Code, e.What.Message)
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Cause }

// Codes that the portal tells apart; they are those of api.Error.
const (
	CodeLoginRefused  = "login_refused"
	CodeSlowDown      = "slow_down"
	CodeFactorRefused = "factor_refused"
	CodeNoSession     = "no_session"
	CodeForbidden     = "forbidden"
	CodeNotFound      = "not_found"
	CodeInvalid       = "invalid"
	CodeLimit         = "limit"
	CodeUnavailable   = "unavailable"
	CodeConflict      = "conflict"
	CodeMisconfigured = "misconfigured"
)

// Code is the code of a RefusedError, "internal" for any other error and "" for none.
func Code(err error) string {
	if err == nil {
		return ""
	}
	if known, ok := errors.AsType[*RefusedError](err); ok {
		return known.What.Code
	}
	return "internal"
}

// Client calls one backend. It is safe for use by several goroutines.
type Client struct {
	base     string
	http     *http.Client
	agent    string
	patience time.Duration
}

// New returns a client of the backend at base, such as
// https://carme-ctl:7443, over a transport that shows the portal's certificate.
func New(base string, transport http.RoundTripper) *Client {
	return &Client{
		base: strings.TrimSuffix(base, "/"),
		http: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		agent:    "carme-portal/" + version.String(),
		patience: patience,
	}
}

// call is one request and what is wanted of its answer.
type call struct {
	method, path string
	token        string // session token, may be empty
	in, out      any    // JSON, may be nil
}

func (c *Client) do(ctx context.Context, one call) error {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	answer, err := c.send(ctx, one)
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // it was read
	if one.out == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, answerMax)) // the connection is used again
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, answerMax)).Decode(one.out); err != nil {
		return unavailable(fmt.Errorf("read answer to %s: %w", one.path, err))
	}
	return nil
}

// send returns the answer if it is a success; its body must be closed.
func (c *Client) send(ctx context.Context, one call) (*http.Response, error) {
	var body io.Reader
	if one.in != nil {
		data, err := json.Marshal(one.in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, one.method, c.base+one.path, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	request.Header.Set("User-Agent", c.agent)
	request.Header.Set("Accept", "application/json")
	if one.in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if one.token != "" {
		request.Header.Set("Authorization", "Bearer "+one.token)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, unavailable(err)
	}
	if answer.StatusCode < 300 {
		return answer, nil
	}
	defer answer.Body.Close() //nolint:errcheck // it was read
	return nil, refusal(answer)
}

// refusal reads the error that the backend answered with.
func refusal(answer *http.Response) error {
	var wrapped api.ErrorBody
	err := json.NewDecoder(io.LimitReader(answer.Body, 1<<16)).Decode(&wrapped)
	known := &RefusedError{What: wrapped.Error, Status: answer.StatusCode}
	if err != nil || known.What.Code == "" {
		known.What.Code = codeOf(answer.StatusCode)
	}
	if after, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil && known.What.RetryAfter == 0 {
		known.What.RetryAfter = after
	}
	return known
}

func codeOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return CodeNoSession
	case http.StatusForbidden:
		return CodeForbidden
	case http.StatusNotFound, http.StatusGone:
		return CodeNotFound
	case http.StatusConflict:
		return CodeConflict
	case http.StatusTooManyRequests:
		return CodeSlowDown
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return CodeUnavailable
	}
	return "internal"
}

func unavailable(cause error) error {
	return &RefusedError{
		What:  api.Error{Code: CodeUnavailable, Message: "the cluster's backend does not answer"},
		Cause: cause,
	}
}

func get[T any](ctx context.Context, c *Client, token, path string) (T, error) {
	var out T
	err := c.do(ctx, call{method: http.MethodGet, path: path, token: token, out: &out})
	return out, err
}

func post[T any](ctx context.Context, c *Client, token, path string, in any) (T, error) {
	var out T
	err := c.do(ctx, call{method: http.MethodPost, path: path, token: token, in: in, out: &out})
	return out, err
}

// Login shows a password.
func (c *Client) Login(ctx context.Context, in api.Login) (api.LoginAnswer, error) {
	return post[api.LoginAnswer](ctx, c, "", "/v1/login", in)
}

// Factor shows a second factor for a pending session.
func (c *Client) Factor(ctx context.Context, token string, in api.Factor) (api.LoginAnswer, error) {
	return post[api.LoginAnswer](ctx, c, token, "/v1/login/factor", in)
}

// Enrol asks for a secret for a session that must set up a second factor.
func (c *Client) Enrol(ctx context.Context, token string) (api.Enrolment, error) {
	return post[api.Enrolment](ctx, c, token, "/v1/login/enrol", struct{}{})
}

// EnrolConfirm shows a code of the new secret.
func (c *Client) EnrolConfirm(ctx context.Context, token string, in api.Confirm) (api.LoginAnswer, error) {
	return post[api.LoginAnswer](ctx, c, token, "/v1/login/enrol/confirm", in)
}

// Logout ends the session.
func (c *Client) Logout(ctx context.Context, token string) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/v1/logout", token: token})
}

// Me is who the session belongs to.
func (c *Client) Me(ctx context.Context, token string) (api.Me, error) {
	return get[api.Me](ctx, c, token, "/v1/me")
}

// Sessions are the user's login sessions.
func (c *Client) Sessions(ctx context.Context, token string) ([]api.LoginSession, error) {
	return get[[]api.LoginSession](ctx, c, token, "/v1/me/sessions")
}

// EndSession ends one of the user's login sessions.
func (c *Client) EndSession(ctx context.Context, token, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/me/sessions/" + url.PathEscape(id), token: token})
}

// EndOtherSessions ends all of the user's login sessions but this one.
func (c *Client) EndOtherSessions(ctx context.Context, token string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/me/sessions", token: token})
}

// RenewRecovery replaces the recovery codes.
func (c *Client) RenewRecovery(ctx context.Context, token string, in api.Confirm) (api.LoginAnswer, error) {
	return post[api.LoginAnswer](ctx, c, token, "/v1/me/recovery", in)
}

// RenewTOTP asks for a new secret, showing a code of the old one.
func (c *Client) RenewTOTP(ctx context.Context, token string, in api.Confirm) (api.Enrolment, error) {
	return post[api.Enrolment](ctx, c, token, "/v1/me/factors/totp", in)
}

// RenewTOTPConfirm shows a code of the new secret.
func (c *Client) RenewTOTPConfirm(ctx context.Context, token string, in api.Confirm) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/v1/me/factors/totp/confirm", token: token, in: in})
}

// Dashboard is what that page shows: api.Dashboard in JSON, the same bytes as long
// as it is the same.
func (c *Client) Dashboard(ctx context.Context, token string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	const path = "/v1/dashboard"
	answer, err := c.send(ctx, call{method: http.MethodGet, path: path, token: token})
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close() //nolint:errcheck // it was read
	body, err := io.ReadAll(io.LimitReader(answer.Body, answerMax))
	if err != nil {
		return nil, unavailable(fmt.Errorf("read answer to %s: %w", path, err))
	}
	return body, nil
}

// Offer is what the user may start.
func (c *Client) Offer(ctx context.Context, token string) (api.Offer, error) {
	return get[api.Offer](ctx, c, token, "/v1/offer")
}

// Home is the state of the user's home directory.
func (c *Client) Home(ctx context.Context, token string) (api.Home, error) {
	return get[api.Home](ctx, c, token, "/v1/home")
}

// Script is the sbatch script that does what in would.
func (c *Client) Script(ctx context.Context, token string, in api.Start) (api.Script, error) {
	return post[api.Script](ctx, c, token, "/v1/script", in)
}

// Start submits a job. The same in.ID again is the same job.
func (c *Client) Start(ctx context.Context, token string, in api.Start) (api.Job, error) {
	return post[api.Job](ctx, c, token, "/v1/jobs", in)
}

// Jobs are all of the user's jobs.
func (c *Client) Jobs(ctx context.Context, token string) (api.Jobs, error) {
	return get[api.Jobs](ctx, c, token, "/v1/jobs")
}

// LiveJobs are those of them that have an app and are not over.
func (c *Client) LiveJobs(ctx context.Context, token string) (api.Jobs, error) {
	return get[api.Jobs](ctx, c, token, "/v1/jobs?live=yes")
}

// Job is one job by Slurm's id or by the UUID it was started with.
func (c *Client) Job(ctx context.Context, token, id string) (api.Job, error) {
	return get[api.Job](ctx, c, token, "/v1/jobs/"+url.PathEscape(id))
}

// Stop ends a job.
func (c *Client) Stop(ctx context.Context, token, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/jobs/" + url.PathEscape(id), token: token})
}

// StopArray ends all tasks of the array to which a job belongs.
func (c *Client) StopArray(ctx context.Context, token, id string) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/jobs/" + url.PathEscape(id) + "?array=all", token: token})
}

// Output is a part of a job's output ("out") or error log ("err"). A negative
// offset counts from the end.
func (c *Client) Output(ctx context.Context, token, id, stream string, offset int64) (api.Output, error) {
	query := url.Values{"stream": {stream}, "offset": {strconv.FormatInt(offset, 10)}}
	return get[api.Output](ctx, c, token, "/v1/jobs/"+url.PathEscape(id)+"/output?"+query.Encode())
}

// Metrics are a job's measurements.
func (c *Client) Metrics(ctx context.Context, token, id string) (api.Metrics, error) {
	return get[api.Metrics](ctx, c, token, "/v1/jobs/"+url.PathEscape(id)+"/metrics")
}

// Cluster is the state of the cluster.
func (c *Client) Cluster(ctx context.Context, token string) (api.Cluster, error) {
	return get[api.Cluster](ctx, c, token, "/v1/cluster")
}

// Renew asks for another certificate of the portal that calls.
func (c *Client) Renew(ctx context.Context, in api.Enrol) (api.Enrolled, error) {
	return post[api.Enrolled](ctx, c, "", "/v1/renew", in)
}

// Open asks for a one-time code for an app's origin.
func (c *Client) Open(ctx context.Context, token string, in api.Open) (api.Opened, error) {
	return post[api.Opened](ctx, c, token, "/v1/open", in)
}

// Redeem turns a one-time code into what the app's cookie holds.
func (c *Client) Redeem(ctx context.Context, in api.Redeem) (api.Redeemed, error) {
	return post[api.Redeemed](ctx, c, "", "/v1/redeem", in)
}

// Grant asks for the way to an app.
func (c *Client) Grant(ctx context.Context, in api.GrantRequest) (api.Grant, error) {
	return post[api.Grant](ctx, c, "", "/v1/grants", in)
}
