package core

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/version"
	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/request"
)

// proof writes down what was made.
func (j *job) proof(s *sandbox, started *wire.Record) ([]byte, error) {
	p := &wire.Proof{
		Version: wire.ProofVersion, JobID: j.id, UID: j.person.UID, GID: j.person.GID, User: j.person.Name,
		Node: j.node, Instance: j.instance, Created: time.Now().UTC(), Slurm: j.slurm, Carme: version.String(),
		Net: j.plan.Request.Net, Mounts: s.mounts,
		Cgroup: wire.ProofCgroup{Version: j.cgroupV, ConstrainDevices: j.constrain == constrainYes},
	}
	p.StepID = j.stepNumber()
	p.Options = j.proofOptions()
	if len(j.cgroups) > 0 {
		p.Cgroup.JobPath = j.cgroups[0].Path
	}
	pid, err := number64(started, "pidns")
	if err != nil {
		return nil, err
	}
	p.Namespaces = append(p.Namespaces, wire.ProofNamespace{Kind: "pid", JobInode: pid, HostInode: s.hostNS["pid"]})
	for _, kind := range namespaceKinds {
		inode, err := nsInodeOf(s, kind)
		if err != nil {
			return nil, err
		}
		p.Namespaces = append(p.Namespaces, wire.ProofNamespace{Kind: kind, JobInode: inode, HostInode: s.hostNS[kind]})
	}
	p.Devices = j.proofDevices()
	if i := j.plan.Image; i != nil {
		p.Image = &wire.ProofImage{Name: i.Name, Path: i.Path, Format: i.Format}
	}
	p.Checks = j.checks(p)
	var out bytes.Buffer
	if err := p.Encode(&out); err != nil {
		return nil, fmt.Errorf("encode the proof: %w", err)
	}
	return out.Bytes(), nil
}

// proofOptions are the options as they were given; one without a value may come as
// "(null)" (request.Parse).
func (j *job) proofOptions() []wire.ProofOption {
	var list []wire.ProofOption
	for _, o := range j.options {
		value := o.Value
		if value == request.NoValue {
			value = ""
		}
		list = append(list, wire.ProofOption{Name: strings.ReplaceAll(o.Key, "_", "-"), Value: value})
	}
	return list
}

// writeProof keeps the record on the node, for the admin.
func writeProof(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write the proof: %w", err)
	}
	return nil
}

func nsInodeOf(s *sandbox, kind string) (uint64, error) {
	fd, ok := s.ns[kind]
	if !ok {
		return s.hostNS[kind], nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("look at namespace %s: %w", kind, err)
	}
	return st.Ino, nil
}

func number64(rec *wire.Record, key string) (uint64, error) {
	text, _ := rec.Get(key)
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s of the anchor's answer: %w", key, err)
	}
	return n, nil
}

func (j *job) stepNumber() uint32 {
	if n, ok := stepNumbers[j.step]; ok {
		return n
	}
	n, err := strconv.ParseUint(j.step, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

func (j *job) proofDevices() []wire.ProofDevice {
	known := map[string]hostGPU{}
	for _, g := range j.gpus {
		known[g.device.Path] = g
	}
	var list []wire.ProofDevice
	for _, d := range j.devices {
		if !d.Own {
			continue
		}
		g := known[d.Path]
		list = append(list, wire.ProofDevice{
			Path: d.Path, Kind: d.Kind, Major: d.major(), Minor: d.minor(),
			UUID: g.UUID, PCI: g.PCI, Model: g.Model, MIGUUIDs: j.migUUIDs(d),
		})
	}
	return list
}

// migUUIDs are the MIG devices of a GPU that the job may use.
func (j *job) migUUIDs(d *device) []string {
	var uuids []string
	for _, c := range j.caps {
		if c.uuid != "" && c.device.Own && j.gpus[c.gpu].device == d {
			uuids = append(uuids, c.uuid)
		}
	}
	return uuids
}

// checks are those that only the set-up can make; the rest is made by each
// task and by "carme proof".
func (j *job) checks(p *wire.Proof) []wire.Check {
	var list []wire.Check
	for _, ns := range p.Namespaces {
		if ns.Kind == "net" && p.Net == request.NetHost {
			continue
		}
		list = append(list, wire.Check{
			Name: "namespace " + ns.Kind, OK: ns.JobInode != ns.HostInode,
			Detail: fmt.Sprintf("%d inside, %d on the node", ns.JobInode, ns.HostInode),
		})
	}
	whose := ""
	if j.ownFilter {
		whose = ", by a device filter of Carme's own"
	}
	return append(list, wire.Check{
		Name: "devices", OK: true,
		Detail: fmt.Sprintf("the kernel lets this job open %d of %d GPUs%s", j.ownGPUs(), len(j.gpus), whose),
	})
}
