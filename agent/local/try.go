package local

import (
	"context"
	"errors"
	"log/slog"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/exchangers"
)

// A Tryer is what Checks needs of an agent.
type Tryer interface {
	Try(ctx context.Context, p *caller.Process, target string) (exchangers.Credential, spiffeid.ID, error)
}

// Checks answers api.Checks. Register it beside the Service.
type Checks struct {
	api.UnsafeChecksServer
	agent Tryer
	why   Explainer
	log   *slog.Logger
}

// NewChecks returns a Checks; a nil log discards.
func NewChecks(a interface {
	Tryer
	Explainer
}, log *slog.Logger) *Checks {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Checks{agent: a, why: a, log: log}
}

// Try says how an exchange ended. A provider's refusal is an answer; what else
// goes wrong are Fetch's errors. It hands out no credential.
func (c *Checks) Try(ctx context.Context, r *api.TryRequest) (*api.TryResponse, error) {
	p, err := asker(ctx, r.GetTarget())
	if err != nil {
		return nil, err
	}
	credential, id, err := c.agent.Try(ctx, p, r.GetTarget())
	var refused *exchangers.Error
	switch {
	case errors.As(err, &refused):
		return &api.TryResponse{SpiffeId: id.String(), RequestId: refused.RequestID, Refusal: &api.Refusal{
			Provider: refused.Provider, Status: int32(refused.Status), Code: refused.Code, Message: refused.Message, Class: string(refused.Class),
			RequestId: refused.RequestID, Hint: refused.Hint, Reason: refused.Reason, Field: refused.Field,
		}}, nil
	case err != nil:
		return nil, fail(ctx, c.log, err)
	}
	return &api.TryResponse{SpiffeId: id.String(), Expires: credential.Expires.Unix(), RequestId: credential.RequestID}, nil
}
