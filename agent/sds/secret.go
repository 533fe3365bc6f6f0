package sds

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/credence-id/credence/agent"
)

// validator is the name of Envoy's SPIFFE certificate validator.
const validator = "envoy.tls.cert_validator.spiffe"

// A resource is one secret as it is sent. Its version is the same for the same
// content, on every stream and after a restart too.
type resource struct {
	name, version string
	body          *anypb.Any
}

// A catalog is all that a caller may have at one moment.
type catalog struct {
	names Names
	own   spiffeid.TrustDomain
	plain bool
	agent.Update
}

// find returns the resource of a name, or a status that says why there is none.
func (c *catalog) find(name string) (resource, error) {
	switch name {
	case c.names.SVID:
		return svid(name, c.SVIDs[0])
	case c.names.Bundle:
		return c.bundles(name, c.own)
	case c.names.AllBundles:
		if c.plain {
			return resource{}, status.Errorf(codes.FailedPrecondition, "%q needs the SPIFFE certificate validator: Envoy 1.18 or later, and disable_spiffe_cert_validation not set", name)
		}
		return c.bundles(name, c.trustDomains()...)
	}
	for _, v := range c.SVIDs {
		if v.ID.String() == name {
			return svid(name, v)
		}
	}
	for td := range c.Bundles {
		if td.IDString() == name {
			return c.bundles(name, td)
		}
	}
	for _, v := range c.SVIDs {
		if slices.ContainsFunc(v.FederatesWith, func(td string) bool { return "spiffe://"+td == name }) {
			return resource{}, status.Errorf(codes.Unavailable, "the bundle of %s is not here", name)
		}
	}
	return resource{}, status.Errorf(codes.InvalidArgument, "no secret of the name %q is given to this process: it may ask for %s", brief(name), c.offers())
}

// all are the names under which everything can be had once.
func (c *catalog) all() (names []string) {
	for _, v := range c.SVIDs {
		if id := v.ID.String(); !slices.Contains(names, id) {
			names = append(names, id)
		}
	}
	for _, td := range c.trustDomains() {
		names = append(names, td.IDString())
	}
	return names
}

// offers are the names that can be had, for a person, and not too many.
func (c *catalog) offers() string {
	names := []string{c.names.SVID, c.names.Bundle}
	if !c.plain {
		names = append(names, c.names.AllBundles)
	}
	names = append(names, c.all()...)
	const most = 8
	if len(names) > most {
		names = append(names[:most], "...")
	}
	return strings.Join(names, ", ")
}

// trustDomains are those with roots, in order.
func (c *catalog) trustDomains() (all []spiffeid.TrustDomain) {
	for td, b := range c.Bundles {
		if len(b.X509Authorities) > 0 {
			all = append(all, td)
		}
	}
	slices.SortFunc(all, func(x, y spiffeid.TrustDomain) int { return x.Compare(y) })
	return all
}

// svid is a TLS certificate: chain and key, PEM, inline. The chain stands for
// the key in the version, which need not be as secret as the key.
func svid(name string, v *agent.SVID) (resource, error) {
	chain := certificates(v.Certificates)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: v.KeyDER})
	if len(v.Certificates) == 0 || len(v.KeyDER) == 0 {
		return resource{}, fmt.Errorf("the SVID %s has no certificate or no key", v.ID)
	}
	return pack(name, chain, &tls.Secret{Name: name, Type: &tls.Secret_TlsCertificate{
		TlsCertificate: &tls.TlsCertificate{CertificateChain: inline(chain), PrivateKey: inline(key)},
	}})
}

// bundles is what verifies SVIDs of these trust domains, of one if it is plain.
func (c *catalog) bundles(name string, domains ...spiffeid.TrustDomain) (resource, error) {
	config, content := &tls.SPIFFECertValidatorConfig{}, []byte{}
	for _, td := range domains {
		b := c.Bundles[td]
		if b == nil || len(b.X509Authorities) == 0 {
			return resource{}, status.Errorf(codes.Unavailable, "the bundle of %s is not here", td.IDString())
		}
		roots := certificates(b.X509Authorities)
		content = fmt.Appendf(content, "%s %d\n%s", td.Name(), len(roots), roots)
		config.TrustDomains = append(config.TrustDomains, &tls.SPIFFECertValidatorConfig_TrustDomain{Name: td.Name(), TrustBundle: inline(roots)})
	}
	if len(domains) == 0 {
		return resource{}, status.Error(codes.Unavailable, "no bundle is here")
	}
	validation := &tls.CertificateValidationContext{}
	if c.plain {
		content = append(content, "trusted_ca"...)
		validation.TrustedCa = config.TrustDomains[0].TrustBundle
	} else {
		typed, err := anypb.New(config)
		if err != nil {
			return resource{}, err
		}
		validation.CustomValidatorConfig = &core.TypedExtensionConfig{Name: validator, TypedConfig: typed}
	}
	return pack(name, content, &tls.Secret{Name: name, Type: &tls.Secret_ValidationContext{ValidationContext: validation}})
}

func pack(name string, content []byte, s *tls.Secret) (resource, error) {
	body := &anypb.Any{}
	if err := anypb.MarshalFrom(body, s, proto.MarshalOptions{Deterministic: true}); err != nil {
		return resource{}, fmt.Errorf("marshalling the secret %q: %w", name, err)
	}
	sum := sha256.Sum256(content)
	return resource{name: name, version: hex.EncodeToString(sum[:16]), body: body}, nil
}

// versionOf is that of several resources together.
func versionOf(versions map[string]string) string {
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		fmt.Fprintf(sum, "%q %s\n", name, versions[name])
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

func inline(text []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: text}}
}

func certificates(all []*x509.Certificate) (text []byte) {
	for _, c := range all {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}
