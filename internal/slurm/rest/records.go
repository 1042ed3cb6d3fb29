package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	v0042 "github.com/SlinkyProject/slurm-client/api/v0042"
)

// number is a value that may be missing or without end. The library's types hold
// 32 bits with a sign, which a priority of 4294901757 does not fit into, and one
// such field makes a whole answer unreadable: so answers are read into the types
// here, which have only what is used.
type number struct {
	Set      bool    `json:"set"`
	Infinite bool    `json:"infinite"`
	Number   float64 `json:"number"`
}

func (n *number) int() int64 {
	if n == nil || n.Infinite || n.Number < 0 || n.Number >= 1<<32-2 && !n.Set {
		return 0
	}
	return int64(n.Number)
}

func (n *number) time() time.Time {
	if n.int() <= 0 {
		return time.Time{}
	}
	return time.Unix(n.int(), 0).UTC()
}

// answer is what every answer may have.
type answer struct {
	Errors *v0042.V0042OpenapiErrors `json:"errors"`
}

// read decodes an answer of any status and closes it.
func read(res *http.Response, err error, v any) (status int, _ error) {
	if err != nil {
		return 0, err
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return res.StatusCode, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return res.StatusCode, fmt.Errorf("%w: status %d: %s", ErrUnavailable, res.StatusCode, oneLine(raw))
	}
	return res.StatusCode, nil
}

type jobInfo struct {
	JobID        uint32   `json:"job_id"`
	Name         string   `json:"name"`
	Comment      string   `json:"comment"`
	UserName     string   `json:"user_name"`
	UserID       uint32   `json:"user_id"`
	JobState     []string `json:"job_state"`
	StateReason  string   `json:"state_reason"`
	Partition    string   `json:"partition"`
	Account      string   `json:"account"`
	QOS          string   `json:"qos"`
	Nodes        string   `json:"nodes"`
	BatchHost    string   `json:"batch_host"`
	NodeCount    *number  `json:"node_count"`
	CPUs         *number  `json:"cpus"`
	TRESAlloc    string   `json:"tres_alloc_str"`
	TRESReq      string   `json:"tres_req_str"`
	SubmitTime   *number  `json:"submit_time"`
	StartTime    *number  `json:"start_time"`
	EndTime      *number  `json:"end_time"`
	EligibleTime *number  `json:"eligible_time"`
	PreemptTime  *number  `json:"preempt_time"`
	TimeLimit    *number  `json:"time_limit"`
	WorkDir      string   `json:"current_working_directory"`
	Stdout       string   `json:"standard_output"`
	Stderr       string   `json:"standard_error"`
	Features     string   `json:"features"`
	ArrayJobID   *number  `json:"array_job_id"`
	ArrayTaskID  *number  `json:"array_task_id"`
	ExitCode     struct {
		ReturnCode *number `json:"return_code"`
		Signal     struct {
			ID *number `json:"id"`
		} `json:"signal"`
	} `json:"exit_code"`
}

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
		var got struct {
			answer

			Jobs []jobInfo `json:"jobs"`
		}
		res, err := c.api.SlurmV0042GetJob(ctx, strconv.FormatUint(uint64(id), 10), nil, as)
		status, err := read(res, err, &got)
		if err != nil {
			return err
		}
		for i := range got.Jobs {
			if got.Jobs[i].JobID == id || len(got.Jobs) == 1 {
				out = got.Jobs[i].job()
				return nil
			}
		}
		if !failure(got.Errors) && status == http.StatusOK {
			return ErrNotFound
		}
		return judge(status, got.Errors)
	})
	return out, err
}

func (in *jobInfo) job() Job {
	j := Job{
		ID: in.JobID, Name: in.Name, Comment: in.Comment, User: in.UserName, UID: in.UserID, Reason: in.StateReason, Partition: in.Partition,
		Account: in.Account, QOS: in.QOS, Nodes: in.Nodes, BatchHost: in.BatchHost, NodeCount: int(in.NodeCount.int()), CPUs: int(in.CPUs.int()),
		TRES: first(in.TRESAlloc, in.TRESReq), Submitted: in.SubmitTime.time(), Started: in.StartTime.time(), Ended: in.EndTime.time(),
		Eligible: in.EligibleTime.time(), Minutes: int(in.TimeLimit.int()), WorkDir: in.WorkDir, Stdout: in.Stdout, Stderr: in.Stderr,
		Features: in.Features, Preempted: !in.PreemptTime.time().IsZero(), ExitCode: int(in.ExitCode.ReturnCode.int()),
		Signal: int(in.ExitCode.Signal.ID.int()),
	}
	if in.ArrayTaskID != nil && in.ArrayTaskID.Set && in.ArrayJobID.int() > 0 {
		j.Array = fmt.Sprintf("%d_%d", in.ArrayJobID.int(), in.ArrayTaskID.int())
	}
	if len(in.JobState) > 0 {
		j.State, j.Flags = in.JobState[0], in.JobState[1:]
	}
	j.MemoryMB = Memory(j.TRES)
	return j
}

// Memory reads mem=16000M out of a TRES string, in MiB.
func Memory(tres string) int64 {
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
	MemoryMB       int64
	Gres, GresUsed string
	Features       []string
	Partitions     []string
	Reason         string
}

// Nodes asks for all nodes.
func (c *Client) Nodes(ctx context.Context, user string) ([]Node, error) {
	var out []Node
	err := c.call(ctx, user, func(ctx context.Context, as v0042.RequestEditorFn) error {
		var got struct {
			answer

			Nodes []struct {
				Name       string   `json:"name"`
				Address    string   `json:"address"`
				State      []string `json:"state"`
				CPUs       int      `json:"cpus"`
				AllocCPUs  int      `json:"alloc_cpus"`
				RealMemory int64    `json:"real_memory"`
				Gres       string   `json:"gres"`
				GresUsed   string   `json:"gres_used"`
				Features   []string `json:"active_features"`
				Partitions []string `json:"partitions"`
				Reason     string   `json:"reason"`
			} `json:"nodes"`
		}
		res, err := c.api.SlurmV0042GetNodes(ctx, nil, as)
		status, err := read(res, err, &got)
		if err != nil {
			return err
		}
		if status != http.StatusOK || failure(got.Errors) && len(got.Nodes) == 0 {
			return judge(status, got.Errors)
		}
		for _, n := range got.Nodes {
			out = append(out, Node{
				Name: n.Name, Address: n.Address, States: n.State, CPUs: n.CPUs, CPUsUsed: n.AllocCPUs, MemoryMB: n.RealMemory, Gres: n.Gres, GresUsed: n.GresUsed,
				Features: n.Features, Partitions: n.Partitions, Reason: n.Reason,
			})
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
		var got struct {
			answer

			Partitions []struct {
				Name  string `json:"name"`
				Nodes struct {
					Configured string `json:"configured"`
				} `json:"nodes"`
				Maximums struct {
					Time  *number `json:"time"`
					Nodes *number `json:"nodes"`
				} `json:"maximums"`
				Accounts struct {
					Allowed string `json:"allowed"`
				} `json:"accounts"`
				Groups struct {
					Allowed string `json:"allowed"`
				} `json:"groups"`
				Partition struct {
					State []string `json:"state"`
				} `json:"partition"`
			} `json:"partitions"`
		}
		// Those of other groups are hidden from who asks without this.
		every := v0042.SlurmV0042GetPartitionsParamsFlagsALL
		res, err := c.api.SlurmV0042GetPartitions(ctx, &v0042.SlurmV0042GetPartitionsParams{Flags: &every}, as)
		status, err := read(res, err, &got)
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return judge(status, got.Errors)
		}
		for _, p := range got.Partitions {
			out = append(out, Partition{
				Name: p.Name, Nodes: p.Nodes.Configured, MaxMinutes: int(p.Maximums.Time.int()), MaxNodes: int(p.Maximums.Nodes.int()),
				Accounts: p.Accounts.Allowed, Groups: p.Groups.Allowed, Up: slices.Contains(p.Partition.State, "UP"),
			})
		}
		return nil
	})
	return out, err
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
		var got struct {
			answer

			Jobs []struct {
				JobID   uint32 `json:"job_id"`
				Comment struct {
					Job string `json:"job"`
				} `json:"comment"`
				State struct {
					Current []string `json:"current"`
				} `json:"state"`
			} `json:"jobs"`
		}
		from, skip := strconv.FormatInt(since.Unix(), 10), "true"
		res, err := c.api.SlurmdbV0042GetJobs(ctx, &v0042.SlurmdbV0042GetJobsParams{Users: &user, StartTime: &from, SkipSteps: &skip}, as)
		status, err := read(res, err, &got)
		if err != nil {
			return err
		}
		if status != http.StatusOK {
			return judge(status, got.Errors)
		}
		for _, j := range got.Jobs {
			out = append(out, Past{ID: j.JobID, Comment: j.Comment.Job, State: first(append(j.State.Current, "")...)})
		}
		return nil
	})
	return out, err
}
