package core

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/gpu"
	"github.com/carme-hpc/carme/spank/policy"
	"github.com/carme-hpc/carme/spank/request"
)

// job is what one set-up is about.
type job struct {
	id       uint32
	step     string // "0", "batch", "interactive"
	whose    func() (person, error)
	person   person // once whose() has been asked
	slurm    string
	node     string
	spool    string // SlurmdSpoolDir
	slurmLib string // where Slurm's library and plugins lie
	slurmNS  bool   // Slurm has made a mount namespace for the job
	early    bool   // the extern step asks, not a step
	conda    string // prefix of the conda environment, empty for none
	instance string // 128 random bits in hex
	// submitDir is where srun or sbatch was called, as the environment of the job
	// says; submitBind is the index of its bind, -1 for none.
	submitDir  string
	submitBind int
	request    request.Request   // as asked for
	options    []wire.Field      // the same as Slurm had them, by name
	plan       plan              // as allowed
	image      int               // the image as a mount that is nowhere yet, with one
	imageView  string            // where the runtime finds it
	overlay    int               // the locked file of the overlay's directory, -1 for none
	sources    map[string]string // the runtime's argument for each bind, by place
	policy     *policy.Policy
	owner      policy.User
	cgroups    []jobCgroup
	cgroupV    int
	plugin     anchorConn // answers what Slurm gave to the job (spank/cshim/setup.c)
	anchorPID  uint32     // of the anchor, on the node
	constrain  string     // ConstrainDevices as slurmstepd has it
	ownFilter  bool       // the device filter is Carme's
	devices    []*device  // all that may appear in the job's /dev
	gpus       []hostGPU
	caps       []hostCap
}

// hostGPU is one GPU node of the host with what is known of it.
type hostGPU struct {
	device *device
	gpu.GPU
}

// hostCap is a MIG capability file of the host.
type hostCap struct {
	device *device
	gpu    int    // index of its GPU in job.gpus, -1 if unknown
	uuid   string // of the MIG device, for the file of a compute instance
}

// stepNumbers are Slurm's ids of steps that have names (slurm/slurm.h).
var stepNumbers = map[string]uint32{"batch": 0xfffffffb, "interactive": 0xfffffffa, "extern": 0xfffffffc}

// newInstance draws random bits from the kernel (getrandom(2)), as crypto/rand
// does, whose packages take longer to load and start than all of the core.
func newInstance() (string, error) {
	var b [16]byte
	// So few bytes come whole or not at all.
	if n, err := unix.Getrandom(b[:], 0); err != nil || n != len(b) {
		return "", fmt.Errorf("draw a random instance: %d bytes: %w", n, err)
	}
	return hex.EncodeToString(b[:]), nil
}

// jobsDir holds one directory per sealed job; spank/cshim/job.c makes it.
const jobsDir = "/run/carme/jobs"

// proofName is the record's, in the job's directory and in jobView.
const proofName = "proof.json"

func (j *job) dir() string {
	return filepath.Join(jobsDir, strconv.FormatUint(uint64(j.id), 10))
}

// pmixDir is SLURM_PMIX_TMPDIR: slurmstepd makes the directories of PMIx
// there, on the host, and the tasks look for them under the same path.
func (j *job) pmixDir() string { return filepath.Join(j.dir(), "pmix") }

// makePmixDir makes it. Others must be able to walk through it, on the way to
// their own directories in it.
func (j *job) makePmixDir() error {
	err := os.Mkdir(j.pmixDir(), 0o711)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make PMIx's directory: %w", err)
	}
	return nil
}

// numbers reads decimal ids of 32 bits.
func numbers(texts []string) ([]uint32, error) {
	ids := make([]uint32, 0, len(texts))
	for _, t := range texts {
		n, err := strconv.ParseUint(t, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read a number of the request: %w", err)
		}
		ids = append(ids, uint32(n))
	}
	return ids, nil
}

// number reads one number that must be there.
func number(rec *wire.Record, key string) (uint32, error) {
	ids, err := numbers(rec.All(key))
	if err != nil {
		return 0, err
	}
	if len(ids) != 1 {
		return 0, fmt.Errorf("the request has %d values of %s, not one", len(ids), key)
	}
	return ids[0], nil
}

// newJob reads a request of the plugin (spank/cshim/step.c).
func newJob(rec *wire.Record) (*job, error) {
	j := &job{submitBind: -1, overlay: -1, sources: map[string]string{}}
	var err error
	if j.id, err = number(rec, "job"); err != nil {
		return nil, err
	}
	uid, err := number(rec, "uid")
	if err != nil {
		return nil, err
	}
	gid, err := number(rec, "gid")
	if err != nil {
		return nil, err
	}
	gids, err := numbers(rec.All("gids"))
	if err != nil {
		return nil, err
	}
	j.whose = startLookUp(uid, gid, gids)
	j.step, _ = rec.Get("step")
	j.slurm, _ = rec.Get("slurm")
	j.spool, _ = rec.Get("spool")
	j.slurmLib, _ = rec.Get("slurmlib")
	j.constrain, _ = rec.Get("constrain")
	_, j.slurmNS = rec.Get("slurmns")
	mode, _ := rec.Get("mode")
	j.early = mode == modeEarly
	j.submitDir, _ = rec.Get("env.SLURM_SUBMIT_DIR")
	if j.node, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("ask for the name of this node: %w", err)
	}
	if j.instance, err = newInstance(); err != nil {
		return nil, err
	}
	if j.request, err = parse(request.InputFromRecord(rec)); err != nil {
		return nil, err
	}
	if shards, ok := rec.Get("env.SLURM_SHARDS_ON_NODE"); ok && shards != "0" {
		return nil, errors.New("gres/shard lets several jobs share a GPU, which --carme cannot seal off; ask for whole GPUs or MIG devices with --gres=gpu:N")
	}
	for _, o := range request.Options() {
		values := rec.All(request.RecordKey(o.Name))
		if len(values) == 0 {
			values = rec.All(request.InheritedKey(o.Name))
		}
		for _, value := range values {
			j.options = append(j.options, wire.Field{Key: strings.ReplaceAll(o.Name, "-", "_"), Value: value})
		}
	}
	return j, nil
}

// parse reads the options of a step and those with which its job was submitted,
// which the plugin sends as inherited ones where they are known.
func parse(in request.Input) (request.Request, error) {
	step, err := request.Parse(in)
	if err != nil {
		return step, err
	}
	in.Options = slices.DeleteFunc(slices.Clone(in.Options), func(g request.Given) bool { return !g.Inherited })
	if len(in.Options) == 0 {
		return step, nil
	}
	job, err := request.Parse(in)
	if err != nil {
		return step, err
	}
	return step, job.Contradicts(step)
}

// optionLines are the job's options as carme_NAME=VALUE, one on a line; they
// hold no newline, since the grammar refuses control characters.
func (j *job) optionLines() []byte {
	var out []byte
	for _, o := range j.options {
		out = append(out, o.Key+"="+o.Value+"\n"...)
	}
	return out
}

// closeAll closes descriptors.
func closeAll(fds map[string]int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
