package slurm

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// QueueRow is one job of squeue's list. Name, comment, account, QOS and reason may
// hold any text of its user's.
type QueueRow struct {
	ID        uint32
	Shown     string // 123, 123_4 or 123_[5-9]: tasks that wait are one job to Slurm
	State     string
	UID       uint32
	Partition string
	Nodes     int
	// Gres is what each node is asked for, as Slurm checked it.
	Gres string
	// TRES is what the job has, or asks for as long as it waits.
	TRES                        string
	CPUs                        int
	Minutes                     int // 0: no limit
	Submitted, Started, Ended   time.Time
	NodeList, BatchHost, Reason string
	Account, QOS, Comment, Name string
	ExitCode, Signal            int
}

// EnvRunner is a Runner that adds to the program's environment.
type EnvRunner func(ctx context.Context, env []string, name string, args ...string) ([]byte, error)

// queueFields are squeue's names of what a row is read from (squeue(1), --Format).
var queueFields = []string{
	"JobID", "JobArrayID", "State", "UserID", "Partition", "NumNodes", "tres-per-node", "tres-alloc", "NumCPUs", "TimeLimit",
	"SubmitTime", "StartTime", "EndTime", "NodeList", "BatchHost", "Reason", "Account", "QOS", "exit_code", "Comment", "Name",
}

// Queue lists every job that slurmctld knows, those that ended a moment ago
// included, in one request. The waiting tasks of an array are one row, as they are
// one job with one id to Slurm.
//
// A job's name may hold a line that looks like another job, so each field ends with
// the mark: letters and digits that nobody can guess, another one for each call. It
// travels in the environment, which other users cannot read, unlike arguments.
func Queue(ctx context.Context, run EnvRunner, mark string) ([]QueueRow, error) {
	mark = "Q" + mark // a digit would belong to the width before it
	env := []string{"SQUEUE_FORMAT2=" + strings.Join(queueFields, ":0"+mark+",") + ":0" + mark, "SLURM_TIME_FORMAT=%s"}
	out, err := run(ctx, env, "squeue", "--noheader", "--all", "--states=all")
	if err != nil {
		return nil, err
	}
	parts := strings.Split(string(out), mark)
	if len(parts)%len(queueFields) != 1 || strings.TrimSpace(parts[len(parts)-1]) != "" {
		return nil, fmt.Errorf("squeue: %d fields are no rows of %d", len(parts)-1, len(queueFields))
	}
	rows := make([]QueueRow, 0, len(parts)/len(queueFields))
	for len(parts) > 1 {
		row, err := queueRow(parts[:len(queueFields)])
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
		parts = parts[len(queueFields):]
	}
	return rows, nil
}

// Over says whether a state is a last one (squeue(1), JOB STATE CODES).
func Over(state string) bool {
	switch state {
	case "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT", "LAUNCH_FAILED":
		return true
	}
	return false
}

// Ended tells which of some jobs slurmctld knows to be over, or does not know.
// One that it cleans up after is not over yet.
func Ended(ctx context.Context, run Runner, ids ...string) ([]string, error) {
	out, err := run(ctx, "squeue", "--noheader", "--all", "--states=all", "--format=%A|%T", "--jobs="+strings.Join(ids, ","))
	// Of several it leaves out those that it does not know.
	if err != nil && (len(ids) != 1 || !strings.Contains(err.Error(), "Invalid job id")) {
		return nil, err
	}
	live := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		id, state, found := strings.Cut(strings.TrimSpace(line), "|")
		if !found {
			return nil, fmt.Errorf("squeue: %q is no job and its state", line)
		}
		live[id] = live[id] || !Over(state)
	}
	var ended []string
	for _, id := range ids {
		if !live[id] {
			ended = append(ended, id)
		}
	}
	return ended, nil
}

func queueRow(f []string) (QueueRow, error) {
	id, errID := strconv.ParseUint(strings.TrimPrefix(f[0], "\n"), 10, 32)
	uid, errUID := strconv.ParseUint(f[3], 10, 32)
	if errID != nil || errUID != nil {
		return QueueRow{}, fmt.Errorf("squeue: job %q of uid %q are no numbers", f[0], f[3])
	}
	count := func(text string) int {
		n, _ := strconv.Atoi(strings.SplitN(text, "-", 2)[0]) // a range while it waits
		return n
	}
	code, signal, _ := strings.Cut(f[18], ":")
	return QueueRow{
		ID: uint32(id), Shown: f[1], State: f[2], UID: uint32(uid), Partition: f[4], Nodes: count(f[5]), Gres: known(f[6]), TRES: known(f[7]), CPUs: count(f[8]),
		Minutes: minutes(f[9]), Submitted: moment(f[10]), Started: moment(f[11]), Ended: moment(f[12]), NodeList: known(f[13]), BatchHost: known(f[14]),
		Reason: f[15], Account: known(f[16]), QOS: known(f[17]), ExitCode: count(code), Signal: count(signal), Comment: known(f[19]), Name: f[20],
	}, nil
}

// known is empty for squeue's words for nothing.
func known(text string) string {
	switch text {
	case "N/A", "n/a", "(null)":
		return ""
	}
	return text
}

// moment reads seconds since 1970 (SLURM_TIME_FORMAT, squeue(1)).
func moment(text string) time.Time {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return time.Time{}
	}
	return time.Unix(n, 0).UTC()
}

// minutes reads [[D-]H:]M:S, 0 for a word.
func minutes(text string) int {
	days, clock, ok := strings.Cut(text, "-")
	if !ok {
		days, clock = "0", text
	}
	total, err := strconv.Atoi(days)
	if err != nil {
		return 0
	}
	parts := strings.Split(clock, ":")
	for _, factor := range []int{24, 60} {
		n := 0
		if len(parts) == 3 || factor == 60 && len(parts) == 2 {
			if n, err = strconv.Atoi(parts[0]); err != nil {
				return 0
			}
			parts = parts[1:]
		}
		total = total*factor + n
	}
	return total
}
