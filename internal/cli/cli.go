package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/spf13/cobra"

	"github.com/carme-hpc/carme/internal/cli/doctor"
	"github.com/carme-hpc/carme/internal/cli/proof"
	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/slurm"
	"github.com/carme-hpc/carme/internal/version"
	"github.com/carme-hpc/carme/internal/wire"
	"github.com/carme-hpc/carme/spank/gpu"
	"github.com/carme-hpc/carme/spank/policy"
	"github.com/carme-hpc/carme/spank/request"
)

// Exit statuses of carme.
const (
	exitOK = 0
	// exitFailed: a check failed, or the command could not be done.
	exitFailed = 1
	// exitUsage: it was called wrongly.
	exitUsage = 2
)

// errChecks says that a report was printed in which a check failed.
var errChecks = errors.New("a check failed")

// usageError is a mistake on the command line.
type usageError struct{ error }

// Machine is what the commands know of the machine they run on.
type Machine struct {
	// Root is the root of the file system: "/".
	Root string
	// UID is who runs this.
	UID uint32
	// Node is this machine's short host name.
	Node string
	// Groups returns the names of the caller's groups.
	Groups func() ([]string, error)
	// Run runs other programs.
	Run slurm.Runner
	// NVML lists GPUs.
	NVML gpu.Library
	// Open opens a device and closes it.
	Open func(path string) error
	// Object reads a shared library.
	Object func(path string) (doctor.Object, error)
	// Now is the time.
	Now func() time.Time
	// TrustOwner leaves out checks that files belong to root, for tests.
	TrustOwner bool
}

// Real is the machine this process runs on.
func Real() Machine {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	host, _, _ = strings.Cut(host, ".")
	return Machine{
		Root: "/", UID: uint32(os.Getuid()), Node: host, Groups: groups, //nolint:gosec // a user id
		Run: slurm.Exec, NVML: nvml.New(), Open: proof.OpenDevice, Object: doctor.ReadObject, Now: time.Now,
	}
}

// groups asks the node's name service for the names of this process's groups.
// A group without a name is left out.
func groups() ([]string, error) {
	ids, err := os.Getgroups()
	if err != nil {
		return nil, fmt.Errorf("list own groups: %w", err)
	}
	var names []string
	for _, id := range append(ids, os.Getgid()) {
		if g, err := user.LookupGroupId(fmt.Sprint(id)); err == nil {
			names = append(names, g.Name)
		}
	}
	return names, nil
}

// Run runs carme with these arguments and returns its exit status: 0, 1 if a
// check failed or something could not be done, 2 for a wrong command line.
// Errors are one line, prefixed `carme:`.
func Run(ctx context.Context, m Machine, args []string, stdout, stderr io.Writer) int {
	cmd := m.command(stdout)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errChecks):
		return exitFailed
	}
	fmt.Fprintf(stderr, "carme: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if _, wrong := errors.AsType[usageError](err); wrong {
		return exitUsage
	}
	return exitFailed
}

// command builds the tree of commands.
func (m Machine) command(out io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "carme",
		Short:         "Isolated jobs on this cluster",
		Long:          "carme shows what a job is isolated from and which images there are, and examines nodes.\nJobs are isolated with srun --carme, sbatch --carme and salloc --carme: see srun --carme=help.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version.String(),
		Args:          subcommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("carme {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; %s --help lists the options", err, cmd.CommandPath())}
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(m.proof(out), m.doctor(out), m.images(out), m.setup(out), versionCommand(out))
	root.AddCommand(headCommands(out)...)
	return root
}

// args makes a mistake in the arguments one of usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if check(cmd, given) == nil {
			return nil
		}
		what := "something is missing"
		if len(given) > 0 {
			what = fmt.Sprintf("%d arguments are not what it takes", len(given))
			if len(given) == 1 {
				what = fmt.Sprintf("%q is not what it takes", given[0])
			}
		}
		return usageError{fmt.Errorf("%s: %s; usage: %s", cmd.CommandPath(), what, cmd.UseLine())}
	}
}

// subcommand refuses what is none.
func subcommand(cmd *cobra.Command, given []string) error {
	if len(given) == 0 {
		return nil
	}
	meant := ""
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(given[0]); len(like) > 0 {
		meant = fmt.Sprintf("did you mean %q? ", like[0])
	}
	return usageError{fmt.Errorf("%s has no command %q; %s%s --help lists them", cmd.CommandPath(), given[0], meant, cmd.CommandPath())}
}

func (m Machine) proof(out io.Writer) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "proof [JOBID]",
		Short: "Show what a job is isolated from",
		Long: "Inside an isolated job, shows what it was isolated from when it was set up, and checks it\n" +
			"again from where it is called. With JOBID, as root on the job's node, shows the record only.\n" +
			"Exit status 1 if a check failed.",
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, ids []string) error {
			report, err := m.report(cmd.Context(), ids)
			if err != nil {
				return err
			}
			return finish(out, report, asJSON, report.OK)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// report makes the report of the job around this process, or of the one named.
func (m Machine) report(ctx context.Context, ids []string) (proof.Report, error) {
	record, err := proof.Inside(m.Root)
	if len(ids) > 0 {
		if err := proof.CheckID(ids[0]); err != nil {
			return proof.Report{}, usageError{err}
		}
	}
	if len(ids) > 0 && (err != nil || fmt.Sprint(record.JobID) != ids[0]) {
		if record, err = proof.OfJob(m.Root, ids[0]); err != nil {
			return proof.Report{}, err
		}
		return proof.New(record, nil, nil), nil
	}
	if err != nil {
		return proof.Report{}, err
	}
	inspector := proof.Inspector{Root: m.Root, UID: m.UID, Open: m.Open, NVML: m.NVML}
	var live []wire.Check
	live, gpus := inspector.Live(ctx, record)
	return proof.New(record, live, gpus), nil
}

// inside is the record of the sealed job around this process, nil if there is none.
func (m Machine) inside() (*wire.Proof, error) {
	record, err := proof.Inside(m.Root)
	if errors.Is(err, proof.ErrNoJob) {
		return nil, nil
	}
	return record, err
}

func (m Machine) has(name string) bool {
	_, err := os.Stat(filepath.Join(m.Root, name))
	return err == nil
}

// printable is a report in both forms.
type printable interface {
	WriteText(io.Writer) error
	WriteJSON(io.Writer) error
}

// finish prints a report, and fails if one of its checks did.
func finish(out io.Writer, report printable, asJSON, passed bool) error {
	write := report.WriteText
	if asJSON {
		write = report.WriteJSON
	}
	if err := write(out); err != nil {
		return err
	}
	if !passed {
		return errChecks
	}
	return nil
}

func (m Machine) doctor(out io.Writer) *cobra.Command {
	var asJSON, clean, feature bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine this node",
		Long: "Looks for what keeps srun --carme from working on this node, and says how to mend it.\n" +
			"Changes nothing, except with --clean and --feature. Exit status 1 if a check failed.",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			record, err := m.inside()
			if err != nil {
				return err
			}
			if record != nil {
				return fmt.Errorf("this is inside isolated job %d, where the node is not to be seen; carme proof examines the job, and carme doctor the node, outside of jobs, as root", record.JobID)
			}
			if m.UID != 0 && m.Root == "/" {
				return errors.New("whether this node is ready cannot be told: only root may see its devices, cgroups and Carme's directories; run it as root, sudo carme doctor")
			}
			d := doctor.Doctor{
				Root: m.Root, Node: m.Node, Run: m.Run, NVML: m.NVML, Object: m.Object, Now: m.Now, TrustOwner: m.TrustOwner,
			}
			if d.NoNode(cmd.Context()) {
				return fmt.Errorf("%s is no compute node: it has no slurmd, and Slurm knows no node of that name; run carme doctor on the nodes", m.Node)
			}
			if clean {
				removed, err := d.Clean(cmd.Context())
				if err != nil {
					return err
				}
				if len(removed) > 0 && !asJSON {
					fmt.Fprintf(out, "removed what was left of job %s\n", strings.Join(removed, ", "))
				}
			}
			report := d.Examine(cmd.Context())
			if feature {
				if _, err := d.KeepFeature(cmd.Context(), report); err != nil {
					return err
				}
			}
			return finish(out, report, asJSON, report.OK)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&clean, "clean", false, "first remove what ended jobs left behind")
	cmd.Flags().BoolVar(&feature, "feature", false, "give the node Slurm's feature carme if every check passes, else take it away")
	cmd.Flags().StringVar(&m.Root, "root", m.Root, "look at the files of another root directory")
	return cmd
}

func (m Machine) images(out io.Writer) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List the images you may use",
		Long:  "Lists the images of the catalogue that you may use, as srun --carme=list does.",
		Args:  args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			record, err := m.inside()
			if err != nil {
				return err
			}
			if record != nil && !m.has(config.SpankFile) && !m.has(config.ImagesDir) {
				return fmt.Errorf("this is inside isolated job %d, in an image that does not show the site's catalogue; ask outside of the job, with carme images or srun --carme=list", record.JobID)
			}
			cfg, err := config.Load(config.Source{Root: m.Root, TrustOwner: m.TrustOwner})
			if err != nil {
				return fmt.Errorf("read configuration: %w", err)
			}
			groups, err := m.Groups()
			if err != nil {
				return err
			}
			images := policy.New(cfg).Images()
			if asJSON {
				return writeImages(out, images, groups)
			}
			_, err = io.WriteString(out, request.List(images, groups))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// writeImages prints the images that a user in these groups may use, by name.
func writeImages(out io.Writer, images []request.Image, groups []string) error {
	type entry struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Default     bool   `json:"default"`
	}
	list := []entry{}
	for _, image := range images {
		if image.VisibleTo(groups) {
			list = append(list, entry{image.Name, image.Description, image.Default})
		}
	}
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(list)
}

func versionCommand(out io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Args:  args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(out, "carme %s\n", version.String())
			return err
		},
	}
}
