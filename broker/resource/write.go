package resource

import (
	"fmt"

	"github.com/goccy/go-yaml"
)

// YAML writes the resource as Parse takes it: fields in a fixed order, terms
// in the order in which they were written. The same resource is always the
// same text.
func (r Resource) YAML() ([]byte, error) {
	doc, err := r.document()
	if err != nil {
		return nil, err
	}
	text, err := yaml.MarshalWithOptions(doc, yaml.UseLiteralStyleIfMultiline(true), yaml.IndentSequence(true))
	if err != nil {
		return nil, fmt.Errorf("writing %s %s: %w", r.Kind, r.Name, err)
	}
	return text, nil
}

func (r Resource) document() (any, error) {
	switch {
	case r.Identity != nil:
		return r.identityDoc(), nil
	case r.Deny != nil:
		return denyDoc{Kind: r.Kind, Name: r.Name, Match: itemDocs(r.Deny.Match), SPIFFEIDs: r.Deny.SPIFFEIDs, Reason: r.Deny.Reason}, nil
	case r.JoinRule != nil:
		return yaml.MapSlice{
			{Key: "kind", Value: r.Kind}, {Key: "name", Value: r.Name},
			{Key: r.JoinRule.Method, Value: r.JoinRule.Settings}, {Key: "allow", Value: itemDocs(r.JoinRule.Allow)},
		}, nil
	case r.Peer != nil:
		return r.peerDoc(), nil
	case r.Target != nil:
		doc := yaml.MapSlice{{Key: "kind", Value: r.Kind}, {Key: "name", Value: r.Name}, {Key: r.Target.Flow, Value: r.Target.Settings}}
		if r.Target.Endpoint != "" {
			doc = append(doc, yaml.MapItem{Key: "endpoint", Value: r.Target.Endpoint})
		}
		if r.Target.CAFile != "" {
			doc = append(doc, yaml.MapItem{Key: "ca_file", Value: r.Target.CAFile})
		}
		return doc, nil
	}
	return nil, fmt.Errorf("writing %s %s: it holds nothing", r.Kind, r.Name)
}

func (r Resource) identityDoc() identityDoc {
	i := r.Identity
	d := identityDoc{
		Kind: r.Kind, Name: r.Name, SPIFFEID: i.SPIFFEID, Match: itemDocs(i.Match),
		FederatesWith: i.FederatesWith, Hint: i.Hint, Targets: i.Targets,
	}
	if i.X509 != nil {
		d.X509 = &x509Doc{TTL: duration(i.X509.TTL), Subject: i.X509.Subject, DNSNames: i.X509.DNSNames}
	}
	if i.JWT != nil {
		d.JWT = &jwtDoc{TTL: duration(i.JWT.TTL), Audiences: audienceDocs(i.JWT.Audiences), Claims: i.JWT.Claims, Alg: i.JWT.Alg}
	}
	return d
}

func (r Resource) peerDoc() peerDoc {
	p := r.Peer
	d := peerDoc{Kind: r.Kind, Name: r.Name, URL: p.URL, MaxStaleness: duration(p.MaxStaleness), AllowPrivate: p.AllowPrivate, Accept: p.Accept}
	if p.HTTPSWeb != nil {
		d.HTTPSWeb = &struct{}{}
	}
	if s := p.HTTPSSPIFFE; s != nil {
		d.HTTPSSPIFFE = &httpsSPIFFEDoc{EndpointID: s.EndpointID.String(), BundleFile: s.BundleFile, Bundle: string(s.Bundle), Fingerprint: s.Fingerprint}
	}
	return d
}
