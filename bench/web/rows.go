package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Figure is one row of the table.
type Figure struct {
	ID, What     string
	Carme, Other float64
	Raw          string // unit of both
	Value        float64
	Unit         string
	Must, Goal   float64
	More         bool // a larger value is a better one
}

// Options say how much is measured.
type Options struct {
	Programs Programs
	Rounds   int
	// Lasting is how long one sample of a rate lasts.
	Lasting time.Duration
	// Sockets is how many idle websockets there are, Big the size of a large
	// transfer in bytes.
	Sockets int
	Big     int64
	Only    []string
	Out     io.Writer
}

type bench struct {
	Options
	*chains
	before  *chains // nil without another build
	figures []Figure
}

// Run measures all rows.
func Run(ctx context.Context, o Options) (figures []Figure, err error) {
	most, err := descriptors()
	if err != nil {
		return nil, err
	}
	const spare = 500
	o.Sockets = min(o.Sockets, (most-spare)/2) // portal and agent have two each
	c, err := start(ctx, o.Programs)
	if c != nil {
		defer c.stop()
	}
	if err != nil {
		if c != nil && c.log != nil {
			err = fmt.Errorf("%w\n%s", err, c.logged())
		}
		return nil, err
	}
	b := &bench{Options: o, chains: c}
	if o.Programs.Before != "" {
		b.before, err = start(ctx, Programs{
			Portal: filepath.Join(o.Programs.Before, "carme-portal"), Agent: filepath.Join(o.Programs.Before, "carme-agent"), Self: o.Programs.Self,
		})
		if b.before != nil {
			defer b.before.stop()
		}
		if err != nil {
			return nil, err
		}
	}
	for _, row := range []struct {
		id  string
		run func(context.Context) error
	}{
		{"R1", b.r1}, {"R2", b.r2}, {"R3", b.r3}, {"R5", b.r5}, {"W1", b.w1}, {"R4", b.r4}, {"S2", b.s2}, {"W2", b.w2},
	} {
		if len(o.Only) > 0 && !slices.Contains(o.Only, row.id) {
			continue
		}
		if err := row.run(ctx); err != nil {
			return b.figures, fmt.Errorf("%s: %w\n%s", row.id, err, c.logged())
		}
	}
	return b.figures, nil
}

func (b *bench) add(f Figure) {
	fmt.Fprintf(b.Out, "%-4s %-44s %10.4g %10.4g %-6s %8.3g %s\n", f.ID, f.What, f.Carme, f.Other, f.Raw, f.Value, f.Unit)
	b.figures = append(b.figures, f)
}

// target is the way through one of the chains.
func (b *bench) target(name string) target {
	if name != before {
		return b.chains.target(name)
	}
	t := b.before.target("carme")
	t.name = name
	return t
}

// versus adds a figure of a comparison, if there was one.
func (b *bench) versus(f Figure) {
	if b.Programs.Nginx != "" {
		b.add(f)
	}
}

// before is the name of the chain of another build.
const before = "before"

// costs notes what processor time requests took, and says it as the median.
type costs map[string][]time.Duration

func (c costs) note(t target, l load) { c[t.name] = append(c[t.name], l.cpu) }

func (c costs) say(out io.Writer, what string) {
	for _, name := range slices.Sorted(maps.Keys(c)) {
		all := slices.Sorted(slices.Values(c[name]))
		fmt.Fprintf(out, "     %s: %s takes %.1f us of processor time, %.1f at least\n", what, name, float64(all[len(all)/2].Nanoseconds())/1e3, float64(all[0].Nanoseconds())/1e3)
	}
}

// compare takes samples of several chains in turn, who goes first in turn too,
// and returns their medians.
func (b *bench) compare(ctx context.Context, names []string, sample func(context.Context, target) (float64, error)) (map[string]float64, error) {
	all := map[string][]float64{}
	for i := range b.Rounds + 1 {
		for k := range names {
			name := names[(i+k)%len(names)]
			v, err := sample(ctx, b.target(name))
			if err != nil {
				return nil, err
			}
			if i > 0 { // the first warms up
				all[name] = append(all[name], v)
			}
		}
	}
	medians := map[string]float64{}
	for name, values := range all {
		slices.Sort(values)
		medians[name] = values[len(values)/2]
	}
	if b.before != nil {
		fmt.Fprintf(b.Out, "     the other build: %.5g, this one: %.5g\n", medians[before], medians["carme"])
	}
	return medians, nil
}

// rivals are the chains that are there.
func (b *bench) rivals(most int) []string {
	names := []string{"carme"}
	if b.Programs.Nginx != "" {
		names = append(names, "nginx")
		if b.Programs.CHP != "" {
			names = append(names, "chp")
		}
	}
	names = names[:min(len(names), most)]
	if b.before != nil {
		names = append(names, before)
	}
	return names
}

func (b *bench) r1(ctx context.Context) error {
	spent := costs{}
	got, err := b.compare(ctx, b.rivals(3), func(ctx context.Context, t target) (float64, error) {
		l, err := t.requests(ctx, 64, "/1024", b.Lasting)
		spent.note(t, l)
		return l.perSecond, err
	})
	if err != nil {
		return err
	}
	spent.say(b.Out, "R1, one request")
	b.versus(Figure{"R1", "1 KB requests, 64 clients, against nginx", got["carme"], got["nginx"], "1/s", got["carme"] / got["nginx"], "x", 1.3, 1.8, true})
	if got["chp"] > 0 {
		b.versus(Figure{"R1", "the same, against configurable-http-proxy", got["carme"], got["chp"], "1/s", got["carme"] / got["chp"], "x", 4, 6, true})
	}
	return nil
}

func (b *bench) r2(ctx context.Context) error {
	got, err := b.compare(ctx, b.rivals(2), func(ctx context.Context, t target) (float64, error) {
		l, err := t.requests(ctx, 1, "/1024", b.Lasting)
		return float64(l.p50.Nanoseconds()) / 1e3, err
	})
	if err == nil {
		b.versus(Figure{"R2", "latency of one client, median", got["carme"], got["nginx"], "us", got["carme"] - got["nginx"], "us", 0, -40, false})
	}
	return err
}

func (b *bench) r3(ctx context.Context) error {
	got, err := b.compare(ctx, b.rivals(2), func(ctx context.Context, t target) (float64, error) {
		l, err := t.requests(ctx, 8, "/1048576", b.Lasting)
		return l.bytes / 1e6, err
	})
	if err == nil {
		b.versus(Figure{"R3", "1 MB answers, 8 clients", got["carme"], got["nginx"], "MB/s", got["carme"] / got["nginx"], "x", 1.0, 1.2, true})
	}
	return err
}

const mega = 1e6

// r5 moves one large body each way, and looks how much larger portal and agent
// are meanwhile.
func (b *bench) r5(ctx context.Context) error {
	t := b.target("carme")
	if _, err := t.requests(ctx, 1, "/1024", time.Second); err != nil {
		return err
	}
	both := func() int64 { return b.memory("portal") + b.memory("agent") }
	before := both()
	var most int64
	for _, direction := range []string{"down", "up"} {
		done := make(chan error, 1)
		go func() { done <- b.transfer(ctx, t, direction) }()
		tick := time.NewTicker(20 * time.Millisecond)
		var err error
		for busy := true; busy; {
			select {
			case err = <-done:
				busy = false
			case <-tick.C:
				most = max(most, both()-before)
			}
		}
		tick.Stop()
		if err != nil {
			return err
		}
	}
	b.add(Figure{"R5", fmt.Sprintf("memory for %d MB down and up", b.Big/mega), float64(most) / mega, 0, "MB", float64(most) / mega, "MB", 20, 5, false})
	return nil
}

func (b *bench) transfer(ctx context.Context, t target, direction string) error {
	c, err := t.dial(ctx, 64<<10)
	if err != nil {
		return err
	}
	defer c.tls.Close() //nolint:errcheck // it was read
	if direction == "down" {
		c.request = []byte(t.head("GET", fmt.Sprintf("/%d", b.Big), 0) + "\r\n")
		_, err := c.get()
		return err
	}
	if _, err := fmt.Fprintf(c.tls, "%sOrigin: https://%s\r\nContent-Length: %d\r\n\r\n", t.head("POST", "/", 0), t.host, b.Big); err != nil {
		return err
	}
	for left := b.Big; left > 0; {
		n, err := c.tls.Write(body[:min(left, int64(len(body)))])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	status, _, err := c.answer()
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("answer %d", status)
	}
	return err
}

func (b *bench) w1(ctx context.Context) error {
	one, err := b.compare(ctx, b.rivals(2), func(ctx context.Context, t target) (float64, error) {
		l, err := t.echoes(ctx, 1, b.Lasting)
		return float64(l.p50.Nanoseconds()) / 1e3, err
	})
	if err != nil {
		return err
	}
	spent := costs{}
	many, err := b.compare(ctx, b.rivals(2), func(ctx context.Context, t target) (float64, error) {
		l, err := t.echoes(ctx, 32, b.Lasting)
		spent.note(t, l)
		return l.perSecond, err
	})
	if err != nil {
		return err
	}
	spent.say(b.Out, "W1, one echo of 32 clients")
	b.versus(Figure{"W1", "websocket echo, one client, median", one["carme"], one["nginx"], "us", one["carme"] / one["nginx"], "x", 1.0, 0.9, false})
	b.versus(Figure{"W1", "websocket echoes, 32 clients", many["carme"], many["nginx"], "1/s", many["carme"] / many["nginx"], "x", 1.2, 1.6, true})
	return nil
}

// sockets opens websockets, one for each viewer.
func (b *bench) sockets(ctx context.Context, n int) ([]*conn, error) {
	t := b.target("carme")
	open := make([]*conn, n)
	err := each(n, 24, func(i int) (err error) {
		open[i], err = t.open(ctx, i, 512)
		return err
	})
	return open, err
}

// each does something for every number below n, several at once.
func each(n, atOnce int, do func(i int) error) error {
	var (
		all    sync.WaitGroup
		next   atomic.Int64
		mu     sync.Mutex
		failed error
	)
	for range atOnce {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(i); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	all.Wait()
	return failed
}

// settle waits until a program's memory no longer shrinks.
func (b *bench) settle(name string) int64 {
	least, since := b.memory(name), time.Now()
	for began := time.Now(); time.Since(began) < 40*time.Second && time.Since(since) < 8*time.Second; {
		<-time.After(500 * time.Millisecond)
		if now := b.memory(name); now < least-least/200 {
			least, since = now, time.Now()
		}
	}
	return least
}

// fresh starts the portal anew, so that nothing is left of earlier rows.
func (b *bench) fresh(ctx context.Context) error {
	b.end("portal")
	if err := b.runPortal(ctx); err != nil {
		return err
	}
	_, err := b.target("carme").requests(ctx, 1, "/1024", 100*time.Millisecond)
	return err
}

// w2 is what idle websockets cost, and after a burst on each; then all their
// sessions end (W4).
func (b *bench) w2(ctx context.Context) error {
	if err := b.fresh(ctx); err != nil {
		return err
	}
	before, agent := b.settle("portal"), b.settle("agent")
	open, err := b.sockets(ctx, b.Sockets)
	if err != nil {
		return err
	}
	n := float64(b.Sockets)
	idle := float64(b.settle("portal")-before) / n
	b.add(Figure{"W2", "portal's memory for an idle websocket", idle / 1024, float64(b.settle("agent")-agent) / n / 1024, "KB", float64(1<<30) / idle, "per GB", 30000, 45000, true})
	burst := frame(make([]byte, 64<<10), true)
	if err := each(b.Sockets, 16, func(i int) error { _, err := open[i].echo(burst); open[i].buffer = nil; return err }); err != nil {
		return err
	}
	after := float64(b.settle("portal")-before) / n
	b.add(Figure{"W2", "the same after 64 KB each way", after / 1024, 0, "KB", after / 1024, "KB", 64, 32, false})
	return b.w4(open)
}

func (b *bench) w4(open []*conn) error {
	var ended sync.WaitGroup
	for _, c := range open {
		ended.Go(func() {
			var one [1]byte
			_, _ = c.tls.NetConn().Read(one[:]) // the end, or a farewell before it
		})
	}
	sessions := make([]string, len(open))
	for i := range sessions {
		sessions[i] = tokenOf(i)
	}
	<-time.After(time.Second) // until all of them wait
	began := time.Now()
	b.backend.revoke(sessions)
	ended.Wait()
	took := time.Since(began).Seconds()
	for _, c := range open {
		_ = c.tls.Close()
	}
	b.add(Figure{"W4", fmt.Sprintf("%d sessions log out, until all sockets are closed", len(open)), took, 0, "s", took, "s", 2, 0.2, false})
	return nil
}

// r4 asks 1,000 times a second while portal and agent are started again, as a
// browser does: what was cut before an answer began is asked for once more.
func (b *bench) r4(ctx context.Context) error {
	for _, name := range []string{"portal", "agent"} {
		failed, p99, err := b.restart(ctx, name)
		if err != nil {
			return err
		}
		b.add(Figure{"R4", "failed of 1,000/s, " + name + " restarted; p99", float64(failed), p99, "n, ms", float64(failed), "failed", 0, 0, false})
	}
	return nil
}

const (
	rate    = 1000
	seconds = 8
)

// crowd asks as browsers do, on connections that are kept.
type crowd struct {
	target
	idle chan *conn

	mu   sync.Mutex
	took []float64 // ms
	why  map[string]int
}

// ask sends one request; again on a fresh connection if one that had waited was
// closed, for there was no answer then.
func (c *crowd) ask(ctx context.Context, viewer int) error {
	var err error
	for again := range 3 {
		var to *conn
		if again == 0 {
			select {
			case to = <-c.idle:
			default:
			}
		}
		if to == nil {
			if to, err = c.dial(ctx, 4<<10); err != nil {
				return err
			}
		}
		to.request = []byte(c.head("GET", "/1024", viewer) + "\r\n")
		if _, err = to.get(); err == nil {
			select {
			case c.idle <- to:
			default:
				_ = to.tls.Close()
			}
			return nil
		}
		_ = to.tls.Close()
		if strings.HasPrefix(err.Error(), "answer ") {
			return err
		}
	}
	return err
}

func (c *crowd) timed(ctx context.Context, viewer int) {
	began := time.Now()
	err := c.ask(ctx, viewer)
	ms := float64(time.Since(began).Microseconds()) / 1e3
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = append(c.took, ms)
	if err != nil {
		c.why[err.Error()]++
	}
}

func (b *bench) restart(ctx context.Context, name string) (failed int, p99 float64, err error) {
	c := &crowd{target: b.target("carme"), idle: make(chan *conn, 256), why: map[string]int{}}
	restarted := make(chan error, 1)
	time.AfterFunc(2*time.Second, func() {
		b.end(name)
		if name == "portal" {
			restarted <- b.runPortal(ctx)
		} else {
			restarted <- b.runAgent(ctx)
		}
	})
	var all sync.WaitGroup
	tick := time.NewTicker(time.Second / rate)
	defer tick.Stop()
	for i := range rate * seconds {
		<-tick.C
		all.Go(func() { c.timed(ctx, i%64) })
	}
	all.Wait()
	for text, n := range c.why {
		failed += n
		fmt.Fprintf(b.Out, "     %d times %s\n", n, text)
	}
	slices.Sort(c.took)
	return failed, c.took[len(c.took)*99/100], <-restarted
}

// s2 is the portal's memory with nobody, and with 5,000 websockets.
func (b *bench) s2(ctx context.Context) error {
	if err := b.fresh(ctx); err != nil {
		return err
	}
	idle := float64(b.settle("portal")) / mega
	b.add(Figure{"S2", "memory of the portal, idle", idle, 0, "MB", idle, "MB", 25, 15, false})
	const many = 5000
	open, err := b.sockets(ctx, many)
	if err != nil {
		return err
	}
	full := float64(b.settle("portal")) / mega
	b.add(Figure{"S2", "memory of the portal, 5,000 websockets", full, 0, "MB", full, "MB", 200, 150, false})
	for _, c := range open {
		_ = c.tls.Close()
	}
	return nil
}
