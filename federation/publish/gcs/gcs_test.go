package gcs_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/gcs"
	"github.com/credence-id/credence/federation/publish/publishtest"
)

func TestStore(t *testing.T) {
	service := publishtest.NewGCS(t)
	publishtest.RunStore(t, gcs.Store{Client: service.Authorized(), Endpoint: service.URL, Bucket: publishtest.Bucket, Prefix: "td/"})
	if refused := service.Refused(); len(refused) > 0 {
		t.Errorf("refused: %s", refused)
	}
	if body, kind, cache := service.Object("td/" + publish.DiscoveryName); body == "" || kind != "application/json" || cache != "public, max-age=300" {
		t.Errorf("%q, %q, %q", body, kind, cache)
	}
}

func TestFailures(t *testing.T) {
	service := publishtest.NewGCS(t)
	doc := publish.Document{Name: publish.KeysName, Body: []byte("{}"), Headers: publish.Headers{ContentType: "application/json"}}
	good := gcs.Store{Client: service.Authorized(), Endpoint: service.URL + "/", Bucket: publishtest.Bucket}
	for name, edit := range map[string]func(*gcs.Store){
		"no credentials": func(s *gcs.Store) { s.Client = service.Client },
		"no such bucket": func(s *gcs.Store) { s.Bucket = "another" },
	} {
		s := good
		edit(&s)
		if err := s.Put(t.Context(), doc, nil); err == nil || errors.Is(err, publish.ErrConflict) {
			t.Errorf("%s: put: %v", name, err)
		}
		if held, err := s.Get(t.Context(), doc.Name); err == nil || !strings.Contains(err.Error(), "gs://"+s.Bucket+"/keys") {
			t.Errorf("%s: get: %v, %v", name, held, err)
		}
	}
	service.Fault(func(*http.Request) int { return http.StatusServiceUnavailable })
	var refusal *gcs.Error
	if err := good.Put(t.Context(), doc, nil); !errors.As(err, &refusal) || refusal.Status != http.StatusServiceUnavailable {
		t.Errorf("a busy service: %v", err)
	}
}
