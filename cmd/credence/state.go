package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Say how the broker does, problems first", Args: cobra.NoArgs,
		Long: `Status asks the broker for all that an operator looks at first: problems, and the
way out of each; the store and the other brokers over it; the record, the room on its
disk and how far it is indexed; nodes; what becomes of each authority next; peers. It
answers while the store is away. It exits 1 where there is a problem that somebody must
see to.`,
		Example: "  credence status\n  credence status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return adminClient(cmd, func(ctx context.Context, c api.AdminClient) error {
				r, err := c.Status(ctx, &api.StatusRequest{})
				if err != nil {
					return err
				}
				v := viewStatus(r, p.Now())
				if err := p.Show(cmd, v, func() error { return p.tellStatus(v) }); err != nil {
					return err
				}
				if v.Problem != "" {
					return cli.Coded{Code: cli.ExitNo}
				}
				return nil
			})
		},
	}
	return cli.AddOutput(addAdmin(cmd))
}

type statusView struct {
	TrustDomain    string            `json:"trust_domain"`
	Issuer         string            `json:"issuer"`
	Version        string            `json:"version"`
	StartedAt      cli.Moment        `json:"started_at"`
	Revision       uint64            `json:"revision"` // of the store
	Nodes          uint32            `json:"nodes"`
	Identities     uint32            `json:"identities"`
	Listen         map[string]string `json:"listen"`
	Problem        string            `json:"problem"` // all of them
	Name           string            `json:"name"`
	Ready          bool              `json:"ready"`
	Problems       []string          `json:"problems"` // the worst first
	PolicyRevision uint64            `json:"policy_revision"`
	SVIDEnds       cli.Moment        `json:"svid_ends"`
	Store          storeView         `json:"store"`
	Replicas       []replicaView     `json:"replicas"`
	Record         recordView        `json:"record"`
	NodeStates     nodeStatesView    `json:"node_states"`
	Cutoffs        uint32            `json:"cutoffs"`
	Authorities    []authorityView   `json:"authorities"`
	Peers          []peerView        `json:"peers"`
}

type storeView struct {
	Away     bool       `json:"away"`
	Since    cli.Moment `json:"since"`
	Error    string     `json:"error"`
	Revision uint64     `json:"revision"`
	Taken    uint64     `json:"taken"` // up to which all of it holds here
}

type replicaView struct {
	Name      string     `json:"name"`
	Version   string     `json:"version"`
	StartedAt cli.Moment `json:"started_at"`
	SeenAt    cli.Moment `json:"seen_at"`
	Taken     uint64     `json:"taken"`
	Sequence  uint64     `json:"sequence"` // of its record's last
	Connected uint32     `json:"connected"`
	Gone      bool       `json:"gone"`
}

type recordView struct {
	Sequence     uint64     `json:"sequence"`
	Head         string     `json:"head"`
	Indexed      uint64     `json:"indexed"`
	FailingSince cli.Moment `json:"failing_since"`
	Error        string     `json:"error"`
	Free         int64      `json:"free"` // bytes of room; negative: not known
	Waiting      uint32     `json:"waiting"`
}

type nodeStatesView struct {
	Joined    uint32     `json:"joined"`
	Ended     uint32     `json:"ended"`
	Evicted   uint32     `json:"evicted"`
	Overdue   uint32     `json:"overdue"`
	FirstEnds cli.Moment `json:"first_ends"`
	Connected uint32     `json:"connected"`
	Sessions  uint32     `json:"sessions"`
}

func viewStatus(r *api.StatusResponse, now time.Time) statusView {
	st, rec, n := r.GetStore(), r.GetRecord(), r.GetNodeStates()
	v := statusView{
		TrustDomain: r.GetTrustDomain(), Issuer: r.GetIssuer(), Version: r.GetVersion(), StartedAt: cli.Moment(r.GetStartedAt()), Revision: r.GetRevision(),
		Nodes: r.GetNodes(), Identities: r.GetIdentities(), Listen: map[string]string{}, Problem: r.GetProblem(), Name: r.GetName(),
		Ready: len(r.GetUnready()) == 0, Problems: append([]string{}, r.GetProblems()...), PolicyRevision: r.GetPolicyRevision(), SVIDEnds: cli.Moment(r.GetSvidEnds()),
		Store:      storeView{st.GetAway(), cli.Moment(st.GetSince()), st.GetError(), st.GetRevision(), st.GetTaken()},
		Record:     recordView{rec.GetSequence(), hex.EncodeToString(rec.GetHead()), rec.GetIndexed(), cli.Moment(rec.GetFailingSince()), rec.GetError(), rec.GetFree(), rec.GetWaiting()},
		NodeStates: nodeStatesView{n.GetJoined(), n.GetEnded(), n.GetEvicted(), n.GetOverdue(), cli.Moment(n.GetFirstEnds()), n.GetConnected(), n.GetSessions()},
		Cutoffs:    r.GetCutoffs(), Replicas: []replicaView{}, Authorities: []authorityView{}, Peers: []peerView{},
	}
	for name, address := range r.GetListen() {
		v.Listen[name] = address
	}
	for _, o := range r.GetReplicas() {
		v.Replicas = append(v.Replicas, replicaView{o.GetName(), o.GetVersion(), cli.Moment(o.GetStartedAt()), cli.Moment(o.GetSeenAt()), o.GetTaken(), o.GetSequence(), o.GetConnected(), o.GetGone()})
	}
	for _, a := range r.GetAuthorities() {
		v.Authorities = append(v.Authorities, viewAuthority(a))
	}
	for _, o := range r.GetPeers() {
		v.Peers = append(v.Peers, viewPeer(o, now))
	}
	return v
}

// mostPeers is how many peers are on the screen: those with a problem are told of
// above.
const mostPeers = 8

// tellStatus tells it all on one screen.
func (p *program) tellStatus(v statusView) error {
	if err := p.Fields(v.fields()); err != nil {
		return err
	}
	tables := []struct {
		head string
		rows [][]string
	}{{"BROKER|VERSION|SEEN|REVISION|RECORDS|NODES", nil}, {"AUTHORITY|ALG|STATE|ENDS|NEXT|AT", nil}, {"PEER|STATE|AGE|SEQUENCE", nil}}
	for _, r := range v.Replicas {
		tables[0].rows = append(tables[0].rows, []string{r.Name, r.Version, cli.When(int64(r.SeenAt)), fmt.Sprint(r.Taken), fmt.Sprint(r.Sequence), fmt.Sprint(r.Connected)})
	}
	for _, a := range v.Authorities {
		tables[1].rows = append(tables[1].rows, []string{a.Use, a.Alg, a.State, cli.When(int64(a.NotAfter)), a.Next, cli.When(int64(a.NextAt))})
	}
	for _, o := range v.Peers[:min(len(v.Peers), mostPeers)] {
		tables[2].rows = append(tables[2].rows, []string{o.Name, o.State, o.age(), fmt.Sprint(o.Sequence)})
	}
	if more := len(v.Peers) - mostPeers; more > 0 {
		tables[2].rows = append(tables[2].rows, []string{fmt.Sprintf("and %d more (credence peer list)", more), "", "", ""})
	}
	for _, t := range tables {
		if len(t.rows) == 0 {
			continue
		}
		fmt.Fprintln(p.Out)
		if err := p.Table(t.head, t.rows); err != nil {
			return err
		}
	}
	return nil
}

func (v statusView) fields() (rows [][2]string) {
	for _, problem := range v.Problems {
		rows = append(rows, [2]string{"problem", problem})
	}
	ready := "yes"
	if !v.Ready {
		ready = "no"
	}
	rows = append(rows, [][2]string{
		{"trust domain", v.TrustDomain}, {"issuer", v.Issuer}, {"version", v.Version}, {"up since", cli.When(int64(v.StartedAt))}, {"ready", ready},
	}...)
	if v.Name != "" {
		rows = append(rows, [2]string{"name", v.Name})
	}
	return append(append(rows, [][2]string{
		{"store", v.Store.words()},
		{"policy", fmt.Sprintf("revision %d, %d identities", v.PolicyRevision, v.Identities)},
		{"record", v.Record.words()},
		{"nodes", v.NodeStates.words()},
		{"revocations", fmt.Sprintf("%d stand", v.Cutoffs)},
		{"SVID ends", cli.When(int64(v.SVIDEnds))},
	}...), listening(v.Listen)...)
}

func listening(addresses map[string]string) (rows [][2]string) {
	for _, name := range sortedKeys(addresses) {
		rows = append(rows, [2]string{name, addresses[name]})
	}
	return rows
}

func (s storeView) words() string {
	state := "there"
	if s.Away {
		state = "away"
	}
	return fmt.Sprintf("%s since %s, revision %d, of which %d holds here", state, cli.When(int64(s.Since)), s.Revision, s.Taken)
}

func (r recordView) words() string {
	text := fmt.Sprintf("%d records, %d of them indexed", r.Sequence, r.Indexed)
	if r.Free >= 0 {
		text += fmt.Sprintf(", %d MiB of room", r.Free>>20)
	}
	return text
}

func (n nodeStatesView) words() string {
	text := fmt.Sprintf("%d joined, %d ended, %d evicted; %d connected", n.Joined, n.Ended, n.Evicted, n.Connected)
	if n.FirstEnds != 0 {
		text += "; the first ends " + cli.When(int64(n.FirstEnds))
	}
	return text
}
