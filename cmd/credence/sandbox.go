package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers/sandbox/clouds"
)

const sandboxVariable = "CREDENCE_SANDBOX"

func (p *program) sandboxCommand() *cobra.Command {
	return cli.Group("sandbox", "Clouds on this machine, as strict as the real ones",
		p.sandboxInitCommand(), p.sandboxRunCommand(), p.sandboxFaultCommand(), p.sandboxRequestsCommand())
}

func (p *program) sandboxInitCommand() *cobra.Command {
	var e clouds.Example
	cmd := &cobra.Command{
		Use: "init", Short: "Write a sandbox.yaml with every key and its default", Args: cobra.NoArgs,
		Long: `Init writes to standard output a sandbox.yaml with an account of each cloud that
lets one workload in, as set up for an issuer and a CA of yours, and every other
key with its default as a comment. It makes nothing and asks nobody. The CA's file
is what "credence bundle show -o pem" prints.`,
		Example: `  credence sandbox init --issuer https://id.example.org --anchor bundle.pem > sandbox.yaml
  credence validate sandbox.yaml`,
		RunE: func(*cobra.Command, []string) error { return cli.BadInput(e.Write(p.Out)) },
	}
	cmd.Flags().StringVar(&e.Issuer, "issuer", "https://id.example.org", "the issuer of JWT-SVIDs, as in broker.yaml")
	cmd.Flags().StringVar(&e.ID, "spiffe-id", "spiffe://example.org/checkout", "the workload that gets in")
	cmd.Flags().StringVar(&e.Anchor, "anchor", "bundle.pem", "PEM file of the CA that certifies it")
	cmd.Flags().StringVar(&e.IssuerCA, "issuer-ca", "", "PEM file of the CA of the issuer's web server (default this machine's roots)")
	cmd.Flags().StringVar(&e.At, "issuer-at", "", "host:port where the issuer is to be found (default where its URL says)")
	return cmd
}

func (p *program) sandboxRunCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "run -c sandbox.yaml", Short: "Serve emulated clouds until told to stop", Args: cobra.NoArgs,
		Long: `Run serves what sandbox.yaml says, AWS, GCP and Azure token services and an OAuth
server that refuse whatever the real ones may refuse, until it is told to stop
(SIGINT, SIGTERM): test your own federation in CI, without an account. When all
services listen it prints their URLs, and writes them as JSON to the file that
addresses names; ca_file there verifies them. Point the endpoint and ca_file of
Targets at them, or a vendor's SDK. What target setup -o json prints is created
too, by the key setup. What run refuses, and why, is in its record: credence sandbox
requests.

With faults it opens a switchboard on a Unix socket, for root and its own user:
HTTP and JSON, what credence sandbox fault speaks.`,
		Example: `  credence sandbox init > sandbox.yaml     # and put your issuer, CA and SPIFFE ID there
  credence sandbox run -c sandbox.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, _ := cmd.Flags().GetString("config")
			f, err := sandboxConfig(path)
			if errors.Is(err, fs.ErrNotExist) {
				return cli.BadInput(fmt.Errorf("%w: credence sandbox init writes one", err))
			}
			if err != nil {
				return err
			}
			return p.runSandbox(cmd, path, f)
		},
	}
	cmd.Flags().StringP("config", "c", "sandbox.yaml", "configuration")
	cli.CompleteFiles(cmd, "config", "yaml", "yml")
	return cli.AddOutput(cmd)
}

func sandboxConfig(path string) (clouds.Config, error) {
	var f clouds.Config
	if err := cli.LoadFile(path, &f); err != nil {
		return f, err
	}
	return f, cli.BadInput(cli.InFile(path, f.Check()))
}

// sandboxView is what run prints and writes: all that another program needs.
type sandboxView struct {
	CAFile      string            `json:"ca_file"` // empty with a certificate of the user's own
	Faults      string            `json:"faults,omitempty"`
	Services    map[string]string `json:"services"`
	Environment map[string]string `json:"environment"` // for the vendors' own clients
	// Targets are those that must say what a cloud chose for a plan of setup.
	Targets map[string]map[string]any `json:"targets,omitempty"`
}

func (p *program) runSandbox(cmd *cobra.Command, path string, f clouds.Config) error {
	c, err := clouds.New(f, p.Now)
	if err != nil {
		return cli.BadInput(cli.InFile(path, err))
	}
	defer c.Close()
	certificate, err := sandboxCertificate(f.TLS, p.Now())
	if err != nil {
		return cli.BadInput(fmt.Errorf("tls: %w", err))
	}
	if err := c.Serve(*certificate, nil); err != nil {
		return cli.BadInput(cli.InFile(path, err))
	}
	v := sandboxView{Services: c.URLs(), Environment: map[string]string{}, Targets: c.Targets}
	if f.TLS.CAFile != "" {
		v.CAFile = cli.Absolute(f.TLS.CAFile)
		v.Environment["AWS_CA_BUNDLE"] = v.CAFile
	}
	for name, service := range map[string]string{"AWS_ENDPOINT_URL_STS": "sts", "AWS_ENDPOINT_URL_ROLESANYWHERE": "rolesanywhere", "AZURE_AUTHORITY_HOST": "entra"} {
		if url, ok := v.Services[service]; ok {
			v.Environment[name] = url
		}
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, stop := context.WithCancel(cmd.Context())
	defer stop()
	if f.Faults != "" {
		l, err := listenSwitchboard(f.Faults)
		if err != nil {
			return cli.BadInput(fmt.Errorf("faults: %w", err))
		}
		v.Faults = "unix://" + cli.Absolute(f.Faults)
		running.Go(func() { serveSwitchboard(ctx, l, c.Switchboard(), ourselves()) })
	}
	if f.Addresses != "" {
		if err := writeSmall(f.Addresses, v); err != nil {
			return cli.BadInput(fmt.Errorf("addresses: %w", err))
		}
	}
	err = p.Show(cmd, v, func() error {
		var rows [][]string
		for _, s := range c.Names() {
			rows = append(rows, []string{s, v.Services[s]})
		}
		return p.Table("SERVICE|URL", rows)
	})
	if err != nil {
		return err
	}
	if v.CAFile != "" {
		fmt.Fprintln(p.Err, "ca_file:", v.CAFile)
	}
	if v.Faults != "" {
		fmt.Fprintf(p.Err, "faults: export %s=%s\n", sandboxVariable, cli.ShellWord(v.Faults))
	}
	fmt.Fprintln(p.Err, "ready: it serves until it is told to stop")
	<-ctx.Done()
	return nil
}

func writeSmall(file string, v any) error {
	var text bytes.Buffer
	if err := cli.WriteJSON(&text, v); err != nil {
		return err
	}
	return renameio.WriteFile(file, text.Bytes(), 0o644, renameio.WithTempDir(filepath.Dir(file)))
}

// sandboxCertificate is the services': from files, or of a CA made now, whose
// key nobody keeps.
func sandboxCertificate(t clouds.TLS, now time.Time) (*tls.Certificate, error) {
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		return &pair, err
	}
	ca, err := devSign(webCATemplate("Credence sandbox", t.Names, now), nil)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Leaf.Raw})
	if err := renameio.WriteFile(t.CAFile, text, 0o644, renameio.WithTempDir(filepath.Dir(t.CAFile))); err != nil {
		return nil, err
	}
	return devSign(webLeafTemplate(t.Names, now), ca)
}

// listenSwitchboard opens the socket where faults are commanded.
func listenSwitchboard(path string) (net.Listener, error) {
	self, err := caller.Open(os.Getpid()) // where callers cannot be told, nobody is let in: say so now
	if err != nil {
		return nil, err
	}
	self.Close()
	return caller.Listen(path, 0o600)
}

type admittedKey struct{}

// ourselves lets in root and our own uid.
func ourselves() func(*caller.Process) error { return caller.RequireUID(0, uint32(os.Getuid())) }

// serveSwitchboard serves whom admit lets in until ctx ends.
func serveSwitchboard(ctx context.Context, l net.Listener, h http.Handler, admit func(*caller.Process) error) {
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 15 * time.Second, MaxHeaderBytes: 16 << 10,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, admittedKey{}, admitted(conn, admit))
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if ok, _ := r.Context().Value(admittedKey{}).(bool); !ok {
				http.Error(w, "only root and the user who runs the sandbox may use this socket", http.StatusForbidden)
				return
			}
			h.ServeHTTP(w, r)
		}),
	}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	_ = server.Serve(l) // it ends by ctx
}

func admitted(conn net.Conn, admit func(*caller.Process) error) bool {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	process, err := caller.FromConn(unix)
	if err != nil {
		return false
	}
	defer process.Close()
	return admit(process) == nil
}
