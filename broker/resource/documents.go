package resource

import (
	"fmt"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/resource/strict"
)

// A document is one of a kind that is read whole.
type document interface {
	head(r *Resource)       // sets what every resource has
	fill(r *Resource) error // sets the rest; an error of r.At
}

type identityDoc struct {
	Kind          string   `json:"kind" yaml:"kind"`
	Name          string   `json:"name" yaml:"name"`
	SPIFFEID      string   `json:"spiffe_id" yaml:"spiffe_id"`
	Match         []item   `json:"match" yaml:"match"`
	X509          *x509Doc `json:"x509,omitempty" yaml:"x509,omitempty"`
	JWT           *jwtDoc  `json:"jwt,omitempty" yaml:"jwt,omitempty"`
	FederatesWith []string `json:"federates_with,omitempty" yaml:"federates_with,omitempty"`
	Hint          string   `json:"hint,omitempty" yaml:"hint,omitempty"`
	Targets       []string `json:"targets,omitempty" yaml:"targets,omitempty"`
}

type x509Doc struct {
	TTL      duration `json:"ttl,omitempty" yaml:"ttl,omitempty"`
	Subject  string   `json:"subject,omitempty" yaml:"subject,omitempty"`
	DNSNames []string `json:"dns_names,omitempty" yaml:"dns_names,omitempty"`
}

type jwtDoc struct {
	TTL       duration   `json:"ttl,omitempty" yaml:"ttl,omitempty"`
	Audiences []audience `json:"audiences,omitempty" yaml:"audiences,omitempty"`
	Claims    claims     `json:"claims,omitempty" yaml:"claims,omitempty"`
	Alg       string     `json:"alg,omitempty" yaml:"alg,omitempty"`
}

type denyDoc struct {
	Kind      string   `json:"kind" yaml:"kind"`
	Name      string   `json:"name" yaml:"name"`
	Match     []item   `json:"match" yaml:"match"`
	SPIFFEIDs []string `json:"spiffe_ids,omitempty" yaml:"spiffe_ids,omitempty"`
	Reason    string   `json:"reason,omitempty" yaml:"reason,omitempty"`
}

type joinRuleDoc struct {
	Kind  string `yaml:"kind"`
	Name  string `yaml:"name"`
	Allow []item `yaml:"allow"`
}

type peerDoc struct {
	Kind         string          `json:"kind" yaml:"kind"`
	Name         string          `json:"name" yaml:"name"`
	URL          string          `json:"url" yaml:"url"`
	HTTPSSPIFFE  *httpsSPIFFEDoc `json:"https_spiffe,omitempty" yaml:"https_spiffe,omitempty"`
	HTTPSWeb     *struct{}       `json:"https_web,omitempty" yaml:"https_web,omitempty"`
	MaxStaleness duration        `json:"max_staleness,omitempty" yaml:"max_staleness,omitempty"`
	AllowPrivate bool            `json:"allow_private,omitempty" yaml:"allow_private,omitempty"`
	Accept       []string        `json:"accept,omitempty" yaml:"accept,omitempty"`
}

type httpsSPIFFEDoc struct {
	EndpointID  string `json:"endpoint_id" yaml:"endpoint_id"`
	BundleFile  string `json:"bundle_file,omitempty" yaml:"bundle_file,omitempty"`
	Bundle      string `json:"bundle,omitempty" yaml:"bundle,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty" yaml:"fingerprint,omitempty"`
}

type targetDoc struct {
	Kind     string `yaml:"kind"`
	Name     string `yaml:"name"`
	Endpoint string `yaml:"endpoint,omitempty"`
	CAFile   string `yaml:"ca_file,omitempty"`
}

// item is one alternative of a match: terms by fact name, and when and
// any_node among them.
type item identity.Item

// UnmarshalYAML keeps the order in which terms were written. A decimal integer
// is taken as its text; other values that are not text are refused, for
// nobody would agree what text they stand for.
func (i *item) UnmarshalYAML(node ast.Node) error {
	var values []*ast.MappingValueNode
	switch m := node.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		return strict.At("", "", node, "an item of match is a mapping of facts to what they must be")
	}
	seen := make(map[string]bool)
	for _, v := range values {
		name := v.Key.GetToken().Value
		if seen[name] {
			return strict.At("", "", v.Key, fmt.Sprintf("%q stands twice in one item", strict.Clip(name)))
		}
		seen[name] = true
		if err := i.set(name, v); err != nil {
			return err
		}
	}
	return nil
}

func (i *item) set(name string, v *ast.MappingValueNode) error {
	if name == "any_node" {
		b, ok := v.Value.(*ast.BoolNode)
		if !ok {
			return strict.At("", "", v.Value, "any_node: true or false is wanted")
		}
		i.AnyNode = b.Value
		return nil
	}
	var text string
	switch n := v.Value.(type) {
	case *ast.StringNode:
		text = n.Value
	case *ast.LiteralNode:
		text = n.Value.Value
	case *ast.IntegerNode:
		text = n.GetToken().Value
		for _, c := range text {
			if c < '0' || c > '9' {
				return strict.At("", "", n, fmt.Sprintf("%s: %s is not a plain decimal number: quote it", strict.Clip(name), strict.Clip(text)))
			}
		}
	default:
		return strict.At("", "", v.Value, fmt.Sprintf("%s: the value is not text: quote it", strict.Clip(name)))
	}
	if name == "when" {
		i.When = text
		return nil
	}
	i.Terms = append(i.Terms, identity.Term{Name: name, Pattern: text})
	return nil
}

// MarshalYAML writes the terms in their order.
func (i item) MarshalYAML() (any, error) {
	m := yaml.MapSlice{}
	for _, t := range i.Terms {
		m = append(m, yaml.MapItem{Key: t.Name, Value: t.Pattern})
	}
	if i.When != "" {
		m = append(m, yaml.MapItem{Key: "when", Value: i.When})
	}
	if i.AnyNode {
		m = append(m, yaml.MapItem{Key: "any_node", Value: true})
	}
	return m, nil
}

func itemsOf(in []item) []identity.Item {
	out := make([]identity.Item, len(in))
	for n, i := range in {
		out[n] = identity.Item(i)
	}
	return out
}

func itemDocs(in []identity.Item) []item {
	out := make([]item, len(in))
	for n, i := range in {
		out[n] = item(i)
	}
	return out
}

func (d *identityDoc) head(r *Resource) { r.Kind, r.Name = d.Kind, d.Name }

func (d *denyDoc) head(r *Resource) { r.Kind, r.Name = d.Kind, d.Name }

func (d *peerDoc) head(r *Resource) { r.Kind, r.Name = d.Kind, d.Name }

func (d *identityDoc) fill(r *Resource) error {
	i := &identity.Identity{
		Name: d.Name, SPIFFEID: d.SPIFFEID, Match: itemsOf(d.Match), FederatesWith: d.FederatesWith, Hint: d.Hint, Targets: d.Targets,
	}
	if d.X509 != nil {
		i.X509 = &identity.X509{TTL: time.Duration(d.X509.TTL), Subject: d.X509.Subject, DNSNames: d.X509.DNSNames}
	}
	if d.JWT != nil {
		i.JWT = &identity.JWT{TTL: time.Duration(d.JWT.TTL), Audiences: audiencesOf(d.JWT.Audiences), Claims: d.JWT.Claims, Alg: d.JWT.Alg}
	}
	r.Identity = i
	return nil
}

func (d *denyDoc) fill(r *Resource) error {
	r.Deny = &identity.Deny{Name: d.Name, Match: itemsOf(d.Match), SPIFFEIDs: d.SPIFFEIDs, Reason: d.Reason}
	return nil
}

// duration is a life as it is written: 90s, 15m, 24h.
type duration time.Duration

// UnmarshalYAML tells where a life is that cannot be read.
func (d *duration) UnmarshalYAML(node ast.Node) error {
	text, ok := node.(*ast.StringNode)
	if !ok {
		return strict.At("", "", node, "a life is written like 90s, 15m or 24h")
	}
	parsed, err := time.ParseDuration(text.Value)
	if err != nil || parsed < 0 {
		return strict.At("", "", node, fmt.Sprintf("%q is not a life: write it like 90s, 15m or 24h", strict.Clip(text.Value)))
	}
	*d = duration(parsed)
	return nil
}

// MarshalYAML writes what UnmarshalYAML reads.
func (d duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }
