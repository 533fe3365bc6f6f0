package server

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
)

// Settings are what a Server takes over while it runs.
type Settings struct {
	Roles                 []Role
	Login                 *Login // nil: nobody logs in here
	DNSSuffixes, Subjects []string
	MinTTL                time.Duration
	Limits                Limits
}

// settings are those in force. They are immutable and swapped whole.
type settings struct {
	roles  map[spiffeid.ID]Role
	login  *Login
	policy identity.Config
	rates  *rates

	replaced chan struct{} // closed once others are in force
}

func newSettings(before *settings, policy identity.Config, s Settings, now func() time.Time) (*settings, error) {
	policy.DNSSuffixes, policy.Subjects, policy.MinTTL = s.DNSSuffixes, s.Subjects, s.MinTTL
	next := &settings{roles: make(map[spiffeid.ID]Role, len(s.Roles)), login: s.Login, policy: policy, replaced: make(chan struct{})}
	if before != nil && before.rates.Limits == s.Limits.WithDefaults() {
		next.rates = before.rates // they go on as they stand
	} else {
		next.rates = newRates(s.Limits, now)
	}
	for _, r := range s.Roles {
		if _, twice := next.roles[r.ID]; twice || r.ID.IsZero() {
			return nil, fmt.Errorf("%s has no role, or two", r.ID)
		}
		next.roles[r.ID] = r
	}
	return next, nil
}

// ErrNotInForce: the settings are taken over, and what stands is decided by them as soon as
// what keeps it from that is mended.
var ErrNotInForce = errors.New("taken over, and in force once this is mended")

// Reload takes over settings: all of them, or none and an error, which names the
// resources that stand and would not be valid. With ErrNotInForce they are taken
// over. Who asked for it and what changed
// are for the record, in which it stands before it has effect.
func (s *Server) Reload(ctx context.Context, actor string, changed []string, to Settings) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	next, err := newSettings(s.settings.Load(), s.policyConfig(), to, s.cfg.Now)
	if err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRequest, err)
	}
	var stands *state
	if !reflect.DeepEqual(next.policy, s.policyConfig()) {
		now, err := s.current(ctx)
		if err != nil {
			return err
		}
		if stands, err = s.compileBy(next.policy, now.resources, now.last, now); err != nil {
			return fmt.Errorf("%w: what stands would not be valid: %w", broker.ErrRequest, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTime)
	defer cancel()
	event := audit.Event{Kind: "reload", OK: true, Actor: actor, Detail: map[string]string{"changed": strings.Join(changed, " ")}}
	if _, err := s.cfg.Audit.Append(ctx, event); err != nil {
		return fmt.Errorf("recording the reload: %w", err)
	}
	close(s.settings.Swap(next).replaced)
	if stands == nil {
		return nil
	}
	if err := s.enforce(ctx, stands); err != nil { // catchUp tries again
		return fmt.Errorf("%w: %w", ErrNotInForce, err)
	}
	return nil
}

func (s *Server) policyConfig() identity.Config { return s.settings.Load().policy }
