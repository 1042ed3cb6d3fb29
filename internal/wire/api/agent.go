package api

import "time"

// Enrol is the body of POST /v1/agent/enrol, from an agent without a
// certificate, and of POST /v1/join, from any daemon with a join token.
type Enrol struct {
	// Role is node or portal, Name the node's in Slurm or the portal's.
	Role string `json:"role"`
	Name string `json:"name"`
	CSR  []byte `json:"csr"` // DER; the backend takes the public key alone
	// JoinToken is for hosts without MUNGE.
	JoinToken string `json:"join_token,omitempty"`
}

// Enrolled is a certificate and what its owner must trust.
type Enrolled struct {
	Certificate []byte `json:"certificate"` // PEM chain
	CA          []byte `json:"ca"`          // PEM
	// RouteKeys are the Ed25519 keys that sign route tokens, by key id.
	RouteKeys map[string][]byte `json:"route_keys"`
}

// Report is the body of POST /v1/agent/report: what a node has to tell. The
// node is the one of the certificate.
type Report struct {
	// Boot is a random value of this life of the agent.
	Boot string `json:"boot"`
	Seq  int64  `json:"seq"`
	// Jobs are all Carme jobs on the node now.
	Jobs    []NodeJob    `json:"jobs"`
	Ended   []NodeEnd    `json:"ended"`
	Samples []NodeSample `json:"samples"`
	// Problem is what the node's self-test found, empty when it may take jobs.
	Problem string `json:"problem,omitempty"`
}

// NodeJob is a sealed job on a node.
type NodeJob struct {
	Job      uint32    `json:"job"`
	UID      uint32    `json:"uid"`
	Instance string    `json:"instance"` // 128 random bits in hex
	App      string    `json:"app,omitempty"`
	Image    string    `json:"image,omitempty"`
	Started  time.Time `json:"started"`
	// Stage is StageImage, StageApp or StageReady.
	Stage string `json:"stage"`
	// Text is what the app's starter says, written by the user: not to be
	// trusted.
	Text    string   `json:"text,omitempty"`
	Devices []Device `json:"devices,omitempty"`
}

// NodeEnd is the end of a sealed job on a node.
type NodeEnd struct {
	Job      uint32    `json:"job"`
	Instance string    `json:"instance"`
	Time     time.Time `json:"time"`
	OOM      bool      `json:"oom"`
}

// NodeSample is one measurement of a job on a node.
type NodeSample struct {
	Job      uint32      `json:"job"`
	Instance string      `json:"instance"`
	Time     time.Time   `json:"time"`
	CPU      float64     `json:"cpu_percent"` // of one core
	MemoryMB float64     `json:"memory_mb"`
	ReadMB   float64     `json:"io_read_mbps"`
	WriteMB  float64     `json:"io_write_mbps"`
	GPUs     []GPUSample `json:"gpus,omitempty"`
}

// GPUSample is one measurement of one GPU.
type GPUSample struct {
	UUID     string  `json:"uuid"`
	Percent  float64 `json:"gpu_percent"`
	MemoryMB float64 `json:"gpu_memory_mb"`
	PowerW   float64 `json:"gpu_power_w"`
	EnergyJ  float64 `json:"gpu_energy_j"` // since the driver started
}

// Reported is the answer to a report.
type Reported struct {
	// RouteKeys as in Enrolled: they rotate.
	RouteKeys map[string][]byte `json:"route_keys"`
	// Gone are jobs of the report that Slurm no longer knows.
	Gone []uint32 `json:"gone,omitempty"`
	// EverySeconds is how often to report.
	EverySeconds int `json:"every_seconds"`
}
