package resource

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/resource/strict"
	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/federation"
)

// parse reads one document.
func (g Registry) parse(file string, doc *ast.MappingNode) (Resource, error) {
	r := Resource{file: file, node: doc}
	for _, field := range []struct {
		name string
		into *string
	}{{"kind", &r.Kind}, {"name", &r.Name}} {
		value := member(doc, field.name)
		text, ok := value.(*ast.StringNode)
		if !ok || text.Value == "" {
			return Resource{}, strict.At(file, "", doc, fmt.Sprintf("%s: is missing, or is not text: a resource begins with kind: and name:", field.name))
		}
		*field.into = text.Value
	}
	if !slices.Contains(Kinds, r.Kind) {
		return Resource{}, strict.At(file, "", member(doc, "kind"), fmt.Sprintf("kind: %q is none of %s", strict.Clip(r.Kind), strings.Join(Kinds, ", ")))
	}
	if err := r.checkName(); err != nil {
		return Resource{}, strict.At(file, "", member(doc, "name"), err.Error())
	}
	var err error
	switch r.Kind {
	case "Identity":
		err = r.parseDoc(doc, new(identityDoc))
	case "Deny":
		err = r.parseDoc(doc, new(denyDoc))
	case "JoinRule":
		err = g.parseJoinRule(&r, doc)
	case "Peer":
		err = r.parseDoc(doc, new(peerDoc))
	case "Target":
		err = g.parseTarget(&r, doc)
	}
	if err != nil {
		return Resource{}, err
	}
	return r, nil
}

// checkName takes what can stand in a file name, a URL and a fact. A Peer's
// name is its trust domain, and judged as one.
func (r *Resource) checkName() error {
	plain := func(c rune) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	bad := func(c rune) bool { return !plain(c) && c != '-' && c != '.' }
	if r.Kind != "Peer" && (len(r.Name) > 63 || strings.IndexFunc(r.Name, bad) >= 0 || !plain(rune(r.Name[0]))) {
		return fmt.Errorf("name: %q: 1 to 63 of a-z, 0-9, - and . are taken, the first a letter or digit", strict.Clip(r.Name))
	}
	return nil
}

func member(m *ast.MappingNode, name string) ast.Node {
	for _, v := range m.Values {
		if v.Key.GetToken().Value == name {
			return v.Value
		}
	}
	return nil
}

// decode fills a document's struct strictly.
func (r *Resource) decode(node ast.Node, into any) error {
	if err := yaml.NodeToValue(node, into, yaml.Strict()); err != nil {
		return strict.ErrorOf(r.file, r.Kind+" "+r.Name, err)
	}
	return nil
}

func (r *Resource) parseDoc(node ast.Node, doc document) error {
	if err := r.decode(node, doc); err != nil {
		return err
	}
	return doc.fill(r)
}

// one finds the one member whose name is not among those of the kind: its join
// method, or its flow.
func (r *Resource) one(doc *ast.MappingNode, what string, others []string, known []string) (name string, value ast.Node, rest *ast.MappingNode, err error) {
	rest = ast.Mapping(doc.Start, false)
	for _, v := range doc.Values {
		key := v.Key.GetToken().Value
		if slices.Contains(others, key) {
			rest.Values = append(rest.Values, v)
			continue
		}
		if !slices.Contains(known, key) {
			return "", nil, nil, strict.At(r.file, r.Kind+" "+r.Name, v.Key, fmt.Sprintf("%q is neither a field of a %s nor a %s that this program has (%s)", strict.Clip(key), r.Kind, what, list(known)))
		}
		if name != "" {
			return "", nil, nil, strict.At(r.file, r.Kind+" "+r.Name, v.Key, fmt.Sprintf("it has two of the %ss, %s and %s: exactly one is wanted", what, name, key))
		}
		name, value = key, v.Value
	}
	if name == "" {
		return "", nil, nil, strict.At(r.file, r.Kind+" "+r.Name, doc, fmt.Sprintf("it has no %s: one of %s is wanted", what, list(known)))
	}
	return name, value, rest, nil
}

func list(names []string) string {
	if len(names) == 0 {
		return "none is built in"
	}
	return strings.Join(names, ", ")
}

func (g Registry) parseJoinRule(r *Resource, doc *ast.MappingNode) error {
	known := slices.Sorted(maps.Keys(g.Methods))
	method, settings, rest, err := r.one(doc, "join method", []string{"kind", "name", "allow"}, known)
	if err != nil {
		return err
	}
	var d joinRuleDoc
	if err := r.decode(rest, &d); err != nil {
		return err
	}
	if len(d.Allow) == 0 {
		return r.At("allow", "it is empty, which would let nobody join: list what a node must have proven")
	}
	into := g.Methods[method]()
	if err := r.decode(settings, into); err != nil {
		return err
	}
	if err := into.Validate(); err != nil {
		return r.At(method, err.Error())
	}
	r.JoinRule = &join.Rule{Name: r.Name, Method: method, Settings: into, Allow: itemsOf(d.Allow)}
	if err := identity.CheckItems(r.JoinRule.Allow); err != nil {
		return r.At("allow", err.Error())
	}
	return nil
}

func (g Registry) parseTarget(r *Resource, doc *ast.MappingNode) error {
	known := slices.Sorted(maps.Keys(g.Flows))
	flow, settings, rest, err := r.one(doc, "flow", []string{"kind", "name", "endpoint", "ca_file"}, known)
	if err != nil {
		return err
	}
	var d targetDoc
	if err := r.decode(rest, &d); err != nil {
		return err
	}
	into := g.Flows[flow]()
	if err := r.decode(settings, into); err != nil {
		return err
	}
	if err := into.Validate(); err != nil {
		return r.At(flow, err.Error())
	}
	r.Target = &exchangers.Target{Name: r.Name, Flow: flow, Settings: into, Endpoint: d.Endpoint, CAFile: d.CAFile}
	if _, err := r.Target.Wire(); err != nil {
		return r.At("", err.Error())
	}
	return nil
}

func (d *peerDoc) fill(r *Resource) error {
	td, err := identity.ParseTrustDomain(d.Name)
	if err != nil {
		return r.At("name", "a peer's name is its trust domain: "+err.Error())
	}
	p := &federation.Peer{TrustDomain: td, URL: d.URL, MaxStaleness: time.Duration(d.MaxStaleness), AllowPrivate: d.AllowPrivate, Accept: d.Accept}
	if d.HTTPSWeb != nil {
		p.HTTPSWeb = &federation.HTTPSWeb{}
	}
	if s := d.HTTPSSPIFFE; s != nil {
		id, err := identity.ParseID(s.EndpointID)
		if err != nil {
			return r.At("https_spiffe.endpoint_id", err.Error())
		}
		p.HTTPSSPIFFE = &federation.HTTPSSPIFFE{EndpointID: id, BundleFile: s.BundleFile, Bundle: []byte(s.Bundle), Fingerprint: s.Fingerprint}
		if s.BundleFile != "" && s.Bundle != "" {
			return r.At("https_spiffe.bundle", "bundle_file and bundle are both set: one is wanted")
		}
	}
	r.Peer = p
	if p.HTTPSSPIFFE != nil && p.HTTPSSPIFFE.BundleFile != "" {
		return nil // it is validated once the file has been read in its place
	}
	if err := p.Validate(); err != nil {
		return r.At("", err.Error())
	}
	return nil
}

// ReadBundle puts the text of a Peer's bundle_file in its place, read by the
// caller's function: an apply carries the bundle itself, for the broker may
// run elsewhere.
func (r *Resource) ReadBundle(read func(file string) ([]byte, error)) error {
	if r.Peer == nil || r.Peer.HTTPSSPIFFE == nil || r.Peer.HTTPSSPIFFE.BundleFile == "" {
		return nil
	}
	text, err := read(r.Peer.HTTPSSPIFFE.BundleFile)
	if err != nil {
		return r.At("https_spiffe.bundle_file", err.Error())
	}
	if !utf8.Valid(text) {
		return r.At("https_spiffe.bundle_file", "it is not UTF-8")
	}
	r.Peer.HTTPSSPIFFE.Bundle, r.Peer.HTTPSSPIFFE.BundleFile = text, ""
	if err := r.Peer.Validate(); err != nil {
		return r.At("https_spiffe.bundle_file", err.Error())
	}
	return nil
}
