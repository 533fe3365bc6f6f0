// Package publishtest has what tests of publishing share: the contract of a
// Store, one in memory that fails when told, and the cloud services behind the
// others, speaking their protocols and as strict as their documentation. It
// trusts nobody, and shares no code with the clients.
package publishtest

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/federation/publish"
)

// RunStore holds an empty Store against its contract.
func RunStore(t *testing.T, s publish.Store) {
	ctx := t.Context()
	get := func(name string) *publish.Held {
		t.Helper()
		h, err := s.Get(ctx, name)
		if err != nil {
			t.Fatalf("getting %s: %v", name, err)
		}
		return h
	}
	for _, name := range []string{publish.BundleName, publish.DiscoveryName} {
		doc := publish.Document{Name: name, Body: []byte(`{"keys":[],"name":"` + name + `"}`), Headers: publish.Headers{ContentType: "application/json", CacheControl: "public, max-age=300"}}
		if h := get(name); h != nil {
			t.Fatalf("%s is there before it was put: %s", name, h.Body)
		}
		if err := s.Put(ctx, doc, nil); err != nil {
			t.Fatal(err)
		}
		first := get(name)
		if first == nil || !bytes.Equal(first.Body, doc.Body) || first.Version == "" {
			t.Fatalf("%s is there as %+v", name, first)
		}
		if first.Headers != nil {
			if diff := cmp.Diff(doc.Headers, *first.Headers); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
		next := doc
		next.Body = []byte(`{"keys":[1]}`)
		if err := s.Put(ctx, next, nil); !errors.Is(err, publish.ErrConflict) {
			t.Errorf("%s made twice: %v", name, err)
		}
		if err := s.Put(ctx, next, first); err != nil {
			t.Errorf("%s replaced: %v", name, err)
		}
		second := get(name)
		if !bytes.Equal(second.Body, next.Body) || second.Version == first.Version {
			t.Errorf("%s after it was replaced: %s, version %s after %s", name, second.Body, second.Version, first.Version)
		}
		if err := s.Put(ctx, doc, first); !errors.Is(err, publish.ErrConflict) {
			t.Errorf("%s replaced by who read it before the last change: %v", name, err)
		}
		if got := get(name); !bytes.Equal(got.Body, next.Body) {
			t.Errorf("%s was changed by one who was refused: %s", name, got.Body)
		}
	}
	huge := publish.Document{Name: publish.KeysName, Body: []byte(strings.Repeat(" ", publish.MaxHeld+1)), Headers: publish.Headers{ContentType: "application/json"}}
	if err := s.Put(ctx, huge, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, publish.KeysName); err == nil {
		t.Error("a document that is too large was read")
	}
}

// Memory is a Store in memory. Its zero value is empty.
type Memory struct {
	Before func(act, name string) error // called before each get and put

	mu      sync.Mutex
	objects map[string]publish.Held
	Puts    []string // names, in their order
	n       int
}

func (m *Memory) before(act, name string) error {
	if m.Before == nil {
		return nil
	}
	return m.Before(act, name)
}

// Get returns a document that is there.
func (m *Memory) Get(_ context.Context, name string) (*publish.Held, error) {
	if err := m.before("get", name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.objects[name]
	if !ok {
		return nil, nil
	}
	if len(h.Body) > publish.MaxHeld {
		return nil, errors.New("too large")
	}
	return &h, nil
}

// Put replaces a document.
func (m *Memory) Put(_ context.Context, d publish.Document, replaces *publish.Held) error {
	if err := m.before("put", d.Name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if h, ok := m.objects[d.Name]; ok != (replaces != nil) || ok && h.Version != replaces.Version {
		return publish.ErrConflict
	}
	if m.objects == nil {
		m.objects = map[string]publish.Held{}
	}
	m.n++
	m.objects[d.Name] = publish.Held{Body: d.Body, Headers: &d.Headers, Version: strconv.Itoa(m.n)}
	m.Puts = append(m.Puts, d.Name)
	return nil
}
