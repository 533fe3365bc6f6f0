package server_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/api"
)

// raw sends bytes as they are, and takes what comes.
type raw struct{}

func (raw) Name() string                  { return "proto" }
func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = b
	return nil
}

// expected are the codes that a request may end with. Unknown, Internal and
// the like are what a handler says that has lost its way.
func expected(err error) bool {
	if strings.Contains(status.Convert(err).Message(), "failed to unmarshal the received message") {
		return true // gRPC's own answer to what is no message
	}
	switch status.Code(err) {
	case codes.OK, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied, codes.Unauthenticated,
		codes.FailedPrecondition, codes.Aborted, codes.ResourceExhausted, codes.DeadlineExceeded, codes.DataLoss:
		return true
	}
	return false
}

// send makes one call with body as its first and only message, and reads the
// answers to their end.
func send(ctx context.Context, conn *grpc.ClientConn, method string, body []byte) (answers [][]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodec(raw{}))
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(&body); err != nil && !errors.Is(err, io.EOF) { // EOF: it has been answered already
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	for {
		var answer []byte
		if err := stream.RecvMsg(&answer); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return answers, err
		}
		answers = append(answers, answer)
	}
}

func seed(f *testing.F, n byte, messages ...proto.Message) {
	for i, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(n+byte(i), b)
	}
}

// FuzzNodeRequests sends any bytes to each method of the node service, as a
// node and as a stranger. Nobody here is granted anything: no answer may hold
// an SVID, and the broker serves on.
func FuzzNodeRequests(f *testing.F) {
	e := newEnv(f)
	n := e.join("n1")
	methods := []string{api.Node_Join_FullMethodName, api.Node_Renew_FullMethodName, api.Node_IssueX509_FullMethodName,
		api.Node_IssueJWT_FullMethodName, api.Node_Watch_FullMethodName, api.Node_Report_FullMethodName}
	key := spki(f, newKey(f).Public())
	seed(f, 0,
		&api.JoinRequest{Step: &api.JoinRequest_Start_{Start: &api.JoinRequest_Start{Method: "token", Evidence: []byte("cjt_x"), PublicKey: key}}},
		&api.RenewRequest{},
		&api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: process("33"), PublicKeys: [][]byte{key}}}},
		&api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}},
		&api.WatchRequest{Step: &api.WatchRequest_Since_{Since: &api.WatchRequest_Since{}}},
		&api.ReportRequest{})
	conns := []*grpc.ClientConn{e.dial(n.cert), e.dial(nil)}
	ctx := e.t.Context()
	f.Fuzz(func(t *testing.T, method byte, body []byte) {
		name := methods[int(method)%len(methods)]
		for i, conn := range conns {
			answers, err := send(ctx, conn, name, body)
			if !expected(err) {
				t.Errorf("%s by %d: %v", name, i, err)
			}
			if i == 1 && len(answers) > 0 {
				t.Errorf("%s: a stranger got %q", name, answers)
			}
			for _, answer := range answers { // a stranger's too
				wantNothing(t, name, answer)
			}
		}
	})
}

// wantNothing holds that an answer has no SVID in it.
func wantNothing(t *testing.T, name string, answer []byte) {
	t.Helper()
	switch name {
	case api.Node_IssueX509_FullMethodName:
		var m api.IssueX509Response
		if err := proto.Unmarshal(answer, &m); err != nil {
			t.Fatal(err)
		}
		for _, r := range m.GetResults() {
			if len(r.GetSvids()) > 0 {
				t.Errorf("an X509-SVID: %v", r)
			}
		}
	case api.Node_IssueJWT_FullMethodName:
		var m api.IssueJWTResponse
		if err := proto.Unmarshal(answer, &m); err != nil || len(m.GetSvids()) > 0 {
			t.Errorf("a JWT-SVID: %v, %v", &m, err)
		}
	}
}

// FuzzAdminRequests sends any bytes to each method of the admin service, as
// root does. What it is told to do it may do, and nothing makes it lose its
// way.
func FuzzAdminRequests(f *testing.F) {
	e := newEnv(f)
	e.join("n1")
	e.apply(web)
	methods := []string{api.Admin_Apply_FullMethodName, api.Admin_Get_FullMethodName, api.Admin_Delete_FullMethodName,
		api.Admin_CreateToken_FullMethodName, api.Admin_ListNodes_FullMethodName, api.Admin_EvictNode_FullMethodName,
		api.Admin_AllowNode_FullMethodName, api.Admin_Explain_FullMethodName, api.Admin_ShowBundle_FullMethodName,
		api.Admin_ListAuthorities_FullMethodName, api.Admin_TailAudit_FullMethodName, api.Admin_VerifyAudit_FullMethodName, api.Admin_Status_FullMethodName,
		api.Authorities_Revoke_FullMethodName, api.Authorities_ListIssued_FullMethodName, api.Admin_QueryAudit_FullMethodName, api.Admin_ExportAudit_FullMethodName,
		api.Admin_TruncateAudit_FullMethodName}
	seed(f, 0,
		&api.ApplyRequest{Yaml: []byte(web), File: "a.yaml", DryRun: true}, &api.GetRequest{Kind: "Identity", Name: "web"}, &api.DeleteRequest{Kind: "Deny", Name: "x"},
		&api.CreateTokenRequest{Node: "n2"}, &api.ListNodesRequest{}, &api.EvictNodeRequest{Id: "n2"},
		&api.AllowNodeRequest{Id: "n2"}, &api.ExplainRequest{}, &api.ShowBundleRequest{},
		&api.ListAuthoritiesRequest{}, &api.TailAuditRequest{}, &api.VerifyAuditRequest{}, &api.StatusRequest{},
		&api.RevokeRequest{Kind: "identity", Value: "x", Reason: "r"}, &api.ListIssuedRequest{Identity: "web", Limit: 3},
		&api.QueryAuditRequest{Filter: &api.AuditFilter{Kind: "issue.*", Outcome: "ok"}, Limit: 3}, &api.ExportAuditRequest{Sequence: 2, Hash: make([]byte, 32)}, &api.TruncateAuditRequest{Before: 1 << 40})
	conn, err := grpc.NewClient("unix://"+filepath.Join(e.dir, "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { conn.Close() })
	ctx := e.t.Context()
	f.Fuzz(func(t *testing.T, method byte, body []byte) {
		name := methods[int(method)%len(methods)]
		if _, err := send(ctx, conn, name, body); !expected(err) {
			t.Errorf("%s: %v", name, err)
		}
	})
}
