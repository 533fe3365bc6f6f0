package publish_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/publishtest"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

const issuer = "https://id.example.org/td"

// set is what is published with a sequence number.
func set(sequence int) publish.Set {
	return publish.Set{
		TrustDomain: td, Bundle: fmt.Appendf(nil, `{"keys":[],"spiffe_sequence":%d,"spiffe_refresh_hint":300}`, sequence),
		Issuer: issuer, Discovery: []byte(`{"issuer":"` + issuer + `"}`), Keys: fmt.Appendf(nil, `{"keys":[{"kid":"%d"}]}`, sequence),
		BundleCache: "max-age=300", OIDCCache: "public, max-age=300",
	}
}

func get(t *testing.T, s publish.Store, name string) string {
	t.Helper()
	h, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if h == nil {
		return ""
	}
	return string(h.Body)
}

// What leads to the keys comes after them, and the number last.
func TestPublishInOrder(t *testing.T) {
	var m publishtest.Memory
	all := []string{publish.KeysName, publish.DiscoveryName, publish.BundleName}
	changed, err := publish.Documents{Store: &m}.Publish(t.Context(), set(1))
	if err != nil || !slices.Equal(changed, all) || !slices.Equal(m.Puts, all) {
		t.Fatalf("changed %q, put %q, %v", changed, m.Puts, err)
	}
	if changed, err := (publish.Documents{Store: &m}).Publish(t.Context(), set(1)); err != nil || len(changed) > 0 {
		t.Errorf("the same again: %q, %v", changed, err)
	}
	changed, err = publish.Documents{Store: &m}.Publish(t.Context(), set(2))
	if err != nil || !slices.Equal(changed, []string{publish.KeysName, publish.BundleName}) {
		t.Errorf("the next: %q, %v", changed, err)
	}
	for _, want := range []struct{ name, kind, cache string }{{publish.BundleName, "application/json", "max-age=300"}, {publish.KeysName, "application/json", "public, max-age=300"}} {
		h, err := m.Get(t.Context(), want.name)
		if err != nil || h.Headers.ContentType != want.kind || h.Headers.CacheControl != want.cache {
			t.Errorf("%s: %+v, %v", want.name, h.Headers, err)
		}
	}
	// Headers alone are a change too.
	again := set(2)
	again.BundleCache = "max-age=60"
	if changed, err := (publish.Documents{Store: &m}).Publish(t.Context(), again); err != nil || !slices.Equal(changed, []string{publish.BundleName}) {
		t.Errorf("another Cache-Control: %q, %v", changed, err)
	}
}

func TestPublishWithoutIssuer(t *testing.T) {
	var m publishtest.Memory
	s := publish.Set{TrustDomain: td, Bundle: set(1).Bundle}
	if changed, err := (publish.Documents{Store: &m}).Publish(t.Context(), s); err != nil || !slices.Equal(changed, []string{publish.BundleName}) {
		t.Errorf("%q, %v", changed, err)
	}
}

func TestPublishRefuses(t *testing.T) {
	put := func(name, body string) func(*testing.T, *publishtest.Memory) {
		return func(t *testing.T, m *publishtest.Memory) {
			if err := m.Put(t.Context(), publish.Document{Name: name, Body: []byte(body)}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	nothing := func(*testing.T, *publishtest.Memory) {}
	for name, tt := range map[string]struct {
		there func(*testing.T, *publishtest.Memory)
		edit  func(*publish.Set)
		want  error
	}{
		"a newer bundle":             {put(publish.BundleName, string(set(3).Bundle)), nil, publish.ErrNewer},
		"the same number, others":    {put(publish.BundleName, `{"keys":[],"spiffe_sequence":2}`), nil, publish.ErrNewer},
		"a page":                     {put(publish.BundleName, "<html>"), nil, publish.ErrForeign},
		"an empty file":              {put(publish.BundleName, ""), nil, publish.ErrForeign},
		"another issuer's discovery": {put(publish.DiscoveryName, `{"issuer":"https://id.example.org"}`), nil, publish.ErrForeign},
		"no discovery":               {put(publish.DiscoveryName, `<html>`), nil, publish.ErrForeign},
		"no key set":                 {put(publish.KeysName, `{"secrets":[]}`), nil, publish.ErrForeign},
		"ours without a number":      {nothing, func(s *publish.Set) { s.Bundle = []byte(`{"keys":[]}`) }, nil},
		"ours without keys":          {nothing, func(s *publish.Set) { s.Bundle = []byte(`{}`) }, nil},
		"ours with half an issuer":   {nothing, func(s *publish.Set) { s.Keys = nil }, nil},
		"ours without discovery":     {nothing, func(s *publish.Set) { s.Discovery = nil }, nil},
		"ours of no trust domain":    {nothing, func(s *publish.Set) { s.TrustDomain = spiffeid.TrustDomain{} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var m publishtest.Memory
			tt.there(t, &m)
			before := slices.Clone(m.Puts)
			s := set(2)
			if tt.edit != nil {
				tt.edit(&s)
			}
			changed, err := publish.Documents{Store: &m}.Publish(t.Context(), s)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || len(changed) > 0 || !slices.Equal(m.Puts, before) {
				t.Errorf("changed %q, put %q, %v", changed, m.Puts, err)
			}
		})
	}
}

// What an older program wrote has no number, and is older than any.
func TestPublishOverABundleWithoutNumber(t *testing.T) {
	var m publishtest.Memory
	if err := m.Put(t.Context(), publish.Document{Name: publish.BundleName, Body: []byte(`{"keys":[]}`)}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := (publish.Documents{Store: &m}).Publish(t.Context(), set(2)); err != nil {
		t.Error(err)
	}
}

// Wherever a publication breaks off, what is there was true at some time, the
// number is not ahead of the keys, and the next publication mends it.
func TestPublishBreaksOff(t *testing.T) {
	for broken := range 3 {
		t.Run(fmt.Sprint(broken), func(t *testing.T) {
			var m publishtest.Memory
			if _, err := (publish.Documents{Store: &m}).Publish(t.Context(), set(1)); err != nil {
				t.Fatal(err)
			}
			puts, down := 0, errors.New("no network")
			m.Before = func(act, _ string) error {
				if act == "put" {
					if puts++; puts > broken {
						return down
					}
				}
				return nil
			}
			next := set(2)
			next.Discovery = []byte(`{"issuer":"` + issuer + `","x":1}`)
			changed, err := publish.Documents{Store: &m}.Publish(t.Context(), next)
			m.Before = nil
			if !errors.Is(err, down) || len(changed) != broken {
				t.Errorf("changed %q, %v", changed, err)
			}
			if get(t, &m, publish.BundleName) == string(next.Bundle) {
				t.Error("the bundle is there before the rest")
			}
			if _, err := (publish.Documents{Store: &m}).Publish(t.Context(), next); err != nil || get(t, &m, publish.BundleName) != string(next.Bundle) {
				t.Errorf("not mended: %v", err)
			}
		})
	}
}

// One that read before another published changes nothing afterwards.
func TestTwoPublishersDoNotMix(t *testing.T) {
	var m publishtest.Memory
	if _, err := (publish.Documents{Store: &m}).Publish(t.Context(), set(1)); err != nil {
		t.Fatal(err)
	}
	raced := false
	m.Before = func(act, name string) error {
		if act == "put" && !raced {
			raced = true // before the slow one's first put
			if _, err := (publish.Documents{Store: &m}).Publish(t.Context(), set(3)); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	if _, err := (publish.Documents{Store: &m}).Publish(t.Context(), set(2)); !errors.Is(err, publish.ErrConflict) {
		t.Errorf("the slow one: %v", err)
	}
	if keys := get(t, &m, publish.KeysName); !strings.Contains(keys, `"3"`) {
		t.Errorf("the keys are %s", keys)
	}
}

func TestMemory(t *testing.T) { publishtest.RunStore(t, &publishtest.Memory{}) }
