package proxy

import (
	"io"
	"net/http"
	"runtime"
	"testing"
)

// The prototype's figure is 29 KB per idle websocket in the portal. This
// process holds both ends of it, the agent and the app as well, so that the
// bound is only against holding buffers again.
func TestWebsocket_idle_ones_hold_no_buffers(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(mirror))
	host, cookie := w.session("alice", "a")
	w.socket(host, cookie, "Origin: https://"+host)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const many = 200
	for range many {
		conn, r, answer := w.socket(host, cookie, "Origin: https://"+host)
		if answer.StatusCode != http.StatusSwitchingProtocols {
			t.Fatal(answer.StatusCode)
		}
		_, _ = io.WriteString(conn, "x")
		_, _ = r.ReadByte()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (after.HeapInuse + after.StackInuse - before.HeapInuse - before.StackInuse) / many >> 10
	t.Logf("%d KB for each websocket, client, agent and app included", each)
	if each > 250 {
		t.Errorf("%d KB for each websocket", each)
	}
}
