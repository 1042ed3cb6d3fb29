package core

import (
	"maps"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/request"
)

// fds are the namespaces in the order in which startRecord names them.
func (s *sandbox) fds() []int {
	var fds []int
	for _, kind := range namespaceKinds {
		if fd, ok := s.ns[kind]; ok {
			fds = append(fds, fd)
		}
	}
	return fds
}

// startRecord tells the anchor of the job; it hands most of it on to steps
// (spank/cshim/step.c, task.c, proof.c).
func (j *job) startRecord(s *sandbox, rec *wire.Record) *wire.Record {
	out := ofType("start")
	for _, kind := range namespaceKinds {
		if _, ok := s.ns[kind]; ok {
			out.Add("ns", kind)
		}
	}
	out.Add("job", strconv.FormatUint(uint64(j.id), 10))
	out.Add("uid", strconv.FormatUint(uint64(j.person.UID), 10))
	out.Add("gid", strconv.FormatUint(uint64(j.person.GID), 10))
	for _, g := range j.person.GIDs {
		out.Add("gids", strconv.FormatUint(uint64(g), 10))
	}
	out.Add("instance", j.instance)
	out.Add("spool", j.spool)
	if j.plan.App != nil {
		out.Add("app", j.plan.App.Name)
	}
	for _, f := range rec.Fields() {
		if isOption(f.Key) {
			out.Add(f.Key, f.Value)
		}
	}
	j.plan.Request.AppendTo(out)
	for place, arg := range j.sources {
		source, _, _ := strings.Cut(arg, ":")
		out.Add(boundKey, source+":"+place)
	}
	if scope, _ := rec.Get("env.CARME_SCOPE"); scope == "step" && stepNumbers[j.step] == 0 {
		out.Add("scope", "step")
	}
	if j.constrain != constrainYes {
		out.Add("filter.own", "1")
	}
	dropped, always, passed := j.policy.EnvPatterns()
	for key, patterns := range map[string][]string{"drop": dropped, "drop.always": always, "pass": passed} {
		for _, p := range patterns {
			out.Add(key, p)
		}
	}
	for _, g := range j.gpus {
		uuid := g.UUID
		if len(g.MIG) > 0 {
			uuid = "" // programs use its MIG devices, not the GPU
		}
		addDevice(out, g.device, -1, uuid)
	}
	for _, c := range j.caps {
		addDevice(out, c.device, c.gpu, c.uuid)
	}
	j.addStep(out)
	return out
}

// addStep tells what may differ from step to step: for the first one in the
// record of the job, for a later one with options of its own in the answer.
func (j *job) addStep(out *wire.Record) {
	out.Add("image", j.plan.imageKey())
	out.Add("workdir", j.plan.Request.Workdir)
	if j.conda != "" {
		out.Add("path.front", filepath.Join(j.conda, "bin"))
	}
	for name, value := range j.environment() {
		out.AddEnv(name, value)
	}
}

// addDevice describes one device to the proof that each task makes, in the
// order of the probe; parent is the index of the GPU to which a capability file
// belongs, -1 for a GPU itself.
func addDevice(out *wire.Record, d *device, parent int, uuid string) {
	own := "0"
	if d.Own {
		own = "1"
	}
	out.Add("dev.path", d.Path)
	out.Add("dev.uuid", uuid)
	out.Add("dev.own", own)
	out.Add("dev.index", d.Index)
	out.Add("dev.parent", strconv.Itoa(parent))
}

// isOption reports whether a field of the request is an option as the user
// gave it, by which a later step is compared with the first.
func isOption(key string) bool {
	for _, o := range request.Options() {
		if key == request.RecordKey(o.Name) {
			return true
		}
	}
	return false
}

// environment is what every task of the job gets.
func (j *job) environment() map[string]string {
	env := map[string]string{
		"SLURM_PMIX_TMPDIR":  j.pmixDir(),
		"XDG_RUNTIME_DIR":    runtimeDir(j.person),
		"CARME_JOB_INSTANCE": j.instance,
		"CARME_JOB_NET":      j.plan.Request.Net,
		"CARME_JOB_IMAGE":    j.plan.imageKey(),
	}
	if j.plan.App != nil {
		env["CARME_JOB_APP"] = j.plan.App.Name
	}
	if j.plan.Image != nil {
		// As the runtime sets them where it is given the path (apptainer(1)).
		for _, runtime := range []string{"APPTAINER", "SINGULARITY"} {
			env[runtime+"_CONTAINER"] = j.plan.imageKey()
			env[runtime+"_NAME"] = filepath.Base(j.plan.imageKey())
		}
	}
	if j.conda != "" {
		maps.Copy(env, condaEnvironment(j.plan.Request.Conda, j.conda))
	}
	return env
}
