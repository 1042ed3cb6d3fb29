package slurm

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// SetFeature gives a node a feature or takes it away, and leaves its other
// features alone. It reports whether that changed anything. Root and SlurmUser
// may do it (scontrol(1), "update NodeName"); slurmctld forgets it when it reads
// slurm.conf again.
func SetFeature(ctx context.Context, run Runner, node, feature string, on bool) (changed bool, err error) {
	out, err := run(ctx, "scontrol", "show", "node", node, "--oneliner")
	if err != nil {
		return false, err
	}
	now, ok := nodeField(string(out), "ActiveFeatures")
	if !ok {
		return false, fmt.Errorf("scontrol show node %s: no ActiveFeatures in its answer", node)
	}
	want := slices.DeleteFunc(strings.Split(now, ","), func(f string) bool {
		return f == "" || f == "(null)" || f == feature
	})
	had := slices.Contains(strings.Split(now, ","), feature)
	if had == on {
		return false, nil
	}
	if on {
		want = append(want, feature)
	}
	list := strings.Join(want, ",")
	// Without a node_features plugin the two lists must be the same.
	_, err = run(ctx, "scontrol", "update", "NodeName="+node, "AvailableFeatures="+list, "ActiveFeatures="+list)
	return err == nil, err
}

// nodeField finds NAME=value in a line of scontrol's.
func nodeField(line, name string) (string, bool) {
	for word := range strings.FieldsSeq(line) {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			return value, true
		}
	}
	return "", false
}
