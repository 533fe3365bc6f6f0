package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/broker/resource"
)

// maxConfig bounds broker.yaml and agent.yaml.
const maxConfig = 1 << 20

// brokerFile is broker.yaml. The comments of its fields are its manual.
type brokerFile struct {
	TrustDomain string `yaml:"trust_domain"` // required; lower case, for ever
	Data        string `yaml:"data"`         // required; keys, database, record
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
	Store         string   `yaml:"store"`          // sqlite
	DNSSuffixes   []string `yaml:"dns_suffixes"`   // under which Identities may ask for DNS names; empty permits none
	Subjects      []string `yaml:"subjects"`       // RDNs (patterns) they may ask for besides CN=<their name>
	AllowNetworks []string `yaml:"allow_networks"` // private networks that peers' URLs may lead to
	JWTKeyLead    string   `yaml:"jwt_key_lead"`   // how long a JWT key is published before its first use; default 24h
	PublishTo     []string `yaml:"publish_to"`     // where credence bundle publish --to puts keys that clouds fetch; a JWT key's lead counts from when each has it
	CRLURLs       []string `yaml:"crl_urls"`       // CRL distribution points in certificates; %s is the issuer's key ID; empty: none
	RefreshHint   string   `yaml:"refresh_hint"`   // how often peers and clouds are asked to fetch our bundle and keys; default 5m
	MinTTL        string   `yaml:"min_ttl"`        // the shortest life that an Identity may ask for; default 1m

	CA anchorFile `yaml:",inline"`

	Keys     *keySource `yaml:"keys"`      // where private keys are kept; default {disk: {dir: DATA/keys}}
	RootKeys *keySource `yaml:"root_keys"` // where the root's is; default: as keys
}

// agentFile is agent.yaml.
type agentFile struct {
	TrustDomain string   `yaml:"trust_domain"` // required
	Data        string   `yaml:"data"`         // required
	Broker      []string `yaml:"broker"`       // required; host:port, tried in order
	Trust       struct {
		CAPin  []string `yaml:"ca_pin"` // credence token create prints it
		Bundle string   `yaml:"bundle"` // or a file: SPIFFE JSON or PEM
	} `yaml:"trust"`
	Join struct {
		Method    string `yaml:"method"`     // token
		TokenFile string `yaml:"token_file"` // holds the join token
	} `yaml:"join"`
	Socket string `yaml:"socket"` // of the Workload API; default DATA/run/workload.sock
	Admin  string `yaml:"admin"`  // default DATA/run/admin.sock

	SDS     sdsFile      `yaml:"sds"`     // for Envoy, on the same socket
	Attest  attestFile   `yaml:"attest"`  // workloads, besides by the kernel's facts
	Outputs []outputFile `yaml:"outputs"` // what is written for processes that call nothing
	Spool   spoolFile    `yaml:"spool"`   // what the broker's record is still to be told of
}

// loadFile reads a YAML file strictly into a pointer.
func loadFile(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return input(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return input(fmt.Errorf("%s: %w", path, err))
	}
	return input(parseFile(path, text, into))
}

func parseFile(path string, text []byte, into any) error {
	if len(text) > maxConfig {
		return fmt.Errorf("%s: more than %d bytes: not a configuration", path, maxConfig)
	}
	if err := resource.CheckText(path, text); err != nil {
		return err
	}
	err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(into)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: it is empty", path)
	}
	return resource.YAMLError(path, err)
}

// inFile puts the place in a configuration before an error that begins with
// the name of its field: the field's, or of what it stands in, or the file's
// beginning.
func inFile(file string, err error) error {
	if err == nil {
		return nil
	}
	line, column := 1, 1
	field, _, _ := strings.Cut(err.Error(), ": ")
	if text, e := readSmall(file); e == nil {
		line, column = placeOf(text, field)
	}
	return fmt.Errorf("%s:%d:%d: %w", file, line, column, err)
}

var fieldPattern = regexp.MustCompile(`^[a-z0-9_]+(\[[0-9]+\])?(\.[a-z0-9_]+(\[[0-9]+\])?)*$`)

func placeOf(text []byte, field string) (line, column int) {
	for fieldPattern.MatchString(field) {
		if path, err := yaml.PathString("$." + field); err == nil {
			if node, err := path.ReadNode(bytes.NewReader(text)); err == nil {
				at := node.GetToken().Position
				return at.Line, at.Column
			}
		}
		field = field[:max(0, strings.LastIndexByte(field, '.'))]
	}
	return 1, 1
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
	setDefault(&f.Listen.Agents, "127.0.0.1:8443")
	setDefault(&f.Listen.SPIFFE, "127.0.0.1:8444")
	setDefault(&f.Listen.Web, "127.0.0.1:8445")
	setDefault(&f.Admin, filepath.Join(f.Data, "run", "admin.sock"))
	setDefault(&f.Store, "sqlite")
	for _, l := range []struct{ field, address string }{{"agents", f.Listen.Agents}, {"spiffe", f.Listen.SPIFFE}, {"web", f.Listen.Web}} {
		if l.address == "none" && l.field != "agents" {
			continue
		}
		if _, _, e := net.SplitHostPort(l.address); e != nil {
			return fmt.Errorf("listen.%s: %q: host:port is wanted", l.field, l.address)
		}
	}
	if f.Store != "sqlite" {
		return fmt.Errorf("store: %q: sqlite is what this program has", f.Store)
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
	if _, e := lifeField("jwt_key_lead", f.JWTKeyLead, 3*hint, 7*24*time.Hour); e != nil {
		return e // whoever polls at the hint knows a key before its first use
	}
	_, err = lifeField("min_ttl", f.MinTTL, time.Second, time.Hour)
	return err
}

// refreshHint is what our bundle tells peers (SPIFFE Trust Domain and Bundle
// §4.1.2), within what they honour.
func (f *brokerFile) refreshHint() (time.Duration, error) {
	hint, err := lifeField("refresh_hint", f.RefreshHint, 30*time.Second, 10*time.Minute)
	if hint == 0 {
		hint = 5 * time.Minute
	}
	return hint.Truncate(time.Second), err
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// lifeField reads a duration of a file; empty is zero.
func lifeField(field, text string, least, most time.Duration) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most {
		return 0, fmt.Errorf("%s: %q: a life from %s to %s is wanted, such as %s", field, text, least, most, least)
	}
	return d, nil
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

// complete fills defaults in and holds the file's fields against each other.
func (f *agentFile) complete() error {
	if _, err := identity.ParseTrustDomain(f.TrustDomain); err != nil {
		return fmt.Errorf("trust_domain: %w", err)
	}
	if f.Data == "" {
		return errors.New("data: is required: the directory that keeps the node's SVID")
	}
	if len(f.Broker) == 0 {
		return errors.New("broker: is required: a list of host:port")
	}
	for _, b := range f.Broker {
		if _, _, err := net.SplitHostPort(b); err != nil {
			return fmt.Errorf("broker: %q: host:port is wanted", b)
		}
	}
	if (len(f.Trust.CAPin) == 0) == (f.Trust.Bundle == "") {
		return errors.New("trust: one of ca_pin and bundle is wanted: without it any server could pose as the broker")
	}
	for _, pin := range f.Trust.CAPin {
		if err := agent.CheckPin(pin); err != nil {
			return fmt.Errorf("trust: %w", err)
		}
	}
	if f.Join.Method != "token" {
		return fmt.Errorf("join.method: %q: token is what this program has", f.Join.Method)
	}
	if f.Join.TokenFile == "" {
		return errors.New("join.token_file: is required: a file that holds what credence token create printed")
	}
	if err := f.Attest.complete(); err != nil {
		return err
	}
	setDefault(&f.Socket, filepath.Join(f.Data, "run", "workload.sock"))
	setDefault(&f.Admin, filepath.Join(f.Data, "run", "admin.sock"))
	if _, err := f.Spool.spool(); err != nil {
		return err
	}
	if err := f.SDS.complete(); err != nil {
		return err
	}
	return f.completeOutputs()
}

// socketPath reads a path or a unix:///path URL.
func socketPath(text string) (string, error) {
	if text = strings.TrimSpace(text); text != "" && !strings.Contains(text, ":") {
		return filepath.Abs(text)
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "unix" || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") || strings.HasSuffix(u.Path, "/") || strings.ContainsAny(text, "?#") {
		return "", input(fmt.Errorf("socket %q: a path or unix:///path is wanted", text))
	}
	return u.Path, nil
}
