package policy

import (
	"reflect"
	"testing"
)

func TestFor_gives_the_widest_of_the_roles(t *testing.T) {
	l := Limits{"user": {Nodes: 2, GPUs: 4, Minutes: 60, Images: []string{"a"}}, "admin": {Nodes: 8, GPUs: 2, Minutes: 0, Images: []string{"b"}}}
	for name, c := range map[string]struct {
		roles []string
		want  Limit
	}{
		"a user":         {[]string{"user"}, l["user"]},
		"both":           {[]string{"user", "admin"}, Limit{Nodes: 8, GPUs: 4, Images: []string{"a", "b"}}},
		"without a role": {nil, l["user"]},
	} {
		if got := l.For(c.roles); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestCheck_names_the_fields(t *testing.T) {
	l := Limit{Nodes: 1, GPUs: 2, Minutes: 60, Running: 1}
	if got := l.Check(1, 2, 60, 0); len(got) != 0 {
		t.Errorf("at the limit: %v", got)
	}
	if got := l.Check(2, 3, 61, 1); len(got) != 4 {
		t.Errorf("above: %v", got)
	}
	if got := (Limit{}).Check(99, 99, 99, 99); len(got) != 0 {
		t.Errorf("without limits: %v", got)
	}
}
