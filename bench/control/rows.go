package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Row is a figure with its goal. Other is what it is compared with, 0 if nothing.
type Row struct {
	ID, What     string
	Carme, Other float64
	Raw          string // unit of both
	Value        float64
	Unit         string
	Must, Goal   float64
}

// Options say how much is done.
type Options struct {
	Shell   Shell
	Address func(ctx context.Context, machine string) (string, error)
	// Jobs are queued, Viewers look, Users are in the database.
	Jobs, Viewers, Users int
	Rounds               int
	// Span is how long Slurm's calls are counted and dashboards are asked for.
	Span time.Duration
	Out  io.Writer
}

// Run measures rows D and S, and returns with an error what it had until then.
func Run(ctx context.Context, o Options) (rows []Row, err error) {
	s, err := open(ctx, o.Shell, o.Address, o.Viewers)
	if err != nil {
		return nil, err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		_, problem := o.Shell(clean, "root", ctl, "scancel -Q -n carme-bench; while [ -n \"$(squeue -h -n carme-bench)\" ]; do sleep 0.2; done")
		err = errors.Join(err, problem, s.close(clean))
	}()
	for _, part := range []func(context.Context, *site, Options) ([]Row, error){start, submit, watch, dashboards} {
		more, err := part(ctx, s, o)
		for _, r := range more {
			fmt.Fprintf(o.Out, "%-4s %s: %.1f %s\n", r.ID, r.What, r.Value, r.Unit)
		}
		rows = append(rows, more...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// start is S1: the backend with many users, from its start to its first answer.
func start(ctx context.Context, s *site, o Options) ([]Row, error) {
	fmt.Fprintf(o.Out, "S1   backend starts with %d users\n", o.Users)
	if err := s.sql(ctx, fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
INSERT INTO users (name, uid, gid, home, full_name, mail, roles, groups_of, stamp)
SELECT 'bench-' || i, 200000 + i, 200000 + i, '/home/bench-' || i, 'Bench', '', '["user"]', '["carme-users"]', '' FROM n;`, o.Users)); err != nil {
		return nil, err
	}
	var samples []float64
	for range o.Rounds {
		out, err := s.shell(ctx, "root", ctl, `svc stop carme-backend >/dev/null
t0=${EPOCHREALTIME/./}
svc start carme-backend >/dev/null 2>&1 &
until curl -sf -o /dev/null --unix-socket /run/carme-backend/admin.sock http://backend/v1/openapi.yaml; do :; done
echo $((${EPOCHREALTIME/./} - t0)); wait`)
		if err != nil {
			return nil, err
		}
		us, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
		if err != nil {
			return nil, fmt.Errorf("read a time: %w", err)
		}
		samples = append(samples, us/1000)
	}
	v := median(samples)
	return []Row{{"S1", fmt.Sprintf("backend, %d users: start to first answer", o.Users), v, 0, "ms", v, "ms", 150, 50}}, nil
}

// submit is D3: a job by the portal's form beside one by sbatch.
func submit(ctx context.Context, s *site, o Options) ([]Row, error) {
	fmt.Fprintln(o.Out, "D3   submit in the portal, and by sbatch")
	c := s.client()
	defer c.CloseIdleConnections()
	token, err := s.csrf(ctx, c, 0)
	if err != nil {
		return nil, err
	}
	var portal, slurm []float64
	for range 3 * o.Rounds {
		id, err := o.Shell(ctx, "root", ctl, "cat /proc/sys/kernel/random/uuid")
		if err != nil {
			return nil, err
		}
		form := url.Values{"csrf": {token}, "id": {strings.TrimSpace(id)}, "image": {"base"}, "app": {"terminal"}, "gpus": {"0"}, "nodes": {"1"}, "minutes": {"5"}, "name": {"carme-bench"}}
		req, err := s.request(ctx, http.MethodPost, "/jobs", form, 0)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		if _, err := answered(c, req, http.StatusSeeOther); err != nil {
			return nil, err
		}
		portal = append(portal, milliseconds(time.Since(began)))
		out, err := o.Shell(ctx, "alice", login, "t0=${EPOCHREALTIME/./}; sbatch -Q -J carme-bench -t 5 --carme=base --carme-app=terminal -o /dev/null --wrap true >/dev/null || exit 1; echo $((${EPOCHREALTIME/./} - t0)); scancel -Q -n carme-bench")
		if err != nil {
			return nil, err
		}
		us, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
		if err != nil {
			return nil, fmt.Errorf("read a time: %w", err)
		}
		slurm = append(slurm, us/1000)
	}
	a, b := median(portal), median(slurm)
	return []Row{{"D3", "submit in the portal, and by sbatch", a, b, "ms", a - b, "ms", max(10, b), 5}}, nil
}

// watch is D1 and S2: many viewers of a queue with many jobs.
func watch(ctx context.Context, s *site, o Options) (rows []Row, err error) {
	idle, err := s.memory(ctx, ctl, "carme-backend")
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(o.Out, "D1   queueing %d jobs\n", o.Jobs)
	var all sync.WaitGroup
	failed := make([]error, len(people))
	for i, p := range people {
		all.Go(func() {
			_, failed[i] = o.Shell(ctx, p.name, login, fmt.Sprintf("for i in $(seq %d); do sbatch -Q -H -J carme-bench -t 5 -o /dev/null --wrap true >/dev/null || exit 1; done", o.Jobs/len(people)))
		})
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	one, err := s.viewed(ctx, o, 1)
	if err != nil {
		return nil, err
	}
	many, err := s.viewed(ctx, o, o.Viewers)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("%d jobs, %d viewers beside one", o.Jobs, many.viewers)
	return []Row{
		{"D1", "Slurm's calls a second, " + what, many.calls, one.calls, "/s", many.calls, "/s", 0.5, 0},
		{"D1", "slurmrestd's share of a core, " + what, many.cpu, one.cpu, "%", many.cpu, "%", 5, 5},
		{"D1", "slurmrestd's memory, " + what, many.restd, one.restd, "MB", many.restd, "MB", 300, 300},
		{"S2", fmt.Sprintf("portal, %d watching", many.viewers), many.portal, one.portal, "MB", many.portal, "MB", 90, 75},
		{"S2", fmt.Sprintf("backend, %d jobs", o.Jobs), one.backend, idle, "MB", one.backend, "MB", 80, 60},
	}, nil
}

// view is what it takes that some people look.
type view struct {
	viewers                            int
	calls, cpu, restd, portal, backend float64
}

// streamsPer is how many event streams one connection carries.
const streamsPer = 100

// viewed has people look at their jobs for a while.
func (s *site) viewed(ctx context.Context, o Options, viewers int) (v view, err error) {
	fmt.Fprintf(o.Out, "D1   %d viewers\n", viewers)
	ctx, stop := context.WithCancel(ctx)
	var open sync.WaitGroup
	defer open.Wait()
	defer stop()
	var mu sync.Mutex
	var problem error
	ready := make(chan struct{}, viewers)
	clients := s.clients((viewers + streamsPer - 1) / streamsPer)
	defer clients.close()
	for i := range viewers {
		one := clients[i/streamsPer]
		open.Go(func() {
			err := s.look(ctx, one, i, ready)
			if ctx.Err() == nil {
				mu.Lock()
				problem = errors.Join(problem, err)
				mu.Unlock()
			}
		})
	}
	problems := func() error {
		mu.Lock()
		defer mu.Unlock()
		return problem
	}
	timeout := time.After(2 * time.Minute)
	for v.viewers < viewers {
		select {
		case <-ready:
			v.viewers++
		case <-timeout:
			return v, fmt.Errorf("%d of %d viewers get events: %w", v.viewers, viewers, problems())
		}
	}
	calls, cpu, err := s.slurm(ctx)
	if err != nil {
		return v, err
	}
	select {
	case <-ctx.Done():
		return v, ctx.Err()
	case <-time.After(o.Span):
	}
	calls2, cpu2, err := s.slurm(ctx)
	if err != nil {
		return v, err
	}
	v.calls, v.cpu = (calls2-calls)/o.Span.Seconds(), 100*(cpu2-cpu)/o.Span.Seconds()
	for _, m := range []struct {
		into             *float64
		machine, program string
	}{{&v.restd, ctl, "slurmrestd"}, {&v.portal, login, "carme-portal"}, {&v.backend, ctl, "carme-backend"}} {
		if *m.into, err = s.memory(ctx, m.machine, m.program); err != nil {
			return v, err
		}
	}
	return v, problems()
}

// look reads a session's events until ctx ends.
func (s *site) look(ctx context.Context, c *http.Client, session int, ready chan<- struct{}) error {
	req, err := s.request(ctx, http.MethodGet, "/events", nil, session)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "text/event-stream")
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("/events answers %d", res.StatusCode)
	}
	told := false
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if !told {
			told = true
			ready <- struct{}{}
		}
	}
	return lines.Err()
}

var callsOf = regexp.MustCompile(`(?m)^\s*(?:carme-backend|alice|bob|carol|dave)\s*\(\s*\d+\)\s+count:(\d+)`)

// slurm is how many calls slurmctld has had of the backend and of the people it
// asks for (sdiag(1)), and the seconds of a processor that slurmrestd has used.
func (s *site) slurm(ctx context.Context) (calls, cpu float64, err error) {
	out, err := s.shell(ctx, "root", ctl, "sdiag")
	if err != nil {
		return 0, 0, err
	}
	for _, m := range callsOf.FindAllStringSubmatch(out, -1) {
		n, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return 0, 0, err
		}
		calls += n
	}
	out, err = s.shell(ctx, "root", ctl, "awk '{print ($14 + $15) / 100}' /proc/$(pgrep -o -x slurmrestd)/stat")
	if err != nil {
		return 0, 0, err
	}
	cpu, err = strconv.ParseFloat(strings.TrimSpace(out), 64)
	return calls, cpu, err
}

// dashboards is D2: pages at a fixed rate, whatever the answers take.
func dashboards(ctx context.Context, s *site, o Options) ([]Row, error) {
	var rows []Row
	for _, rate := range []int{50, 200, 1000} {
		fmt.Fprintf(o.Out, "D2   %d dashboards a second\n", rate)
		row, err := s.dashboards(ctx, o, rate)
		if err != nil {
			return rows, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// settled waits until a dashboard is answered: the rate before may have been more
// than the machine can do.
func (s *site) settled(ctx context.Context, c *http.Client, session int) error {
	late := time.Now().Add(time.Minute)
	for {
		_, err := s.get(ctx, c, "/", session)
		if err == nil || time.Now().After(late) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (s *site) dashboards(ctx context.Context, o Options, rate int) (Row, error) {
	const connections = 16
	clients := s.clients(connections)
	defer clients.close()
	for i := range clients {
		if err := s.settled(ctx, clients[i], i); err != nil {
			return Row{}, err
		}
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	var took []float64
	failed := 0
	began := time.Now()
	// What was not answered ten seconds after the last was asked for has failed.
	ctx, cancel := context.WithDeadline(ctx, began.Add(o.Span/4+10*time.Second))
	defer cancel()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	asked := 0
	for ; time.Since(began) < o.Span/4; asked++ {
		<-tick.C
		i, due := asked, time.Now()
		all.Go(func() {
			_, err := s.get(ctx, clients[i%connections], "/", i)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
				return
			}
			took = append(took, milliseconds(time.Since(due)))
		})
	}
	all.Wait()
	if len(took) == 0 {
		return Row{}, fmt.Errorf("no dashboard of %d came", asked)
	}
	slices.Sort(took)
	p99 := took[min(len(took)-1, len(took)*99/100)]
	what := fmt.Sprintf("dashboard at %d/s with %d jobs, p99 (asked %d, failed %d)", rate, o.Jobs, asked, failed)
	return Row{"D2", what, p99, median(took), "ms (p99, p50)", p99, "ms", 20, 5}, nil
}

func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
