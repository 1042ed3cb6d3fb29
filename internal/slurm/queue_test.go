package slurm

import (
	"context"
	"reflect"
	"testing"
)

func TestQueue_reads_what_no_user_can_write_into(t *testing.T) {
	out := "12|12|RUNNING|10001|debug|1|gres/gpu:a100:1\n14|13_2|PENDING|10002|debug|2-4|N/A\n"
	rows, err := Queue(t.Context(), func(context.Context, string, ...string) ([]byte, error) { return []byte(out), nil })
	want := []QueueRow{
		{ID: 12, Shown: "12", State: "RUNNING", UID: 10001, Partition: "debug", Nodes: 1, Gres: "gres/gpu:a100:1"},
		{ID: 14, Shown: "13_2", State: "PENDING", UID: 10002, Partition: "debug", Nodes: 2},
	}
	if err != nil || !reflect.DeepEqual(rows, want) {
		t.Errorf("got %+v, %v", rows, err)
	}
	for _, bad := range []string{"12|RUNNING\n", "x|12|RUNNING|1|p|1|N/A\n", "\n"} {
		if rows, err := Queue(t.Context(), func(context.Context, string, ...string) ([]byte, error) { return []byte(bad), nil }); err == nil {
			t.Errorf("%q gives %+v", bad, rows)
		}
	}
}
