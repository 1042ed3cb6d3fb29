package core

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carme-hpc/carme/internal/version"
	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/request"
)

// Descriptors of carme-host (spank/cshim/host/host.c).
const (
	RequestFD = 3
	ResultFD  = 4
	AnchorFD  = 5
	slurmNSFD = 6
)

// Setup reads the plugin's request, does what it asks for, and writes one
// record with "error" or with what the step must know to result. An error is
// one that the plugin cannot be told.
func Setup(requestFile io.Reader, result io.Writer, anchor int) error {
	rec := new(wire.Record)
	if _, err := rec.ReadFrom(requestFile); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	c := &clock{start: time.Now()}
	answer, err := serve(rec, anchorConn{anchor}, c)
	if err != nil {
		answer = new(wire.Record)
		answer.Add("error", oneLine(err))
	}
	for _, line := range c.lines {
		answer.Add("debug", line)
	}
	if _, err := answer.WriteTo(result); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// oneLine is what a user gets to read.
func oneLine(err error) string {
	text := []byte(err.Error())
	for i, b := range text {
		if b < ' ' {
			text[i] = ' '
		}
	}
	return string(text)
}

// clock keeps the times of the set-up's steps, for --carme-debug.
type clock struct {
	start  time.Time
	wanted bool
	lines  []string
}

func (c *clock) lap(what string) {
	if !c.wanted {
		return
	}
	c.lines = append(c.lines, fmt.Sprintf("%6.1f ms  %s", float64(time.Since(c.start).Microseconds())/1000, what))
}

func serve(rec *wire.Record, anchor anchorConn, c *clock) (*wire.Record, error) {
	j, err := newJob(rec)
	if err != nil {
		return nil, err
	}
	j.plugin = anchorConn{ResultFD}
	c.wanted = j.request.Debug
	c.lap("read the request")
	if err := j.decide(); err != nil {
		return nil, err
	}
	err = withHostMounts(func(mnt int) error {
		if err := j.checkImage(mnt); err != nil {
			return err
		}
		j.conda, err = j.findConda(mnt)
		return err
	})
	if err != nil {
		return nil, err
	}
	c.lap("checked it against the site's policy")
	switch mode, _ := rec.Get("mode"); mode {
	case "first":
		if !j.plan.Request.Enabled {
			return nil, errors.New("the plugin asked for a job that is not to be sealed; tell the admin")
		}
		return j.first(rec, anchor, c)
	case "later":
		return j.later(anchor)
	default:
		return nil, fmt.Errorf("unknown mode %q of the request", mode)
	}
}

// first sets the job up on this node.
func (j *job) first(rec *wire.Record, anchor anchorConn, c *clock) (*wire.Record, error) {
	if err := j.findDevices(anchor); err != nil {
		return nil, err
	}
	c.lap("asked the kernel which devices are the job's")
	if err := j.makePmixDir(); err != nil {
		return nil, err
	}
	if err := j.makeSessionDir(); err != nil {
		return nil, err
	}
	var proof []byte
	err := onThread(func() (err error) {
		s := &sandbox{job: j, hostNS: map[string]uint64{}, ns: map[string]int{}}
		defer closeAll(s.ns)
		proof, err = j.enclose(s, rec, anchor, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Here the job's directory is the node's, not what the job sees there.
	if err := writeProof(filepath.Join(j.dir(), proofName), proof); err != nil {
		return nil, err
	}
	if err := j.register(); err != nil {
		return nil, err
	}
	c.lap("wrote the proof")
	if _, err := anchor.call("completed", ofType("complete")); err != nil {
		return nil, err
	}
	answer := new(wire.Record)
	answer.Add("ok", "1")
	return answer, nil
}

// enclose makes the namespaces, hands them to the anchor, and returns the proof.
func (j *job) enclose(s *sandbox, rec *wire.Record, anchor anchorConn, c *clock) ([]byte, error) {
	if err := s.build(); err != nil {
		return nil, err
	}
	c.lap("made the namespaces and mounts")
	started, err := anchor.call("started", j.startRecord(s, rec), s.fds()...)
	if err != nil {
		return nil, err
	}
	c.lap("started PID 1")
	if err := s.proc(); err != nil {
		return nil, err
	}
	if j.plan.Image != nil {
		if err := j.startContainer(anchor); err != nil {
			return nil, err
		}
		c.lap("started the container, which goes on by itself")
	}
	if j.anchorPID, err = number(started, "pid"); err != nil {
		return nil, err
	}
	proof, err := j.proof(s, started)
	if err != nil {
		return nil, err
	}
	return proof, s.seal(proof)
}

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

// findDevices opens the node's devices and asks the kernel, through the anchor
// in the job's own cgroups, which GPUs are the job's.
func (j *job) findDevices(anchor anchorConn) error {
	nodes, caps, err := hostGPUs()
	if err != nil {
		return err
	}
	known, err := knownGPUs()
	if err != nil {
		return err
	}
	j.gpus = describe(nodes, known)
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

// proof writes down what was made.
func (j *job) proof(s *sandbox, started *wire.Record) ([]byte, error) {
	p := &wire.Proof{
		Version: wire.ProofVersion, JobID: j.id, UID: j.person.UID, GID: j.person.GID, User: j.person.Name,
		Node: j.node, Instance: j.instance, Created: time.Now().UTC(), Slurm: j.slurm, Carme: version.String(),
		Net: j.plan.Request.Net, Mounts: s.mounts,
		Cgroup: wire.ProofCgroup{Version: j.cgroupV, ConstrainDevices: j.constrain == constrainYes},
	}
	p.StepID = j.stepNumber()
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

// follow gives a later step what it has not asked for itself as the job's first
// step got it, and lets the policy judge that for its image.
func (j *job) follow(first request.Request) error {
	if !j.request.Enabled {
		j.plan.Request.Net = first.Net
		return nil
	}
	j.request.Net = first.Net
	j.request.Home = first.Home
	j.request.App = first.App
	j.request.Binds = first.Binds
	if len(j.request.ImageBinds) == 0 {
		j.request.ImageBinds = first.ImageBinds
	}
	if first.Image != request.ImageNone {
		j.request.Overlay = first.Overlay
	}
	return j.decide()
}

// later checks the options of a further step against the job's first and
// starts its container, if it is another one.
func (j *job) later(anchor anchorConn) (*wire.Record, error) {
	join := ofType("join")
	joined, err := anchor.call("joined", join)
	if err != nil {
		return nil, err
	}
	firstRequest, err := request.FromRecord(joined)
	if err != nil {
		return nil, fmt.Errorf("read the options of the first step: %w", err)
	}
	if err := firstRequest.JobLevelDiff(j.request); err != nil {
		return nil, err
	}
	if err := j.follow(firstRequest); err != nil {
		return nil, err
	}
	answer := new(wire.Record)
	answer.Add("ok", "1")
	j.spool, _ = joined.Get("spool")
	j.instance, _ = joined.Get("instance")
	j.addStep(answer)
	if j.plan.Image == nil {
		return answer, nil
	}
	if err := j.laterBinds(joined.All(boundKey)); err != nil {
		return nil, err
	}
	return answer, j.startContainer(anchor)
}
