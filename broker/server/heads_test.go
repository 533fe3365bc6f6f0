package server_test

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
)

// answering answers what is asked over a watch with these heads, and hands on
// each head that is told.
func (w watch) answering(heads func() [][]byte) <-chan []byte {
	told := make(chan []byte, 100)
	go func() {
		defer close(told)
		for {
			m, err := w.stream.Recv()
			if err != nil {
				return
			}
			if line := m.GetSignedHead(); len(line) > 0 {
				told <- line
			}
			if asked := m.GetHeadsWanted(); asked != 0 {
				_ = w.stream.Send(&api.WatchRequest{Step: &api.WatchRequest_Heads_{Heads: &api.WatchRequest_Heads{Asked: asked, Heads: heads()}}})
			}
		}
	}()
	return told
}

func (e *env) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range e.authority.Bundle().X509Authorities {
		pool.AddCert(c)
	}
	return pool
}

// TestAgentsAreTheWitnesses has agents keep signed heads, and the record held
// against what they say.
func TestAgentsAreTheWitnesses(t *testing.T) {
	e := newEnv(t, func(e *env) { e.headEvery = 10 * time.Millisecond })
	e.apply(web)
	n1, n2 := e.join("n1"), e.join("n2")
	w1, _ := n1.watch(t)
	var kept [][]byte
	told := w1.answering(func() [][]byte { return append(kept, []byte("no head")) })
	w2, _ := n2.watch(t)
	w2.answering(func() [][]byte { return nil })
	e.apply(web + "hint: x\n") // so that there is more than the first head
	line := <-told
	head, err := audit.ParseHead(line)
	if err != nil || head.Check(e.roots()) != nil || head.Origin != "broker" || head.TrustDomain != td.Name() {
		t.Fatalf("told %s: %v, %v", line, err, head.Check(e.roots()))
	}
	verify := func(r *api.VerifyAuditRequest) *api.VerifyAuditResponse {
		t.Helper()
		response, err := e.admin().VerifyAudit(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	kept = append(kept, line)
	if r := verify(&api.VerifyAuditRequest{FromAgents: true}); r.GetProblem() != "" || r.GetConfirmed() != 1 || r.GetAgents() != 2 {
		t.Errorf("what agents keep: %v", r)
	}
	// What another agent says of the past is not so: it is named.
	forged := head
	forged.Hash = hex.EncodeToString(bytes.Repeat([]byte{7}, 32))
	text, err := forged.Line()
	if err != nil {
		t.Fatal(err)
	}
	kept = append(kept, text)
	r := verify(&api.VerifyAuditRequest{FromAgents: true})
	for _, says := range []string{"written anew", "node/n1", "not known to be this broker's"} {
		if !strings.Contains(r.GetProblem(), says) {
			t.Errorf("a head that doesn't fit: %q, want %q", r.GetProblem(), says)
		}
	}
	// Those of another broker are for that one.
	other := head
	other.Origin = "b2"
	text, err = other.Line()
	if err != nil {
		t.Fatal(err)
	}
	if r := verify(&api.VerifyAuditRequest{Heads: [][]byte{text, line, []byte("x")}}); r.GetProblem() != "" || r.GetConfirmed() != 1 || len(r.GetNotes()) != 2 {
		t.Errorf("from a file: %v", r)
	}
	stream, err := e.admin().ListHeads(t.Context(), &api.ListHeadsRequest{FromAgents: true})
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]int{}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		by[m.GetKeptBy()]++
	}
	if by["broker"] != 1 || by["spiffe://"+td.Name()+"/credence/node/n1"] != 2 {
		t.Errorf("heads are kept by %v", by)
	}
}

// TestARewrittenRecordIsFoundByAgents cuts the record and writes it on with the
// broker stopped, as who has its disk can.
func TestARewrittenRecordIsFoundByAgents(t *testing.T) {
	e := newEnv(t, func(e *env) { e.headEvery = 10 * time.Millisecond })
	n := e.join("n1")
	w, m := n.watch(t)
	told := w.answering(func() [][]byte { return nil })
	first := m.GetSignedHead()
	if first == nil {
		first = <-told
	}
	before := e.audit.Head().Sequence
	e.apply(web)
	second := <-told
	for h, err := audit.ParseHead(second); err == nil && h.Sequence <= before; h, err = audit.ParseHead(second) {
		second = <-told
	}
	if h := e.server.SignedHead(); h.Sequence <= before || h.Check(e.roots()) != nil {
		t.Errorf("to those who carry the record away: %+v", h)
	}
	e.close()
	path := filepath.Join(e.auditDir(), "000000000001.jsonl")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var keep []byte
	for line := range bytes.Lines(text) {
		if r, err := audit.ParseLine(bytes.TrimSuffix(line, []byte("\n"))); err != nil || r.Kind == "apply" {
			break
		}
		keep = append(keep, line...)
	}
	if err := os.WriteFile(path, keep, 0o600); err != nil {
		t.Fatal(err)
	}
	e.listen()
	e.open()
	e.run()
	for range 3 {
		if _, err := e.audit.Append(t.Context(), audit.Event{Kind: "deny", Code: "never mind"}); err != nil {
			t.Fatal(err)
		}
	}
	n = e.join("n2")
	w, _ = n.watch(t)
	w.answering(func() [][]byte { return [][]byte{first, second} })
	r, err := e.admin().VerifyAudit(t.Context(), &api.VerifyAuditRequest{FromAgents: true})
	if err != nil || !strings.Contains(r.GetProblem(), "written anew") || !strings.Contains(r.GetProblem(), "trust nothing from record") || strings.Contains(r.GetProblem(), "not known") {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := e.admin().VerifyAudit(t.Context(), &api.VerifyAuditRequest{}); err != nil || r.GetProblem() != "" {
		t.Errorf("without them: %v, %v", r, err)
	}
	// Records that were exported are heads too.
	lastOf := func(text []byte) [][]byte {
		lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
		return lines[len(lines)-1:]
	}
	if r, err := e.admin().VerifyAudit(t.Context(), &api.VerifyAuditRequest{Heads: lastOf(text)}); err != nil || !strings.Contains(r.GetProblem(), "whose head the file keeps") {
		t.Errorf("with an exported record: %v, %v", r, err)
	}
	if r, err := e.admin().VerifyAudit(t.Context(), &api.VerifyAuditRequest{Heads: lastOf(keep)}); err != nil || r.GetProblem() != "" || r.GetConfirmed() != 1 || len(r.GetNotes()) != 0 {
		t.Errorf("with one that stands: %v, %v", r, err)
	}
}
