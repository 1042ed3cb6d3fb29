package rest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	v0042 "github.com/SlinkyProject/slurm-client/api/v0042"
)

// Job is what Slurm knows of a job. Name, comment and paths are the user's text.
type Job struct {
	ID                                  uint32
	Array                               string // 123_4 for a task of an array, else empty
	Name, Comment, User                 string
	UID                                 uint32
	State                               string // base state, RUNNING
	Flags                               []string
	Reason                              string
	Partition, Account, QOS             string
	Nodes, BatchHost                    string // host list; first node
	NodeCount, CPUs                     int
	MemoryMB                            int64
	TRES                                string // as allocated, or as asked for
	Submitted, Started, Ended, Eligible time.Time
	Minutes                             int
	ExitCode, Signal                    int
	WorkDir, Stdout, Stderr             string
	Features                            string
	Preempted                           bool
}

// Job asks for one job as the user.
func (c *Client) Job(ctx context.Context, user string, id uint32) (Job, error) {
	var out Job
	err := c.call(ctx, user, func(ctx context.Context, as v0042.RequestEditorFn) error {
		res, err := c.api.SlurmV0042GetJobWithResponse(ctx, strconv.FormatUint(uint64(id), 10), nil, as)
		if err != nil {
			return err
		}
		answer := res.JSON200
		if answer == nil {
			answer = res.JSONDefault
		}
		if answer == nil {
			return fmt.Errorf("%w: status %d", ErrUnavailable, res.StatusCode())
		}
		for i := range answer.Jobs {
			if j := job(&answer.Jobs[i]); j.ID == id || len(answer.Jobs) == 1 {
				out = j
				return nil
			}
		}
		if !failure(answer.Errors) {
			return ErrNotFound
		}
		return judge(res.StatusCode(), answer.Errors)
	})
	return out, err
}

func job(in *v0042.V0042JobInfo) Job {
	j := Job{
		ID: uint32(val(in.JobId)), Name: val(in.Name), Comment: val(in.Comment), User: val(in.UserName), //nolint:gosec // Slurm's are positive
		UID: uint32(val(in.UserId)), Reason: val(in.StateReason), Partition: val(in.Partition), Account: val(in.Account), //nolint:gosec // bits of a uint32
		QOS: val(in.Qos), Nodes: val(in.Nodes), BatchHost: val(in.BatchHost), NodeCount: small(in.NodeCount), CPUs: small(in.Cpus),
		TRES: first(val(in.TresAllocStr), val(in.TresReqStr)), Submitted: when(in.SubmitTime), Started: when(in.StartTime),
		Ended: when(in.EndTime), Eligible: when(in.EligibleTime), Minutes: small(in.TimeLimit), WorkDir: val(in.CurrentWorkingDirectory),
		Stdout: val(in.StandardOutput), Stderr: val(in.StandardError), Features: val(in.Features),
		Preempted: !when(in.PreemptTime).IsZero(),
	}
	if task := in.ArrayTaskId; task != nil && val(task.Set) && small(in.ArrayJobId) > 0 {
		j.Array = fmt.Sprintf("%d_%d", small(in.ArrayJobId), val(task.Number))
	}
	for i, s := range val(in.JobState) {
		if i == 0 {
			j.State = string(s)
		} else {
			j.Flags = append(j.Flags, string(s))
		}
	}
	if e := in.ExitCode; e != nil {
		j.ExitCode = small(e.ReturnCode)
		if e.Signal != nil && e.Signal.Id != nil {
			j.Signal = int(val(e.Signal.Id.Number))
		}
	}
	j.MemoryMB = memory(j.TRES)
	return j
}

// memory reads mem=16000M out of a TRES string, in MiB.
func memory(tres string) int64 {
	for part := range strings.SplitSeq(tres, ",") {
		text, ok := strings.CutPrefix(part, "mem=")
		if !ok || text == "" {
			continue
		}
		units := map[byte]float64{'K': 1.0 / 1024, 'M': 1, 'G': 1024, 'T': 1024 * 1024}
		factor := 1.0
		if f, ok := units[text[len(text)-1]]; ok {
			factor, text = f, text[:len(text)-1]
		}
		n, err := strconv.ParseFloat(text, 64)
		if err == nil {
			return int64(n * factor)
		}
	}
	return 0
}

// Node is what Slurm knows of a node.
type Node struct {
	Name, Address  string
	States         []string
	CPUs, CPUsUsed int
	Gres, GresUsed string
	Features       []string
	Partitions     []string
	Reason         string
}

// Nodes asks for all nodes.
func (c *Client) Nodes(ctx context.Context, user string) ([]Node, error) {
	var out []Node
	err := c.call(ctx, user, func(ctx context.Context, as v0042.RequestEditorFn) error {
		res, err := c.api.SlurmV0042GetNodesWithResponse(ctx, nil, as)
		if err != nil {
			return err
		}
		if res.JSON200 == nil {
			return fmt.Errorf("%w: status %d", ErrUnavailable, res.StatusCode())
		}
		if failure(res.JSON200.Errors) && len(res.JSON200.Nodes) == 0 {
			return judge(res.StatusCode(), res.JSON200.Errors)
		}
		for i := range res.JSON200.Nodes {
			n := &res.JSON200.Nodes[i]
			node := Node{
				Name: val(n.Name), Address: val(n.Address), CPUs: int(val(n.Cpus)), CPUsUsed: int(val(n.AllocCpus)), Gres: val(n.Gres),
				GresUsed: val(n.GresUsed), Features: val(n.ActiveFeatures), Partitions: val(n.Partitions), Reason: val(n.Reason),
			}
			for _, s := range val(n.State) {
				node.States = append(node.States, string(s))
			}
			out = append(out, node)
		}
		return nil
	})
	return out, err
}

// Partition is what Slurm knows of a partition.
type Partition struct {
	Name       string
	Nodes      string
	Up         bool
	MaxMinutes int // 0: none
	MaxNodes   int // 0: none
	Accounts   string
	Groups     string
}

// Partitions asks for all partitions.
func (c *Client) Partitions(ctx context.Context, user string) ([]Partition, error) {
	var out []Partition
	err := c.call(ctx, user, func(ctx context.Context, as v0042.RequestEditorFn) error {
		res, err := c.api.SlurmV0042GetPartitionsWithResponse(ctx, nil, as)
		if err != nil {
			return err
		}
		if res.JSON200 == nil {
			return fmt.Errorf("%w: status %d", ErrUnavailable, res.StatusCode())
		}
		for i := range res.JSON200.Partitions {
			out = append(out, partition(&res.JSON200.Partitions[i]))
		}
		return nil
	})
	return out, err
}

func partition(in *v0042.V0042PartitionInfo) Partition {
	p := Partition{Name: val(in.Name)}
	if in.Nodes != nil {
		p.Nodes = val(in.Nodes.Configured)
	}
	if in.Maximums != nil {
		p.MaxMinutes, p.MaxNodes = small(in.Maximums.Time), small(in.Maximums.Nodes)
	}
	if in.Accounts != nil {
		p.Accounts = val(in.Accounts.Allowed)
	}
	if in.Groups != nil {
		p.Groups = val(in.Groups.Allowed)
	}
	if in.Partition != nil {
		for _, s := range val(in.Partition.State) {
			p.Up = p.Up || string(s) == "UP"
		}
	}
	return p
}

// Past is a job of the accounting database.
type Past struct {
	ID      uint32
	Comment string
	State   string
}

// Recorded asks the accounting database for the user's jobs submitted since.
func (c *Client) Recorded(ctx context.Context, user string, since time.Time) ([]Past, error) {
	var out []Past
	err := c.call(ctx, user, func(ctx context.Context, as v0042.RequestEditorFn) error {
		from := strconv.FormatInt(since.Unix(), 10)
		skip := "true"
		res, err := c.api.SlurmdbV0042GetJobsWithResponse(ctx, &v0042.SlurmdbV0042GetJobsParams{Users: &user, StartTime: &from, SkipSteps: &skip}, as)
		if err != nil {
			return err
		}
		if res.JSON200 == nil {
			return fmt.Errorf("%w: status %d", ErrUnavailable, res.StatusCode())
		}
		for i := range res.JSON200.Jobs {
			j := &res.JSON200.Jobs[i]
			p := Past{ID: uint32(val(j.JobId))} //nolint:gosec // Slurm's are positive
			if j.Comment != nil {
				p.Comment = val(j.Comment.Job)
			}
			if j.State != nil && len(val(j.State.Current)) > 0 {
				p.State = string(val(j.State.Current)[0])
			}
			out = append(out, p)
		}
		return nil
	})
	return out, err
}
