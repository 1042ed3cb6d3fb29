package backend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/carme-hpc/carme/internal/config"
	"github.com/carme-hpc/carme/internal/daemon"
	"github.com/carme-hpc/carme/internal/logx"
	"github.com/carme-hpc/carme/internal/version"
	wireapi "github.com/carme-hpc/carme/internal/wire/api"
	"github.com/carme-hpc/carme/portal/backend/api"
	"github.com/carme-hpc/carme/portal/backend/signer"
)

const usage = `usage: carme-backend [--config FILE] [--check] [COMMAND]

commands:
  (none)                      run the backend
  init                        make database, keys and the own certificate
  signer                      run the signer
  signer init                 make the CA
  token --role R --name N     make a join token for a portal or node
  audit verify                check the chain of the audit log
`

// errUsage says that the command line is wrong.
var errUsage = errors.New("wrong command line")

// Main runs carme-backend and returns its exit status: 0, 1 for an error, 2 for a
// wrong command line.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := command(ctx, config.Source{Root: "/"}, args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprint(stderr, usage)
		return 2
	case err != nil:
		printProblems(stderr, err)
		return 1
	}
	return 0
}

// options are those of the whole command.
type options struct {
	file  string
	check bool
	src   config.Source
}

func command(ctx context.Context, src config.Source, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("carme-backend", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	o := options{src: src}
	flags.StringVar(&o.file, "config", "", "")
	flags.BoolVar(&o.check, "check", false, "")
	show := flags.Bool("version", false, "")
	words, err := parse(flags, args)
	if err != nil {
		return err
	}
	if *show {
		fmt.Fprintln(stdout, "carme-backend "+version.String())
		return nil
	}
	if len(words) > 0 && words[0] == "signer" {
		return signerCommand(ctx, o, words[1:], stderr)
	}
	if o.file == "" {
		o.file = defaultFile
	}
	cfg, err := LoadConfig(o.src, o.file)
	if o.check {
		_, wrong := readCatalogue(o.src)
		return errors.Join(err, wrong)
	}
	if err != nil {
		return err
	}
	switch {
	case len(words) == 0:
		return daemon.Run(ctx, func(ctx context.Context) error {
			p, err := build(ctx, cfg, o.src.Root, logx.New(stderr, level(cfg.LogLevel)))
			if err != nil {
				return err
			}
			return p.serve(ctx)
		})
	case len(words) == 1 && words[0] == "init":
		return initState(ctx, cfg)
	case words[0] == "token":
		return tokenCommand(ctx, cfg, words[1:], stdout)
	case len(words) == 2 && words[0] == "audit" && words[1] == "verify":
		return verifyCommand(ctx, cfg, stdout)
	}
	return errUsage
}

// parse takes the flags before the first word. --config may stand behind a
// command's words, too.
func parse(flags *flag.FlagSet, args []string) ([]string, error) {
	var words []string
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, errUsage
		}
		args = flags.Args()
		if len(args) == 0 {
			break
		}
		words = append(words, args[0])
		if args[0] == "token" { // it has flags of its own
			return append(words, args[1:]...), nil
		}
		args = args[1:]
	}
	return words, nil
}

func signerCommand(ctx context.Context, o options, words []string, stderr io.Writer) error {
	if o.file == "" {
		o.file = defaultSignerFile
	}
	cfg, err := LoadSignerConfig(o.src, o.file)
	if err != nil || o.check {
		return err
	}
	switch {
	case len(words) == 0:
		return daemon.Run(ctx, func(ctx context.Context) error { return runSigner(ctx, cfg, logx.New(stderr, level(cfg.LogLevel))) })
	case len(words) == 1 && words[0] == "init":
		return signer.Init(cfg.State, time.Now())
	}
	return errUsage
}

func tokenCommand(ctx context.Context, cfg *Config, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("token", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	in := api.JoinToken{}
	flags.StringVar(&in.Role, "role", "", "")
	flags.StringVar(&in.Name, "name", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 || in.Role == "" || in.Name == "" {
		return errUsage
	}
	var out api.JoinToken
	if err := ask(ctx, cfg, http.MethodPost, "/v1/join-tokens", in, &out); err != nil {
		return err
	}
	fmt.Fprintln(stdout, out.Token)
	return nil
}

func verifyCommand(ctx context.Context, cfg *Config, stdout io.Writer) error {
	var out wireapi.AuditVerified
	if err := ask(ctx, cfg, http.MethodGet, "/v1/audit/verify", nil, &out); err != nil {
		return err
	}
	if !out.OK {
		return errors.New(out.Problem)
	}
	fmt.Fprintf(stdout, "%d records, unbroken; the last one's hash is %s\n", out.Records, out.Hash)
	return nil
}

// ask talks to the running backend over its admin socket.
func ask(ctx context.Context, cfg *Config, method, path string, in, out any) error {
	var d net.Dialer
	client := &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", cfg.AdminSocket)
		}},
	}
	var body io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://backend"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the backend: %w; is it running?", err)
	}
	defer res.Body.Close() //nolint:errcheck // nothing was written
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the backend: status %d", res.StatusCode)
	}
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("ask the backend: %w", err)
	}
	return nil
}
