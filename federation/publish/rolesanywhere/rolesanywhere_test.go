package rolesanywhere_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	aws "github.com/aws/aws-sdk-go-v2/service/rolesanywhere"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/federationtest"
	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/publishtest"
	"github.com/credence-id/credence/federation/publish/rolesanywhere"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func anchor(service *publishtest.RolesAnywhere) rolesanywhere.Anchor {
	return rolesanywhere.Anchor{ID: publishtest.AnchorID, Client: aws.New(aws.Options{
		Region: publishtest.Region, BaseEndpoint: &service.URL, HTTPClient: service.Client,
		Credentials: credentials.NewStaticCredentialsProvider(publishtest.AccessKey, publishtest.SecretKey, ""),
	})}
}

func set(t *testing.T, cas ...*federationtest.CA) publish.Set {
	t.Helper()
	b := spiffebundle.New(td)
	b.SetSequenceNumber(1)
	for _, c := range cas {
		b.AddX509Authority(c.Cert)
	}
	document, err := federation.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return publish.Set{TrustDomain: td, Bundle: document}
}

func TestAnchor(t *testing.T) {
	service := publishtest.NewRolesAnywhere(t)
	a := anchor(service)
	one, two, three := federationtest.NewCA(t, time.Now(), nil), federationtest.NewCA(t, time.Now(), nil), federationtest.NewCA(t, time.Now(), nil)
	for _, step := range []struct {
		name    string
		cas     []*federationtest.CA
		changed bool
		held    int
	}{
		{"at first", []*federationtest.CA{one}, true, 1},
		{"again", []*federationtest.CA{one}, false, 1},
		{"a second root", []*federationtest.CA{one, two}, true, 2},
		{"the first dropped", []*federationtest.CA{two}, true, 1},
	} {
		changed, err := a.Publish(t.Context(), set(t, step.cas...))
		if err != nil || slices.Equal(changed, []string{rolesanywhere.Name}) != step.changed || strings.Count(service.PEM, "BEGIN CERTIFICATE") != step.held {
			t.Fatalf("%s: %q, %v, %s", step.name, changed, err, service.PEM)
		}
	}
	before := service.PEM
	for name, cas := range map[string][]*federationtest.CA{"no root": nil, "more than an anchor takes": {one, two, three}} {
		if changed, err := a.Publish(t.Context(), set(t, cas...)); err == nil || len(changed) > 0 || service.PEM != before {
			t.Errorf("%s: %q, %v", name, changed, err)
		}
	}
	if refused := service.Refused(); len(refused) > 0 || service.Updates != 3 {
		t.Errorf("%d updates; refused: %s", service.Updates, refused)
	}
	service.Type = "AWS_ACM_PCA"
	if _, err := a.Publish(t.Context(), set(t, one)); !errors.Is(err, publish.ErrForeign) {
		t.Errorf("an anchor of AWS's own CA: %v", err)
	}
	elsewhere := a
	elsewhere.ID = "00000000-0000-0000-0000-000000000000"
	if _, err := elsewhere.Publish(t.Context(), set(t, one)); err == nil {
		t.Error("published to no anchor")
	}
}

func TestParseARN(t *testing.T) {
	region, id, err := rolesanywhere.ParseARN(publishtest.AnchorARN)
	if err != nil || region != publishtest.Region || id != publishtest.AnchorID {
		t.Errorf("%s, %s, %v", region, id, err)
	}
	for _, bad := range []string{"", publishtest.AnchorID, strings.Replace(publishtest.AnchorARN, "trust-anchor", "profile", 1), publishtest.AnchorARN + "x", "x" + publishtest.AnchorARN} {
		if _, _, err := rolesanywhere.ParseARN(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
