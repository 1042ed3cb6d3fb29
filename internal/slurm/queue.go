package slurm

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// QueueRow is one job of squeue's list: nothing in it is a text of the user.
type QueueRow struct {
	ID        uint32
	Shown     string // 123, 123_4 or 123_[5-9]: tasks that wait are one job to Slurm
	State     string
	UID       uint32
	Partition string
	Nodes     int
	// Gres is what each node is asked for, as Slurm checked it.
	Gres string
}

// Queue lists every job that slurmctld knows, those that ended a moment ago
// included, in one request. The fields are those that no user can write into:
// a job's name may hold a line that looks like another job. The waiting tasks of
// an array are one row, as they are one job with one id to Slurm.
func Queue(ctx context.Context, run Runner) ([]QueueRow, error) {
	out, err := run(ctx, "squeue", "--noheader", "--all", "--states=all", "--format=%A|%i|%T|%U|%P|%D|%b")
	if err != nil {
		return nil, err
	}
	var rows []QueueRow
	for line := range strings.Lines(string(out)) {
		const fields = 7
		f := strings.SplitN(strings.TrimRight(line, "\n"), "|", fields)
		if len(f) != fields {
			return nil, fmt.Errorf("squeue: a line has %d fields, not %d", len(f), fields)
		}
		id, errID := strconv.ParseUint(f[0], 10, 32)
		uid, errUID := strconv.ParseUint(f[3], 10, 32)
		if errID != nil || errUID != nil {
			return nil, fmt.Errorf("squeue: job %q of uid %q are no numbers", f[0], f[3])
		}
		nodes, _ := strconv.Atoi(strings.SplitN(f[5], "-", 2)[0]) // a range while it waits
		gres := f[6]
		if gres == "N/A" {
			gres = ""
		}
		rows = append(rows, QueueRow{
			ID: uint32(id), Shown: f[1], State: f[2], UID: uint32(uid), Partition: f[4], Nodes: nodes, Gres: gres,
		})
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
