package api

import "time"

// Start is the body of POST /v1/jobs and of POST /v1/script: a session to be
// started. Zero values mean the offer's default.
type Start struct {
	// ID is a UUID that the form was made with: the same form sent twice is one
	// job.
	ID    string `json:"id"`
	Image string `json:"image"`
	App   string `json:"app"`
	// GPUType is one of the offer's, empty for any.
	GPUType string `json:"gpu_type"`
	GPUs    int    `json:"gpus"` // per node
	Nodes   int    `json:"nodes"`
	Minutes int    `json:"minutes"` // walltime
	Name    string `json:"name"`
	// Under "advanced".
	Partition string `json:"partition,omitempty"`
	Account   string `json:"account,omitempty"`
	QOS       string `json:"qos,omitempty"`
	CPUs      int    `json:"cpus,omitempty"`      // per node, 0: derived
	MemoryMB  int64  `json:"memory_mb,omitempty"` // per node, 0: derived
}

// Script is the answer to POST /v1/script.
type Script struct {
	Script string `json:"script"`
}

// Offer is the answer to GET /v1/offer: what this user may start now.
type Offer struct {
	Images     []OfferImage `json:"images"`
	Apps       []OfferApp   `json:"apps"`
	GPUs       []GPUCount   `json:"gpus"`
	Partitions []string     `json:"partitions"`
	// Nodes is how many a session can get at most.
	Nodes   int    `json:"nodes"`
	Limits  Limits `json:"limits"`
	Used    Used   `json:"used"`
	Default Start  `json:"default"`
}

// OfferImage is one image of the catalogue that the user may use.
type OfferImage struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	// Descriptions are those by language, where there are several.
	Descriptions map[string]string `json:"descriptions,omitempty"`
	// Apps that run in it.
	Apps []string `json:"apps"`
}

// OfferApp is an app description without what only nodes need.
type OfferApp struct {
	Name        string `json:"name"`
	Title       string `json:"title"`
	Description string `json:"description"`
	// Descriptions are those by language, where there are several.
	Descriptions map[string]string `json:"descriptions,omitempty"`
	Icon         string            `json:"icon"`
	Sharing      string            `json:"sharing"`
}

// GPUCount is what the cluster has of one GPU type.
type GPUCount struct {
	Type  string `json:"type"`
	Total int    `json:"total"`
	Used  int    `json:"used"`
	Free  int    `json:"free"`
	// Queued is what waiting jobs ask for.
	Queued int `json:"queued"`
	// PerNode is the most on any one node.
	PerNode int `json:"per_node"`
}

// Limits are those of the user's roles; 0 is no limit.
type Limits struct {
	Nodes   int `json:"nodes"`
	GPUs    int `json:"gpus"` // per job, all nodes
	Running int `json:"running"`
	Minutes int `json:"minutes"`
}

// Used is what counts against the limits now.
type Used struct {
	Running int `json:"running"`
	GPUs    int `json:"gpus"`
}

// Home is the answer to GET /v1/home.
type Home struct {
	OK bool `json:"ok"`
	// Message says what is wrong and the way out, empty if nothing is; Code and
	// Args as Job's EndCode and EndArgs.
	Message string   `json:"message"`
	Code    string   `json:"code,omitempty"`
	Args    []string `json:"args,omitempty"`
	FreeMB  int64    `json:"free_mb"`
	TotalMB int64    `json:"total_mb"`
}

// Stages of a job on its way to a session, in their order.
const (
	StageSending   = "sending"   // the outcome of the submission is not known yet
	StageQueued    = "queued"    // Slurm has it
	StageAllocated = "allocated" // it has its nodes
	StageImage     = "image"     // the job is sealed, its image is starting
	StageApp       = "app"       // the app is starting
	StageReady     = "ready"     // the app answers
	StageEnded     = "ended"
	StageFailed    = "failed" // it was never queued
	// StageSealed is of a job without an app, in its log alone.
	StageSealed = "sealed"
)

// Job is one of the user's Slurm jobs, a session or not.
type Job struct {
	// ID is Slurm's, as squeue prints it ("123", "123_4"); empty while a
	// submission's outcome is unknown.
	ID string `json:"id"`
	// Intent is the UUID of Start for jobs that the portal made.
	Intent    string    `json:"intent,omitempty"`
	Name      string    `json:"name"`
	User      string    `json:"user"`
	State     string    `json:"state"`            // Slurm's, RUNNING
	Reason    string    `json:"reason,omitempty"` // Slurm's, of a pending job
	Partition string    `json:"partition"`
	Account   string    `json:"account,omitempty"`
	QOS       string    `json:"qos,omitempty"`
	Nodes     []string  `json:"nodes"`
	NodeCount int       `json:"node_count"`
	CPUs      int       `json:"cpus"`
	MemoryMB  int64     `json:"memory_mb"`
	GPUs      []JobGPUs `json:"gpus"`
	Submitted time.Time `json:"submitted"`
	Started   time.Time `json:"started"`
	// Expected is when Slurm expects a job that waits to start, as far as it knows.
	Expected time.Time `json:"expected"`
	Ended    time.Time `json:"ended"`
	// Minutes is the time limit, 0 for none.
	Minutes  int    `json:"minutes"`
	ExitCode int    `json:"exit_code"`
	Signal   int    `json:"signal"`
	Carme    bool   `json:"carme"`
	Image    string `json:"image,omitempty"`
	App      string `json:"app,omitempty"`
	Stage    string `json:"stage"`
	// End is why it ended, in words; empty before. EndCode and EndArgs say the
	// same for a client that has its own words for it.
	End     string   `json:"end,omitempty"`
	EndCode string   `json:"end_code,omitempty"`
	EndArgs []string `json:"end_args,omitempty"`
	// Problem is what is wrong with the session now, in words; its code and
	// arguments as End's.
	Problem     string   `json:"problem,omitempty"`
	ProblemCode string   `json:"problem_code,omitempty"`
	ProblemArgs []string `json:"problem_args,omitempty"`
	// Host is the label of the session's origin (s-…), empty without a session.
	Host string `json:"host,omitempty"`
	// Detail is in GET /v1/jobs/{id} only.
	Detail *JobDetail `json:"detail,omitempty"`
}

// JobGPUs is a number of GPUs of one type, over all nodes.
type JobGPUs struct {
	Type  string `json:"type"`
	Count int    `json:"count"`
}

// JobDetail is what only one job's page shows.
type JobDetail struct {
	WorkDir string   `json:"work_dir"`
	Output  string   `json:"output"` // path
	Error   string   `json:"error"`  // path
	Log     []Event  `json:"log"`    // what happened, in order
	Devices []Device `json:"devices"`
	// Age and what follows are those of Jobs.
	Age         int    `json:"age"`
	Problem     string `json:"problem,omitempty"`
	ProblemCode string `json:"problem_code,omitempty"`
}

// Device is a GPU of the job as its node reported it.
type Device struct {
	Node  string `json:"node"`
	UUID  string `json:"uuid"`
	Model string `json:"model"`
}

// Event is one line of a job's progress.
type Event struct {
	Time  time.Time `json:"time"`
	Stage string    `json:"stage"`
	Text  string    `json:"text"`
	// Code and Args as Job's EndCode and EndArgs; none for what an app says.
	Code string   `json:"code,omitempty"`
	Args []string `json:"args,omitempty"`
}

// Jobs is the answer to GET /v1/jobs.
type Jobs struct {
	Jobs []Job `json:"jobs"`
	// Age is how old the picture is, in seconds; a banner says so when Slurm
	// does not answer.
	Age         int    `json:"age"`
	Problem     string `json:"problem,omitempty"`
	ProblemCode string `json:"problem_code,omitempty"`
}

// Output is the answer to GET /v1/jobs/{id}/output?stream=out|err&offset=N.
type Output struct {
	Text   string `json:"text"`
	Offset int64  `json:"offset"` // of Text, in bytes
	Next   int64  `json:"next"`   // the offset to ask with next
	Size   int64  `json:"size"`   // of the file
	// Problem says why there is no text; Code and Args as Job's EndCode and
	// EndArgs.
	Problem string   `json:"problem,omitempty"`
	Code    string   `json:"code,omitempty"`
	Args    []string `json:"args,omitempty"`
}

// Metrics is the answer to GET /v1/jobs/{id}/metrics.
type Metrics struct {
	// Times are the seconds since 1970 of every series' values.
	Times  []int64  `json:"times"`
	Series []Series `json:"series"`
}

// Series is one line of a plot; a value that is not known is null.
type Series struct {
	Node string `json:"node"`
	// Name is cpu_percent, memory_mb, io_read_mbps, io_write_mbps,
	// gpu_percent, gpu_memory_mb, gpu_power_w, gpu_energy_j.
	Name   string     `json:"name"`
	Device string     `json:"device,omitempty"` // UUID of a GPU
	Values []*float64 `json:"values"`
}

// Cluster is the answer to GET /v1/cluster.
type Cluster struct {
	GPUs  []GPUCount    `json:"gpus"`
	Nodes []ClusterNode `json:"nodes"`
	Age   int           `json:"age"`
}

// Dashboard is the answer to GET /v1/dashboard: what that page shows, in one. Its
// bytes stay the same as long as nothing of it changes.
type Dashboard struct {
	User  User  `json:"user"`
	Offer Offer `json:"offer"`
	// Broken is why nothing can be offered, nil if something can.
	Broken *Error `json:"broken,omitempty"`
	Home   Home   `json:"home"`
	// Sessions are the jobs with an app that are not over. The ages in them and in
	// Cluster are 0 as long as Slurm's picture is as young as it should be.
	Sessions Jobs    `json:"sessions"`
	Cluster  Cluster `json:"cluster"`
}

// ClusterNode is one node with what it has.
type ClusterNode struct {
	Name     string     `json:"name"`
	State    string     `json:"state"`
	GPUs     []GPUCount `json:"gpus"`
	CPUs     int        `json:"cpus"`
	CPUsUsed int        `json:"cpus_used"`
	Carme    bool       `json:"carme"` // has the feature
	Agent    bool       `json:"agent"` // was heard of in the last minute
}
