package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/audit"
	credence "github.com/credence-id/credence/cmd/credence"
)

// TestTruncatedRecord reads a record whose beginning was removed, without a broker.
func TestTruncatedRecord(t *testing.T) {
	data := t.TempDir()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l, err := audit.Open(audit.Config{Dir: filepath.Join(data, "audit"), MaxBytes: 1000, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		if _, err := l.Append(t.Context(), audit.Event{Kind: "deny", Node: fmt.Sprintf("spiffe://example.org/credence/node/n%d", i), Reason: strings.Repeat("x", 300)}); err != nil {
			t.Fatal(err)
		}
		now = now.AddDate(0, 0, 1)
	}
	done, err := l.Truncate(t.Context(), audit.TruncateConfig{Before: now.AddDate(0, 0, -6), Actor: "retention"})
	if err != nil || done.Records == 0 {
		t.Fatal(done, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	run := func(want int, args ...string) string {
		t.Helper()
		var out, bad bytes.Buffer
		if code := credence.Run(t.Context(), append(args, "--data", data), strings.NewReader(""), &out, &bad); code != want {
			t.Fatalf("%v: %d\n%s%s", args, code, &out, &bad)
		}
		return out.String()
	}
	if out, want := run(0, "audit", "verify"), fmt.Sprintf("records up to %s were removed for their age at 2026-01-13 00:00:00Z, as r-000013 says; the chain goes on from %x\n", done.Last.ID(), done.Last.Hash); !strings.Contains(out, want) {
		t.Errorf("%s, not %s", out, want)
	}
	if out := run(0, "audit", "query", "--node", "n11", "-o", "json"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"sequence":12,`) {
		t.Error(out)
	}
	if out := run(0, "audit", "query", "--node", "n1"); out != "" {
		t.Error(out)
	}
	if out := run(0, "audit", "query", "--since", "2026-01-11T00:00:00Z", "--until", "2026-01-12T00:00:00Z"); !strings.Contains(out, "r-000011") || strings.Contains(out, "r-000012") || strings.Contains(out, "r-000010") {
		t.Error(out)
	}
	cursor := filepath.Join(data, "cursor")
	if out := run(0, "audit", "export", "--to", "-", "--cursor", cursor); strings.Count(out, "\n") != 13-int(done.Records) {
		t.Error(out)
	}
	if out := run(0, "audit", "export", "--to", "-", "--cursor", cursor); out != "" {
		t.Error(out)
	}
}

// TestWhatKeepsOldRecordsIsTold tells an operator of a reader and of an error.
func TestWhatKeepsOldRecordsIsTold(t *testing.T) {
	for want, r := range map[string]audit.Retention{
		"siem has got to r-000007": {Held: &audit.Hold{Name: "siem", Sequence: 7}}, "no room": {Problem: errors.New("no room")},
	} {
		if got := credence.KeepingProblems(r); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%q, not %s", got, want)
		}
	}
	if got := credence.KeepingProblems(audit.Retention{}); len(got) > 0 {
		t.Error(got)
	}
}

// What a caller wrote into the record is shown on its line, and does nothing to the
// terminal.
func TestGist(t *testing.T) {
	for want, r := range map[string]audit.Record{
		"actor uid:0  kind Deny  name incident-1  code Get":      {Event: audit.Event{Kind: "admin", Actor: "uid:0", Code: "Get", Detail: map[string]string{"kind": "Deny", "name": "incident-1"}}},
		`name "a\nr-7 \x1b[2J\u202e"  code Get`:                  {Event: audit.Event{Kind: "admin", Code: "Get", Detail: map[string]string{"name": "a\nr-7 \x1b[2J\u202e"}}},
		`name "a  code Apply"  code Get`:                         {Event: audit.Event{Kind: "admin", Code: "Get", Detail: map[string]string{"name": "a  code Apply"}}},
		"Deny  incident-1  denied: Deny incident-1 won, \"sic\"": {Event: audit.Event{Kind: "apply", Reason: `denied: Deny incident-1 won, "sic"`, Detail: map[string]string{"kind": "Deny", "name": "incident-1"}}},
	} {
		if got := credence.Gist(r); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
