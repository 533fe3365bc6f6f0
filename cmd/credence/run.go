package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) brokerCommand() *cobra.Command {
	runCmd := &cobra.Command{
		Use: "run -c broker.yaml", Short: "Run the broker until it is told to stop", Args: cobra.NoArgs,
		Long: `Run opens what broker.yaml says and serves agents, peers and the operator until
it is told to stop (SIGINT, SIGTERM). It prints the pin of its root and the
CREDENCE_ADMIN to set. What cannot be opened, a port in use say, or data that
another broker serves, ends it with one line (2).

At SIGHUP it reads the file again and takes over what changed of allow_networks,
dns_suffixes, limits, login, min_ttl, roles and subjects: all of it or, where the file has
a mistake or a resource that stands would not be valid, nothing. Of other keys it
logs that they need a restart. Files of the web certificate are read again by
themselves.`,
		Example: `  credence broker init --trust-domain example.org --data ./broker > broker.yaml
  credence broker run -c broker.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hangups := make(chan os.Signal, 1) // one that comes too early counts
			signal.Notify(hangups, syscall.SIGHUP)
			defer signal.Stop(hangups)
			f, err := brokerConfig(cmd)
			if err != nil {
				return err
			}
			path, _ := cmd.Flags().GetString("config")
			return p.runBroker(cmd.Context(), f, path, hangups)
		},
	}
	check := &cobra.Command{
		Use: "check -c broker.yaml", Short: "Check this machine for a broker: ports, disk, clock", Args: cobra.NoArgs,
		Long: `Check tries on this machine what broker run would need: clock, data directory,
ports, web certificate, admin socket and a shared database. It leaves nothing. It
tells how late an eviction holds, on this broker and on others. Of a broker that runs
by this file it asks the JoinRules, and tells which certificate of theirs, or of
those built in, ends within 90 days. It exits 1 where something is wrong; beside
a running broker, that is its ports.`,
		Example: `  credence broker init --trust-domain example.org --data ./broker > broker.yaml
  credence broker check -c broker.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := brokerConfig(cmd)
			if err != nil {
				return err
			}
			endings := p.checkEndings(cmd.Context(), f) // before the socket is tried
			return p.Check(cmd, append([]cli.Finding{
				cli.Found("clock", cli.CheckClock(p.Now())),
				cli.Found("data directory", cli.CheckDir(f.Data)),
				cli.Found("listen.agents", checkPort(f.Listen.Agents)),
				cli.Found("listen.spiffe", checkPort(f.Listen.SPIFFE)),
				cli.Found("listen.web", checkWeb(f)),
				cli.Found("admin socket", cli.CheckSocket(f.Admin)),
			}, slices.Concat(f.checkShared(cmd.Context(), p.Now), f.checkPlaces(), endings)...))
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
				return cli.BadInput(err)
			}
			_, err := fmt.Fprintf(p.Out, brokerTemplate, td, data)
			return err
		},
	}
	initCmd.Flags().String("trust-domain", "", "the name of your trust domain: lower case, and for ever")
	initCmd.Flags().String("data", "/var/lib/credence/broker", "data directory")
	_ = initCmd.MarkFlagRequired("trust-domain")
	for _, c := range []*cobra.Command{runCmd, check} {
		c.Flags().StringP("config", "c", "broker.yaml", "configuration")
		cli.CompleteFiles(c, "config", "yaml", "yml")
	}
	return cli.Group("broker", "The broker", initCmd, runCmd, cli.AddOutput(check), p.keysCommand(), p.backupCommand(), p.restoreCommand())
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

# SQLite in data, for one broker; or a PostgreSQL database that any number of
# brokers share, each with a data directory and a name of its own (the host's by
# default): postgres://credence@db.example.org/credence?sslmode=verify-full. Its
# password, if it has one, is best kept in the file that PGPASSFILE names.
# store: sqlite
# name: broker

# Where private keys are kept, and where the root's is, by default as keys: each
# exactly one of disk, awskms, gcpkms, azurekv and pkcs11. kek_file holds 32
# random bytes, outside data, under which keys on disk are encrypted. With a shared
# database disk needs it, the same on every broker: keys that brokers share lie in
# the database then. A PKCS#11 token must be one that every broker reaches.
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

# The OpenID provider that people log in with (credence login), as its tokens say
# it, and the public client (no secret; code with PKCE; redirect_uri on loopback)
# that is registered there. claims are user.* facts besides user.issuer, user.sub
# and the verified user.email. None: nobody logs in.
# login: {issuer: https://accounts.example.org, client_id: credence, claims: {groups: groups}, scopes: [openid, email], algorithms: [RS256], redirect_uri: "http://127.0.0.1/callback", ca_file: ""}

# Who administers this broker from elsewhere (credence VERB --broker), by an SVID of
# ours: admin does everything, operator changes Identities and Denies whose every
# ID lies under paths, auditor reads. The admin socket needs none.
# roles: []                 # [{id: spiffe://example.org/people/ana, role: operator, paths: ["/shop/**"]}]

# Where GET /live and /ready, and GET /metrics for Prometheus, are besides the admin
# socket: 127.0.0.1:PORT or unix:///PATH. any_address lets health.listen be another
# address, where it says no more than yes or no; metrics.allow names who may ask by
# an X509-SVID of ours: metrics.listen speaks TLS then, at any address.
# health: {listen: "", any_address: false}
# metrics: {listen: "", allow: []}
# OpenTelemetry traces, to a collector that speaks OTLP by gRPC (host:port; TLS but on
# loopback): of those that begin here a ratio, of others' at most ten a second.
# traces: {otlp: "", ca_file: "", ratio: 0.01}
# pprof: false              # the Go runtime's profiles, on the admin socket alone

# The record. Of facts in hmac_facts (names, or beginnings and .*) it has values by
# an HMAC alone, under a key in its directory (credence audit hmac finds one that is
# known). keep is how long records are kept (at least a day, such as 400d; default
# for ever), export where they are carried to: a file, or a collector of JSON lines
# or, with otlp, of OpenTelemetry logs. What one has not taken yet is kept longer.
# audit: {hmac_facts: [user.email, "workload.docker.env.*"], keep: "", export: []}  # [{name: siem, to: "https://siem.example.org:4318", otlp: true, headers_file: "", svid_dir: "", ca_file: ""}]

# The shortest life that an Identity may ask for.
# min_ttl: 1m

# What others may take of this broker: connections open at listen.agents (at spiffe
# and web a quarter), those of one address (a tenth), and each second the requests
# of one address at spiffe and web, its joins, and the calls of one node. The
# defaults are far above what 5,000 agents behind one address need.
# limits: {connections: 20000, source_connections: 10000, source_requests: 100, source_joins: 50, node_calls: 500}
`

func brokerConfig(cmd *cobra.Command) (brokerFile, error) {
	path, _ := cmd.Flags().GetString("config")
	return loadBroker(path)
}

func loadBroker(path string) (f brokerFile, err error) {
	if err := cli.LoadFile(path, &f); err != nil {
		return f, err
	}
	return f, cli.BadInput(cli.InFile(path, f.complete()))
}

// runBroker opens what the file says and serves; at each hangup it reads the file
// again.
func (p *program) runBroker(ctx context.Context, f brokerFile, path string, hangups <-chan os.Signal) error {
	if err := cli.CheckClock(p.Now()); err != nil {
		return cli.BadInput(err)
	}
	log := p.Logger()
	o := brokerOptions{log: log, now: p.Now, path: path}
	if f.Issuer != "" {
		warnings, err := oidc.CheckIssuer(f.Issuer)
		if err != nil {
			return cli.BadInput(err)
		}
		for _, w := range warnings {
			log.WarnContext(ctx, "issuer", "problem", w)
		}
	}
	var err error
	if o.listeners.Agents, err = net.Listen("tcp", f.Listen.Agents); err != nil {
		return cli.BadInput(fmt.Errorf("listen.agents: %w", err))
	}
	if f.Listen.SPIFFE != "none" {
		if o.listeners.SPIFFE, err = net.Listen("tcp", f.Listen.SPIFFE); err != nil {
			return cli.BadInput(fmt.Errorf("listen.spiffe: %w", err))
		}
	}
	if f.WebTLS != nil && f.Listen.Web != "none" {
		if o.web, err = openWeb(f, log); err != nil {
			return cli.BadInput(fmt.Errorf("web_tls: %w", err))
		}
		if o.listeners.Web, err = net.Listen("tcp", f.Listen.Web); err != nil {
			return cli.BadInput(fmt.Errorf("listen.web: %w", err))
		}
	}
	if o.listeners.Admin, err = caller.Listen(f.Admin, 0o600); err != nil {
		return cli.BadInput(fmt.Errorf("admin: %w", err))
	}
	b, err := newBroker(ctx, f, o)
	if err != nil {
		if ctx.Err() != nil { // what was being done was given up: the next start does it
			log.InfoContext(ctx, "told to stop before it served", "error", err)
			return nil
		}
		return cli.BadInput(err)
	}
	b.reloads = b.reloadOn(hangups, path, log)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.WarnContext(ctx, "the service manager was not told", "error", err)
	}
	admin := adminVariable + "=" + cli.ShellWord("unix://"+cli.Absolute(f.Admin))
	if pin := b.authority.Pin(); pin == "" {
		fmt.Fprintf(p.Err, "broker of %s: operators alone are served until a CA is installed: credence ca csr, credence ca install\nadmin: export %s\n", f.TrustDomain, admin)
	} else {
		fmt.Fprintf(p.Err, "broker of %s: agents on %s, pin %s\nadmin: export %s\n", f.TrustDomain, o.listeners.Agents.Addr(), pin, admin)
	}
	return errors.Join(b.run(ctx), b.close())
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
