package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/store"
)

// The roles, each of which may what the one before may.
const (
	Auditor  = "auditor"  // reads
	Operator = "operator" // changes Identities and Denies under its paths
	Admin    = "admin"    // does all but what takes the admin socket
)

var roles = []string{Auditor, Operator, Admin}

// atSocket stands where a role stands of what nobody may but at the admin socket.
const atSocket = "socket"

// least is the least role of each RPC that is served to operators who are not at
// the admin socket. What is not listed is refused.
var least = map[string]string{
	api.Admin_Get_FullMethodName:              Auditor,
	api.Admin_ListNodes_FullMethodName:        Auditor,
	api.Admin_Explain_FullMethodName:          Auditor,
	api.Admin_ShowBundle_FullMethodName:       Auditor,
	api.Admin_ListAuthorities_FullMethodName:  Auditor,
	api.Admin_TailAudit_FullMethodName:        Auditor,
	api.Admin_VerifyAudit_FullMethodName:      Auditor,
	api.Admin_QueryAudit_FullMethodName:       Auditor,
	api.Admin_ExportAudit_FullMethodName:      Auditor,
	api.Admin_Status_FullMethodName:           Auditor,
	api.Admin_ListPeers_FullMethodName:        Auditor,
	api.Admin_InspectTarget_FullMethodName:    Auditor,
	api.Admin_ListRevisions_FullMethodName:    Auditor,
	api.Admin_ListHeads_FullMethodName:        Auditor,
	api.Admin_HashFact_FullMethodName:         Auditor,
	api.Authorities_ListIssued_FullMethodName: Auditor,
	api.Authorities_ListCRLs_FullMethodName:   Auditor,

	// What it changes is judged where it is changed.
	api.Admin_Apply_FullMethodName:    Operator,
	api.Admin_Delete_FullMethodName:   Operator,
	api.Admin_Rollback_FullMethodName: Operator,

	api.Admin_CreateToken_FullMethodName:            Admin,
	api.Admin_EvictNode_FullMethodName:              Admin,
	api.Admin_AllowNode_FullMethodName:              Admin,
	api.Admin_RefreshPeer_FullMethodName:            Admin,
	api.Admin_AcceptPeer_FullMethodName:             Admin,
	api.Admin_CheckPeer_FullMethodName:              Admin, // it has the broker call somebody
	api.Authorities_Rotate_FullMethodName:           Admin,
	api.Authorities_Replace_FullMethodName:          Admin,
	api.Authorities_AdvanceRoot_FullMethodName:      Admin,
	api.Authorities_RollbackRoot_FullMethodName:     Admin,
	api.Authorities_MakeCSR_FullMethodName:          Admin,
	api.Authorities_Install_FullMethodName:          Admin,
	api.Authorities_ConfirmPublished_FullMethodName: Admin,
	api.Authorities_Revoke_FullMethodName:           Admin,

	// An SVID that leaked is revoked, but no root key that left by it, nor does a
	// record come back.
	api.Admin_TruncateAudit_FullMethodName:       atSocket,
	api.Authorities_ExportRoot_FullMethodName:    atSocket,
	api.Authorities_RemoveRootKey_FullMethodName: atSocket,
	api.Admin_Backup_FullMethodName:              atSocket,
}

// A Role is what somebody who has an SVID of ours may do to the broker.
type Role struct {
	ID    spiffeid.ID
	Name  string
	paths identity.Paths // of an operator
}

// maxRoleID bounds the ID of somebody with a role: it stands in each record of
// what they do.
const maxRoleID = 256

// NewRole makes a role of td. Paths are an operator's, and no others have any. The
// error begins with the name of a field.
func NewRole(td spiffeid.TrustDomain, id, name string, paths []string) (Role, error) {
	parsed, err := identity.ParseID(id)
	switch {
	case err != nil:
		return Role{}, fmt.Errorf("id: %w", err)
	case parsed.TrustDomain() != td || parsed.Path() == "" || identity.IsReserved(parsed) || len(id) > maxRoleID:
		return Role{}, fmt.Errorf("id: %s: an ID of a person or workload of %s, of at most %d bytes, is wanted", parsed, td, maxRoleID)
	case !slices.Contains(roles, name):
		return Role{}, fmt.Errorf("role: %q: one of %s is wanted", name, strings.Join(roles, ", "))
	case (name == Operator) != (len(paths) > 0):
		return Role{}, errors.New("paths: are an operator's, who has some: what Identities and Denies may be changed under")
	}
	r := Role{ID: parsed, Name: name}
	if r.paths, err = identity.ParsePaths(td, paths); err != nil {
		return Role{}, fmt.Errorf("paths: %w", err)
	}
	return r, nil
}

// may says whether the role may call an RPC.
func (r Role) may(method string) bool {
	wanted := slices.Index(roles, least[method])
	return wanted >= 0 && slices.Index(roles, r.Name) >= wanted
}

// administers says whether an RPC is the operators'.
func administers(method string) bool {
	service := path.Dir(method)
	return service == "/"+api.Admin_ServiceDesc.ServiceName || service == "/"+api.Authorities_ServiceDesc.ServiceName
}

type operatorKey struct{}

// An operator is somebody who calls the admin service with an SVID.
type operator struct {
	Role
	standing broker.Standing
	serial   string // of the SVID
}

func callerOperator(ctx context.Context) (operator, bool) {
	o, ok := ctx.Value(operatorKey{}).(operator)
	return o, ok
}

// actor names who calls the admin service, for the record.
func (s *Server) actor(ctx context.Context) string {
	if o, ok := callerOperator(ctx); ok {
		return o.ID.String()
	}
	return s.cfg.AdminActor(ctx)
}

// roleOf is the role of an ID in broker.yaml, if it has one.
func (s *Server) roleOf(id spiffeid.ID) (Role, bool) {
	r, ok := s.settings.Load().roles[id]
	return r, ok
}

// errNoRole is what everybody is told who may not call the admin service: whether
// there is a role for them elsewhere is not theirs to know.
var errNoRole = status.Error(codes.PermissionDenied, "an SVID that broker.yaml's roles name is required (credence login), or the admin socket")

// authorize finds who calls the admin service: an ID that broker.yaml gives a role
// which may call the RPC, in an SVID that counts now. recordCall comes next.
func (s *Server) authorize(ctx context.Context, method string) (context.Context, error) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return nil, errNoRole
	}
	if len(s.settings.Load().roles) == 0 { // as if it were not served here
		return nil, status.Errorf(codes.Unimplemented, "unknown service %s", strings.TrimPrefix(path.Dir(method), "/"))
	}
	if wait, ok := s.sources.take(addressOf(p.Addr.String())); !ok {
		return nil, tooMany(wait)
	}
	info, _ := p.AuthInfo.(credentials.TLSInfo)
	e, err := s.verifiedX509(info.State.PeerCertificates)
	if err != nil {
		s.cfg.Log.InfoContext(ctx, "operator refused", "reason", err)
		return nil, errNoRole
	}
	if e.ID.TrustDomain() != s.cfg.TrustDomain {
		return nil, errNoRole // a peer makes as many IDs as it likes
	}
	if wait, ok := s.callers.take("operator " + e.ID.String()); !ok {
		return nil, tooMany(wait)
	}
	role, ok := s.roleOf(e.ID)
	if !ok {
		return nil, s.refuseOperator(ctx, e, method, "no_role", "roles do not name it", errNoRole)
	}
	standing, err := s.cfg.Broker.Stand(ctx, e)
	switch {
	case errors.Is(err, broker.ErrNoStanding):
		return nil, s.refuseOperator(ctx, e, method, "no_standing", err.Error(), status.Error(codes.Unauthenticated, "this SVID counts no more: "+err.Error()+"; run credence login again"))
	case errors.Is(err, broker.ErrBehind):
		return nil, status.Error(codes.Unavailable, "what was issued is not known yet: try again in a moment")
	case err != nil:
		return nil, statusOf(ctx, s.cfg.Log, false, err)
	case !role.may(method):
		return nil, s.refuseOperator(ctx, e, method, "role", role.Name+" may not", status.Errorf(codes.PermissionDenied, "%s has the role %s, which may not %s", e.ID, role.Name, path.Base(method)))
	}
	return context.WithValue(ctx, operatorKey{}, operator{role, standing, e.Serial}), nil
}

// refuseOperator records that somebody whom we know may not, once for many
// repetitions.
func (s *Server) refuseOperator(ctx context.Context, e broker.Evidence, method, code, reason string, refusal error) error {
	s.cfg.Log.InfoContext(ctx, "operator refused", "spiffe_id", e.ID.String(), "reason", reason)
	if err := s.cfg.Broker.RefuseOperator(ctx, e.ID, path.Base(method), code, reason); err != nil {
		return statusOf(ctx, s.cfg.Log, false, err)
	}
	return refusal
}

// An operatorStream is an open call of an operator's, who is looked at again
// before each message, and when settings are replaced.
type operatorStream struct {
	grpc.ServerStream
	s        *Server
	ctx      context.Context // grpc.ServerStream hands the context out
	standing broker.Standing
	role     Role
	method   string
}

func (o *operatorStream) Context() context.Context { return o.ctx }

func (o *operatorStream) SendMsg(m any) error {
	if err := o.stands(); err != nil {
		return err
	}
	return o.ServerStream.SendMsg(m)
}

// stands says why the call may not go on.
func (o *operatorStream) stands() error {
	if r, ok := o.s.roleOf(o.role.ID); !ok || !r.may(o.method) {
		return errNoRole // it was taken away
	}
	if err := o.s.cfg.Broker.StillStands(o.standing); err != nil {
		return status.Error(codes.Unauthenticated, "this SVID counts no more: "+err.Error())
	}
	return nil
}

// watch ends the call by cancel once a reload takes its role away, also where
// there is nothing to send. It returns when ctx ends.
func (o *operatorStream) watch(ctx context.Context, cancel context.CancelFunc) {
	for {
		replaced := o.s.settings.Load().replaced
		if o.stands() != nil {
			cancel()
			return
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return
		}
	}
}

// judged refuses a change that an operator may not make: of anything but
// Identities and Denies, as they stand and as they would stand, under their paths.
func (s *Server) judged(ctx context.Context, now *state, act store.Act, changes []change) error {
	o, remote := callerOperator(ctx)
	if !remote || o.Name == Admin {
		return nil
	}
	for _, c := range changes {
		if err := s.mayChange(o, now, c); err != nil {
			failed := s.cfg.Broker.RefuseOperator(ctx, o.ID, act.What, "paths", err.Error())
			return errors.Join(fmt.Errorf("%w: %s %s: %w", identity.ErrDenied, c.Kind, c.Name, err), failed)
		}
	}
	return nil
}

// mayChange is judged of one. The caller holds applying.
func (s *Server) mayChange(o operator, now *state, c change) error {
	old, stands := now.find(c.Kind, c.Name)
	here, madeHere := s.here[c.Name]
	switch {
	case o.Name != Operator:
		return fmt.Errorf("the role %s changes nothing", o.Name)
	case c.Kind != "Identity" && c.Kind != "Deny":
		return errors.New("the role operator changes Identities and Denies alone")
	case c.From != "" && c.From != c.Owner:
		return fmt.Errorf("it belongs to owner %s: only the role admin takes it over", c.From)
	case stands && !s.under(o, old.resource.Identity, old.resource.Deny):
		return errors.New("as it stands it is not within your paths")
	case c.Kind == "Deny" && madeHere && !s.under(o, nil, here.resource.Deny):
		return errors.New("as it was made on this broker it is not within your paths")
	case c.Body == nil && !stands:
		return errors.New("there is none")
	case c.Body != nil && !s.under(o, c.resource.Identity, c.resource.Deny):
		return errors.New("it would not be within your paths, whatever its facts are; or say any_node; or give an ID that has a role")
	}
	return nil
}

// under says whether an Identity or a Deny is an operator's to change. An Identity
// that could give an ID which has a role would make whoever writes it more than
// an operator.
func (s *Server) under(o operator, i *identity.Identity, d *identity.Deny) bool {
	switch {
	case i != nil && d == nil:
		gives := func(id spiffeid.ID) bool { return identity.CanGive(s.cfg.TrustDomain, *i, id) }
		return o.paths.HoldIdentity(*i) && !slices.ContainsFunc(i.Match, func(item identity.Item) bool { return item.AnyNode }) &&
			!slices.ContainsFunc(slices.Collect(maps.Keys(s.settings.Load().roles)), gives)
	case d != nil && i == nil:
		return o.paths.HoldDeny(*d)
	}
	return false
}
