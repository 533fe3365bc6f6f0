package azure_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/exchangers/sandbox/azure"
)

func TestPutAppRefuses(t *testing.T) {
	one := func(change func(*azure.Credential)) azure.App {
		c := credential()
		change(&c)
		return app(c)
	}
	many := func(n int) azure.App {
		a := app()
		for i := range n {
			c := credential()
			c.Name, c.Subject = fmt.Sprint("name", i), fmt.Sprint(spiffeID, i)
			a.Credentials = append(a.Credentials, c)
		}
		return a
	}
	second := credential()
	second.Name = "second"
	sameName := credential()
	sameName.Subject = "other"
	identity := app(credential())
	identity.Kind = azure.ManagedIdentity
	w := newWorld(t, nil)
	for name, tc := range map[string]struct {
		app    azure.App
		status int
	}{
		"twenty":               {many(20), 0},
		"E22 twenty-one":       {many(21), 409},
		"E22 pair twice":       {app(credential(), second), 409},
		"E22 name twice":       {app(credential(), sameName), 409},
		"E22 name with space":  {one(func(c *azure.Credential) { c.Name = "my name" }), 400},
		"short name":           {one(func(c *azure.Credential) { c.Name = "ab" }), 400},
		"leading hyphen":       {one(func(c *azure.Credential) { c.Name = "-abc" }), 400},
		"http issuer":          {one(func(c *azure.Credential) { c.Issuer = "http://example.com" }), 400},
		"issuer with port":     {one(func(c *azure.Credential) { c.Issuer = "https://example.com:8443" }), 400},
		"issuer with space":    {one(func(c *azure.Credential) { c.Issuer += " " }), 400},
		"no subject":           {one(func(c *azure.Credential) { c.Subject = "" }), 400},
		"long subject":         {one(func(c *azure.Credential) { c.Subject = strings.Repeat("a", 601) }), 400},
		"no audience":          {one(func(c *azure.Credential) { c.Audience = "" }), 400},
		"subject and flexible": {one(func(c *azure.Credential) { c.Expression = "x" }), 400},
		"flexible for GitHub": {one(func(c *azure.Credential) {
			c.Subject, c.Expression, c.Issuer = "", "x", "https://token.actions.githubusercontent.com"
		}), 400},
		"flexible":         {one(func(c *azure.Credential) { c.Subject, c.Expression = "", "x" }), 0},
		"managed identity": {identity, 0},
		"its own audience": {func() azure.App {
			a := one(func(c *azure.Credential) { c.Audience = "api://mine" })
			a.Kind = azure.ManagedIdentity
			return a
		}(), 400},
		"kind unset":         {azure.App{ClientID: clientID, ObjectID: objectID}, 400},
		"client ID no GUID":  {azure.App{Kind: azure.Application, ClientID: "x", ObjectID: objectID}, 400},
		"upper-case object":  {azure.App{Kind: azure.Application, ClientID: clientID, ObjectID: strings.ToUpper(objectID)}, 400},
		"without credential": {app(), 0},
	} {
		err := w.cloud.PutApp(tenantID, tc.app)
		var refused *azure.CreateError
		if errors.As(err, &refused); err == nil && tc.status != 0 || err != nil && (refused == nil || refused.Status != tc.status) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.cloud.PutApp(objectID, app()); err == nil {
		t.Error("an app in no tenant")
	}
}

func TestNewRefuses(t *testing.T) {
	for name, cfg := range map[string]azure.Config{
		"tenant no GUID": {Tenants: []azure.Tenant{{ID: "x"}}},
		"odd domain":     {Tenants: []azure.Tenant{{ID: tenantID, Domain: "a b"}}},
		"app twice":      {Tenants: []azure.Tenant{{ID: tenantID, Apps: []azure.App{app(), app()}}}},
		"bad resource":   {Resources: []string{"management"}},
	} {
		if _, err := azure.New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
