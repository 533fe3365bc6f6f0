package azblob_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/azblob"
	"github.com/credence-id/credence/federation/publish/publishtest"
)

func store(t *testing.T, service *publishtest.Azure, in string, credential azcore.TokenCredential) azblob.Store {
	t.Helper()
	client, err := container.NewClient(service.URL+"/"+in, credential, &container.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: service.Client, Retry: policy.RetryOptions{MaxRetries: 1, RetryDelay: 1, MaxRetryDelay: 1},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return azblob.Store{Client: client, Prefix: "td/"}
}

func TestStore(t *testing.T) {
	service := publishtest.NewAzure(t)
	publishtest.RunStore(t, store(t, service, publishtest.Bucket, publishtest.Credential{}))
	if refused := service.Refused(); len(refused) > 0 {
		t.Errorf("refused: %s", refused)
	}
	if body, kind, cache := service.Object("td/" + publish.DiscoveryName); body == "" || kind != "application/json" || cache != "public, max-age=300" {
		t.Errorf("%q, %q, %q", body, kind, cache)
	}
}

// stranger has a token of somebody else's.
type stranger struct{}

func (stranger) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := publishtest.Credential{}.GetToken(ctx, o)
	token.Token = "another"
	return token, err
}

func TestFailures(t *testing.T) {
	service := publishtest.NewAzure(t)
	doc := publish.Document{Name: publish.KeysName, Body: []byte("{}")}
	for name, s := range map[string]azblob.Store{
		"another's token":   store(t, service, publishtest.Bucket, stranger{}),
		"no such container": store(t, service, "another", publishtest.Credential{}),
	} {
		if err := s.Put(t.Context(), doc, nil); err == nil || errors.Is(err, publish.ErrConflict) {
			t.Errorf("%s: put: %v", name, err)
		}
		if held, err := s.Get(t.Context(), doc.Name); err == nil || !strings.Contains(err.Error(), "/td/keys") {
			t.Errorf("%s: get: %v, %v", name, held, err)
		}
	}
	n := 0
	service.Fault(func(*http.Request) int {
		if n++; n == 1 {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	if err := store(t, service, publishtest.Bucket, publishtest.Credential{}).Put(t.Context(), doc, nil); err != nil || n != 2 {
		t.Errorf("one refusal of a busy service: %v after %d requests", err, n)
	}
}
