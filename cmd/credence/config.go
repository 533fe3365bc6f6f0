package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/login"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/tracing"
)

// brokerFile is broker.yaml. The comments of its fields are its manual.
type brokerFile struct {
	TrustDomain string `yaml:"trust_domain"` // required; lower case, for ever
	Data        string `yaml:"data"`         // required; keys, database, record
	Name        string `yaml:"name"`         // of this broker among those that share a database; default the host's, with SQLite "broker"
	// Issuer of JWT-SVIDs: https, no trailing slash, exactly as clouds are told.
	// Without it there is no OIDC and no JWT-SVID.
	Issuer string `yaml:"issuer"`
	Listen struct {
		Agents string `yaml:"agents"` // gRPC, mTLS; default 127.0.0.1:8443
		SPIFFE string `yaml:"spiffe"` // the bundle by https_spiffe; default 127.0.0.1:8444; "none": off
		Web    string `yaml:"web"`    // OIDC and the bundle by https_web; default 127.0.0.1:8445; off without web_tls
	} `yaml:"listen"`
	Admin         string   `yaml:"admin"` // socket; default DATA/run/admin.sock
	WebTLS        *webTLS  `yaml:"web_tls"`
	Store         string   `yaml:"store"`          // sqlite, or a PostgreSQL database that brokers share: postgres://...
	DNSSuffixes   []string `yaml:"dns_suffixes"`   // under which Identities may ask for DNS names; empty permits none
	Subjects      []string `yaml:"subjects"`       // RDNs (patterns) they may ask for besides CN=<their name>
	AllowNetworks []string `yaml:"allow_networks"` // private networks that peers' URLs may lead to
	JWTKeyLead    string   `yaml:"jwt_key_lead"`   // how long a JWT key is published before its first use; default 24h
	PublishTo     []string `yaml:"publish_to"`     // where credence bundle publish --to puts keys that clouds fetch; a JWT key's lead counts from when each has it
	CRLURLs       []string `yaml:"crl_urls"`       // CRL distribution points in certificates; %s is the issuer's key ID; empty: none
	RefreshHint   string   `yaml:"refresh_hint"`   // how often peers and clouds are asked to fetch our bundle and keys; default 5m
	MinTTL        string   `yaml:"min_ttl"`        // the shortest life that an Identity may ask for; default 1m

	Roles []roleFile      `yaml:"roles"` // who administers by an SVID, on listen.agents; none: nobody
	Login *login.Settings `yaml:"login"` // where people log in; absent: nobody does

	Health  healthFile       `yaml:"health"`  // where probes ask besides admin
	Metrics metricsFile      `yaml:"metrics"` // where Prometheus asks besides admin
	Traces  tracing.Settings `yaml:"traces"`  // OpenTelemetry: where to, and how many; default: none
	Pprof   bool             `yaml:"pprof"`   // the Go runtime's profiles, on admin alone
	Audit   auditFile        `yaml:"audit"`   // the record

	// Limits are what others may take of this broker. The defaults are far above
	// what 5,000 agents behind one address need.
	Limits struct {
		Connections       int `yaml:"connections"`        // open at listen.agents, besides half of it in handshakes and a tenth without a certificate; a quarter of it at spiffe and at web each; default 20000
		SourceConnections int `yaml:"source_connections"` // of one address; a tenth of it at spiffe and web; default 10000
		SourceRequests    int `yaml:"source_requests"`    // a second of one address, at spiffe and web; default 100
		SourceJoins       int `yaml:"source_joins"`       // joins a second of one address, after the first 200 times as many; default 50
		NodeCalls         int `yaml:"node_calls"`         // a second of one node; default 500
	} `yaml:"limits"`

	CA anchorFile `yaml:",inline"`

	Keys     *keySource `yaml:"keys"`      // where private keys are kept; default {disk: {dir: DATA/keys}}
	RootKeys *keySource `yaml:"root_keys"` // where the root's is; default: as keys
}

// complete fills defaults in and holds the file's fields against each other.
func (f *brokerFile) complete() (err error) {
	if _, e := identity.ParseTrustDomain(f.TrustDomain); e != nil {
		return fmt.Errorf("trust_domain: %w", e)
	}
	if f.Data == "" {
		return errors.New("data: is required: the directory that keeps keys, database and record")
	}
	if f.Issuer != "" {
		if _, e := oidc.CheckIssuer(f.Issuer); e != nil {
			return fmt.Errorf("issuer: %w: https://host/path is wanted, in lower case, as clouds are told: they compare it byte by byte", e)
		}
	}
	cli.SetDefault(&f.Listen.Agents, "127.0.0.1:8443")
	cli.SetDefault(&f.Listen.SPIFFE, "127.0.0.1:8444")
	cli.SetDefault(&f.Listen.Web, "127.0.0.1:8445")
	cli.SetDefault(&f.Admin, filepath.Join(f.Data, "run", "admin.sock"))
	cli.SetDefault(&f.Store, "sqlite")
	for _, l := range []struct{ field, address string }{{"agents", f.Listen.Agents}, {"spiffe", f.Listen.SPIFFE}, {"web", f.Listen.Web}} {
		if l.address == "none" && l.field != "agents" {
			continue
		}
		if _, _, e := net.SplitHostPort(l.address); e != nil {
			return fmt.Errorf("listen.%s: %q: host:port is wanted", l.field, l.address)
		}
	}
	if e := f.completeStore(); e != nil {
		return e
	}
	if e := f.WebTLS.complete(f); e != nil {
		return e
	}
	if _, e := f.networks(); e != nil {
		return e
	}
	if e := f.completeKeys(); e != nil {
		return e
	}
	if e := f.CA.check(); e != nil {
		return e
	}
	if _, e := f.roles(); e != nil {
		return e
	}
	if e := f.Audit.check(); e != nil {
		return e
	}
	if e := f.Traces.Complete(); e != nil {
		return fmt.Errorf("traces.%w", e)
	}
	if _, _, e := f.places(); e != nil {
		return e
	}
	if f.Login != nil {
		if e := f.Login.Complete(); e != nil {
			return fmt.Errorf("login.%w", e)
		}
	}
	if e := f.checkLimits(); e != nil {
		return e
	}
	hint, e := f.refreshHint()
	if e != nil {
		return e
	}
	for _, place := range f.PublishTo {
		if _, e := parseDestination(place, ""); e != nil {
			return fmt.Errorf("publish_to: %w", e)
		}
	}
	for _, u := range f.CRLURLs {
		if e := authority.CheckCRLURL(u); e != nil {
			return fmt.Errorf("crl_urls: %w", e)
		}
	}
	if _, e := cli.LifeField("jwt_key_lead", f.JWTKeyLead, 3*hint, 7*24*time.Hour); e != nil {
		return e // whoever polls at the hint knows a key before its first use
	}
	_, err = f.minTTL()
	return err
}

func (f *brokerFile) minTTL() (time.Duration, error) {
	return cli.LifeField("min_ttl", f.MinTTL, time.Second, time.Hour)
}

// shared says whether other brokers may share the database.
func (f *brokerFile) shared() bool { return f.Store != "sqlite" }

// storeConfig is where the database is.
func (f *brokerFile) storeConfig(now func() time.Time) store.Config {
	c := store.Config{Dir: f.Data, Now: now}
	if f.shared() {
		c.URL = f.Store
	}
	return c
}

func (f *brokerFile) completeStore() error {
	if f.shared() {
		if !strings.HasPrefix(f.Store, "postgres://") && !strings.HasPrefix(f.Store, "postgresql://") {
			return fmt.Errorf("store: %.20q: sqlite or postgres://USER@HOST/DATABASE is wanted", f.Store)
		}
		if e := store.CheckURL(f.Store); e != nil {
			return fmt.Errorf("store: %w", e)
		}
		if f.Name == "" {
			host, e := os.Hostname()
			if e != nil {
				return fmt.Errorf("name: is required where the host has none: %w", e)
			}
			f.Name, _, _ = strings.Cut(strings.ToLower(host), ".")
		}
	}
	cli.SetDefault(&f.Name, "broker")
	if len(f.Name) > 63 || strings.Trim(f.Name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		return fmt.Errorf("name: %.80q: 1 to 63 of a-z, 0-9, '-', '.' and '_' are wanted", f.Name)
	}
	return nil
}

func (f *brokerFile) limits() server.Limits { return server.Limits(f.Limits) }

// mostOf bounds each limit: more than that is no limit.
const mostOf = 1_000_000

func (f *brokerFile) checkLimits() error {
	for _, one := range []struct {
		field string
		value int
	}{
		{"connections", f.Limits.Connections}, {"source_connections", f.Limits.SourceConnections}, {"source_requests", f.Limits.SourceRequests},
		{"source_joins", f.Limits.SourceJoins}, {"node_calls", f.Limits.NodeCalls},
	} {
		if one.value < 0 || one.value > mostOf {
			return fmt.Errorf("limits.%s: %d: a number from 1 to %d is wanted, or 0 for the default", one.field, one.value, mostOf)
		}
	}
	if l := f.limits().WithDefaults(); l.SourceConnections > l.Connections {
		return fmt.Errorf("limits.source_connections: %d: one address would take all of %d", l.SourceConnections, l.Connections)
	}
	return nil
}

// refreshHint is what our bundle tells peers (SPIFFE Trust Domain and Bundle
// §4.1.2), within what they honour.
func (f *brokerFile) refreshHint() (time.Duration, error) {
	hint, err := cli.LifeField("refresh_hint", f.RefreshHint, 30*time.Second, 10*time.Minute)
	if hint == 0 {
		hint = 5 * time.Minute
	}
	return hint.Truncate(time.Second), err
}

// auditFile is audit of broker.yaml.
type auditFile struct {
	// HMACFacts name facts, or with .* what facts begin with, whose values the
	// record has by an HMAC alone; absent: user.email and workload.docker.env.*.
	HMACFacts []string     `yaml:"hmac_facts"`
	Keep      string       `yaml:"keep"`   // how long records are kept, at least a day, such as 400d; default for ever
	Export    []exportFile `yaml:"export"` // where they are carried to; what one hasn't taken yet is kept longer
}

func (a auditFile) check() error {
	for _, fact := range a.HMACFacts {
		if err := audit.CheckFactPattern(fact); err != nil {
			return fmt.Errorf("audit.hmac_facts: %w", err)
		}
	}
	return a.checkKeeping()
}

// config is how the record in a data directory is kept.
func (a auditFile) config(data string, log *slog.Logger) audit.Config {
	c := audit.Config{Dir: filepath.Join(data, "audit"), HMACFacts: a.HMACFacts, Log: log}
	if a.HMACFacts == nil {
		c.HMACFacts = audit.DefaultHMACFacts()
	}
	return c
}

// roleFile is a role of broker.yaml.
type roleFile struct {
	ID    string   `yaml:"id"`    // of a person or workload of ours
	Role  string   `yaml:"role"`  // admin: everything but ca export; operator: Identities and Denies under paths; auditor: reads
	Paths []string `yaml:"paths"` // an operator's: patterns over the paths of SPIFFE IDs
}

func (f *brokerFile) roles() ([]server.Role, error) {
	td, err := identity.ParseTrustDomain(f.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust_domain: %w", err)
	}
	var all []server.Role
	for i, one := range f.Roles {
		r, err := server.NewRole(td, one.ID, one.Role, one.Paths)
		if err != nil {
			return nil, fmt.Errorf("roles[%d].%w", i, err)
		}
		if slices.ContainsFunc(all, func(o server.Role) bool { return o.ID == r.ID }) {
			return nil, fmt.Errorf("roles[%d].id: %s has a role already", i, r.ID)
		}
		all = append(all, r)
	}
	return all, nil
}

func (f *brokerFile) networks() ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range f.AllowNetworks {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("allow_networks: %q: a network such as 10.1.0.0/16 is wanted", text)
		}
		all = append(all, n)
	}
	return all, nil
}
