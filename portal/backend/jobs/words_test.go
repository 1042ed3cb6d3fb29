package jobs

import (
	"strings"
	"testing"

	"github.com/carme-hpc/carme/internal/slurm"
)

func TestEnd_is_said_in_words(t *testing.T) {
	s := &Service{}
	for name, c := range map[string]struct {
		row  slurm.QueueRow
		code string
		part string
	}{
		"no output file":  {slurm.QueueRow{State: "FAILED", Signal: 53}, "end.files", "output"},
		"a signal":        {slurm.QueueRow{State: "FAILED", Signal: 11}, "end.signal", "signal 11"},
		"no such command": {slurm.QueueRow{State: "FAILED", ExitCode: 127}, "end.exit.127", "not found"},
		"no program":      {slurm.QueueRow{State: "FAILED", ExitCode: 126}, "end.exit.126", "no program"},
		"killed":          {slurm.QueueRow{State: "FAILED", ExitCode: 137}, "end.exit.137", "memory"},
		"a shell's":       {slurm.QueueRow{State: "FAILED", ExitCode: 139}, "end.exit.signal", "signal 11 (exit code 139)"},
		"its own":         {slurm.QueueRow{State: "FAILED", ExitCode: 255}, "end.exit", "exit code 255"},
	} {
		if got := s.reason(&c.row); got.code != c.code || !strings.Contains(got.text, c.part) || strings.Contains(got.text, "%s") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
