package upstream

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/carme-hpc/carme/internal/mtls"
	"github.com/carme-hpc/carme/internal/mtls/mtlstest"
)

func TestPost_understands_every_answer(t *testing.T) {
	ca := mtlstest.New(t)
	var code int
	var body string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "https://elsewhere/")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(body))
	}))
	server.TLS = ca.Open(t, mtls.RoleBackend, "b").OptionalServer([]string{"http/1.1"})
	server.StartTLS()
	defer server.Close()
	expect := mtls.Identity{Role: mtls.RoleBackend, Name: "b"}
	c := New(server.Listener.Addr().String(), ca.Open(t, mtls.RoleNode, "n"), expect)
	defer c.Close()
	for name, x := range map[string]struct {
		code int
		body string
		want string
	}{
		"good":     {200, `{"a":"b"}`, ""},
		"refused":  {403, `{"error":{"code":"forbidden","message":"not you"}}`, "403: not you"},
		"redirect": {307, "go away", "307: go away"},
		"page":     {502, "<html>\n<b>bad</b>\n" + strings.Repeat("x", 5000), "502: <html> <b>bad</b>"},
		"no JSON":  {200, "hello", "read backend's answer"},
	} {
		t.Run(name, func(t *testing.T) {
			code, body = x.code, x.body
			var out map[string]string
			err := c.Post(t.Context(), 5*time.Second, "/v1/x", map[string]int{}, &out)
			if x.want == "" && (err != nil || out["a"] != "b") || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want) || len(err.Error()) > 400) {
				t.Errorf("error is %v, answer %v", err, out)
			}
			if status := (*StatusError)(nil); errors.As(err, &status) != (x.code != 200) {
				t.Errorf("error is %T", err)
			}
		})
	}
	other := New(server.Listener.Addr().String(), mtlstest.New(t).Open(t, mtls.RoleNode, "n"), expect)
	if err := other.Post(t.Context(), 5*time.Second, "/v1/x", 1, &body); err == nil {
		t.Error("a backend of another CA was believed")
	}
}
