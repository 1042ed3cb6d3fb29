package jobs

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/slurm/rest"
	"github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/auth"
	"github.com/carme-hpc/carme/portal/backend/problem"
	carme "github.com/carme-hpc/carme/spank/policy"
)

const (
	defaultMinutes = 240
	featureCarme   = "carme"
	// favourite is the app to begin with.
	favourite = "jupyterlab"
	// Without a GPU a session gets this much unless it asks for other.
	plainCPUs     = 2
	plainMemoryMB = 4096
)

// images are those of the catalogue that the session's user may use.
func (s *Service) images(c *config.Config, sess *auth.Session) []string {
	names := carme.New(c).ImageNames(sess.Groups())
	if only := s.Limits.For(sess.User().Roles).Images; len(only) > 0 {
		names = slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(only, n) })
	}
	slices.Sort(names)
	return names
}

// Offer is what the user may start now.
func (s *Service) Offer(ctx context.Context, sess *auth.Session) (api.Offer, error) {
	c, err := s.Catalogue()
	if err != nil {
		return api.Offer{}, err
	}
	s.Look(ctx, sess.User().UID)
	limit := s.Limits.For(sess.User().Roles)
	out := api.Offer{
		Images: []api.OfferImage{}, Apps: []api.OfferApp{}, GPUs: s.gpus(true), Partitions: s.partitions(sess.Groups()), Nodes: s.sealing(),
		Limits: api.Limits{Nodes: limit.Nodes, GPUs: limit.GPUs, Running: limit.Running, Minutes: limit.Minutes},
	}
	if longest := s.longest(""); longest > 0 && (limit.Minutes == 0 || longest < limit.Minutes) {
		out.Limits.Minutes = longest
	}
	for _, a := range c.Apps {
		out.Apps = append(out.Apps, api.OfferApp{
			Name: a.Name, Title: a.Title, Description: a.Description.String(), Descriptions: a.Description.Languages(), Icon: a.Icon, Sharing: a.Sharing,
		})
	}
	for _, name := range s.images(c, sess) {
		text := c.Image(name).Description
		img := api.OfferImage{Name: name, Description: text.String(), Descriptions: text.Languages(), Apps: []string{}}
		for i := range c.Apps {
			if c.Apps[i].RunsIn(name) {
				img.Apps = append(img.Apps, c.Apps[i].Name)
			}
		}
		out.Images = append(out.Images, img)
	}
	if out.Used, err = s.used(ctx, sess); err != nil {
		return api.Offer{}, err
	}
	out.Default = s.defaults(c, &out)
	return out, nil
}

// Default is the app and the image to begin with; empty: the best there is.
type Default struct {
	App   string `yaml:"app"`
	Image string `yaml:"image"`
}

// beginning is the app that people most likely want, and an image that has it:
// the site's app, else JupyterLab, else the first that runs in anything offered.
func (s *Service) beginning(c *config.Config, o *api.Offer) (app, image string) {
	apps := []string{s.Default.App, favourite}
	for _, a := range o.Apps {
		apps = append(apps, a.Name)
	}
	for _, app := range apps {
		best := -1
		for _, img := range o.Images {
			worth := 0
			switch img.Name {
			case s.Default.Image:
				worth = 2
			case c.Spank.DefaultImage:
				worth = 1
			}
			if app != "" && slices.Contains(img.Apps, app) && worth > best {
				best, image = worth, img.Name
			}
		}
		if best >= 0 {
			return app, image
		}
	}
	return "", ""
}

func (s *Service) defaults(c *config.Config, o *api.Offer) api.Start {
	d := api.Start{Nodes: 1, Minutes: defaultMinutes}
	d.App, d.Image = s.beginning(c, o)
	if slices.ContainsFunc(o.GPUs, func(g api.GPUCount) bool { return g.PerNode > 0 }) {
		d.GPUs = 1
	}
	if o.Limits.Minutes > 0 {
		d.Minutes = min(d.Minutes, o.Limits.Minutes)
	}
	return d
}

// used counts what the user has waiting or running: what list has and is not over,
// without making that for what may be thousands.
func (s *Service) used(ctx context.Context, sess *auth.Session) (api.Used, error) {
	intents, err := s.submitted(ctx, sess.UserName)
	if err != nil {
		return api.Used{}, err
	}
	var u api.Used
	count := func(gpus []api.JobGPUs) {
		u.Running++
		for _, g := range gpus {
			u.GPUs += g.Count
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	there := map[uint32]bool{}
	for _, id := range s.pic.byUID[sess.User().UID] {
		there[id] = true
		if row := s.row(id); !slurm.Over(row.State) && row.State != stateCompleting {
			count(gpusOf(row.TRES))
		}
	}
	for i := range intents {
		in := &intents[i]
		id := uint32(in.Job) //nolint:gosec // Slurm's are 32 bits
		d, remembered := s.details[id]
		switch {
		case in.Job > 0 && there[id]:
		case in.Job > 0 && remembered && in.Final == "":
			if !slurm.Over(d.row.State) && d.row.State != stateCompleting {
				count(gpusOf(d.row.TRES))
			}
		default:
			if j := in.asJob(s.pic.at); j.Stage != api.StageEnded && j.Stage != api.StageFailed {
				count(j.GPUs)
			}
		}
	}
	return u, nil
}

// nodeGres is gpu:a100:2(S:0-1) or gpu:2, in a node's gres.
var nodeGres = regexp.MustCompile(`^(?:gres[/:])?gpu(?::([A-Za-z_][A-Za-z0-9_.-]*))?[:=](\d+)(?:\(.*\))?$`)

// gresGPUs reads a list of gres, GPUs by type.
func gresGPUs(text string) map[string]int {
	out := map[string]int{}
	depth := 0
	parts := strings.FieldsFunc(text, func(c rune) bool {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		}
		return c == ',' && depth == 0
	})
	for _, part := range parts {
		if m := nodeGres.FindStringSubmatch(strings.TrimSpace(part)); m != nil {
			n, err := strconv.Atoi(m[2])
			if err == nil {
				out[m[1]] += n
			}
		}
	}
	return out
}

// queuedGPUs is what the waiting jobs of a queue ask for, by type. It is counted once
// for each picture: every dashboard shows it.
func queuedGPUs(rows []slurm.QueueRow) map[string]int {
	out := map[string]int{}
	for i := range rows {
		if rows[i].State != statePending || rows[i].Gres == "" {
			continue
		}
		for kind, n := range gresGPUs(rows[i].Gres) {
			out[kind] += n * max(1, rows[i].Nodes)
		}
	}
	return out
}

// heldGPUs is what the jobs of a queue have, by node and type. That is as young as the
// queue; what the nodes themselves say is asked for more seldom. It is nil where the
// queue does not tell: Slurm names the types if AccountingStorageTRES does
// (slurm.conf(5)), of several nodes only how many there are on all of them, and a
// suspended job's row not whether it has kept its GPUs.
func heldGPUs(rows []slurm.QueueRow) map[string]map[string]int {
	out := map[string]map[string]int{}
	for i := range rows {
		row := &rows[i]
		if row.State == statePending || slurm.Over(row.State) {
			continue
		}
		gpus := gpusOf(row.TRES)
		if len(gpus) == 0 {
			continue
		}
		nodes := slurm.Expand(row.NodeList)
		for _, g := range gpus {
			if g.Type == "" || len(nodes) == 0 || g.Count%len(nodes) != 0 || row.State == "SUSPENDED" {
				return nil
			}
			for _, node := range nodes {
				if out[node] == nil {
					out[node] = map[string]int{}
				}
				out[node][g.Type] += g.Count / len(nodes)
			}
		}
	}
	return out
}

// agree says whether nodes have as many GPUs in use as the queue tells: some jobs may be
// hidden from it, or have begun in between.
func agree(nodes []rest.Node, held map[string]map[string]int) bool {
	for i := range nodes {
		used := gresGPUs(nodes[i].GresUsed)
		maps.DeleteFunc(used, func(_ string, n int) bool { return n == 0 })
		if !maps.Equal(used, held[nodes[i].Name]) {
			return false
		}
	}
	return true
}

// unusable says that no job starts on a node in that state (sinfo(1)).
func unusable(states []string) bool {
	return slices.ContainsFunc(states, func(s string) bool {
		switch strings.ToUpper(s) {
		case "DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "FUTURE", "NOT_RESPONDING", "MAINTENANCE", "POWERED_DOWN":
			return true
		}
		return false
	})
}

// gpus counts the cluster's GPUs by type; those a sealed job can get, or all.
func (s *Service) gpus(usable bool) []api.GPUCount {
	s.mu.Lock()
	defer s.mu.Unlock()
	by := map[string]*api.GPUCount{}
	for _, n := range s.pic.nodes {
		if usable && (!slices.Contains(n.Features, featureCarme) || unusable(n.States)) {
			continue
		}
		used := gresGPUs(n.GresUsed)
		if s.pic.held != nil && s.pic.agreed {
			used = s.pic.held[n.Name]
		}
		for kind, total := range gresGPUs(n.Gres) {
			g := by[kind]
			if g == nil {
				g = &api.GPUCount{Type: kind}
				by[kind] = g
			}
			g.Total += total
			g.Used += used[kind]
			g.PerNode = max(g.PerNode, total)
			if !unusable(n.States) {
				g.Free += max(0, total-used[kind])
			}
		}
	}
	for kind, n := range s.pic.queued {
		if g := by[kind]; g != nil {
			g.Queued += n
		}
	}
	out := []api.GPUCount{}
	for _, g := range by {
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b api.GPUCount) int { return strings.Compare(a.Type, b.Type) })
	return out
}

// partitions are those that are up and open to a member of the groups.
func (s *Service) partitions(groups []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := []string{}
	for _, p := range s.pic.partitions {
		if p.Up && open(p.Groups, groups) {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

// sealing is how many nodes take sealed jobs, now or when they are back.
func (s *Service) sealing() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := 0
	for _, n := range s.pic.nodes {
		if slices.Contains(n.Features, featureCarme) {
			count++
		}
	}
	return count
}

// longest is how many minutes a job may run in a partition, in any for none; 0 if
// that is not limited.
func (s *Service) longest(partition string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := 0
	for _, p := range s.pic.partitions {
		if !p.Up || partition != "" && p.Name != partition {
			continue
		}
		if p.MaxMinutes == 0 {
			return 0
		}
		most = max(most, p.MaxMinutes)
	}
	return most
}

// largest is the most processors and memory (MB) that one node has for sealed
// jobs; 0 if none is known.
func (s *Service) largest(partition string) (cpus int, memory int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.pic.nodes {
		if slices.Contains(n.Features, featureCarme) && (partition == "" || slices.Contains(n.Partitions, partition)) {
			cpus, memory = max(cpus, n.CPUs), max(memory, n.MemoryMB)
		}
	}
	return cpus, memory
}

// open says whether one of the groups is among those that a partition allows,
// a list with commas (slurm.conf(5), AllowGroups).
func open(allowed string, groups []string) bool {
	if allowed == "" || strings.EqualFold(allowed, "ALL") {
		return true
	}
	for name := range strings.SplitSeq(allowed, ",") {
		if slices.Contains(groups, strings.TrimSpace(name)) {
			return true
		}
	}
	return false
}

// Cluster is what everybody may see of the nodes.
func (s *Service) Cluster(ctx context.Context, uid uint32) api.Cluster {
	s.Look(ctx, uid)
	out := api.Cluster{GPUs: s.gpus(false), Nodes: []api.ClusterNode{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Age = s.age()
	for _, n := range s.pic.nodes {
		heard, _ := s.Nodes.Heard(n.Name)
		node := api.ClusterNode{
			Name: n.Name, State: strings.Join(n.States, "+"), CPUs: n.CPUs, CPUsUsed: n.CPUsUsed, GPUs: []api.GPUCount{},
			Carme: slices.Contains(n.Features, featureCarme), Agent: heard,
		}
		used := gresGPUs(n.GresUsed)
		for kind, total := range gresGPUs(n.Gres) {
			node.GPUs = append(node.GPUs, api.GPUCount{Type: kind, Total: total, Used: used[kind], Free: max(0, total-used[kind]), PerNode: total})
		}
		slices.SortFunc(node.GPUs, func(a, b api.GPUCount) int { return strings.Compare(a.Type, b.Type) })
		out.Nodes = append(out.Nodes, node)
	}
	slices.SortFunc(out.Nodes, func(a, b api.ClusterNode) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// derive fills in processors and memory that nobody asked for: a job's share of
// the smallest node that could take it, by its GPUs. Slurm's own defaults are
// made for batch jobs.
func (s *Service) derive(in *api.Start) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cpus, memory := 0, int64(0)
	for _, n := range s.pic.nodes {
		if !slices.Contains(n.Features, featureCarme) || n.CPUs < 1 || in.Partition != "" && !slices.Contains(n.Partitions, in.Partition) {
			continue
		}
		all, wanted := 0, 0
		for kind, count := range gresGPUs(n.Gres) {
			all += count
			if in.GPUType == "" || in.GPUType == kind {
				wanted = max(wanted, count)
			}
		}
		c, m := min(plainCPUs, n.CPUs), min(plainMemoryMB, n.MemoryMB/4)
		if in.GPUs > 0 {
			if wanted < in.GPUs {
				continue
			}
			c, m = n.CPUs*in.GPUs/all, n.MemoryMB*int64(in.GPUs)/int64(all)
		}
		if cpus == 0 || c < cpus {
			cpus = max(1, c)
		}
		if memory == 0 || m < memory {
			memory = m
		}
	}
	in.CPUs, in.MemoryMB = orDefault(in.CPUs, cpus), orDefault(in.MemoryMB, memory)
}

// unavailableSlurm is the answer when Slurm is needed and does not answer.
func unavailableSlurm() error {
	return problem.Unavailable("Slurm does not answer now. Nothing was submitted; try again in a minute.")
}
