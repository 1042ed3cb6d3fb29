package logx

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
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

func TestSeldom_lets_one_line_a_second_through_and_counts_the_rest(t *testing.T) {
	var s Seldom
	now := time.Now()
	for i, want := range []struct {
		after time.Duration
		left  int
		ok    bool
	}{{0, 0, true}, {0, 0, false}, {time.Second / 2, 0, false}, {time.Second, 2, true}, {0, 0, false}, {-time.Hour, 1, true}} {
		now = now.Add(want.after)
		if left, ok := s.Turn(now); left != want.left || ok != want.ok {
			t.Errorf("line %d: %d left out, %v", i, left, ok)
		}
	}
}

func TestConnections_are_told_in_one_line_each_and_not_all(t *testing.T) {
	var out bytes.Buffer
	log := Connections(New(&out, slog.LevelInfo))
	log.Print("http: TLS handshake error from 192.0.2.1:5: bad\ncertificate")
	log.Print("another at once")
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `192.0.2.1:5: bad\ncertificate`) {
		t.Errorf("wrote %q", text)
	}
}
