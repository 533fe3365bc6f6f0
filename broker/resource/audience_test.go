package resource_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/identity"
)

func TestAudiences(t *testing.T) {
	text := identityHead + `jwt: {audiences: [orders, 123, {name: pay, use: single_use}, {use: audited, name: "books/**"}, "<x>"]}
`
	all, err := registry().Parse("f.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []identity.Audience{
		{Pattern: "orders"}, {Pattern: "123"}, {Pattern: "pay", Use: identity.UseSingle}, {Pattern: "books/**", Use: identity.UseAudited}, {Pattern: "<x>"},
	}
	if diff := cmp.Diff(want, all[0].Identity.JWT.Audiences); diff != "" {
		t.Error(diff)
	}
	readAlike(t, all[0])
	written, err := all[0].YAML()
	if err != nil {
		t.Fatal(err)
	}
	again, err := registry().Parse("f", written)
	if err != nil {
		t.Fatalf("%v of\n%s", err, written)
	}
	if diff := cmp.Diff(all, again, alike); diff != "" {
		t.Errorf("%s\n%s", diff, written)
	}
	if !strings.Contains(string(written), "- orders\n") || !strings.Contains(string(written), "name: pay\n") {
		t.Errorf("it is written as\n%s", written)
	}
}

func TestAudiencesRefused(t *testing.T) {
	for _, row := range []struct{ audience, want string }{
		{"{name: pay, use: once}", `"once" is neither`},
		{"{name: pay, use: default}", "neither"},
		{"{name: pay, use: ''}", "neither"},
		{"{name: pay}", "both name: and use:"},
		{"{use: audited}", "both name: and use:"},
		{"{}", "both name: and use:"},
		{"{name: pay, use: audited, ttl: 5m}", `"ttl" is no field`},
		{"{name: pay, name: x, use: audited}", "pay"},
		{"{name: [pay], use: audited}", "quote it"},
		{"true", "quote it"},
		{"1.5", "quote it"},
		{"0x1f", "quote it"},
		{"[pay]", "quote it"},
	} {
		_, err := registry().Parse("f.yaml", []byte(identityHead+"jwt:\n  audiences:\n  - orders\n  - "+row.audience+"\n"))
		if err == nil || !strings.Contains(fmt.Sprint(err), row.want) && !strings.Contains(row.audience, "name: x") || !strings.Contains(fmt.Sprint(err), "f.yaml:8:") {
			t.Errorf("%s: %v", row.audience, err)
		}
	}
}

// What the broker holds was written by itself: else it is read as YAML, which
// refuses it.
func TestAudienceOfNoUseIsNotReadAsText(t *testing.T) {
	for _, audience := range []string{`{"name":"a","use":""}`, `{"name":"a","use":"x"}`, `{"name":"a"}`, `null`, `5`} {
		text := strings.TrimSuffix(jsonHead, "\n") + `,"jwt":{"audiences":[` + audience + `]}}` + "\n"
		all, err := registry().Read("f", []byte(text))
		if err == nil && audience != "5" && audience != "null" {
			t.Errorf("%s is read as %v", audience, all[0].Identity.JWT)
		}
	}
}
