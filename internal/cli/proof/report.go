package proof

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/carme-hpc/carme/internal/wire"
)

// Where the record is, below the root of the file system.
const (
	insidePath = "run/carme/job/proof.json"
	jobsDir    = "run/carme/jobs"
)

// ErrNoJob says that there is no isolated job around this process.
var ErrNoJob = errors.New("this is not inside an isolated job; start one with srun --carme, or give a JOBID on its node as root")

// Report is the answer of `carme proof`.
type Report struct {
	// OK says that no check failed, neither at set-up nor now.
	OK bool `json:"ok"`
	// Record is what was made at set-up.
	Record *wire.Proof `json:"record"`
	// Live are the checks made now, nil for a job seen from outside.
	Live []wire.Check `json:"live"`
	// GPUs are those that NVML lists to this process now; never null.
	GPUs []SeenGPU `json:"gpus"`
}

// SeenGPU is a GPU as NVML shows it to this process.
type SeenGPU struct {
	Minor uint32   `json:"minor"`
	UUID  string   `json:"uuid"`
	PCI   string   `json:"pci"`
	Model string   `json:"model"`
	MIG   []string `json:"mig_uuids,omitempty"`
}

// Inside reads the record of the job around this process, below root. It fails
// with ErrNoJob if there is none.
func Inside(root string) (*wire.Proof, error) {
	p, err := read(root, insidePath)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoJob
	}
	return p, err
}

// CheckID says what is wrong with the id of a job.
func CheckID(id string) error {
	if _, err := strconv.ParseUint(id, 10, 32); err != nil {
		return fmt.Errorf("%q is no id of a job; for a task of an array or a component of a heterogeneous job, take the id that scontrol show job prints as JobId", id)
	}
	return nil
}

// OfJob reads the record of a job on this node, below root, as only root can.
// The id is that of one job: an array task has one of its own.
func OfJob(root, id string) (*wire.Proof, error) {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return nil, CheckID(id)
	}
	p, err := read(root, fmt.Sprintf("%s/%d/proof.json", jobsDir, n))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("job %d is not isolated on this node, or has ended; ask on the node where it runs", n)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("job %d: only root may look from outside; inside the job: carme proof", n)
	case err != nil:
		return nil, err
	case uint64(p.JobID) != n:
		return nil, fmt.Errorf("the record of job %d is that of job %d", n, p.JobID)
	}
	return p, nil
}

func read(root, name string) (*wire.Proof, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	f, err := dir.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return wire.DecodeProof(f)
}

// New makes a report of a record and the checks made now.
func New(p *wire.Proof, live []wire.Check, gpus []SeenGPU) Report {
	if gpus == nil {
		gpus = []SeenGPU{}
	}
	r := Report{OK: p.Failed() == 0, Record: p, Live: live, GPUs: gpus}
	for _, c := range live {
		r.OK = r.OK && c.OK
	}
	return r
}

// WriteJSON writes the report as JSON.
func (r Report) WriteJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// WriteText writes the report for a person.
func (r Report) WriteText(out io.Writer) error {
	w := &writer{tab: tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
	p := r.Record
	w.line("job %d of %s (uid %d) on %s, isolated since %s", p.JobID, p.User, p.UID, p.Node, p.Created.Format(time.RFC3339))
	w.line("Carme %s, Slurm %s, instance %s", p.Carme, p.Slurm, p.Instance)
	w.line("")
	w.row("network", p.Net)
	w.row("image", imageText(p.Image))
	w.row("cgroup", fmt.Sprintf("v%d %s, device filter: %s", p.Cgroup.Version, p.Cgroup.JobPath, filterText(p.Cgroup)))
	for _, o := range p.Options {
		w.row("option", "--"+strings.TrimSuffix(o.Name+"="+o.Value, "="))
	}
	w.line("\nNamespaces of its own")
	for _, ns := range p.Namespaces {
		state := "own"
		if ns.JobInode == ns.HostInode {
			state = "shared with the node"
		}
		w.row(ns.Kind, state, strconv.FormatUint(ns.JobInode, 10), "node: "+strconv.FormatUint(ns.HostInode, 10))
	}
	w.line("\nDevices")
	for _, d := range p.Devices {
		w.row(d.Path, d.Kind, fmt.Sprintf("%d:%d", d.Major, d.Minor), gpuText(d.Model, d.UUID, d.PCI, d.MIGUUIDs))
	}
	w.line("\nMounts")
	for _, m := range p.Mounts {
		w.row(m.Target, m.Kind, m.Source, m.Options)
	}
	if len(r.GPUs) > 0 {
		w.line("\nGPUs that NVML lists here")
		for _, g := range r.GPUs {
			w.row(fmt.Sprintf("/dev/nvidia%d", g.Minor), gpuText(g.Model, g.UUID, g.PCI, g.MIG))
		}
	}
	w.line("\nChecks when the job was set up")
	w.checks(p.Checks)
	if r.Live != nil {
		w.line("\nChecks now, from inside")
		w.checks(r.Live)
	}
	w.line("")
	if r.OK {
		w.line("The job is isolated: every check is OK.")
	} else {
		w.line("A check FAILED: tell the admin of this cluster, and do not rely on the isolation.")
	}
	return w.finish()
}

// writer writes lines and rows, and keeps the first error.
type writer struct {
	tab *tabwriter.Writer
	err error
}

// print writes a line. A path of a user can hold anything, and an admin reads
// this: what cannot be printed becomes a question mark, so that nothing can
// make a row or move a cursor.
func (w *writer) print(format string, args ...any) {
	for i, a := range args {
		if s, isText := a.(string); isText {
			args[i] = plain(s)
		}
	}
	if _, err := fmt.Fprintf(w.tab, format, args...); err != nil && w.err == nil {
		w.err = err
	}
}

// line ends the table before it, so that tables do not widen each other.
func (w *writer) line(format string, args ...any) {
	if err := w.tab.Flush(); err != nil && w.err == nil {
		w.err = err
	}
	w.print(format+"\n", args...)
}

func (w *writer) row(name string, cells ...string) {
	for len(cells) > 0 && cells[len(cells)-1] == "" {
		cells = cells[:len(cells)-1]
	}
	w.print("  %s", name)
	for _, cell := range cells {
		w.print("\t%s", cell)
	}
	w.print("\n")
}

func plain(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '?'
	}, s)
}

func (w *writer) checks(checks []wire.Check) {
	for _, c := range checks {
		state := "OK"
		if !c.OK {
			state = "FAIL"
		}
		w.row(state, c.Name, c.Detail)
	}
}

func (w *writer) finish() error {
	if err := w.tab.Flush(); err != nil && w.err == nil {
		w.err = err
	}
	if w.err != nil {
		return fmt.Errorf("write report: %w", w.err)
	}
	return nil
}

func imageText(i *wire.ProofImage) string {
	switch {
	case i == nil:
		return "none"
	case i.Name == "":
		return fmt.Sprintf("%s (%s)", i.Path, i.Format)
	}
	return fmt.Sprintf("%s (%s, %s)", i.Name, i.Path, i.Format)
}

func filterText(c wire.ProofCgroup) string {
	if c.ConstrainDevices {
		return "Slurm's"
	}
	return "Carme's"
}

func gpuText(model, uuid, pci string, mig []string) string {
	words := []string{}
	for _, s := range append([]string{model, uuid, pci}, mig...) {
		if s != "" {
			words = append(words, s)
		}
	}
	return strings.Join(words, "  ")
}
