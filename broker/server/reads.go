package server

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"time"

	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
)

// recordsItself are the RPCs that record what they do, in more than that somebody
// called. Of all others, and of those that come later, the call is recorded.
var recordsItself = map[string]bool{
	api.Admin_Apply_FullMethodName:                  true,
	api.Admin_Delete_FullMethodName:                 true,
	api.Admin_Rollback_FullMethodName:               true,
	api.Admin_CreateToken_FullMethodName:            true,
	api.Admin_EvictNode_FullMethodName:              true,
	api.Admin_AllowNode_FullMethodName:              true,
	api.Admin_AcceptPeer_FullMethodName:             true,
	api.Admin_TruncateAudit_FullMethodName:          true,
	api.Admin_Backup_FullMethodName:                 true,
	api.Authorities_Rotate_FullMethodName:           true,
	api.Authorities_Replace_FullMethodName:          true,
	api.Authorities_AdvanceRoot_FullMethodName:      true,
	api.Authorities_RollbackRoot_FullMethodName:     true,
	api.Authorities_MakeCSR_FullMethodName:          true,
	api.Authorities_Install_FullMethodName:          true,
	api.Authorities_Revoke_FullMethodName:           true,
	api.Authorities_ExportRoot_FullMethodName:       true,
	api.Authorities_RemoveRootKey_FullMethodName:    true,
	api.Authorities_ConfirmPublished_FullMethodName: true, // who publishes confirms all the time what anybody can see
}

// answersAnyway are the reads that are answered, and counted, while nothing can be
// recorded: how the broker does, or who wants to mend it sees nothing; and what is
// public, or the keys that clouds wait for would not be published.
var answersAnyway = map[string]bool{
	api.Admin_Status_FullMethodName:          true,
	api.Admin_VerifyAudit_FullMethodName:     true,
	api.Admin_ListAuthorities_FullMethodName: true,
	api.Admin_ShowBundle_FullMethodName:      true,
	api.Authorities_ListCRLs_FullMethodName:  true,
}

// anywayTime is how long those wait for a disk that stands still.
const anywayTime = 2 * time.Second

// plans says whether an RPC that changes something is to say only what it would.
func plans(req any) bool {
	switch r := req.(type) {
	case interface{ GetDryRun() bool }:
		return r.GetDryRun()
	case *api.AdvanceRootRequest:
		return r.GetLook()
	}
	return false
}

// recordCall records what an operator asks, before it is done: of those with a
// role each call, of those at the admin socket what leaves no other record. Reads
// are folded, or whoever watches the broker would fill the record; and they wait
// while the disk is full, but for a plan, with which changes begin.
func (s *Server) recordCall(ctx context.Context, method string, req any) (audit.Ref, error) {
	o, remote := callerOperator(ctx)
	plan := plans(req)
	act := recordsItself[method] && !plan
	if act && !remote {
		return audit.Ref{}, nil
	}
	event := audit.Event{Kind: "admin", OK: true, Actor: s.actor(ctx), Code: path.Base(method), Detail: asked(req)}
	if remote {
		event.Serial, event.Detail["role"] = o.serial, o.Name
	}
	if act {
		refs, err := s.cfg.Audit.Append(ctx, event)
		if err != nil {
			return audit.Ref{}, statusOf(ctx, s.cfg.Log, true, fmt.Errorf("recording what an operator asks: %w", err))
		}
		return refs[0], nil
	}
	waiting, cancel := ctx, func() {}
	if answersAnyway[method] {
		waiting, cancel = context.WithTimeout(ctx, anywayTime)
	}
	defer cancel()
	event.Spare = !plan
	ref, err := s.cfg.Broker.RecordRead(waiting, event)
	switch {
	case err == nil:
		return ref, nil
	case answersAnyway[method] && ctx.Err() == nil:
		s.cfg.Log.WarnContext(ctx, "answered what could not be recorded", "actor", event.Actor, "method", event.Code, "error", err)
		s.cfg.Broker.CountUnrecorded(event.Actor, event.Code)
		return audit.Ref{}, nil
	}
	return audit.Ref{}, statusOf(ctx, s.cfg.Log, true, fmt.Errorf("%w; until it can be, credence status, ca show and audit verify answer, and audit query --data reads the files", err))
}

// maxAskedText bounds what a record says of one thing that was asked for.
const maxAskedText = 256

// asked says for which thing a call is, in names alone: no value of a fact, and
// nothing by which the same question differs the next time.
func asked(req any) map[string]string {
	detail := map[string]string{}
	add := func(name, value string) {
		if value != "" {
			detail[name] = clipText(value, maxAskedText)
		}
	}
	number := func(name string, n uint64) {
		if n != 0 {
			detail[name] = strconv.FormatUint(n, 10)
		}
	}
	if r, ok := req.(interface{ GetFilter() *api.AuditFilter }); ok {
		f := r.GetFilter()
		for name, value := range map[string]string{
			"spiffe_id": f.GetSpiffeId(), "identity": f.GetIdentity(), "node": f.GetNode(), "serial": f.GetSerial(),
			"kind": f.GetKind(), "target": f.GetTarget(), "actor": f.GetActor(), "outcome": f.GetOutcome(),
		} {
			add(name, value)
		}
		number("record", f.GetSequence())
	}
	if r, ok := req.(*api.QueryAuditRequest); ok {
		add("origin", r.GetOrigin())
	}
	if r, ok := req.(interface{ GetTrustDomain() string }); ok {
		add("trust_domain", r.GetTrustDomain())
	}
	switch r := req.(type) {
	case *api.GetRequest:
		add("kind", r.GetKind())
		add("name", r.GetName())
		number("revision", r.GetRevision())
	case *api.ListRevisionsRequest:
		add("kind", r.GetKind())
		add("name", r.GetName())
		number("revision", r.GetRevision())
	case *api.RollbackRequest:
		add("kind", r.GetKind())
		add("name", r.GetName())
		add("owner", r.GetOwner())
		number("revision", r.GetRevision())
	case *api.ApplyRequest:
		add("owner", r.GetOwner())
	case *api.ListNodesRequest:
		add("node", r.GetId())
	case *api.ExplainRequest:
		add("node", r.GetNode())
		add("identity", r.GetIdentity())
		add("target", r.GetTarget())
	case *api.InspectTargetRequest:
		add("target", r.GetTarget())
		add("identity", r.GetIdentity())
	case *api.HashFactRequest:
		add("fact", r.GetName())
	case *api.ListIssuedRequest:
		add("serial", r.GetSerial())
		add("spiffe_id", r.GetSpiffeId())
		add("identity", r.GetIdentity())
		add("node", r.GetNode())
		add("authority", r.GetAuthority())
	}
	if plans(req) {
		detail["plan"] = "true"
	}
	return detail
}

// recordUnary is what the admin socket has in place of authorize: who may open it
// may all.
func (s *Server) recordUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if administers(info.FullMethod) {
		if _, err := s.recordCall(ctx, info.FullMethod, req); err != nil {
			return nil, err
		}
	}
	return next(ctx, req)
}

func (s *Server) recordStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if administers(info.FullMethod) {
		stream = &recordedStream{ServerStream: stream, s: s, ctx: stream.Context(), method: info.FullMethod}
	}
	return next(srv, stream)
}

// A recordedStream is a call that is recorded when it is known what is asked, and
// once: what it sends is one read, however long it follows the record, its own
// records too.
type recordedStream struct {
	grpc.ServerStream
	s      *Server
	ctx    context.Context // grpc.ServerStream hands the context out
	method string
	done   bool
}

func (r *recordedStream) Context() context.Context { return r.ctx }

type ownRecordKey struct{}

// ownRecord is the sequence number of the record of the call itself.
func ownRecord(ctx context.Context) uint64 {
	n, _ := ctx.Value(ownRecordKey{}).(uint64)
	return n
}

func (r *recordedStream) RecvMsg(m any) error {
	if err := r.ServerStream.RecvMsg(m); err != nil || r.done {
		return err
	}
	r.done = true
	ref, err := r.s.recordCall(r.ctx, r.method, m)
	if err != nil {
		return err
	}
	r.ctx = context.WithValue(r.ctx, ownRecordKey{}, ref.Sequence)
	return nil
}
