package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	v0042 "github.com/SlinkyProject/slurm-client/api/v0042"
)

const (
	// base is the version that the types are of.
	base = "v0.0.42"
	// answerMax is the largest answer that is read, in bytes.
	answerMax = 64 << 20
	// breakAfter failures in a row nobody is sent for breakFor.
	breakAfter = 3
	breakFor   = 5 * time.Second
	// tokenLeft is how long a token must be good to be used once more. One that
	// seems to be good for longer than tokenMost is from before the clock was put
	// back; slurmctld's may not have been.
	tokenLeft = 15 * time.Second
	tokenMost = 2 * time.Minute
	tokensMax = 4096
)

// versions that say the same in the fields used here, best first.
func versions() []string { return []string{base, "v0.0.43", "v0.0.44", "v0.0.41"} }

// Errors of every call.
var (
	// ErrUnavailable says that Slurm does not answer.
	ErrUnavailable = errors.New("slurm does not answer")
	// ErrNotFound says that there is no such job.
	ErrNotFound = errors.New("there is no such job")
	// ErrUnknown says that a job may or may not have been submitted.
	ErrUnknown = errors.New("the outcome of the submission is not known")
)

// RefusedError is Slurm's own reason for a no.
type RefusedError struct{ Text string }

// Error is what Slurm says.
func (e RefusedError) Error() string { return e.Text }

// Tokens gives out short tokens for users.
type Tokens interface {
	Token(ctx context.Context, user string) (token string, expires time.Time, err error)
}

// Client asks one slurmrestd. Its methods may be called at once.
type Client struct {
	api     *v0042.ClientWithResponses
	http    *http.Client
	server  string
	timeout time.Duration
	tokens  Tokens
	now     func() time.Time

	mu       sync.Mutex
	version  string
	failures int
	openTill time.Time
	cache    map[string]cached
}

type cached struct {
	token   string
	expires time.Time
}

// New returns a client of the server at address: unix:/PATH, https://HOST:PORT, or
// http://HOST:PORT.
func New(address string, timeout time.Duration, tokens Tokens, now func() time.Time) (*Client, error) {
	transport := &http.Transport{MaxIdleConns: 8, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: timeout}
	server := address
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		var d net.Dialer
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) }
		server = "http://slurmrestd"
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("address of slurmrestd %q: write unix:/PATH or https://HOST:PORT", address)
	}
	c := &Client{server: server, timeout: timeout, tokens: tokens, now: now, cache: map[string]cached{}}
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c.api, err = v0042.NewClientWithResponses(server, v0042.WithHTTPClient(doer{c}))
	if err != nil {
		return nil, fmt.Errorf("make client of slurmrestd: %w", err)
	}
	return c, nil
}

// doer sends the library's requests under the version that the server speaks,
// and bounds the answer.
type doer struct{ c *Client }

// Do sends a request.
func (d doer) Do(req *http.Request) (*http.Response, error) {
	version, err := d.c.speak(req.Context(), req.Header)
	if err != nil {
		return nil, err
	}
	req.URL.Path = strings.Replace(req.URL.Path, "/"+base+"/", "/"+version+"/", 1)
	res, err := d.c.http.Do(req) //nolint:gosec // G704: the address is the admin's setting
	if err != nil {
		return nil, err
	}
	res.Body = limited{io.LimitReader(res.Body, answerMax), res.Body}
	return res, nil
}

type limited struct {
	io.Reader
	io.Closer
}

// speak finds out which version the server has.
func (c *Client) speak(ctx context.Context, head http.Header) (string, error) {
	c.mu.Lock()
	version := c.version
	c.mu.Unlock()
	if version != "" {
		return version, nil
	}
	for _, v := range versions() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.server+"/slurm/"+v+"/ping/", nil)
		if err != nil {
			return "", err
		}
		req.Header = head.Clone()
		req.Header.Del("Content-Type")
		res, err := c.http.Do(req)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
		if err := errors.Join(err, res.Body.Close()); err != nil {
			return "", err
		}
		if res.StatusCode != http.StatusNotFound {
			c.mu.Lock()
			c.version = v
			c.mu.Unlock()
			return v, nil
		}
	}
	return "", fmt.Errorf("slurmrestd speaks none of %s; Slurm 24.05 or newer is needed", strings.Join(versions(), ", "))
}

// as returns the headers of a request by the user.
func (c *Client) as(ctx context.Context, user string) (v0042.RequestEditorFn, error) {
	c.mu.Lock()
	tok, ok := c.cache[user]
	c.mu.Unlock()
	if left := tok.expires.Sub(c.now()); !ok || left < tokenLeft || left > tokenMost {
		var err error
		if tok.token, tok.expires, err = c.tokens.Token(ctx, user); err != nil {
			return nil, fmt.Errorf("get token of %s: %w", user, err)
		}
		c.mu.Lock()
		if len(c.cache) >= tokensMax {
			clear(c.cache)
		}
		c.cache[user] = tok
		c.mu.Unlock()
	}
	return func(_ context.Context, req *http.Request) error {
		req.Header.Set("X-SLURM-USER-NAME", user)
		req.Header.Set("X-SLURM-USER-TOKEN", tok.token)
		req.Header.Set("Accept", "application/json")
		return nil
	}, nil
}

// call runs one exchange within the time limit. While the breaker is open it is
// refused at once.
func (c *Client) call(ctx context.Context, user string, do func(ctx context.Context, as v0042.RequestEditorFn) error) error {
	c.mu.Lock()
	open := c.now().Before(c.openTill) && c.openTill.Sub(c.now()) <= breakFor
	c.mu.Unlock()
	if open {
		return fmt.Errorf("%w (tried a moment ago)", ErrUnavailable)
	}
	as, err := c.as(ctx, user)
	if err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err = do(limit, as)
	var urlErr *url.Error
	failed := errors.As(err, &urlErr) || errors.Is(err, ErrUnavailable)
	if ctx.Err() != nil && failed {
		return err // the caller went away; that says nothing about Slurm
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !failed {
		c.failures = 0
		return err
	}
	c.version = "" // it may come back as another release
	if c.failures++; c.failures >= breakAfter {
		c.openTill = c.now().Add(breakFor)
	}
	if errors.Is(err, ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// numbers of Slurm's errors (slurm/slurm_errno.h).
const (
	errInvalidJob  = 2017
	errAlreadyDone = 2021
	// errSlurm and above slurmctld has decided; below, somebody was not reached.
	errSlurm = 2000
)

// judge turns an answer without the wanted content into an error.
func judge(status int, list *v0042.V0042OpenapiErrors) error {
	if list != nil {
		for _, e := range *list {
			number, text := val(e.ErrorNumber), first(val(e.Description), val(e.Error))
			switch {
			case number == errInvalidJob:
				return ErrNotFound
			case number >= errSlurm:
				// The description says what was tried, the error why not.
				return RefusedError{first(val(e.Error), text)}
			case text != "":
				return fmt.Errorf("%w: %s", ErrUnavailable, text)
			}
		}
	}
	if status == http.StatusNotFound {
		return ErrNotFound
	}
	return fmt.Errorf("%w: status %d", ErrUnavailable, status)
}

func failure(list *v0042.V0042OpenapiErrors) bool { return list != nil && len(*list) > 0 }

func val[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func first(texts ...string) string {
	i := slices.IndexFunc(texts, func(s string) bool { return s != "" })
	if i < 0 {
		return ""
	}
	return texts[i]
}

// Ping asks whether slurmctld answers.
func (c *Client) Ping(ctx context.Context, user string) error {
	return c.call(ctx, user, func(ctx context.Context, as v0042.RequestEditorFn) error {
		res, err := c.api.SlurmV0042GetPingWithResponse(ctx, as)
		if err != nil {
			return err
		}
		if res.JSON200 == nil {
			return fmt.Errorf("%w: status %d", ErrUnavailable, res.StatusCode())
		}
		for _, p := range res.JSON200.Pings {
			if p.Responding || val(p.Pinged) == "UP" {
				return nil
			}
		}
		return fmt.Errorf("%w: slurmctld is down", ErrUnavailable)
	})
}
