package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/oidc"
)

func (p *program) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(p.err, nil))
}

func (p *program) brokerCommand() *cobra.Command {
	runCmd := &cobra.Command{
		Use: "run -c broker.yaml", Short: "Run the broker until it is told to stop", Args: cobra.NoArgs,
		Long: `Run opens what broker.yaml says and serves agents, peers and the operator until
it is told to stop (SIGINT, SIGTERM). It prints the pin of its root and the
CREDENCE_ADMIN to set. What cannot be opened, a port in use say, or data that
another broker serves, ends it with one line (2).`,
		Example: `  credence broker init --trust-domain example.org --data ./broker > broker.yaml
  credence broker run -c broker.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := brokerConfig(cmd)
			if err != nil {
				return err
			}
			return p.runBroker(cmd.Context(), f)
		},
	}
	check := &cobra.Command{
		Use: "check -c broker.yaml", Short: "Check this machine for a broker: ports, disk, clock", Args: cobra.NoArgs,
		Long: `Check tries on this machine what broker run would need: clock, data directory,
ports, web certificate and admin socket. It asks no broker and leaves nothing.
It exits 1 where something is wrong; beside a running broker, that is its ports.`,
		Example: `  credence broker init --trust-domain example.org --data ./broker > broker.yaml
  credence broker check -c broker.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := brokerConfig(cmd)
			if err != nil {
				return err
			}
			return p.check(cmd, []finding{
				{"clock", checkClock(p.now())},
				{"data directory", checkDir(f.Data)},
				{"listen.agents", checkPort(f.Listen.Agents)},
				{"listen.spiffe", checkPort(f.Listen.SPIFFE)},
				{"listen.web", checkWeb(f)},
				{"admin socket", checkSocket(f.Admin)},
			})
		},
	}
	initCmd := &cobra.Command{
		Use: "init --trust-domain NAME", Short: "Write a broker.yaml with every key and its default", Args: cobra.NoArgs,
		Long: `Init writes to standard output a broker.yaml for a trust domain, with every key
and its default as a comment. It makes nothing and asks nobody; the broker makes
its keys when it first runs.`,
		Example: "  credence broker init --trust-domain example.org --data ./broker > broker.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			td, _ := cmd.Flags().GetString("trust-domain")
			data, _ := cmd.Flags().GetString("data")
			f := brokerFile{TrustDomain: td, Data: data}
			if err := f.complete(); err != nil {
				return input(err)
			}
			_, err := fmt.Fprintf(p.out, brokerTemplate, td, data)
			return err
		},
	}
	initCmd.Flags().String("trust-domain", "", "the name of your trust domain: lower case, and for ever")
	initCmd.Flags().String("data", "/var/lib/credence/broker", "data directory")
	_ = initCmd.MarkFlagRequired("trust-domain")
	for _, c := range []*cobra.Command{runCmd, check} {
		c.Flags().StringP("config", "c", "broker.yaml", "configuration")
		completeFiles(c, "config", "yaml", "yml")
	}
	return group("broker", "The broker", initCmd, runCmd, addOutput(check), p.keysCommand())
}

const brokerTemplate = `trust_domain: %s
data: %s
# Every key below has the default that it shows.

# Issuer of JWT-SVIDs, an https URL that clouds reach; without it there is no
# OIDC and no JWT-SVID.
# issuer: https://id.example.org

# listen:
#   agents: 127.0.0.1:8443   # gRPC, mTLS
#   spiffe: 127.0.0.1:8444   # the bundle by https_spiffe; none: off
#   web: 127.0.0.1:8445      # OIDC and the bundle by https_web; off without web_tls

# admin: DATA/run/admin.sock

# The web listener's certificate: files, read again when they change; or a CA's
# by ACME, which must reach listen.web at port 443 of the issuer's host; or none,
# plain HTTP to a proxy on this machine that has one.
# web_tls: {cert: FILE, key: FILE}
# web_tls: {acme: {hosts: [id.example.org], email: "", directory: "https://acme-v02.api.letsencrypt.org/directory", ca_file: "", cache: DATA/acme}}
# web_tls: {proxy: true}

# Who certifies our CAs: by default a root of our own. Otherwise one of
#   {csr: {}}                        a person: credence ca csr, credence ca install
#   {disk: {cert: FILE, key: FILE}}  a CA in files
#   {vault: {address: URL, mount: pki, approle: {role_id: ID, secret_id_file: FILE}}}
#                                    or token_file, kubernetes: {role}, tls_cert: {cert, key}
# upstream:

# What the bundle holds then: the corporate root, or our own CA (ours), which is
# not self-signed: Go, and OpenSSL with -partial_chain, take it as an anchor;
# clouds that want a root do not.
# anchor: root

# What else that root signs: nothing (true), or others too, each of whom can
# speak for us (accepted). One of the two is wanted with anchor: root.
# root_is_dedicated: false
# shared_root:

# Our CAs permit URIs of our trust domain only. GnuTLS, Mbed TLS and rustls
# refuse such chains, or misread them.
# name_constraints: false

# store: sqlite

# Where private keys are kept, and where the root's is, by default as keys: each
# exactly one of disk, awskms, gcpkms, azurekv and pkcs11. kek_file holds 32
# random bytes, outside data, under which keys on disk are encrypted.
# keys: {disk: {dir: DATA/keys, kek_file: "", old_kek_files: []}}
# keys: {awskms: {region: eu-west-1, endpoint: "", profile: "", deletion_days: 30, timeout: 15s}}
# keys: {gcpkms: {key_ring: projects/acme/locations/europe-west1/keyRings/credence, protection: software, endpoint: "", deletion_days: 30, timeout: 15s}}
# keys: {azurekv: {vault_url: https://acme.vault.azure.net, protection: software, timeout: 15s}}
# keys: {pkcs11: {module: /usr/lib/softhsm/libsofthsm2.so, token_label: credence, pin_file: /run/secrets/pin, timeout: 15s}}
# root_keys: {disk: {dir: DATA/root-keys, kek_file: "", old_kek_files: []}}

# Under which names Identities may ask for DNS names, and which RDNs they may
# ask for besides CN=<their name>. Empty permits none.
# dns_suffixes: []
# subjects: []

# Private networks that peers' URLs may lead to.
# allow_networks: []

# How long a JWT key is published before its first use: the slowest cloud's
# cache decides.
# jwt_key_lead: 24h

# Where credence bundle publish --to (these very words) puts the keys, for clouds
# that cannot reach the web listener: a JWT key's lead counts from when each of
# them has it.
# publish_to: []

# Where relying parties find our CRLs, written into certificates; %%s is the
# issuer's key ID. The listeners web and spiffe serve them at /crl/%%s.crl, and
# what fetches CRLs mostly wants plain http: a proxy's or a bucket's URL. Empty
# writes none.
# crl_urls: []

# How often peers and clouds are asked to fetch our bundle and keys: 30s to 10m,
# at most a third of jwt_key_lead.
# refresh_hint: 5m

# The shortest life that an Identity may ask for.
# min_ttl: 1m
`

func brokerConfig(cmd *cobra.Command) (brokerFile, error) {
	path, _ := cmd.Flags().GetString("config")
	var f brokerFile
	if err := loadFile(path, &f); err != nil {
		return f, err
	}
	return f, input(inFile(path, f.complete()))
}

// runBroker opens what the file says and serves.
func (p *program) runBroker(ctx context.Context, f brokerFile) error {
	if err := checkClock(p.now()); err != nil {
		return input(err)
	}
	log := p.logger()
	o := brokerOptions{log: log, now: p.now}
	if f.Issuer != "" {
		warnings, err := oidc.CheckIssuer(f.Issuer)
		if err != nil {
			return input(err)
		}
		for _, w := range warnings {
			log.WarnContext(ctx, w)
		}
	}
	var err error
	if o.listeners.Agents, err = net.Listen("tcp", f.Listen.Agents); err != nil {
		return input(fmt.Errorf("listen.agents: %w", err))
	}
	if f.Listen.SPIFFE != "none" {
		if o.listeners.SPIFFE, err = net.Listen("tcp", f.Listen.SPIFFE); err != nil {
			return input(fmt.Errorf("listen.spiffe: %w", err))
		}
	}
	if f.WebTLS != nil && f.Listen.Web != "none" {
		if o.web, err = openWeb(f, log); err != nil {
			return input(fmt.Errorf("web_tls: %w", err))
		}
		if o.listeners.Web, err = net.Listen("tcp", f.Listen.Web); err != nil {
			return input(fmt.Errorf("listen.web: %w", err))
		}
	}
	if o.listeners.Admin, err = caller.Listen(f.Admin, 0o600); err != nil {
		return input(fmt.Errorf("admin: %w", err))
	}
	b, err := newBroker(ctx, f, o)
	if err != nil {
		return input(err)
	}
	if b.authority.Pin() == "" {
		fmt.Fprintf(p.err, "broker of %s: operators alone are served until a CA is installed: credence ca csr, credence ca install\nadmin: export %s=%s\n", f.TrustDomain, adminVariable, shellWord("unix://"+absolute(f.Admin)))
		return errors.Join(b.run(ctx), b.close())
	}
	fmt.Fprintf(p.err, "broker of %s: agents on %s, pin %s\nadmin: export %s=%s\n", f.TrustDomain, o.listeners.Agents.Addr(), b.authority.Pin(), adminVariable, shellWord("unix://"+absolute(f.Admin)))
	return errors.Join(b.run(ctx), b.close())
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

func (p *program) agentCommand() *cobra.Command {
	runCmd := &cobra.Command{
		Use: "run -c agent.yaml", Short: "Run the agent until it is told to stop", Args: cobra.NoArgs,
		Long: `Run joins this machine to a broker as a node, by the token of agent.yaml, and
serves the Workload API, Envoy's SDS and cloud credentials, and writes its
outputs, until it is told to stop (SIGINT, SIGTERM). A joined agent needs no token
to start again. It prints the SPIFFE_ENDPOINT_SOCKET to set. While the broker is
away it waits and serves what it holds; what only a person can mend ends it with
one line (2).`,
		Example: `  credence token create --node here > agent.yaml   # and put the token into its token_file
  credence agent run -c agent.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := agentConfig(cmd)
			if err != nil {
				return err
			}
			if err := checkClock(p.now()); err != nil {
				return input(err)
			}
			a, err := newAgent(f, nil, p.now, p.logger())
			if err != nil {
				return input(err)
			}
			fmt.Fprintf(p.err, "agent of %s: export %s=%s\n", f.TrustDomain, workloadVariable, shellWord("unix://"+absolute(f.Socket)))
			if err := checkTraversable(f.Socket); err != nil {
				fmt.Fprintln(p.err, "warning:", err)
			}
			return input(a.run(cmd.Context()))
		},
	}
	check := &cobra.Command{
		Use: "check -c agent.yaml", Short: "Check this machine for an agent: disk, socket, clock, broker", Args: cobra.NoArgs,
		Long: `Check tries on this machine what agent run would need: clock, data directory,
workload socket, where outputs are written (it makes directories that are
missing there), and whether the broker's address answers. It exits 1 where
something is wrong.`,
		Example: `  credence token create --node web-2 | sed 's,/var/lib/credence,.,' > agent.yaml
  credence agent check -c agent.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := agentConfig(cmd)
			if err != nil {
				return err
			}
			findings := []finding{
				{"clock", checkClock(p.now())},
				{"data directory", checkDir(f.Data)},
				{"workload socket", checkSocket(f.Socket)},
			}
			outputs, err := f.deliveries(p.now, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			for _, d := range outputs {
				findings = append(findings, finding{"output " + d.output.Name + ", " + d.kind, d.check()})
			}
			for _, b := range f.Broker {
				findings = append(findings, finding{"broker " + b, checkReach(cmd.Context(), b)})
			}
			return p.check(cmd, findings)
		},
	}
	for _, c := range []*cobra.Command{runCmd, check} {
		c.Flags().StringP("config", "c", "agent.yaml", "configuration")
		completeFiles(c, "config", "yaml", "yml")
	}
	return group("agent", "The agent", runCmd, addOutput(check), p.agentStatusCommand())
}

func agentConfig(cmd *cobra.Command) (agentFile, error) {
	path, _ := cmd.Flags().GetString("config")
	var f agentFile
	if err := loadFile(path, &f); err != nil {
		return f, err
	}
	return f, input(inFile(path, f.complete()))
}

// A finding is what a check found; no error is good.
type finding struct {
	what string
	err  error
}

// findingView is a finding as programs read it.
type findingView struct {
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Problem string `json:"problem"`
}

func (p *program) check(cmd *cobra.Command, findings []finding) error {
	bad, views, rows := false, []findingView{}, [][]string{}
	for _, f := range findings {
		view, state := findingView{Check: f.what, OK: f.err == nil}, "ok"
		if f.err != nil {
			bad, state, view.Problem = true, "no", f.err.Error()
		}
		views = append(views, view)
		rows = append(rows, []string{state, view.Check, view.Problem})
	}
	err := p.show(cmd, views, func() error { return p.table("OK|CHECK|PROBLEM", rows) })
	if err == nil && bad {
		err = coded{code: exitNo}
	}
	return err
}

// built is a moment before which no clock can be right.
var built = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func checkClock(now time.Time) error {
	if now.Before(built) || now.After(built.AddDate(50, 0, 0)) {
		return fmt.Errorf("this machine's clock says %s, which cannot be: set it (NTP), or every certificate would be wrong", now.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkDir writes and syncs a file where the data would be.
func checkDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "check-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, 64<<10))
	return errors.Join(err, f.Sync(), f.Close())
}

func checkPort(address string) error {
	if address == "none" {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

func checkWeb(f brokerFile) error {
	if f.WebTLS == nil {
		return nil
	}
	if _, err := openWeb(f, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	return checkPort(f.Listen.Web)
}

func checkSocket(path string) error {
	l, err := caller.Listen(path, 0o600)
	if err != nil {
		return err
	}
	return l.Close()
}

// checkTraversable says whether every user gets to a socket: whom it serves is
// the Identities' to say, not a directory's.
func checkTraversable(socket string) error {
	dir := filepath.Dir(absolute(socket))
	if _, err := os.Stat(dir); err == nil && !traversable(dir) {
		return fmt.Errorf("other users' programs cannot reach %s: a directory above it lacks their x bit; open it, or name another socket", socket)
	}
	return nil
}

func checkReach(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
