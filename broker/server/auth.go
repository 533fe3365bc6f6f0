package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/federation"
)

// agentsTLS is the TLS of the agents' listener: 1.3 only, a client certificate
// asked for and, where one is shown, verified against our own bundle, or
// that of a peer of which something is accepted. Join goes without, and Login.
func (s *Server) agentsTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.svid.withAnchor() },
		VerifyConnection:       s.verifyAgent,
	}
}

func (s *Server) verifyAgent(c tls.ConnectionState) error {
	switch n := len(c.PeerCertificates); {
	case n == 0:
		return nil
	case n > 4:
		return errors.New("more than four certificates shown")
	}
	id, _, err := federation.VerifyX509(c.PeerCertificates, s, s.cfg.Now())
	if err != nil || id.TrustDomain() == s.cfg.TrustDomain {
		return err
	}
	if status, ok := s.cfg.Peers.Status(id.TrustDomain()); !ok || len(status.Peer.Accept) == 0 {
		return fmt.Errorf("nothing of peer %s is accepted", id.TrustDomain())
	}
	return nil
}

type nodeKey struct{}

// callerNode returns the node that authenticate found.
func callerNode(ctx context.Context) broker.Node {
	n, _ := ctx.Value(nodeKey{}).(broker.Node)
	return n
}

// authenticate finds the node that calls: an ID under /credence/node/ that
// stands in the node table with its last or last but one serial, in a
// certificate that has not ended since the connection was made. Everybody
// else, workloads with good SVIDs of ours among them, is Unauthenticated.
func (s *Server) authenticate(ctx context.Context) (context.Context, error) {
	node, err := s.node(ctx)
	if err != nil {
		s.cfg.Log.InfoContext(ctx, "caller refused", "reason", err)
		refusal := status.Error(codes.Unauthenticated, "a node's SVID is required; join first")
		switch {
		case errors.Is(err, broker.ErrEvicted):
			return nil, evicted{refusal}
		case errors.Is(err, broker.ErrUnsure): // told to join first, it could not
			return nil, status.Error(codes.Unavailable, "whether another broker gave this SVID is not known while the database is away; call again")
		case errors.Is(err, broker.ErrLeaving):
			return nil, status.Error(codes.Unavailable, "this node's standing is being changed; call again")
		}
		return nil, refusal
	}
	if wait, ok := s.settings.Load().rates.calls.take(node.ID); !ok {
		return nil, tooMany(wait)
	}
	return context.WithValue(ctx, nodeKey{}, node), nil
}

// node is the node that calls.
func (s *Server) node(ctx context.Context) (broker.Node, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return broker.Node{}, errors.New("no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return broker.Node{}, errors.New("no certificate")
	}
	leaf := info.State.PeerCertificates[0]
	id, err := federation.LeafID(leaf)
	if err != nil {
		return broker.Node{}, err
	}
	if !identity.IsNodeID(s.cfg.TrustDomain, id) {
		return broker.Node{}, fmt.Errorf("not a node: %s", id)
	}
	if now := s.cfg.Now(); !now.Before(leaf.NotAfter.Add(clockSkew)) {
		return broker.Node{}, fmt.Errorf("SVID ended at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	key, err := identity.DigestKey(leaf.PublicKey)
	if err != nil {
		return broker.Node{}, err
	}
	return s.cfg.Broker.Node(ctx, id, leaf.SerialNumber, key)
}

// clockSkew is how far two clocks may differ.
const clockSkew = 60 * time.Second

func (s *Server) unaryAuth(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	switch info.FullMethod {
	case api.Exchange_Exchange_FullMethodName, api.Exchange_Login_FullMethodName, api.Exchange_LoginInfo_FullMethodName:
		done, err := calling(ctx)
		if err != nil {
			return nil, err
		}
		defer done()
		return next(ctx, req) // no node's: each judges itself whom it serves
	}
	if administers(info.FullMethod) {
		ctx, err := s.authorize(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return s.recordUnary(ctx, req, info, next)
	}
	ctx, err := s.authenticate(ctx)
	if err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) streamAuth(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if info.FullMethod == api.Node_Join_FullMethodName {
		return next(srv, stream)
	}
	if administers(info.FullMethod) {
		ctx, err := s.authorize(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		o, _ := callerOperator(ctx)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		open := &operatorStream{ServerStream: stream, s: s, ctx: ctx, standing: o.standing, role: o.Role, method: info.FullMethod}
		go open.watch(ctx, cancel)
		err = s.recordStream(srv, open, info, next)
		if lost := open.stands(); err != nil && lost != nil {
			return lost // whatever else it ended with
		}
		return err
	}
	ctx, err := s.authenticate(stream.Context())
	if errors.As(err, new(evicted)) {
		// As a stream that is open is told: on it the agent erases what it holds.
		return errEvicted
	}
	if err != nil {
		return err
	}
	return next(srv, &authenticated{stream, ctx})
}

// evicted is the refusal of a node that was evicted.
type evicted struct{ error }

// GRPCStatus is the refusal's.
func (e evicted) GRPCStatus() *status.Status { return status.Convert(e.error) }

type authenticated struct {
	grpc.ServerStream
	ctx context.Context // grpc.ServerStream hands the context out
}

func (a *authenticated) Context() context.Context { return a.ctx }
