package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/wire/api"
)

// answerMax is the size of the largest answer, in bytes.
const answerMax = 4 << 20

// Client asks one backend.
type Client struct {
	address string
	http    *http.Client
}

// New makes a client of the backend at HOST:PORT that shows the store's
// certificate, if it has one.
func New(address string, store *mtls.Store, expect mtls.Identity) *Client {
	return &Client{address: address, http: &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig:     store.Client(expect, "http/1.1"),
			TLSHandshakeTimeout: 5 * time.Second,
			MaxIdleConns:        2,
			IdleConnTimeout:     time.Minute,
		},
		// A redirect would lead a report to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close ends idle connections; those show a certificate that may be old.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// StatusError is an answer that is no success.
type StatusError struct {
	Path string
	Code int
	// Text is the backend's explanation, one line.
	Text string
}

// Error says what was asked and what came back.
func (e *StatusError) Error() string {
	return fmt.Sprintf("backend answers %s with %d: %s", e.Path, e.Code, e.Text)
}

// Post sends in as JSON and decodes the answer into out, within this time.
func (c *Client) Post(ctx context.Context, limit time.Duration, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.address+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask backend: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	data, err := io.ReadAll(io.LimitReader(res.Body, answerMax))
	if err != nil {
		return fmt.Errorf("read backend's answer: %w", err)
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return &StatusError{Path: path, Code: res.StatusCode, Text: explanation(data)}
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("read backend's answer to %s: %w", path, err)
	}
	return nil
}

// explanation is what an error's body says, on one short line.
func explanation(data []byte) string {
	var body api.ErrorBody
	text := string(data)
	if json.Unmarshal(data, &body) == nil && body.Error.Message != "" {
		text = body.Error.Message
	}
	text = strings.Join(strings.Fields(text), " ")
	const most = 300
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return text
}
