package core

import (
	"errors"
	"fmt"
	"slices"

	"github.com/carme-hpc/carme/internal/wire"
)

// findDevices opens the node's devices and asks the kernel, through the anchor
// in the job's own cgroups, which GPUs are the job's.
func (j *job) findDevices(anchor anchorConn) error {
	nodes, caps, err := hostGPUs()
	if err != nil {
		return err
	}
	if len(nodes) > 0 {
		known, err := knownGPUs(!j.early)
		if err != nil {
			return err
		}
		j.gpus = describe(nodes, known)
	}
	for _, d := range caps {
		if i, uuid := capsOwner(j.gpus, d.minor()); i >= 0 {
			j.caps = append(j.caps, hostCap{d, i, uuid})
		}
	}
	if err := j.probe(anchor); err != nil {
		return err
	}
	extra, err := globbed(wire.DeviceIB, j.plan.Site.Devices.Extra)
	if err != nil {
		return err
	}
	j.devices = append(optional(wire.DeviceBasic, inDev(basicNames)...), nodes...)
	j.devices = append(j.devices, extra...)
	if j.ownGPUs() > 0 {
		j.devices = append(j.devices, optional(wire.DeviceControl, inDev(controlNames)...)...)
		for _, c := range j.caps {
			j.devices = append(j.devices, c.device)
		}
	}
	// The admin's patterns may name what is there already.
	seen := map[string]bool{}
	j.devices = slices.DeleteFunc(j.devices, func(d *device) bool {
		twice := seen[d.Path]
		seen[d.Path] = true
		return twice
	})
	return nil
}

// tried are the devices about which the kernel is asked: every GPU, then the
// capability files.
func (j *job) tried() []*device {
	all := make([]*device, 0, len(j.gpus)+len(j.caps))
	for _, g := range j.gpus {
		all = append(all, g.device)
	}
	for _, c := range j.caps {
		all = append(all, c.device)
	}
	return all
}

// ask lets the anchor, which is in the job's cgroups, try every GPU and
// capability file. It returns the lines of the anchor's /proc/PID/cgroup too.
func (j *job) ask(anchor anchorConn) (open []bool, cgroups []string, err error) {
	tried := j.tried()
	fds := make([]int, 0, len(tried))
	for _, d := range tried {
		fds = append(fds, d.FD)
	}
	answer, err := anchor.call("probed", ofType("probe"), fds...)
	if err != nil {
		return nil, nil, err
	}
	allowed := answer.All("ok")
	if len(allowed) != len(tried) {
		return nil, nil, fmt.Errorf("the anchor judged %d devices, not %d", len(allowed), len(tried))
	}
	for _, a := range allowed {
		open = append(open, a == "1")
	}
	return open, answer.All("cgroup"), nil
}

// probe learns which devices are the job's and the job's place in the cgroup
// tree. Where Slurm does not constrain devices, it closes the others.
func (j *job) probe(anchor anchorConn) error {
	open, lines, err := j.ask(anchor)
	if err != nil {
		return err
	}
	j.cgroups, j.cgroupV = parseCgroups(lines)
	if len(j.cgroups) == 0 {
		return errors.New("the job has no cgroups on this node; the admin must set ProctrackType=proctrack/cgroup")
	}
	if err := j.decideDevices(anchor, open, lines); err != nil {
		return err
	}
	for _, g := range j.gpus {
		if g.device.Own && g.UUID == "" {
			return fmt.Errorf("neither the driver's files nor NVML tell which GPU %s is; ask the admin to run 'carme doctor' on this node", g.device.Path)
		}
	}
	return nil
}

// decideDevices says which devices are the job's. A filter of Slurm's that
// denies a GPU is the truth and is left alone. Where every GPU opens, the job
// has them all, or nobody filters; then slurmctld is asked.
func (j *job) decideDevices(anchor anchorConn, open []bool, lines []string) error {
	tried := j.tried()
	for i, d := range tried {
		d.Own = open[i]
	}
	defer func() {
		// A capability file that gres.conf does not list is open to
		// everybody; it is the job's only together with its GPU.
		for _, c := range j.caps {
			c.device.Own = c.device.Own && j.gpus[c.gpu].device.Own
		}
	}()
	if len(j.gpus) == 0 || j.constrain == constrainYes && slices.Contains(open[:len(j.gpus)], false) {
		return nil
	}
	if j.early {
		return errLater
	}
	answer, err := j.plugin.call("given", ofType("given?"))
	if err != nil {
		return err
	}
	g, err := readGiven(answer)
	if err != nil {
		return fmt.Errorf("which GPUs of this node are the job's is not known: %w; ask the admin to set ConstrainDevices=yes in cgroup.conf", err)
	}
	v, err := judge(j.candidates(open), g, j.constrain)
	if err != nil {
		return err
	}
	for i, d := range tried {
		d.Own = v.own[i]
		d.Index = g.devices[d.id()]
	}
	if len(v.deny) == 0 || j.constrain == constrainYes {
		return nil
	}
	foreign := make([]*device, 0, len(v.deny))
	for _, i := range v.deny {
		foreign = append(foreign, tried[i])
	}
	if err := j.attachFilter(anchor, lines, foreign); err != nil {
		return err
	}
	j.ownFilter = true
	return j.confirm(anchor)
}

// confirm asks the kernel again, once there is a filter.
func (j *job) confirm(anchor anchorConn) error {
	open, _, err := j.ask(anchor)
	if err != nil {
		return err
	}
	for i, d := range j.tried() {
		if open[i] != d.Own {
			return fmt.Errorf("the job's device filter has no effect on %s; the admin must set ConstrainDevices=yes in cgroup.conf", d.Path)
		}
	}
	return nil
}

func (j *job) candidates(open []bool) []candidate {
	var all []candidate
	for i, d := range j.tried() {
		c := candidate{path: d.Path, id: d.id(), parent: -1, open: open[i]}
		if i >= len(j.gpus) {
			c.parent = j.caps[i-len(j.gpus)].gpu
		}
		all = append(all, c)
	}
	return all
}

// ownGPUs counts the GPUs that the job may open.
func (j *job) ownGPUs() int {
	n := 0
	for _, g := range j.gpus {
		if g.device.Own {
			n++
		}
	}
	return n
}
