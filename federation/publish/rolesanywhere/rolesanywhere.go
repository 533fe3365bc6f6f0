// Package rolesanywhere publishes the X.509 authorities of a bundle to an AWS
// Roles Anywhere trust anchor, which takes no URL to fetch them from. The client
// that it is given has credentials with rolesanywhere:GetTrustAnchor and
// UpdateTrustAnchor.
package rolesanywhere

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/rolesanywhere"
	"github.com/aws/aws-sdk-go-v2/service/rolesanywhere/types"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/publish"
)

// maxCertificates is how many an anchor takes, by AWS's quotas.
const maxCertificates = 2

// Name is what a change of the anchor is called.
const Name = "trust anchor"

var arnPattern = regexp.MustCompile(`^arn:aws[a-z-]*:rolesanywhere:([a-z0-9-]+):\d{12}:trust-anchor/([0-9a-f-]{36})$`)

// ParseARN returns the region and the ID of an anchor.
func ParseARN(arn string) (region, id string, err error) {
	m := arnPattern.FindStringSubmatch(arn)
	if m == nil {
		return "", "", fmt.Errorf("%.300q: arn:aws:rolesanywhere:REGION:ACCOUNT:trust-anchor/ID is wanted", arn)
	}
	return m[1], m[2], nil
}

// Anchor is a trust anchor whose source is a certificate bundle.
type Anchor struct {
	Client *rolesanywhere.Client
	ID     string
}

// Publish has the anchor trust the set's X.509 authorities and no other. It
// refuses to empty it, which AWS does too: disable the anchor instead.
func (a Anchor) Publish(ctx context.Context, s publish.Set) (changed []string, err error) {
	b, err := federation.ParseBundle(s.TrustDomain, s.Bundle)
	if err != nil {
		return nil, fmt.Errorf("publishing to the trust anchor: %w", err)
	}
	want, err := source(b.X509Authorities())
	if err != nil {
		return nil, fmt.Errorf("publishing to the trust anchor %s: %w", a.ID, err)
	}
	r, err := a.Client.GetTrustAnchor(ctx, &rolesanywhere.GetTrustAnchorInput{TrustAnchorId: &a.ID})
	if err != nil {
		return nil, fmt.Errorf("reading the trust anchor %s: %w", a.ID, err)
	}
	held, err := data(r.TrustAnchor)
	if err != nil {
		return nil, fmt.Errorf("publishing to the trust anchor %s: %w", a.ID, err)
	}
	if strings.TrimSpace(held) == strings.TrimSpace(want) {
		return nil, nil
	}
	_, err = a.Client.UpdateTrustAnchor(ctx, &rolesanywhere.UpdateTrustAnchorInput{
		TrustAnchorId: &a.ID,
		Source:        &types.Source{SourceType: types.TrustAnchorTypeCertificateBundle, SourceData: &types.SourceDataMemberX509CertificateData{Value: want}},
	})
	if err != nil {
		return nil, fmt.Errorf("writing the trust anchor %s: %w", a.ID, err)
	}
	return []string{Name}, nil
}

func source(authorities []*x509.Certificate) (string, error) {
	if len(authorities) == 0 {
		return "", errors.New("the bundle has no X.509 authority, and an anchor takes no empty bundle: disable it (aws rolesanywhere disable-trust-anchor)")
	}
	if len(authorities) > maxCertificates {
		return "", fmt.Errorf("the bundle has %d X.509 authorities, and an anchor takes %d: finish the change of root first", len(authorities), maxCertificates)
	}
	var b strings.Builder
	for _, c := range authorities {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Builder takes everything
	}
	return b.String(), nil
}

// data is what an anchor holds; one that is not a certificate bundle is a
// private CA's of AWS, and not ours to change.
func data(anchor *types.TrustAnchorDetail) (string, error) {
	if anchor == nil || anchor.Source == nil || anchor.Source.SourceType != types.TrustAnchorTypeCertificateBundle {
		return "", fmt.Errorf("%w: its source is no certificate bundle", publish.ErrForeign)
	}
	certificates, ok := anchor.Source.SourceData.(*types.SourceDataMemberX509CertificateData)
	if !ok {
		return "", nil
	}
	return certificates.Value, nil
}
