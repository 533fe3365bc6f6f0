package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentapi "github.com/credence-id/credence/agent/api"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/cmd/workloadcmd"
	"github.com/credence-id/credence/exchangers"
)

const callStep = "exchange"

// tryCall has the agent make the exchange, for this process. Where it cannot be
// made, the broker tells what nodes reported; nil: nobody is asked. The error
// says that the agent was not reached.
func (p *program) tryCall(cmd *cobra.Command, w *exchangers.Walk, c api.AdminClient) error {
	where, _ := cmd.Flags().GetString("socket")
	if where == "" {
		where = os.Getenv(cli.WorkloadVariable)
	}
	if where == "" {
		notCalled(cmd.Context(), w, c, "no agent is named", "set "+cli.WorkloadVariable+" to its workload socket")
		return nil
	}
	conn, err := cli.DialSocket(where)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), 45*time.Second)
	defer cancel()
	r, err := agentapi.NewChecksClient(workloadcmd.Conn(conn)).Try(ctx, &agentapi.TryRequest{Target: w.Target.Name})
	switch {
	case status.Code(err) == codes.PermissionDenied:
		if c == nil {
			w.Fail(callStep, "call_denied", "identity.match", "this process has no Identity that lists the Target: "+status.Convert(err).Message(), "see why: credence explain --pid")
			return nil
		}
		notCalled(ctx, w, c, "this process has no Identity that lists the Target",
			asWorkload(ctx, c, w, where))
	case err != nil:
		return cli.Reached("agent", where, err)
	case otherParty(w, r.GetSpiffeId()):
		w.Warn(callStep, "call_other_identity", "identity", "the exchange was made as "+r.GetSpiffeId()+", which is not Identity "+w.Identity+": it says nothing of that",
			asWorkload(ctx, c, w, where))
	case r.GetRefusal() != nil:
		refused(w, r.GetSpiffeId(), r.GetRefusal())
	default:
		w.Done(callStep, "made as %s: a credential until %s", r.GetSpiffeId(), cli.When(r.GetExpires()))
	}
	return nil
}

// notCalled says that the exchange was not made, and how it would be. For
// --call that is a no.
func notCalled(ctx context.Context, w *exchangers.Walk, c api.AdminClient, found, change string) {
	if c == nil {
		w.Fail(callStep, "call_not_made", "", "the exchange was not made: "+found, change)
		return
	}
	w.Warn(callStep, "call_not_made", "", "the exchange was not made: "+found+"; "+lastExchange(ctx, c, w), change)
}

// asWorkload is how the exchange is made as a workload that may.
func asWorkload(ctx context.Context, c api.AdminClient, w *exchangers.Walk, socket string) string {
	return "run as the workload: sudo -u " + workloadUser(ctx, c, w) + " " + cli.WorkloadVariable + "=" + cli.ShellWord(socket) + " credence target check " + w.Target.Name + " --call"
}

// workloadUser is the user that an Identity wants, as sudo takes it.
func workloadUser(ctx context.Context, c api.AdminClient, w *exchangers.Walk) string {
	const unknown = "USER"
	if len(w.Walked()) == 0 {
		return unknown
	}
	got, err := c.Get(ctx, &api.GetRequest{Kind: "Identity", Name: w.Walked()[0].Identity})
	if err != nil || len(got.GetResources()) != 1 {
		return unknown
	}
	parsed, err := registry().Parse("Identity", got.GetResources()[0].GetYaml())
	if err != nil || len(parsed) != 1 || parsed[0].Identity == nil {
		return unknown
	}
	for _, item := range parsed[0].Identity.Match {
		for _, term := range item.Terms {
			if term.Name == "workload.unix.uid" && strings.Trim(term.Pattern, "0123456789") == "" {
				return cli.ShellWord("#" + term.Pattern)
			}
		}
	}
	return unknown
}

// otherParty says whether an ID is of another Identity than is asked about.
func otherParty(w *exchangers.Walk, id string) bool {
	return w.Identity != "" && !slices.ContainsFunc(w.Walked(), func(p exchangers.Party) bool { return exchangers.Renders(p.SPIFFEID, id) })
}

var localCode = regexp.MustCompile(`^[a-z_]{1,40}$`)

// refused is a provider's refusal as a finding.
func refused(w *exchangers.Walk, id string, r *agentapi.Refusal) {
	code, field := "refused", r.GetField()
	switch {
	case r.GetReason() != "":
		code = r.GetReason()
	case localCode.MatchString(r.GetCode()): // ours: there was no answer, or none that can be used
		code, field = r.GetCode(), "endpoint"
	}
	e := exchangers.Error{Provider: r.GetProvider(), Status: int(r.GetStatus()), Code: r.GetCode(), Message: r.GetMessage()}
	found := "as " + id + ": " + exchangers.Clean(e.Error())
	if r.GetRequestId() != "" {
		found += " (request " + exchangers.Clean(r.GetRequestId()) + ")"
	}
	change := r.GetHint()
	switch class := exchangers.Class(r.GetClass()); {
	case class == exchangers.Throttled:
		change = strings.TrimPrefix(change+"; wait: the provider throttles", "; ")
	case class == exchangers.Outage && change == "":
		change = "try again: the provider is not well, or not reached from here"
	case change == "":
		change = "look the code up in the provider's documents: it is not one that this program knows"
	}
	w.Fail(callStep, "call_"+code, field, found, change)
}

// lastExchange is the newest exchange at the Target that a node reported.
func lastExchange(ctx context.Context, c api.AdminClient, w *exchangers.Walk) string {
	const none = "none of the last records is of an exchange there"
	stream, err := c.TailAudit(ctx, &api.TailAuditRequest{Last: 1000})
	if err != nil {
		return "the record cannot be read: " + status.Convert(err).Message()
	}
	found := none
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			return "the record cannot be read: " + status.Convert(err).Message()
		}
		var r audit.Record
		if json.Unmarshal(m.GetJson(), &r) != nil || r.Kind != "exchange" || r.Target != w.Target.Name || w.Identity != "" && r.Identity != w.Identity {
			continue
		}
		how := "it was good"
		if !r.OK {
			how = "it was refused with " + exchangers.Clean(r.Code)
		}
		found = fmt.Sprintf("a node's last report is of %s at %s: %s (%s)", r.SPIFFEID, cli.When(r.Time.Unix()), how, r.Ref().ID())
	}
}
