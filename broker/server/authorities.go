package server

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
)

// Acts are what operators do to the trust domain's authorities. Each is durable
// when it returns.
type Acts interface {
	RotateIssuing(ctx context.Context) (authority.Status, error)
	ReplaceIssuing(ctx context.Context, reason string) (authority.Replacement, error)
	EndIssuing(ctx context.Context, broker, reason string) ([]authority.Replacement, error)
	RotateJWT(ctx context.Context, alg string) (authority.Status, error)
	ReplaceJWT(ctx context.Context, alg, reason string) (authority.Replacement, error)
	PublishRoot(ctx context.Context) (authority.Status, error)
	ActivateRoot(ctx context.Context, id string) (authority.Status, error)
	DropRoot(ctx context.Context, id string, force bool) (authority.Status, error)
	RollbackRoot(ctx context.Context) (authority.Status, error)
	CSR(ctx context.Context, again bool) (csr []byte, keyID string, err error)
	ExportRoot(ctx context.Context) (authority.ExportedRoot, error)
	RemoveRootKey(ctx context.Context, id string) (authority.Status, error)
	InstallUnder(ctx context.Context, chain []*x509.Certificate, sharedRoot string) (authority.Installed, error)
}

// authoritiesService is the operator's side of the keys that sign, and of what
// they signed.
type authoritiesService struct {
	api.UnsafeAuthoritiesServer
	s *Server
}

func (a authoritiesService) fail(ctx context.Context, err error) error {
	return statusOf(ctx, a.s.cfg.Log, true, err)
}

// act records what an operator is about to do, and does it, one at a time: two
// who replace the root at once would each see half of it. What cannot be
// recorded is not done; what was recorded and failed is recorded too.
func (a authoritiesService) act(ctx context.Context, code, reason string, detail map[string]string, do func(context.Context) error) error {
	a.s.acting.Lock()
	defer a.s.acting.Unlock()
	event := audit.Event{Kind: "authority", OK: true, Actor: a.s.actor(ctx), Code: code, Reason: reason, Detail: detail}
	ctx = as(context.WithoutCancel(ctx), event.Actor) // what is recorded is done, though the caller left
	if _, err := a.s.cfg.Audit.Append(ctx, event); err != nil {
		return fmt.Errorf("recording %s: %w", code, err)
	}
	err := do(ctx)
	if err != nil {
		event.OK, event.Reason = false, clipText(err.Error(), maxReason)
		_, unrecorded := a.s.cfg.Audit.Append(ctx, event)
		err = errors.Join(err, unrecorded)
	}
	return err
}

// maxReason bounds a reason, as cut-offs do.
const maxReason = 512

func clipText(s string, most int) string {
	if len(s) > most {
		return s[:most]
	}
	return s
}

var jwtAlgs = []string{"ES256", "RS256"}

// algsOf are the algorithms that a request is about.
func algsOf(what, alg string) ([]string, error) {
	switch {
	case what == "issuing" && alg == "":
		return nil, nil
	case what == "jwt" && alg == "":
		return jwtAlgs, nil
	case what == "jwt" && slices.Contains(jwtAlgs, alg):
		return []string{alg}, nil
	}
	return nil, fmt.Errorf("%w: %.20q %.20q: issuing, or jwt with RS256, ES256 or neither, is wanted; the root goes in steps", broker.ErrRequest, what, alg)
}

// Rotate makes a new issuing CA, or has the standby JWT keys take over as soon
// as they may.
func (a authoritiesService) Rotate(ctx context.Context, r *api.RotateRequest) (*api.ActResponse, error) {
	algs, err := algsOf(r.GetWhat(), r.GetAlg())
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	response := &api.ActResponse{}
	err = a.act(ctx, "rotate."+r.GetWhat(), "", nil, func(ctx context.Context) error {
		if r.GetWhat() == "jwt" {
			return a.rotateJWT(ctx, algs, response)
		}
		st, err := a.s.cfg.Authority.RotateIssuing(ctx)
		if err != nil {
			return err
		}
		response.Authorities = append(response.Authorities, info(st))
		response.Lines = append(response.Lines, "SVIDs are signed by it from now on; those of the one before stay good until they end")
		return a.s.renewOwn(ctx)
	})
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}

// rotateJWT says of each key whether it signs now or when it will: the latter
// is no failure, it comes about by itself.
func (a authoritiesService) rotateJWT(ctx context.Context, algs []string, response *api.ActResponse) error {
	for _, alg := range algs {
		st, err := a.s.cfg.Authority.RotateJWT(ctx, alg)
		switch {
		case errors.Is(err, authority.ErrNotYet):
			response.Lines = append(response.Lines, err.Error()+"; it takes over then by itself")
		case err != nil:
			return err
		default:
			response.Lines = append(response.Lines, fmt.Sprintf("%s: tokens are signed with %s from now on; the key before stays published until its last token has ended", alg, st.ID))
		}
		response.Authorities = append(response.Authorities, info(st))
	}
	return nil
}

// Replace takes a key out of use that somebody else may have, and has what it
// signed signed anew.
func (a authoritiesService) Replace(ctx context.Context, r *api.ReplaceRequest) (*api.ActResponse, error) {
	algs, err := algsOf(r.GetWhat(), r.GetAlg())
	if err == nil && len(r.GetReason()) > maxReason {
		err = fmt.Errorf("%w: a reason of %d bytes: at most %d are taken", broker.ErrRequest, len(r.GetReason()), maxReason)
	}
	if err == nil && r.GetBroker() != "" && r.GetWhat() != "issuing" {
		err = fmt.Errorf("%w: only an issuing CA is one broker's", broker.ErrRequest)
	}
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	response := &api.ActResponse{}
	var detail map[string]string
	if r.GetBroker() != "" {
		detail = map[string]string{"broker": r.GetBroker()}
	}
	err = a.act(ctx, "replace."+r.GetWhat(), r.GetReason(), detail, func(ctx context.Context) error {
		if r.GetBroker() != "" {
			ended, err := a.s.cfg.Authority.EndIssuing(ctx, r.GetBroker(), r.GetReason())
			for _, done := range ended {
				err = errors.Join(a.replaced(ctx, done, r.GetReason(), response), err)
			}
			return err
		}
		if r.GetWhat() == "issuing" {
			done, err := a.s.cfg.Authority.ReplaceIssuing(ctx, r.GetReason())
			return errors.Join(a.replaced(ctx, done, r.GetReason(), response), err)
		}
		for _, alg := range algs {
			done, err := a.s.cfg.Authority.ReplaceJWT(ctx, alg, r.GetReason())
			if err = errors.Join(a.replaced(ctx, done, r.GetReason(), response), err); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}

// replaced cuts off what an old key signed, if one was replaced.
func (a authoritiesService) replaced(ctx context.Context, done authority.Replacement, reason string, response *api.ActResponse) error {
	if done.Old.ID == "" {
		return nil
	}
	response.Authorities = append(response.Authorities, info(done.Old))
	if done.New.ID != "" {
		response.Authorities = append(response.Authorities, info(done.New))
	}
	response.Lines = append(response.Lines, done.Believed...)
	err := a.cutOff(ctx, done.Old.ID, reason)
	if done.New.Use == authority.Issuing {
		err = errors.Join(a.s.renewOwn(ctx), err)
	}
	return err
}

// cutOff has agents ask again for what an authority signed.
func (a authoritiesService) cutOff(ctx context.Context, id, reason string) error {
	_, err := a.s.cfg.Broker.Revoke(ctx, broker.Cutoff{Kind: broker.CutAuthority, Value: id, Reason: reason, Actor: a.s.actor(ctx)})
	return err
}

// MakeCSR asks for a certificate of our trust-domain CA.
func (a authoritiesService) MakeCSR(ctx context.Context, r *api.MakeCSRRequest) (*api.MakeCSRResponse, error) {
	response := &api.MakeCSRResponse{}
	err := a.act(ctx, "csr", "", nil, func(ctx context.Context) (err error) {
		response.Csr, response.KeyId, err = a.s.cfg.Authority.CSR(ctx, r.GetAgain())
		return err
	})
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}

// Install takes the certificate that a PKI made of MakeCSR's request.
func (a authoritiesService) Install(ctx context.Context, r *api.InstallRequest) (*api.InstallResponse, error) {
	chain, err := certificates(r.GetChain())
	if err != nil {
		return nil, a.fail(ctx, fmt.Errorf("%w: the chain: %w", broker.ErrRequest, err))
	}
	response := &api.InstallResponse{}
	err = a.act(ctx, "install", "", map[string]string{"subject": chain[0].Subject.String(), "shared_root": r.GetSharedRoot()}, func(ctx context.Context) error {
		done, err := a.s.cfg.Authority.InstallUnder(ctx, chain, r.GetSharedRoot())
		if err != nil {
			return err
		}
		response.Anchor, response.Ca, response.Lines = info(done.Anchor), info(done.CA), done.Warnings
		if done.CA.State == authority.Active {
			return a.s.renewOwn(ctx)
		}
		return nil
	})
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}

// ConfirmPublished keeps that keys are at a place that their lead waits for. It
// is no act on them, and says so often that it is not recorded.
func (a authoritiesService) ConfirmPublished(ctx context.Context, r *api.ConfirmPublishedRequest) (*api.ConfirmPublishedResponse, error) {
	if !slices.Contains(a.s.cfg.Places, r.GetPlace()) {
		return &api.ConfirmPublishedResponse{}, nil
	}
	have := a.s.published()
	var err error
	for _, id := range r.GetKeys() {
		if err == nil && !slices.Contains(have, id) {
			err = fmt.Errorf("%w: confirming %.200s: %.128q is no JWT key in our bundle", broker.ErrRequest, r.GetPlace(), id)
		}
	}
	for _, id := range r.GetKeys() {
		if err == nil {
			err = a.s.cfg.Store.ConfirmPlace(ctx, id, r.GetPlace(), a.s.actor(ctx))
		}
	}
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return &api.ConfirmPublishedResponse{Awaited: true}, nil
}

// published are the JWT keys in our bundle.
func (s *Server) published() (ids []string) {
	for _, st := range s.cfg.Authority.List() {
		if st.Use == authority.JWTKey && (st.State == authority.Published || st.State == authority.Active || st.State == authority.Old) {
			ids = append(ids, st.ID)
		}
	}
	return ids
}

// ExportRoot hands out the root's key, to be kept offline.
func (a authoritiesService) ExportRoot(ctx context.Context, _ *api.ExportRootRequest) (*api.ExportRootResponse, error) {
	response := &api.ExportRootResponse{}
	err := a.act(ctx, "root.export", "", nil, func(ctx context.Context) error {
		done, err := a.s.cfg.Authority.ExportRoot(ctx)
		response.Root, response.Certificate, response.Key = info(done.Root), done.Certificate, done.Key
		return err
	})
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}

// RemoveRootKey takes the root's key out of its source.
func (a authoritiesService) RemoveRootKey(ctx context.Context, r *api.RemoveRootKeyRequest) (*api.ActResponse, error) {
	response := &api.ActResponse{}
	err := a.act(ctx, "root.remove", "", map[string]string{"root": clipText(r.GetId(), 128)}, func(ctx context.Context) error {
		st, err := a.s.cfg.Authority.RemoveRootKey(ctx, r.GetId())
		response.Authorities = append(response.Authorities, info(st))
		return err
	})
	if err != nil {
		return nil, a.fail(ctx, err)
	}
	return response, nil
}

// Bounds of an installed chain.
const (
	maxChain        = 256 << 10
	maxCertificates = 8
)

// certificates reads PEM blocks, all of them certificates.
func certificates(text []byte) (chain []*x509.Certificate, err error) {
	if len(text) > maxChain {
		return nil, fmt.Errorf("%d bytes, at most %d are taken", len(text), maxChain)
	}
	const wanted = "our certificate first, then what signed it, up to the root"
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %.40q: only certificates are wanted, %s", block.Type, wanted)
		}
		if len(chain) == maxCertificates {
			return nil, fmt.Errorf("it holds more than %d certificates: %s", maxCertificates, wanted)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
		}
		chain, text = append(chain, c), rest
	}
	if len(chain) == 0 {
		return nil, errors.New("it holds no PEM certificate: " + wanted)
	}
	return chain, nil
}

func info(r authority.Status) *api.AuthorityInfo {
	return &api.AuthorityInfo{
		Id: r.ID, Use: string(r.Use), Alg: r.Alg, State: string(r.State), PublishedAt: unix(r.PublishedAt), ActivatedAt: unix(r.ActivatedAt),
		LastExpiry: unix(r.LastExpiry), NotAfter: unix(r.NotAfter), Next: r.Next, NextAt: unix(r.NextAt), Subject: r.Subject,
		KeySource: r.KeySource, OwnKey: r.Self, Problem: r.Problem, Waits: r.Waits, Believed: r.Believed, Broker: r.Broker,
	}
}
