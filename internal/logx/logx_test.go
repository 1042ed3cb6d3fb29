package logx

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestNew_writes_one_object_per_line(t *testing.T) {
	var out bytes.Buffer
	log := New(&out, slog.LevelInfo)
	log.Debug("not shown")
	log.Info("two\nlines", "user", "a\nb")
	var record map[string]any
	if err := json.Unmarshal(out.Bytes(), &record); err != nil || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("wrote %q (%v)", out.String(), err)
	}
}

func TestSecret_is_never_written(t *testing.T) {
	var out bytes.Buffer
	s := Secret("hunter2")
	all := struct{ Password Secret }{s}
	log := New(&out, slog.LevelInfo)
	log.Info("x", "s", s, "all", all, "pointer", &all)
	fmt.Fprintf(&out, "%s %v %+v %#v %q", s, s, all, all, s)
	if strings.Contains(out.String(), "hunter2") {
		t.Errorf("wrote %s", out.String())
	}
}
