package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// lineMax is the longest line of a stream, in bytes.
const lineMax = 1 << 16

// Events opens the stream of server-sent events of a session, which ends with
// ctx. lastID is the id of the last event that the browser saw, or empty. The
// caller closes it.
func (c *Client) Events(ctx context.Context, token, lastID string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/v1/events", nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	request.Header.Set("User-Agent", c.agent)
	request.Header.Set("Accept", "text/event-stream")
	request.Header.Set("Authorization", "Bearer "+token)
	if lastID != "" {
		request.Header.Set("Last-Event-ID", lastID)
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, unavailable(err)
	}
	if answer.StatusCode != http.StatusOK {
		defer answer.Body.Close() //nolint:errcheck // it was read
		return nil, refusal(answer)
	}
	return answer.Body, nil
}

// Revocations calls handle for each line of the stream of revocations, from the
// one after the sequence number on, or from now on for 0, until the stream or
// ctx ends. It
// never returns nil.
func (c *Client) Revocations(ctx context.Context, after int64, handle func(api.Revocation)) error {
	path := "/v1/revocations"
	if after > 0 {
		path += "?after=" + strconv.FormatInt(after, 10)
	}
	answer, err := c.send(ctx, call{method: http.MethodGet, path: path})
	if err != nil {
		return err
	}
	defer answer.Body.Close() //nolint:errcheck // nothing was written
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(make([]byte, 0, 512), lineMax)
	for lines.Scan() {
		var one api.Revocation
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return unavailable(fmt.Errorf("read revocation: %w", err))
		}
		handle(one)
	}
	if err := lines.Err(); err != nil {
		return unavailable(err)
	}
	return unavailable(io.ErrUnexpectedEOF)
}
