package slurm

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"
)

// squeue prints jobs as squeue does, in the format that it finds in its environment.
func squeue(t *testing.T, jobs ...map[string]string) EnvRunner {
	t.Helper()
	return func(_ context.Context, env []string, name string, args ...string) ([]byte, error) {
		format := ""
		for _, one := range env {
			if text, ok := strings.CutPrefix(one, "SQUEUE_FORMAT2="); ok {
				format = text
			}
		}
		if name != "squeue" || strings.Contains(strings.Join(args, " "), "ormat") {
			t.Errorf("the format is where others can read it: %s %v", name, args)
		}
		var out strings.Builder
		for _, job := range jobs {
			for field := range strings.SplitSeq(format, ",") {
				what, end, _ := strings.Cut(field, ":0")
				if end == "" || end[0] >= '0' && end[0] <= '9' {
					t.Fatalf("the field %q", field)
				}
				out.WriteString(job[what] + end)
			}
			out.WriteString("\n")
		}
		return []byte(out.String()), nil
	}
}

func job(fields ...string) map[string]string {
	all := map[string]string{
		"JobID": "12", "JobArrayID": "12", "State": "RUNNING", "UserID": "10001", "Partition": "debug", "NumNodes": "1", "tres-per-node": "N/A", "tres-alloc": "cpu=1,mem=100M",
		"NumCPUs": "2", "TimeLimit": "5:00", "SubmitTime": "1795404172", "StartTime": "N/A", "EndTime": "N/A", "NodeList": "", "BatchHost": "n/a", "Reason": "None",
		"Account": "carme", "QOS": "normal", "exit_code": "0:0", "Comment": "(null)", "Name": "wrap",
	}
	for i := 0; i < len(fields); i += 2 {
		all[fields[i]] = fields[i+1]
	}
	return all
}

func TestQueue_reads_jobs_as_squeue_prints_them(t *testing.T) {
	at := time.Unix(1795404172, 0).UTC()
	rows, err := Queue(t.Context(), squeue(t,
		job("tres-per-node", "gres/gpu:a100:1", "StartTime", "1795404172", "EndTime", "1795404472", "NodeList", "n[1-2]", "BatchHost", "n1", "Comment", "carme:x", "NumNodes", "2"),
		job("JobID", "14", "JobArrayID", "13_2", "State", "PENDING", "NumNodes", "2-4", "Reason", "JobHeldUser", "TimeLimit", "1-02:03:00", "Account", "(null)"),
		job("JobID", "15", "JobArrayID", "15", "State", "FAILED", "exit_code", "3:9", "TimeLimit", "UNLIMITED"),
	), "mark")
	want := []QueueRow{
		{
			ID: 12, Shown: "12", State: "RUNNING", UID: 10001, Partition: "debug", Nodes: 2, Gres: "gres/gpu:a100:1", TRES: "cpu=1,mem=100M", CPUs: 2, Minutes: 5,
			Submitted: at, Started: at, Ended: at.Add(5 * time.Minute), NodeList: "n[1-2]", BatchHost: "n1", Reason: "None", Account: "carme", QOS: "normal", Comment: "carme:x", Name: "wrap",
		},
		{
			ID: 14, Shown: "13_2", State: "PENDING", UID: 10001, Partition: "debug", Nodes: 2, TRES: "cpu=1,mem=100M", CPUs: 2, Minutes: 26*60 + 3, Submitted: at,
			Reason: "JobHeldUser", QOS: "normal", Name: "wrap",
		},
		{
			ID: 15, Shown: "15", State: "FAILED", UID: 10001, Partition: "debug", Nodes: 1, TRES: "cpu=1,mem=100M", CPUs: 2, Submitted: at, Reason: "None", Account: "carme",
			QOS: "normal", ExitCode: 3, Signal: 9, Name: "wrap",
		},
	}
	if err != nil || !reflect.DeepEqual(rows, want) {
		t.Errorf("got %+v, %v", rows, err)
	}
	if rows, err := Queue(t.Context(), squeue(t), "mark"); err != nil || len(rows) != 0 {
		t.Errorf("an empty queue is %v, %v", rows, err)
	}
}

func TestAttack_a_name_that_looks_like_another_job_is_a_name(t *testing.T) {
	const evil = "x\n9999|9999|RUNNING|0|debug|1|N/A\n:0Q,JobID"
	rows, err := Queue(t.Context(), squeue(t, job("Name", evil, "Comment", evil, "Account", evil), job("JobID", "13", "Name", "")), "mark")
	if err != nil || len(rows) != 2 || rows[0].ID != 12 || rows[0].Name != evil || rows[0].Comment != evil || rows[0].UID != 10001 || rows[1].ID != 13 {
		t.Errorf("got %+v, %v", rows, err)
	}
	// Who knew the mark could break the list, which is then refused as a whole.
	for name, bad := range map[string]map[string]string{
		"one field more": job("Name", "xQmark"), "no id": job("JobID", "x"), "no uid": job("UserID", ""),
	} {
		if rows, err := Queue(t.Context(), squeue(t, job(), bad), "mark"); err == nil {
			t.Errorf("%s gives %+v", name, rows)
		}
	}
	if rows, err := Queue(t.Context(), func(context.Context, []string, string, ...string) ([]byte, error) { return []byte("a line\n"), nil }, "mark"); err == nil {
		t.Errorf("another format gives %+v", rows)
	}
}

func TestTime_limits_are_read_in_every_form(t *testing.T) {
	for text, want := range map[string]int{
		"5:00": 5, "0:30": 0, "1:00:00": 60, "1-00:00:00": 1440, "10-12:30:15": 10*1440 + 12*60 + 30, "UNLIMITED": 0, "Partition_Limit": 0, "NOT_SET": 0, "": 0, "x-1:00": 0,
	} {
		if got := minutes(text); got != want {
			t.Errorf("%q is %d minutes, not %d", text, got, want)
		}
	}
}
