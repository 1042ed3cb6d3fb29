package rest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	v0042 "github.com/SlinkyProject/slurm-client/api/v0042"
)

// Submission is a job to be submitted.
type Submission struct {
	Name, Comment, Script, WorkDir, Output, Constraint string
	Partition, Account, QOS                            string
	Environment, SpankEnvironment                      []string
	Nodes, Minutes, CPUs                               int
	// MemoryMB per node; 0: Slurm's default.
	MemoryMB int64
	// TRESPerNode such as gres/gpu:a100:2.
	TRESPerNode string
}

func set32(n int) *v0042.V0042Uint32NoValStruct {
	v, yes := int32(n), true //nolint:gosec // limits are checked before
	return &v0042.V0042Uint32NoValStruct{Number: &v, Set: &yes}
}

func filled(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (s *Submission) body() v0042.V0042JobSubmitReq {
	nodes := strconv.Itoa(s.Nodes)
	one, tasks := int32(1), int32(s.Nodes) //nolint:gosec // limits are checked before
	job := v0042.V0042JobDescMsg{
		Name: &s.Name, Comment: &s.Comment, Script: &s.Script, CurrentWorkingDirectory: &s.WorkDir, StandardOutput: filled(s.Output),
		Constraints: filled(s.Constraint), Partition: filled(s.Partition), Account: filled(s.Account), Qos: filled(s.QOS),
		Environment: &s.Environment, Nodes: &nodes, Tasks: &tasks, TasksPerNode: &one, TresPerNode: filled(s.TRESPerNode),
	}
	if len(s.SpankEnvironment) > 0 {
		job.SpankEnvironment = &s.SpankEnvironment
	}
	if s.Minutes > 0 {
		job.TimeLimit = set32(s.Minutes)
	}
	if s.CPUs > 0 {
		cpus := int32(s.CPUs) //nolint:gosec // limits are checked before
		job.CpusPerTask = &cpus
	}
	if s.MemoryMB > 0 {
		yes := true
		job.MemoryPerNode = &v0042.V0042Uint64NoValStruct{Number: &s.MemoryMB, Set: &yes}
	}
	return v0042.V0042JobSubmitReq{Job: &job, Script: &s.Script}
}

// Submit submits as the user. It never sends twice. A RefusedError is Slurm's
// no; ErrUnavailable means that nothing was sent; with ErrUnknown the job may
// exist, and is to be looked for by its comment.
func (c *Client) Submit(ctx context.Context, user string, s Submission) (uint32, error) {
	var id uint32
	sent := false
	err := c.call(ctx, user, func(ctx context.Context, as v0042.RequestEditorFn) error {
		probe, err := http.NewRequestWithContext(ctx, http.MethodGet, c.server, nil)
		if err != nil {
			return err
		}
		if err := as(ctx, probe); err != nil {
			return err
		}
		if _, err := c.speak(ctx, probe.Header); err != nil {
			return err
		}
		sent = true
		var got struct {
			answer

			JobID uint32 `json:"job_id"`
			User  string `json:"job_submit_user_msg"`
		}
		res, err := c.api.SlurmV0042PostJobSubmit(ctx, s.body(), as)
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			sent = false
			return err
		}
		status, err := read(res, err, &got)
		if err != nil {
			sent = status == 0 || status < http.StatusBadRequest || status >= http.StatusInternalServerError
			return err
		}
		// A job that is held or over a limit comes with an error and an id.
		if id = got.JobID; id > 0 {
			return nil
		}
		sent = status < http.StatusBadRequest || status >= http.StatusInternalServerError
		err = judge(status, got.Errors)
		if _, refused := errors.AsType[RefusedError](err); refused && got.User != "" {
			err = RefusedError{oneLine([]byte(got.User))}
		}
		return err
	})
	switch {
	case err == nil && id != 0:
		return id, nil
	case err == nil:
		return 0, ErrUnknown
	case errors.As(err, new(RefusedError)):
		return 0, err
	case sent:
		return 0, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return 0, err
}

func oneLine(b []byte) string {
	const most = 200
	if len(b) > most {
		b = b[:most]
	}
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(b), "")), " ")
}

// Cancel cancels a job as the user. The id is as squeue prints it: by the number
// alone an array ends with all its tasks, by a list in brackets those of them that still
// wait. A job that has ended is no error.
func (c *Client) Cancel(ctx context.Context, user, id string) error {
	return c.call(ctx, user, func(ctx context.Context, as v0042.RequestEditorFn) error {
		var got answer
		var res *http.Response
		var err error
		if strings.Contains(id, "[") { // the path takes single jobs only
			// Some of them may have begun since squeue said so.
			waiting := []v0042.V0042KillJobsMsgJobState{v0042.V0042KillJobsMsgJobStatePENDING}
			res, err = c.api.SlurmV0042DeleteJobs(ctx, v0042.SlurmV0042DeleteJobsJSONRequestBody{Jobs: &v0042.V0042KillJobsMsgJobsArray{id}, JobState: &waiting}, as) //nolint:bodyclose // read does
		} else {
			res, err = c.api.SlurmV0042DeleteJob(ctx, id, nil, as) //nolint:bodyclose // read does
		}
		status, err := read(res, err, &got)
		switch {
		case err != nil:
			return err
		case !failure(got.Errors) && status < http.StatusBadRequest:
			return nil
		}
		for _, e := range val(got.Errors) {
			if val(e.ErrorNumber) == errAlreadyDone {
				return nil
			}
		}
		return judge(status, got.Errors)
	})
}
