package core

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/carme-hpc/carme/internal/wire"
)

// What Slurm's configuration in force says of ConstrainDevices.
const (
	constrainYes     = "yes"
	constrainNo      = "no"
	constrainUnknown = ""
)

// given is what Slurm gave to the job on this node, as slurmctld has it, and
// what slurmd manages there (spank/cshim/given.c).
type given struct {
	gpus    int                 // how many
	devices map[deviceID]string // of the job; the value is Slurm's index
	managed map[deviceID]bool   // all that gres.conf has, the job's among them
}

// deviceID is a device's major and minor number.
type deviceID struct{ major, minor uint32 }

func (d *device) id() deviceID { return deviceID{d.major(), d.minor()} }

// readGiven reads the plugin's answer. A GPU that several jobs may share is
// nobody's own.
func readGiven(rec *wire.Record) (*given, error) {
	if why, ok := rec.Get("unknown"); ok {
		return nil, errors.New(why)
	}
	detail, ok := rec.Get("gres")
	if !ok {
		return nil, errors.New("the plugin's answer tells of no resources")
	}
	indexes, err := gpuIndexes(detail)
	if err != nil {
		return nil, err
	}
	g := &given{gpus: len(indexes), devices: map[deviceID]string{}, managed: map[deviceID]bool{}}
	for _, line := range rec.All("device") {
		var index int
		var id deviceID
		if _, err := fmt.Sscanf(line, "%d %d:%d", &index, &id.major, &id.minor); err != nil {
			return nil, fmt.Errorf("read device %q: %w", line, err)
		}
		g.managed[id] = true
		if indexes[index] {
			g.devices[id] = strconv.Itoa(index)
		}
	}
	return g, nil
}

// indexesMax is how many GPUs a node may have.
const indexesMax = 4096

// gpuIndexes reads the GPUs' indexes out of a job's resources on one node, as
// `scontrol show job -d` prints them: gpu:a100:2(IDX:0-1),gpu:l40s:1(IDX:3).
func gpuIndexes(detail string) (map[int]bool, error) {
	all := map[int]bool{}
	for rest := detail; rest != ""; {
		name, after, _ := strings.Cut(rest, ":")
		if name == "mps" || name == "shard" {
			return nil, fmt.Errorf("gres/%s lets several jobs share a GPU, which --carme cannot seal off; ask for whole GPUs or MIG devices with --gres=gpu:N", name)
		}
		before, list, found := strings.Cut(after, "(")
		inner, tail, closed := strings.Cut(list, ")")
		if name != "gpu" {
			// Others may have no list: craynetwork:1, license:2(CNT:2).
			if strings.Contains(before, ",") || !found {
				_, rest, _ = strings.Cut(after, ",")
				continue
			}
			rest = strings.TrimPrefix(tail, ",")
			continue
		}
		if !found || !closed || strings.Contains(before, ",") {
			return nil, fmt.Errorf("cannot read %q", detail)
		}
		if err := addIndexes(all, inner); err != nil {
			return nil, fmt.Errorf("cannot read %q: %w", detail, err)
		}
		rest = strings.TrimPrefix(tail, ",")
	}
	return all, nil
}

// addIndexes reads IDX:0-1,3. Without any the list is empty or N/A.
func addIndexes(all map[int]bool, list string) error {
	list, ok := strings.CutPrefix(list, "IDX:")
	if !ok {
		return errors.New("no list of indexes")
	}
	if list == "" || list == "N/A" {
		return nil
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, span := strings.Cut(part, "-")
		if !span {
			last = first
		}
		from, err := strconv.Atoi(first)
		if err != nil {
			return err
		}
		to, err := strconv.Atoi(last)
		if err != nil {
			return err
		}
		if from < 0 || to < from || to > indexesMax {
			return fmt.Errorf("%q is no range", part)
		}
		for i := from; i <= to; i++ {
			all[i] = true
		}
	}
	return nil
}

// verdict is what is to be done about the devices of a node.
type verdict struct {
	own  []bool // the job may use it
	deny []int  // what a filter of Carme's has to close
}

// candidate is one GPU or capability file in the judgement.
type candidate struct {
	path   string
	id     deviceID
	parent int  // index of the GPU of a capability file, -1 for a GPU
	open   bool // the kernel lets the job open it
}

// judge compares what the kernel lets the job open with what Slurm gave to it.
// It is an error if they cannot be brought together: with Slurm's own filter
// in force nothing is added, because on cgroup v2 that would replace it.
func judge(all []candidate, g *given, constrain string) (verdict, error) {
	v := verdict{own: make([]bool, len(all))}
	for i, c := range all {
		_, mine := g.devices[c.id]
		if c.parent >= 0 {
			// A capability file that gres.conf does not list goes with its
			// GPU, and is of no use without it.
			mine = v.own[c.parent] && (mine || !g.managed[c.id])
		}
		if mine && !c.open && c.parent < 0 {
			return v, fmt.Errorf("slurm gave %s to this job, but the kernel does not let it be opened; ask the admin which device filter on this node denies it", c.path)
		}
		v.own[i] = mine && c.open
		if !mine && c.open {
			v.deny = append(v.deny, i)
		}
	}
	if len(v.deny) == 0 {
		return v, nil
	}
	foreign := all[v.deny[0]].path
	switch constrain {
	case constrainNo:
		return v, nil
	case constrainYes:
		if all[v.deny[0]].parent >= 0 {
			return v, nil // as a GPU's parts are with Slurm's own filter
		}
		return v, fmt.Errorf("%s can be opened although ConstrainDevices=yes and Slurm did not give it to this job; ask the admin to list it in gres.conf, and submit the job again", foreign)
	default:
		return v, fmt.Errorf("%s can be opened, but Slurm did not give it to this job, and does not tell whether it constrains devices; ask the admin to set ConstrainDevices=yes in cgroup.conf", foreign)
	}
}
