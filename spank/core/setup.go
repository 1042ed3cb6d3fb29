package core

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/request"
)

// modeEarly is the mode of a set-up that the extern step has begun
// (spank/cshim/early.c). It has no one to ask.
const modeEarly = "early"

// modeLater is that of a further step of the job.
const modeLater = "later"

// errLater is read by nobody.
var errLater = errors.New("this takes what the extern step does not know; the job's first step sets it up")

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
		answer.Add("error", oneLine(request.InputFromRecord(rec).Named(err)))
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
	if j.early && j.plan.Image != nil { // the site's default, of which the plugin knew nothing
		return nil, errLater
	}
	mode, _ := rec.Get("mode")
	err = withHostMounts(func(mnt int) error {
		if err := j.checkImage(mnt); err != nil {
			return err
		}
		j.conda, err = j.findConda(mnt)
		if err != nil || mode == modeLater { // see later
			return err
		}
		return j.takeOverlay(mnt)
	})
	if err != nil {
		return nil, err
	}
	c.lap("checked it against the site's policy")
	switch mode {
	case "first", modeEarly:
		if !j.plan.Request.Enabled {
			return nil, errors.New("the plugin asked for a job that is not to be sealed; tell the admin")
		}
		return j.first(rec, anchor, c)
	case modeLater:
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
	if _, held := joined.Get(overlayHeldKey); !held {
		if err := withHostMounts(j.takeOverlay); err != nil {
			return nil, err
		}
	}
	return answer, j.startContainer(anchor)
}
