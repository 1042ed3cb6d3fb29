package policy

import (
	"strconv"

	"github.com/carme-hpc/carme/internal/wire/api"
)

// Limit is what a role may have; 0 is no limit.
type Limit struct {
	// Nodes and GPUs are of one job, Minutes its longest walltime, Running how
	// many jobs of a user may wait or run at once.
	Nodes   int `yaml:"nodes"`
	GPUs    int `yaml:"gpus"`
	Running int `yaml:"running"`
	Minutes int `yaml:"minutes"`
	// Images are the names that may be used, beside what the catalogue's own
	// groups say; all if empty.
	Images []string `yaml:"images"`
}

// Limits are those of each role. The one of "user" is everybody's.
type Limits map[string]Limit

// Check calls fail for what is wrong.
func (l Limits) Check(fail func(text string, at ...any)) {
	for role, limit := range l {
		if role != api.RoleUser && role != api.RoleAdmin {
			fail("is no role; there are user and admin", role)
		}
		for key, n := range map[string]int{"nodes": limit.Nodes, "gpus": limit.GPUs, "running": limit.Running, "minutes": limit.Minutes} {
			if n < 0 {
				fail("must not be negative; 0 is no limit", role, key)
			}
		}
	}
}

// For returns the widest limits that any of the roles gives.
func (l Limits) For(roles []string) Limit {
	var out Limit
	first := true
	for _, role := range roles {
		limit, ok := l[role]
		switch {
		case !ok:
		case first:
			out, first = limit, false
		default:
			out = wider(out, limit)
		}
	}
	if first {
		return l[api.RoleUser] // nobody is without limits for want of a role
	}
	return out
}

func wider(a, b Limit) Limit {
	most := func(x, y int) int {
		if x == 0 || y == 0 {
			return 0
		}
		return max(x, y)
	}
	out := Limit{Nodes: most(a.Nodes, b.Nodes), GPUs: most(a.GPUs, b.GPUs), Running: most(a.Running, b.Running), Minutes: most(a.Minutes, b.Minutes)}
	if len(a.Images) > 0 && len(b.Images) > 0 {
		out.Images = append(append(out.Images, a.Images...), b.Images...)
	}
	return out
}

// Excess says why something is more than allowed: in English with %s for each
// argument, and by a code for clients that speak other languages.
type Excess struct {
	Code, Text string
	Args       []string
}

// Check says by field what of a job exceeds the limits.
func (l Limit) Check(nodes, gpus, minutes, running int) map[string]Excess {
	wrong := map[string]Excess{}
	over := func(field string, have, most int, text string) {
		if most > 0 && have > most {
			wrong[field] = Excess{"limit." + field, text, []string{strconv.Itoa(most)}}
		}
	}
	over("nodes", nodes, l.Nodes, "You may ask for %s at most.")
	over("gpus", gpus, l.GPUs, "You may ask for %s at most, all nodes together.")
	over("minutes", minutes, l.Minutes, "You may ask for %s minutes at most.")
	if l.Running > 0 && running >= l.Running {
		wrong["running"] = Excess{"limit.running", "You have reached your limit of jobs (%s of %s). Stop one first.", []string{strconv.Itoa(running), strconv.Itoa(l.Running)}}
	}
	return wrong
}
