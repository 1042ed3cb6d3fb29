package slurm

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestFeatureIsSetAndOthersAreLeftAlone(t *testing.T) {
	cases := map[string]struct {
		now  string
		on   bool
		want string // the list that is written, "-" for none
	}{
		"given":           {"ib,gpu", true, "ib,gpu,carme"},
		"given to none":   {"(null)", true, "carme"},
		"there already":   {"ib,carme", true, "-"},
		"taken":           {"ib,carme,gpu", false, "ib,gpu"},
		"the last":        {"carme", false, ""},
		"not there":       {"ib", false, "-"},
		"of similar name": {"carme2", true, "carme2,carme"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			wrote := "-"
			run := func(_ context.Context, _ string, args ...string) ([]byte, error) {
				if args[0] == "show" {
					return []byte("NodeName=n1 AvailableFeatures=x ActiveFeatures=" + c.now + " Gres=gpu:4\n"), nil
				}
				i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "ActiveFeatures=") })
				wrote = strings.TrimPrefix(args[i], "ActiveFeatures=")
				return nil, nil
			}
			changed, err := SetFeature(t.Context(), run, "n1", "carme", c.on)
			if err != nil || wrote != c.want || changed != (c.want != "-") {
				t.Errorf("changed %v, wrote %q, error %v; wanted %q", changed, wrote, err, c.want)
			}
		})
	}
}

func TestFeatureOfANodeThatCannotBeReadIsAnError(t *testing.T) {
	for name, run := range map[string]Runner{
		"no slurmctld": func(context.Context, string, ...string) ([]byte, error) { return nil, errors.New("down") },
		"odd answer":   func(context.Context, string, ...string) ([]byte, error) { return []byte("NodeName=n1\n"), nil },
	} {
		t.Run(name, func(t *testing.T) {
			if changed, err := SetFeature(t.Context(), run, "n1", "carme", false); err == nil || changed {
				t.Errorf("changed %v, error %v", changed, err)
			}
		})
	}
}
