package endpoint_test

import (
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation/federationtest"
)

var (
	partner  = spiffeid.RequireTrustDomainFromString("partner.example")
	brokerID = spiffeid.RequireFromPath(partner, "/credence/broker")
)

type ca = federationtest.CA

func newCA(t testing.TB) *ca { return federationtest.NewCA(t, time.Now(), nil) }
