package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// ProofVersion is the version of the Proof's format that this code writes.
const ProofVersion = 1

// ProofMax is the largest proof that DecodeProof reads, in bytes.
const ProofMax = 4 << 20

// Kinds of namespace, as in /proc/PID/ns (namespaces(7)).
const (
	NamespaceMount = "mnt"
	NamespacePID   = "pid"
	NamespaceIPC   = "ipc"
	NamespaceUTS   = "uts"
	NamespaceNet   = "net"
	NamespaceUser  = "user"
)

// Kinds of device of a job.
const (
	DeviceGPU     = "gpu"     // one GPU, /dev/nvidiaN
	DeviceControl = "control" // shared by all GPUs: nvidiactl, nvidia-uvm, ...
	DeviceIB      = "ib"      // below /dev/infiniband
	DeviceCaps    = "caps"    // a MIG capability file below /dev/nvidia-caps
	DeviceBasic   = "basic"   // null, zero, urandom, fuse, ...
)

// Kinds of mount of a job.
const (
	MountPrivate = "private" // the job's own: /tmp, /dev/shm, /proc, ...
	MountBind    = "bind"    // a path of the node, by option or policy
	MountSystem  = "system"  // a path of the node that Slurm or MPI needs
	MountHidden  = "hidden"  // something of the node covered up
)

// Proof is the record of how a job was set up on a node: what the core made,
// and the checks it made when it was done. The core writes it once, as
// /run/carme/jobs/JOBID/proof.json on the node and, read-only, as
// /run/carme/job/proof.json inside the job.
type Proof struct {
	// Version of the format, ProofVersion.
	Version int `json:"version"`
	// JobID as squeue shows it for one job, without array or component suffix.
	JobID uint32 `json:"job_id"`
	// StepID of the step that set the job up: a number, or one of Slurm's
	// special ids 0xfffffffb (batch), 0xfffffffa (interactive).
	StepID uint32 `json:"step_id"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	User   string `json:"user"`
	Node   string `json:"node"`
	// Instance tells this set-up of the job on this node from any other, a
	// requeue of the job on the same node included: 128 random bits in hex.
	Instance string `json:"instance"`
	// Created is when the set-up was complete, RFC 3339, UTC.
	Created time.Time `json:"created"`
	// Slurm and Carme are the versions that set the job up, such as "24.11.5".
	Slurm string `json:"slurm"`
	Carme string `json:"carme"`

	Namespaces []ProofNamespace `json:"namespaces"`
	Cgroup     ProofCgroup      `json:"cgroup"`
	Devices    []ProofDevice    `json:"devices"`
	Mounts     []ProofMount     `json:"mounts"`
	// Net is the network mode: host or private.
	Net string `json:"net"`
	// Image is nil for a job without an image.
	Image *ProofImage `json:"image,omitempty"`
	// Options are the options of the first step as requested.
	Options []ProofOption `json:"options"`
	// Checks are those that the core made at set-up.
	Checks []Check `json:"checks"`
}

// ProofNamespace is one kind of namespace of the job beside the node's. The
// numbers are those of /proc/PID/ns/KIND, inodes on nsfs. They are equal where
// the job shares the node's namespace, as net does in network mode host.
type ProofNamespace struct {
	Kind      string `json:"kind"`
	JobInode  uint64 `json:"job_inode"`
	HostInode uint64 `json:"host_inode"`
}

// ProofCgroup is the job's place in Slurm's cgroup tree.
type ProofCgroup struct {
	// Version is 1 or 2.
	Version int `json:"version"`
	// JobPath is the job's directory below the cgroup mount point.
	JobPath string `json:"job_path"`
	// ConstrainDevices is Slurm's setting of that name (cgroup.conf(5)).
	// Without it the device filter is Carme's own.
	ConstrainDevices bool `json:"constrain_devices"`
}

// ProofDevice is one device node of the job.
type ProofDevice struct {
	// Path is where the job sees it, below /dev.
	Path  string `json:"path"`
	Kind  string `json:"kind"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	// UUID, PCI (domain:bus:device.function), Model and MIGUUIDs are those
	// NVML gives for a GPU; empty for other devices.
	UUID     string   `json:"uuid,omitempty"`
	PCI      string   `json:"pci,omitempty"`
	Model    string   `json:"model,omitempty"`
	MIGUUIDs []string `json:"mig_uuids,omitempty"`
}

// ProofMount is one mount that the core made.
type ProofMount struct {
	Target  string `json:"target"`
	Source  string `json:"source"`
	Kind    string `json:"kind"`
	Options string `json:"options,omitempty"`
}

// ProofImage is the image of the first step.
type ProofImage struct {
	// Name in the catalogue, empty for an image given by path.
	Name string `json:"name,omitempty"`
	Path string `json:"path"`
	// Format is sif or sandbox.
	Format string `json:"format"`
	// SHA256 of the image file in hex, empty where it was not computed.
	SHA256 string `json:"sha256,omitempty"`
}

// ProofOption is one option as requested, its name without dashes.
type ProofOption struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Check is one check and its outcome.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail is one line: what was found, and how to mend it if not OK.
	Detail string `json:"detail,omitempty"`
}

// Failed counts the checks at set-up that failed.
func (p *Proof) Failed() int {
	n := 0
	for _, c := range p.Checks {
		if !c.OK {
			n++
		}
	}
	return n
}

// Namespace returns the namespace of that kind, and whether the proof has it.
func (p *Proof) Namespace(kind string) (ProofNamespace, bool) {
	for _, ns := range p.Namespaces {
		if ns.Kind == kind {
			return ns, true
		}
	}
	return ProofNamespace{}, false
}

// DevicesOf returns the devices of one kind in order.
func (p *Proof) DevicesOf(kind string) []ProofDevice {
	var devices []ProofDevice
	for _, d := range p.Devices {
		if d.Kind == kind {
			devices = append(devices, d)
		}
	}
	return devices
}

// Encode writes the proof as indented JSON. Lists are never null.
func (p *Proof) Encode(out io.Writer) error {
	c := *p
	c.Namespaces = orEmpty(c.Namespaces)
	c.Devices = orEmpty(c.Devices)
	c.Mounts = orEmpty(c.Mounts)
	c.Options = orEmpty(c.Options)
	c.Checks = orEmpty(c.Checks)
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(&c); err != nil {
		return fmt.Errorf("encode proof: %w", err)
	}
	return nil
}

// DecodeProof reads one proof of at most ProofMax bytes. It refuses a version
// other than ProofVersion, and anything after the proof. Unknown fields are
// left out, so that a field can be added without a new version.
func DecodeProof(in io.Reader) (*Proof, error) {
	data, err := io.ReadAll(io.LimitReader(in, ProofMax+1))
	if err != nil {
		return nil, fmt.Errorf("read proof: %w", err)
	}
	if len(data) > ProofMax {
		return nil, fmt.Errorf("decode proof: more than %d bytes", ProofMax)
	}
	var p Proof
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("decode proof: %w", err)
	}
	if p.Version == 0 {
		return nil, errors.New("decode proof: no version")
	}
	if p.Version != ProofVersion {
		return nil, fmt.Errorf("decode proof: version %d, this program knows %d", p.Version, ProofVersion)
	}
	return &p, nil
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
