package core

import "github.com/carme-hpc/carme/spank/request"

// plan is what the policy made of a request: nothing in it is open any more.
type plan struct {
	Net      string // request.NetHost or NetPrivate
	Home     bool
	Workdir  string // empty: Slurm's
	TmpSize  string // of each private directory, as tmpfs takes it
	ShmSize  string
	Binds    []request.Bind
	Image    *image
	Overlay  string // request.OverlayNone, OverlayTmpfs or a directory
	Devices  []string
	Runtime  string // path of apptainer
	Passthru []string
}

// image is the container of a step.
type image struct {
	Name, Path, Format string
	NV         bool
	Env        []string // NAME=VALUE
}

// key names the container among those of the job.
func (i *image) key() string {
	if i == nil {
		return ""
	}
	return i.Path
}
