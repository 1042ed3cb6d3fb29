package cli

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/carme-hpc/carme/internal/cli/head"
)

// headCommands are for the head node's administrators.
func headCommands(out io.Writer) []*cobra.Command {
	h := head.Head{Out: out}
	common := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().StringVar(&h.Socket, "socket", head.Socket, "the backend's admin socket")
		return cmd
	}
	withJSON := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().BoolVar(&h.JSON, "json", false, "print JSON")
		return common(cmd)
	}
	told := func(err error) error {
		if errors.Is(err, head.ErrFound) {
			return errChecks
		}
		return err
	}

	var after int64
	list := withJSON(&cobra.Command{
		Use: "list", Short: "Show the records", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return h.ListAudit(cmd.Context(), after) },
	})
	list.Flags().Int64Var(&after, "after", 0, "begin after the record of that number")
	verify := withJSON(&cobra.Command{
		Use: "verify", Short: "Check that no record was changed or removed", Args: args(cobra.NoArgs),
		Long: "Walks the chain of the audit log. Exit status 1 if a record was changed or removed. That the newest\n" +
			"records were cut off cannot be seen by the log alone: keep the hash it prints somewhere else.",
		RunE: func(cmd *cobra.Command, _ []string) error { return told(h.VerifyAudit(cmd.Context())) },
	})
	audit := &cobra.Command{
		Use: "audit", Short: "Show and check who did what (head node)", Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	audit.AddCommand(list, verify)
	return []*cobra.Command{
		audit,
		withJSON(&cobra.Command{
			Use: "health", Short: "Show whether the backend's parts work (head node)", Args: args(cobra.NoArgs),
			RunE: func(cmd *cobra.Command, _ []string) error { return told(h.Health(cmd.Context())) },
		}),
		common(&cobra.Command{
			Use: "end-logins USER", Short: "End all of a user's logins (head node)", Args: args(cobra.ExactArgs(1)),
			Long: "For a browser that was lost, or an account that is misused. What the logins have open closes within\n" +
				"seconds; jobs go on, and the second factor stays.",
			RunE: func(cmd *cobra.Command, users []string) error { return h.EndLogins(cmd.Context(), users[0]) },
		}),
		common(&cobra.Command{
			Use: "reset-factors USER", Short: "Take a user's second factor away (head node)", Args: args(cobra.ExactArgs(1)),
			Long: "For somebody who has lost telephone and recovery codes. Make sure who asks. All of the user's logins\n" +
				"end, the next one enrols a new factor, and the audit log keeps who did it.",
			RunE: func(cmd *cobra.Command, users []string) error { return h.ResetFactors(cmd.Context(), users[0]) },
		}),
	}
}
