package wire

import "time"

// Files in a job's directory and in its view of itself.
const (
	// SessionFile in /run/carme/jobs/JOBID is a Session, for the agent.
	SessionFile = "session.json"
	// AppFile in /run/carme/job, inside a job, is an App.
	AppFile = "app.json"
	// StatusFile in the session's directory is written by the program that runs
	// the app, as the user: a first line AppStarting, AppReady or AppEnded, and
	// a second with a text. Who reads it must not trust it.
	StatusFile = "status"
)

// States of an app in StatusFile.
const (
	AppStarting = "starting"
	AppReady    = "ready"
	AppEnded    = "ended"
)

// Session is what the agent of a node must know of a sealed job.
type Session struct {
	Job  uint32   `json:"job"`
	UID  uint32   `json:"uid"`
	GID  uint32   `json:"gid"`
	GIDs []uint32 `json:"gids"`
	User string   `json:"user"`
	Home string   `json:"home"`
	// Instance is 128 random bits in hex, new for each set-up.
	Instance string `json:"instance"`
	Node     string `json:"node"`
	// App and Socket (its name in the session's directory) are empty without an
	// app.
	App    string `json:"app"`
	Socket string `json:"socket"`
	Image  string `json:"image"` // path, empty for none
	Net    string `json:"net"`
	// Anchor is the process that lives as long as the job on this node.
	Anchor int `json:"anchor"`
	// Cgroups are the job's directories, one per hierarchy.
	Cgroups []string        `json:"cgroups"`
	Devices []SessionDevice `json:"devices"`
	Started time.Time       `json:"started"`
}

// SessionDevice is one GPU of a sealed job.
type SessionDevice struct {
	Path  string `json:"path"`
	Minor uint32 `json:"minor"`
	UUID  string `json:"uuid"`
	Model string `json:"model"`
}

// App is what the program that runs an app must know; internal/config.App says
// what the fields mean.
type App struct {
	Name          string            `json:"name"`
	Title         string            `json:"title"`
	Command       []string          `json:"command"`
	Env           map[string]string `json:"env"`
	Socket        string            `json:"socket"`
	Files         map[string]string `json:"files"`
	PythonHidden  []string          `json:"python_hidden"`
	HealthPath    string            `json:"health_path"`
	HealthStatus  []int             `json:"health_status"`
	HealthSeconds int               `json:"health_seconds"`
}
