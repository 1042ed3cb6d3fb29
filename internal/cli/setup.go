package cli

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/spf13/cobra"

	"github.com/carme-hpc/carme/internal/cli/setup"
)

const httpsPort = 443

// resolve asks the name server whether there is such a host.
func resolve(ctx context.Context, host string) error {
	_, err := net.DefaultResolver.LookupHost(ctx, host)
	return err
}

func (m Machine) setup(out io.Writer) *cobra.Command {
	o := setup.Options{Root: m.Root, Out: out, Now: m.Now, Host: m.Node, Resolve: resolve}
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make this host ready for the portal, the backend or the agent",
		Long: "Writes configuration, keys, certificates and the database of Carme's daemons on this host, and\n" +
			"starts them. Never touches Slurm's or the firewall's configuration: it says what to add there.\n" +
			"Can be run again: keys and certificates stay, and so does configuration that somebody has edited.",
		Example: "  carme setup --portal-host carme.example.org --apps-domain apps.example.org --cluster hpc \\\n" +
			"    --ldap-url ldaps://ldap.example.org --ldap-people ou=people,dc=example,dc=org \\\n" +
			"    --ldap-groups ou=groups,dc=example,dc=org --login-group carme-users",
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if m.UID != 0 {
				return errors.New("setup makes users and their files; run it as root")
			}
			return setup.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Role, "role", setup.RoleAll, "what this host is: all (head and portal), head, portal, node")
	f.StringVar(&o.PortalHost, "portal-host", "", "name of the portal")
	f.StringVar(&o.AppsDomain, "apps-domain", "", "domain below which each session has a name; *.DOMAIN must lead to the portal")
	f.IntVar(&o.PublicPort, "public-port", httpsPort, "port of the portal that browsers see")
	f.StringVar(&o.Cluster, "cluster", "", "ClusterName of slurm.conf")
	f.StringVar(&o.Backend, "backend", "", "HOST:PORT of the backend, as portals and nodes reach it (default with --role all: this host)")
	f.StringVar(&o.CAFile, "ca", "", "Carme's CA, copied from the head node")
	f.StringVar(&o.JoinTokenFile, "join-token-file", "", "file with the token with which a portal on another host joins")
	f.StringVar(&o.Directory.URL, "ldap-url", "", "directory: ldaps://HOST, or ldap://HOST for StartTLS")
	f.StringVar(&o.Directory.CA, "ldap-ca", "", "CA of the directory's certificate (default: the system's)")
	f.StringVar(&o.Directory.BindDN, "ldap-bind-dn", "", "account that searches the directory")
	f.StringVar(&o.Directory.PasswordFile, "ldap-password-file", "", "file with its password")
	f.StringVar(&o.Directory.PeopleBase, "ldap-people", "", "where people are, such as ou=people,dc=example,dc=org")
	f.StringVar(&o.Directory.GroupsBase, "ldap-groups", "", "where groups are")
	f.StringVar(&o.Directory.LoginGroup, "login-group", "", "group whose members may log in")
	f.StringVar(&o.Directory.AdminGroup, "admin-group", "", "group whose members are admins")
	f.StringVar(&o.SlurmKey, "slurm-key", "", "RSA key for Slurm's tokens that slurmctld knows already (default: a new one is made)")
	f.StringVar(&o.SlurmKeyID, "slurm-key-id", "", "its key id in slurmctld's JWKS")
	f.StringVar(&o.Slurmrestd, "slurmrestd", "unix:/run/slurmrestd/slurmrestd.sock", "slurmrestd: unix:/PATH, https://HOST:PORT or http://localhost:PORT")
	f.BoolVar(&o.NoStart, "no-start", false, "do not start the daemons")
	return cmd
}
