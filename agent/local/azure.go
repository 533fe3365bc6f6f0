package local

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/credence-id/credence/exchangers/azure"
)

// azure makes the App Service managed identity endpoint, and the federated
// token file.
//
// Both may be in the environment: Microsoft's DefaultAzureCredential tries the
// file first, which gives any scope that the app may have. Under an authority
// that its libraries don't know the file is left out: they would ask
// Microsoft's public cloud about it, and give up.
func (s *Surfaces) azure(t *target, raw json.RawMessage) error {
	var settings azure.Settings
	if err := json.Unmarshal(raw, &settings); err != nil {
		return fmt.Errorf("reading the settings: %w", err)
	}
	t.cloud = cloudAzure
	t.endpoint = managed{s, t.name, settings}
	file := t.name + ".jwt"
	t.files, t.refresh = []string{file}, s.jwtFile(t, file)
	t.env["IDENTITY_ENDPOINT"] = s.server.url(t)
	t.env["IDENTITY_HEADER"] = t.secret
	t.env["AZURE_CLIENT_ID"] = settings.ClientID
	t.env["AZURE_TENANT_ID"] = settings.Tenant
	host, known := settings.Host(t.first.GetEndpoint())
	t.env["AZURE_AUTHORITY_HOST"] = host
	if known {
		t.env["AZURE_FEDERATED_TOKEN_FILE"] = s.dir.file(file)
	}
	return nil
}

// managed is the App Service managed identity endpoint (IDENTITY_ENDPOINT).
type managed struct {
	s        *Surfaces
	name     string
	settings azure.Settings
}

const managedVersion = "2019-08-01"

func (managed) header() string { return "X-Identity-Header" }

func (managed) parameters() bool { return true }

func (managed) refused(no *refusal) any {
	return map[string]any{"error": map[string]string{"code": no.code, "message": no.message}}
}

// answer gives the token of the target whose scope the resource is: this one,
// or another of Azure that the same workload has here.
func (e managed) answer(ctx context.Context, query url.Values) (any, *refusal) {
	for name, values := range query {
		if len(values) != 1 {
			return nil, &refusal{http.StatusBadRequest, "BadRequest", "a parameter is given twice: " + name}
		}
	}
	resource, client := query.Get("resource"), query.Get("client_id")
	switch {
	case query.Get("api-version") != managedVersion:
		return nil, &refusal{http.StatusBadRequest, "UnsupportedApiVersion", "api-version: " + managedVersion + " is wanted"}
	case resource == "":
		return nil, &refusal{http.StatusBadRequest, "BadRequest", "resource: it is missing"}
	case query.Has("object_id"), query.Has("principal_id"), query.Has("mi_res_id"), query.Has("msi_res_id"):
		return nil, &refusal{http.StatusBadRequest, "BadRequest", "an identity is told by its client_id here, which is the target's"}
	}
	chosen, no := e.choose(resource, client)
	if no != nil {
		return nil, no
	}
	r, err := e.s.credential(ctx, chosen.name)
	if err != nil {
		return nil, sourceRefusal(err)
	}
	if r.GetBearer() == nil {
		return nil, &refusal{http.StatusBadGateway, "NoCredential", "the target gives no access token"}
	}
	return map[string]string{
		"access_token": r.GetBearer().GetToken(), "expires_on": strconv.FormatInt(r.GetExpires(), 10),
		"resource": resource, "token_type": "Bearer", "client_id": chosen.settings.ClientID,
	}, nil
}

func (e managed) choose(resource, client string) (managed, *refusal) {
	all := []managed{e}
	for _, t := range e.s.targets {
		if m, ok := t.endpoint.(managed); ok && m.name != e.name {
			all = append(all, m)
		}
	}
	known := false
	for _, m := range all {
		if client != "" && !strings.EqualFold(client, m.settings.ClientID) {
			continue
		}
		known = true
		if m.gives(resource) {
			return m, nil
		}
	}
	if !known {
		return managed{}, &refusal{http.StatusBadRequest, "BadRequest", "client_id: it is no target's here"}
	}
	return managed{}, &refusal{http.StatusForbidden, "Forbidden", fmt.Sprintf("resource: it is not that of scope (%s) of the target %s; a Target with that scope is wanted, or a program that uses AZURE_FEDERATED_TOKEN_FILE",
		e.settings.Scope, e.name)}
}

// gives says whether the scope is the resource's.
func (e managed) gives(resource string) bool {
	return strings.TrimSuffix(resource, "/") == strings.TrimSuffix(strings.TrimSuffix(e.settings.Scope, "/.default"), "/")
}
