package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
)

// Who is asked for heads, and how much is taken of each: an agent keeps some two
// hundred of each broker.
const (
	headEvery     = time.Minute
	witnessTime   = 10 * time.Second
	defaultAsked  = 200
	maxAsked      = 2000
	askedAtOnce   = 32
	maxHeldHeads  = 4096
	maxHeldBytes  = 5 << 20
	maxGivenHeads = 100_000
	maxNotes      = 20
)

// A head that was signed, as it is told to everybody.
type signedHead struct {
	line []byte
	head audit.Head
	ref  audit.Ref
	at   time.Time
}

// heads is what is known of how far records had got: this broker's, signed once
// a minute, and who of the agents can be asked for those they keep.
type heads struct {
	bell bell // rings when there is a newer one

	mu      sync.Mutex // guards what follows
	last    signedHead
	asked   uint64
	streams map[*witness]bool
}

// A witness is an agent's stream, over which it can be asked.
type witness struct {
	node string
	wake chan struct{} // of capacity 1

	mu     sync.Mutex // guards what follows
	number uint64     // of what it is asked, and has not answered; 0: nothing
	answer chan [][]byte
}

// signed returns the newest head that was signed; nil while there is no SVID to
// sign with, or no record.
func (s *Server) signedHead() []byte {
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	return s.heads.last.line
}

// signHead signs the head as it is now, unless the last one says the same.
func (s *Server) signHead() error {
	cert, ref := s.svid.certificate(), s.cfg.Audit.Head()
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	if cert == nil || ref.Sequence == 0 || ref == s.heads.last.ref {
		return nil
	}
	key, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return errors.New("signing the audit record's head: the broker's key does not sign")
	}
	now := s.cfg.Now()
	h, err := audit.SignHead(audit.HeadOf(s.cfg.TrustDomain.Name(), s.cfg.Broker.Origin(), ref, now), key, cert.Certificate)
	if err != nil {
		return err
	}
	line, err := h.Line()
	if err != nil {
		return err
	}
	s.heads.last = signedHead{line, h, ref, now}
	return nil
}

// SignedHead returns the newest head of the record that was signed, the zero Head
// while there is none: for those who carry the record away.
func (s *Server) SignedHead() audit.Head {
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	return s.heads.last.head
}

// tellHeads signs a head each minute in which something was recorded, and has
// all streams tell it, until ctx ends.
func (s *Server) tellHeads(ctx context.Context) {
	others, err := audit.OpenKeeper(s.othersHeads())
	if err != nil {
		s.cfg.Log.ErrorContext(ctx, "other brokers' heads are not kept", "error", err)
	}
	ticker := time.NewTicker(s.cfg.HeadEvery)
	defer ticker.Stop()
	for {
		before := s.signedHead()
		if err := s.signHead(); err != nil {
			s.cfg.Log.ErrorContext(ctx, "no head of the record is handed out", "error", err)
		}
		if !bytes.Equal(before, s.signedHead()) {
			s.heads.bell.ring()
		}
		if err := s.keepOthers(ctx, others); err != nil {
			s.cfg.Log.WarnContext(ctx, "other brokers' heads are not kept for now", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// othersHeads is where the heads of other brokers' records are kept.
func (s *Server) othersHeads() string { return filepath.Join(s.cfg.AuditDir, "heads") }

// keepOthers keeps what the other brokers that share the store said last: who
// writes its record anew changes its row there, but not what was read of it.
func (s *Server) keepOthers(ctx context.Context, k *audit.Keeper) error {
	others, err := s.otherReplicas(ctx)
	if err != nil || k == nil || len(others) == 0 {
		return err
	}
	now := s.cfg.Now()
	var heads []audit.Head
	for _, r := range others {
		heads = append(heads, audit.HeadOf(s.cfg.TrustDomain.Name(), r.Name, audit.Ref{Sequence: r.Head.Sequence, Hash: r.Head.Hash}, now))
	}
	return k.Keep(now, heads...)
}

func (h *heads) enter(node string) *witness {
	w := &witness{node: node, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams == nil {
		h.streams = make(map[*witness]bool)
	}
	h.streams[w] = true
	return w
}

func (h *heads) leave(w *witness) {
	h.mu.Lock()
	delete(h.streams, w)
	h.mu.Unlock()
	w.give(0, nil)
}

// wanted is the number of what is asked and not answered; 0: nothing.
func (w *witness) wanted() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.number
}

// ask has the stream ask. One question is under way at a time.
func (w *witness) ask(number uint64) (answer <-chan [][]byte, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.number != 0 {
		return nil, false
	}
	w.number, w.answer = number, make(chan [][]byte, 1)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return w.answer, true
}

// give is the answer to a question; 0: none will come.
func (w *witness) give(number uint64, lines [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.number != 0 && (number == w.number || number == 0) {
		w.answer <- lines
		w.number = 0
	}
}

// A keptHead is a head and who keeps it.
type keptHead struct {
	line []byte
	by   string
}

// keptByAgents asks some connected agents, chosen by chance, for the heads that
// they keep, and says how many told theirs. A head that several keep is there
// once.
func (s *Server) keptByAgents(ctx context.Context, most uint32) (kept []keptHead, agents int) {
	all, number := s.witnesses(int(min(cmp.Or(most, defaultAsked), maxAsked)))
	seen := make(map[string]bool)
	for some := range slices.Chunk(all, askedAtOnce) {
		asking, cancel := context.WithTimeout(ctx, witnessTime)
		for i, answer := range askAll(some, number) {
			var lines [][]byte
			select {
			case lines = <-answer:
			case <-asking.Done():
				some[i].give(number, nil) // it is not waited for any more
				lines = <-answer
			}
			if lines != nil {
				agents++
			}
			for _, line := range lines {
				if !seen[string(line)] && len(kept) < maxGivenHeads {
					seen[string(line)] = true
					kept = append(kept, keptHead{line, some[i].node})
				}
			}
		}
		cancel()
	}
	return kept, agents
}

func askAll(some []*witness, number uint64) []<-chan [][]byte {
	answers := make([]<-chan [][]byte, len(some))
	for i, w := range some {
		answer, ok := w.ask(number)
		if !ok { // somebody else asks it: it is one of those that don't answer
			none := make(chan [][]byte, 1)
			none <- nil
			answer = none
		}
		answers[i] = answer
	}
	return answers
}

// witnesses are some of the connected agents, one stream of each, and the number
// of a new question.
func (s *Server) witnesses(most int) (some []*witness, number uint64) {
	s.heads.mu.Lock()
	defer s.heads.mu.Unlock()
	s.heads.asked++
	nodes := make(map[string]bool)
	for w := range s.heads.streams {
		if !nodes[w.node] {
			nodes[w.node] = true
			some = append(some, w)
		}
	}
	rand.Shuffle(len(some), func(i, j int) { some[i], some[j] = some[j], some[i] })
	return some[:min(len(some), most)], s.heads.asked
}

// takeHeads bounds what an agent says that it keeps. What is no head is passed
// over: it is the agent's, and says nothing.
func takeHeads(m *api.WatchRequest_Heads) [][]byte {
	lines, size := [][]byte{}, 0
	for _, line := range m.GetHeads() {
		size += len(line)
		if len(lines) == maxHeldHeads || size > maxHeldBytes {
			break
		}
		if _, err := audit.ParseHead(line); err == nil {
			lines = append(lines, line)
		}
	}
	return lines
}

// roots are the anchors of our bundle, by which heads are judged.
func (s *Server) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range s.cfg.Authority.Bundle().X509Authorities {
		pool.AddCert(c)
	}
	return pool
}

// known sorts heads out: those of this broker, to hold its record against, and
// notes on the others. A head that no key of ours signed tells something all the
// same: it is held against the record, and named for what it is.
func (s *Server) known(kept []keptHead) (known []audit.Known, notes []string) {
	others, unsigned := make(map[string]int), 0
	roots := s.roots()
	for _, k := range kept {
		h, err := audit.ParseHead(k.line)
		if err != nil {
			if r, err := audit.ParseLine(k.line); err == nil { // as it was exported: who asks says that it was from here
				known = append(known, audit.Known{Ref: r.Ref(), Time: r.Time, By: k.by})
				continue
			}
			unsigned++
			continue
		}
		if h.TrustDomain != s.cfg.TrustDomain.Name() || h.Origin != s.cfg.Broker.Origin() {
			others[h.Origin+" of "+h.TrustDomain]++
			continue
		}
		by := k.by
		if err := h.Check(roots); err != nil {
			by += fmt.Sprintf(" (not known to be this broker's: %v)", err)
		}
		known = append(known, audit.Known{Ref: h.Ref(), Time: h.Time, By: by})
	}
	if unsigned > 0 {
		notes = append(notes, fmt.Sprintf("%d lines are no heads", unsigned))
	}
	for origin, n := range others {
		notes = append(notes, fmt.Sprintf("%d heads are of broker %s: verify them there", n, origin))
	}
	slices.Sort(notes)
	return known, notes[:min(len(notes), maxNotes)]
}

// VerifyAudit reads the record from its first line to its last, and holds it
// against heads that were kept. What it finds wrong is an answer, not an error.
func (a adminService) VerifyAudit(ctx context.Context, r *api.VerifyAuditRequest) (*api.VerifyAuditResponse, error) {
	if len(r.GetHeads()) > maxGivenHeads {
		return nil, a.fail(ctx, fmt.Errorf("%w: %d heads: at most %d are taken", broker.ErrRequest, len(r.GetHeads()), maxGivenHeads))
	}
	response := &api.VerifyAuditResponse{}
	var kept []keptHead
	for _, line := range r.GetHeads() {
		kept = append(kept, keptHead{line, "the file"})
	}
	if r.GetFromAgents() {
		more, agents := a.s.keptByAgents(ctx, r.GetAgents())
		kept, response.Agents = append(kept, more...), uint32(agents)
	}
	known, notes := a.s.known(kept)
	now := audit.Known{Ref: a.s.cfg.Audit.Head(), By: "this broker"}
	report, err := audit.VerifyKnown(ctx, a.s.cfg.AuditDir, append(known, now))
	if ctx.Err() != nil {
		return nil, a.fail(ctx, err)
	}
	if report.Gone > 0 {
		notes = append(notes, fmt.Sprintf("%d heads are of records that were removed: nothing here stands against them", report.Gone))
	}
	response.Records, response.Files, response.Notes = report.Records, uint32(report.Files), notes
	response.Sequence, response.Head = report.Head.Sequence, report.Head.Hash[:]
	response.Confirmed = uint64(report.Confirmed)
	if t := report.Removed; t != nil {
		response.Removed = &api.RemovedRecords{Last: t.Last.Sequence, Hash: t.Last.Hash[:], Record: t.Record.Sequence, At: t.Time.Unix()}
	}
	if err != nil {
		response.Problem = err.Error()
	} else if now.Ref != (audit.Ref{}) {
		response.Confirmed-- // that one is its own
	}
	return response, nil
}

// ListHeads tells the heads that are known.
func (a adminService) ListHeads(r *api.ListHeadsRequest, stream grpc.ServerStreamingServer[api.AuditHead]) error {
	ctx := stream.Context()
	if err := a.s.signHead(); err != nil {
		return a.fail(ctx, err)
	}
	var kept []keptHead
	if line := a.s.signedHead(); line != nil {
		kept = append(kept, keptHead{line, "broker"})
	}
	others, err := audit.OpenKeeper(a.s.othersHeads()) // written whole: it can be read meanwhile
	if err != nil {
		return a.fail(ctx, err)
	}
	for _, h := range others.All() {
		line, err := h.Line()
		if err != nil {
			return a.fail(ctx, err)
		}
		kept = append(kept, keptHead{line, "broker"})
	}
	if r.GetFromAgents() {
		more, _ := a.s.keptByAgents(ctx, r.GetAgents())
		kept = append(kept, more...)
	}
	for _, k := range kept {
		if err := stream.Send(&api.AuditHead{Head: k.line, KeptBy: k.by}); err != nil {
			return err
		}
	}
	return nil
}

// HashFact tells how the record has a fact's value, so that it can be found.
func (a adminService) HashFact(ctx context.Context, r *api.HashFactRequest) (*api.HashFactResponse, error) {
	if r.GetName() == "" || len(r.GetName()) > maxReason || len(r.GetValue()) > audit.MaxLine {
		return nil, a.fail(ctx, fmt.Errorf("%w: a fact's name and value are wanted", broker.ErrRequest))
	}
	return &api.HashFactResponse{Recorded: a.s.cfg.Audit.RecordedFact(r.GetName(), r.GetValue())}, nil
}
