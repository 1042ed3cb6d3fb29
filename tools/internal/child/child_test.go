package child

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestIndenterKeepsLinesWhole(t *testing.T) {
	var out strings.Builder
	i := &Indenter{W: &out, Prefix: "> "}
	for _, part := range []string{"on", "e\ntw", "o\n\nthree"} {
		fmt.Fprint(i, part)
	}
	i.Flush()
	i.Flush()
	if got, want := out.String(), "> one\n> two\n> \n> three\n"; got != want {
		t.Errorf("wrote %q, want %q", got, want)
	}
}

func TestCancelEndsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	// The grandchild holds the output open; only its end lets Output return.
	_, err := Command(ctx, "sh", "-c", "sleep 60 & wait").Output()
	if took := time.Since(start); err == nil || took > patience/2 {
		t.Errorf("ended after %s with %v", took, err)
	}
}
