package gcp_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func TestNewRefuses(t *testing.T) {
	pool := func(change func(*gcp.Pool)) gcp.Config {
		p := gcp.Pool{Project: "123", ID: "pool-1", Providers: []gcp.Provider{provider()}}
		change(&p)
		return gcp.Config{Pools: []gcp.Pool{p}}
	}
	prov := func(change func(*gcp.Provider)) gcp.Config {
		return pool(func(p *gcp.Pool) { change(&p.Providers[0]) })
	}
	sa := func(change func(*gcp.ServiceAccount)) gcp.Config {
		s := account(principal)
		change(&s)
		return gcp.Config{ServiceAccounts: []gcp.ServiceAccount{s}}
	}
	if _, err := gcp.New(pool(func(*gcp.Pool) {})); err != nil {
		t.Fatal(err)
	}
	var nine []map[string]any
	for i := range 9 {
		nine = append(nine, issuertest.JWK(fmt.Sprint(i), issuertest.RSA().Public()))
	}
	nineKeys, _ := json.Marshal(issuertest.KeySet(nine...))
	for name, cfg := range map[string]gcp.Config{
		"project ID":        pool(func(p *gcp.Pool) { p.Project = "proj" }),
		"short pool":        pool(func(p *gcp.Pool) { p.ID = "abc" }),
		"reserved pool":     pool(func(p *gcp.Pool) { p.ID = "gcp-pool" }),
		"provider twice":    pool(func(p *gcp.Pool) { p.Providers = append(p.Providers, provider()) }),
		"upper case":        prov(func(p *gcp.Provider) { p.ID = "Prov-1" }),
		"http issuer":       prov(func(p *gcp.Provider) { p.Issuer = "http://example.com" }),
		"issuer with port":  prov(func(p *gcp.Provider) { p.Issuer = "https://127.0.0.1:8445" }),
		"eleven audiences":  prov(func(p *gcp.Provider) { p.AllowedAudiences = strings.Split("a,b,c,d,e,f,g,h,i,j,k", ",") }),
		"long audience":     prov(func(p *gcp.Provider) { p.AllowedAudiences = []string{strings.Repeat("a", 257)} }),
		"no mapping":        prov(func(p *gcp.Provider) { p.AttributeMapping = nil }),
		"no subject":        prov(func(p *gcp.Provider) { delete(p.AttributeMapping, "google.subject") }),
		"odd attribute":     prov(func(p *gcp.Provider) { p.AttributeMapping["attribute.Team"] = "'x'" }),
		"other google name": prov(func(p *gcp.Provider) { p.AttributeMapping["google.email"] = "'x'" }),
		"bad CEL":           prov(func(p *gcp.Provider) { p.AttributeMapping["google.subject"] = "assertion." }),
		"other variable":    prov(func(p *gcp.Provider) { p.AttributeMapping["google.subject"] = "token.sub" }),
		"long CEL":          prov(func(p *gcp.Provider) { p.AttributeMapping["google.subject"] = "'" + strings.Repeat("a", 2047) + "'" }),
		"condition no bool": prov(func(p *gcp.Provider) { p.AttributeCondition = "'yes'" }),
		"long condition":    prov(func(p *gcp.Provider) { p.AttributeCondition = "'" + strings.Repeat("a", 4096) + "' == ''" }),
		"nine keys":         prov(func(p *gcp.Provider) { p.KeySet = nineKeys }),
		"P-384 key":         prov(func(p *gcp.Provider) { p.KeySet = []byte(`{"keys":[{"kty":"EC","crv":"P-384","kid":"a"}]}`) }),
		"empty key set":     prov(func(p *gcp.Provider) { p.KeySet = []byte(`{}`) }),
		"odd email":         sa(func(s *gcp.ServiceAccount) { s.Email = "me@example.com" }),
		"odd unique ID":     sa(func(s *gcp.ServiceAccount) { s.UniqueID = "x" }),
		"unknown role":      sa(func(s *gcp.ServiceAccount) { s.Bindings[0].Role = "roles/owner" }),
		"allUsers":          sa(func(s *gcp.ServiceAccount) { s.Bindings[0].Members = []string{"allUsers"} }),
		"principal elsewhere": sa(func(s *gcp.ServiceAccount) {
			s.Bindings[0].Members = []string{strings.Replace(principal, "googleapis", "example", 1)}
		}),
	} {
		if _, err := gcp.New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestPutProviderNeedsPool(t *testing.T) {
	w := newWorld(t, nil)
	if err := w.cloud.PutProvider("projects/1/locations/global/workloadIdentityPools/none", provider()); err == nil {
		t.Error("taken")
	}
}
