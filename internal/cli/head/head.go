package head

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// Socket is where a backend answers root.
const Socket = "/run/carme-backend/admin.sock"

const (
	// patience is how long an answer may take: a long audit log is walked whole.
	patience  = 5 * time.Minute
	answerMax = 64 << 20
)

// ErrFound says that something is not as it should be; it was printed.
var ErrFound = errors.New("a check failed")

// Head is the backend on this host.
type Head struct {
	// Socket is the path of its admin socket.
	Socket string
	Out    io.Writer
	// JSON prints what the backend says, as it says it.
	JSON bool
}

// VerifyAudit checks the chain of the audit log. The error is ErrFound if a
// record was changed or removed.
func (h Head) VerifyAudit(ctx context.Context) error {
	var v api.AuditVerified
	if err := h.ask(ctx, http.MethodGet, "/v1/audit/verify", &v); err != nil {
		return err
	}
	var err error
	switch {
	case h.JSON:
		err = h.json(v)
	case v.OK:
		_, err = fmt.Fprintf(h.Out, "%d records, unbroken; the last one's hash is %s\n", v.Records, v.Hash)
	default:
		_, err = fmt.Fprintf(h.Out, "broken after %d records: %s\n", v.Records, v.Problem)
	}
	return found(err, v.OK)
}

// ListAudit prints the records after a number, all of them.
func (h Head) ListAudit(ctx context.Context, after int64) error {
	tab := tabwriter.NewWriter(h.Out, 0, 0, 2, ' ', 0)
	for first := true; ; first = false {
		var page []api.AuditRecord
		if err := h.ask(ctx, http.MethodGet, "/v1/audit?after="+strconv.FormatInt(after, 10), &page); err != nil {
			return err
		}
		if len(page) == 0 {
			return tab.Flush()
		}
		if first && !h.JSON {
			fmt.Fprintln(tab, "SEQ\tTIME\tACTOR\tACT\tOBJECT\tDETAIL")
		}
		for _, r := range page {
			if h.JSON {
				if err := h.json(r); err != nil {
					return err
				}
				continue
			}
			fmt.Fprintf(tab, "%d\t%s\t%s\t%s\t%s\t%s\n", r.Seq, r.Time.Local().Format(time.DateTime), plain(r.Actor), plain(r.Act), plain(r.Object), details(r.Detail))
		}
		after = page[len(page)-1].Seq
	}
}

// Health prints whether the backend's parts work. The error is ErrFound if one
// does not.
func (h Head) Health(ctx context.Context) error {
	var parts map[string]string
	if err := h.ask(ctx, http.MethodGet, "/v1/health", &parts); err != nil {
		return err
	}
	if h.JSON {
		return found(h.json(parts), well(parts))
	}
	tab := tabwriter.NewWriter(h.Out, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		state := "ok"
		if parts[name] != "" {
			state = "FAIL  " + plain(parts[name])
		}
		fmt.Fprintf(tab, "%s\t%s\n", name, state)
	}
	return found(tab.Flush(), well(parts))
}

func well(parts map[string]string) bool {
	return !slices.ContainsFunc(slices.Collect(maps.Values(parts)), func(problem string) bool { return problem != "" })
}

// ResetFactors takes a user's second factors away, so that the next login enrols
// anew. All of the user's logins end.
func (h Head) ResetFactors(ctx context.Context, user string) error {
	if err := h.ask(ctx, http.MethodDelete, "/v1/users/"+url.PathEscape(user)+"/factors", nil); err != nil {
		return err
	}
	_, err := fmt.Fprintf(h.Out, "%s has no second factor now and enrols one at the next login; all logins have ended\n", plain(user))
	return err
}

// EndLogins ends all of a user's logins. The second factor stays.
func (h Head) EndLogins(ctx context.Context, user string) error {
	if err := h.ask(ctx, http.MethodDelete, "/v1/users/"+url.PathEscape(user)+"/sessions", nil); err != nil {
		return err
	}
	_, err := fmt.Fprintf(h.Out, "all logins of %s have ended, and what they had open\n", plain(user))
	return err
}

func found(err error, well bool) error {
	if err == nil && !well {
		return ErrFound
	}
	return err
}

func (h Head) json(v any) error {
	e := json.NewEncoder(h.Out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// plain is a text from elsewhere without what moves a terminal's cursor.
func plain(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

func details(all map[string]string) string {
	pairs := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		pairs = append(pairs, plain(name)+"="+plain(all[name]))
	}
	return strings.Join(pairs, " ")
}

// ask sends a request and reads the answer into out, if that is not nil.
func (h Head) ask(ctx context.Context, method, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", h.Socket) }}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://backend"+path, http.NoBody)
	if err != nil {
		return fmt.Errorf("ask the backend: %w", err)
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("ask the backend: %w; run this as root on the head node, where carme-backend runs", errors.Unwrap(err))
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	body := io.LimitReader(res.Body, answerMax)
	if res.StatusCode >= http.StatusMultipleChoices {
		var refused api.ErrorBody
		if err := json.NewDecoder(body).Decode(&refused); err != nil || refused.Error.Message == "" {
			return fmt.Errorf("the backend answers with status %d", res.StatusCode)
		}
		return errors.New(plain(refused.Error.Message))
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("read the backend's answer: %w", err)
	}
	return nil
}
