package server_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
)

// received reads want records of a stream, or with want < 0 all there are.
func received(t *testing.T, stream grpc.ServerStreamingClient[api.AuditRecord], err error, want int) (all []audit.Record) {
	t.Helper()
	for err == nil && len(all) != want {
		var m *api.AuditRecord
		if m, err = stream.Recv(); err == nil {
			r, err := audit.ParseLine(m.GetJson())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return all
}

func kindsOf(records []audit.Record) (all []string) {
	for _, r := range records {
		all = append(all, r.Kind+" "+r.Detail["name"])
	}
	return all
}

func TestTheRecordIsQueried(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	e.apply(target)
	e.join("n1")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := e.admin()
	for name, q := range map[string]struct {
		filter *api.AuditFilter
		limit  uint32
		below  uint64
		want   []string
	}{
		"all":                {nil, 0, 5, []string{"join ", "token ", "apply t1", "apply web"}},
		"the newest":         {nil, 2, 5, []string{"join ", "token "}},
		"the next page":      {nil, 2, 3, []string{"apply t1", "apply web"}},
		"a kind":             {&api.AuditFilter{Kind: "apply"}, 0, 0, []string{"apply t1", "apply web"}},
		"a node by its name": {&api.AuditFilter{Node: "n1"}, 0, 0, []string{"join "}},
		"a record":           {&api.AuditFilter{Sequence: 2}, 0, 0, []string{"apply t1"}},
		"denied":             {&api.AuditFilter{Outcome: "denied"}, 0, 0, nil},
		"not denied":         {&api.AuditFilter{Outcome: "ok", Kind: "join"}, 0, 0, []string{"join "}},
		"later":              {&api.AuditFilter{Since: time.Now().Add(time.Hour).UnixNano()}, 0, 0, nil},
		"earlier":            {&api.AuditFilter{Until: 1}, 0, 0, nil},
	} {
		stream, err := c.QueryAudit(ctx, &api.QueryAuditRequest{Filter: q.filter, Limit: q.limit, Below: q.below})
		if d := cmp.Diff(q.want, kindsOf(received(t, stream, err, -1))); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	stream, err := c.QueryAudit(ctx, &api.QueryAuditRequest{Filter: &api.AuditFilter{Outcome: "maybe"}})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("an outcome that there is not: %v", err)
	}
	// A filtered tail goes on where it began.
	tail, err := c.TailAudit(ctx, &api.TailAuditRequest{Last: 1, Follow: true, Filter: &api.AuditFilter{Kind: "apply"}})
	if d := cmp.Diff([]string{"apply t1"}, kindsOf(received(t, tail, err, 1))); d != "" {
		t.Error(d)
	}
	e.join("n2")
	e.apply(peer)
	if d := cmp.Diff([]string{"apply partner.example"}, kindsOf(received(t, tail, nil, 1))); d != "" {
		t.Error(d)
	}
}

func TestTheRecordIsExported(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	e.apply(target)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := e.admin()
	from := func(after audit.Ref, follow bool, want int) []audit.Record {
		t.Helper()
		stream, err := c.ExportAudit(ctx, &api.ExportAuditRequest{Sequence: after.Sequence, Hash: after.Hash[:], Follow: follow})
		return received(t, stream, err, want)
	}
	all := from(audit.Ref{}, false, -1)
	if d := cmp.Diff([]string{"apply web", "apply t1", "admin "}, kindsOf(all)); d != "" {
		t.Fatal(d)
	}
	if d := cmp.Diff([]string{"apply t1", "admin "}, kindsOf(from(all[0].Ref(), false, -1))); d != "" {
		t.Error(d)
	}
	if got := from(all[2].Ref(), false, -1); len(got) != 0 {
		t.Errorf("after the last: %v", got)
	}
	e.apply(peer)
	if d := cmp.Diff([]string{"apply partner.example"}, kindsOf(from(all[2].Ref(), true, 1))); d != "" {
		t.Error(d)
	}
	for name, after := range map[string]audit.Ref{
		"another record":   {Sequence: 1, Hash: all[1].Ref().Hash},
		"a later one":      {Sequence: 100, Hash: all[1].Ref().Hash},
		"no hash":          {Sequence: 1},
		"another last one": {Sequence: 3, Hash: all[1].Ref().Hash},
	} {
		hash := after.Hash[:]
		want := codes.DataLoss
		if after.Hash == [32]byte{} {
			hash, want = nil, codes.InvalidArgument
		}
		stream, err := c.ExportAudit(ctx, &api.ExportAuditRequest{Sequence: after.Sequence, Hash: hash})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTheRecordIsTruncated has nothing that is so old: what is removed is
// broker/audit's to test.
func TestTheRecordIsTruncated(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	ctx, c := t.Context(), e.admin()
	for name, r := range map[string]*api.TruncateAuditRequest{
		"no time": {}, "a time to come": {Before: time.Now().Add(48 * time.Hour).UnixNano()}, "a long reason": {Before: 1, Reason: strings.Repeat("x", 2000)},
	} {
		if _, err := c.TruncateAudit(ctx, r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := c.TruncateAudit(ctx, &api.TruncateAuditRequest{Before: time.Now().Add(-time.Hour).UnixNano()})
	if err != nil || r.GetFiles() != 0 || e.audit.Head().Sequence != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

// A record is looked for at the broker that has it, and nowhere else: in another's
// its number is another record's.
func TestAnotherBrokersRecord(t *testing.T) {
	e := newEnv(t, func(e *env) { e.name = "b1" })
	e.apply(web)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	ask := func(c api.AdminClient, origin string) (*api.AuditRecord, error) {
		stream, err := c.QueryAudit(ctx, &api.QueryAuditRequest{Filter: &api.AuditFilter{Sequence: 1}, Origin: origin})
		if err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	for _, origin := range []string{"", "b1"} {
		if got, err := ask(e.admin(), origin); err != nil || got.GetOrigin() != "b1" || !strings.Contains(string(got.GetJson()), `"sequence":1,`) {
			t.Errorf("asked for %q: %v, %v", origin, got, err)
		}
	}
	got, err := ask(e.admin(), "b2")
	wantCode(t, err, codes.InvalidArgument)
	if got != nil || !strings.Contains(err.Error(), `record r-000001 is in the record of broker "b2", and this is "b1"`) || !strings.Contains(err.Error(), "audit query r-000001 --data DIR") {
		t.Errorf("%v, %v", got, err)
	}
}

// Where brokers share a database, each knows whether there is one of that name.
func TestAReplicasRecord(t *testing.T) {
	t.Parallel()
	_, all := replicas(t, 2)
	all[0].apply(web)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for origin, want := range map[string]string{
		"b2": "ask there: credence audit query r-000001@b2, on its machine or with --broker HOST:PORT",
		"b9": "no broker of that name shares this database, but b1, b2",
	} {
		stream, err := all[0].admin().QueryAudit(ctx, &api.QueryAuditRequest{Filter: &api.AuditFilter{Sequence: 1}, Origin: origin})
		if err == nil {
			_, err = stream.Recv()
		}
		wantCode(t, err, codes.InvalidArgument)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", origin, err)
		}
	}
	// Whose issuing CA each is, every one of them says.
	for _, e := range all {
		await(t, e.name+" says whose issuing CAs they are", func() bool {
			got, err := e.admin().ListAuthorities(ctx, &api.ListAuthoritiesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			owners := map[string]string{}
			for _, a := range got.GetAuthorities() {
				owners[a.GetBroker()] += a.GetUse() + " "
			}
			return cmp.Equal(owners, map[string]string{"": "root ", "b1": "x509 ", "b2": "x509 "})
		})
	}
}
