package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/audit"
)

// exported are the lines of a record's directory, as an exporter writes them.
func exported(t testing.TB, dir string) (all []string) {
	t.Helper()
	for r, err := range audit.Read(t.Context(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		line, err := r.Line()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(line)+"\n")
	}
	return all
}

func exportedHead(t testing.TB, h audit.Head) string {
	t.Helper()
	line, err := audit.ExportedHead(h)
	if err != nil {
		t.Fatal(err)
	}
	return string(line) + "\n"
}

// rewritten is a record in dir whose first n records are those of lines, and that
// has others after them.
func rewritten(t testing.TB, dir string, lines []string, n, more int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, one), []byte(strings.Join(lines[:n], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, audit.Config{Dir: dir})
	for i := range more {
		add(t, l, event(1000+i))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAnExportIsAWitness has the end of a record written anew, and the export of
// what was there before held against it.
func TestAnExportIsAWitness(t *testing.T) {
	s, dir, forged := newSigner(t, brokerID), newDir(t), newDir(t)
	refs := fill(t, audit.Config{Dir: dir}, 20)
	lines := exported(t, dir)
	rewritten(t, forged, lines, 12, 18)
	after := exported(t, forged)
	var b []byte
	for i, line := range lines { // a head after each fifth record, and three records are sent again
		b = append(b, line...)
		if i%5 == 4 {
			b = append(b, exportedHead(t, s.head(t, refs[i], signedAt))...)
		}
		if i == 7 {
			b = append(b, strings.Join(lines[5:8], "")...)
		}
	}
	whole := string(b)
	anew := func(text string) string { // the exporter went on with what was forged
		return text + strings.Join(after[20:], "")
	}
	for name, c := range map[string]struct {
		file                string
		kept, last, records int // the first that doesn't stand, and the last that does
	}{
		"as it is":             {whole, 15, 10, 0},
		"records alone":        {strings.Join(lines, ""), 20, 0, 1},
		"records sent again":   {strings.Join(lines, "") + strings.Join(lines[5:], ""), 20, 0, 1},
		"what is forged after": {anew(strings.Join(lines, "")), 20, 0, 2},
		"both":                 {anew(whole), 15, 10, 0},
		"an incomplete end":    {whole + lines[3][:60], 15, 10, 0},
	} {
		t.Run(name, func(t *testing.T) {
			kept, err := audit.ReadKept(strings.NewReader(c.file))
			if err != nil || len(kept.Records) != c.records {
				t.Fatalf("%d records, %v", len(kept.Records), err)
			}
			var known []audit.Known
			for _, h := range kept.Heads {
				if h.TrustDomain != "example.org" || h.Origin != "b1" {
					t.Errorf("%+v", h)
				}
				known = append(known, audit.Known{Ref: h.Ref()})
			}
			for _, r := range kept.Records {
				known = append(known, audit.Known{Ref: r.Ref()})
			}
			_, err = audit.VerifyKnown(t.Context(), forged, known)
			e, ok := errors.AsType[*audit.RewrittenError](err)
			if !ok || int(e.Kept.Sequence) != c.kept || int(e.After.Sequence) != c.last {
				t.Errorf("%v", err)
			}
			if c.file == anew(whole) || c.records == 2 {
				return
			}
			if r, err := audit.VerifyKnown(t.Context(), dir, known); err != nil || r.Confirmed != len(known) {
				t.Errorf("the true record: %+v, %v", r, err)
			}
		})
	}
}

func TestReadKeptRefuses(t *testing.T) {
	s, dir := newSigner(t, brokerID), newDir(t)
	refs := fill(t, audit.Config{Dir: dir}, 3)
	lines := exported(t, dir)
	head := s.head(t, refs[2], signedAt)
	other := head
	other.Origin = "b2"
	for name, text := range map[string]string{
		"something else":      lines[0] + "root:x:0:0\n",
		"an edited record":    strings.Replace(lines[0], `"ok":true`, `"ok":false`, 1),
		"half a record":       lines[0][:60] + "\n" + lines[1],
		"half a head":         exportedHead(t, head)[:60] + "\n" + lines[1],
		"a head with more":    strings.TrimSuffix(exportedHead(t, head), "}\n") + `,"x":1}` + "\n",
		"two brokers' heads":  exportedHead(t, head) + exportedHead(t, other),
		"a line without end":  strings.Repeat("x", audit.MaxLine+1),
		"a long record":       lines[0][:12] + strings.Repeat("1", audit.MaxLine+1),
		"breaks without end":  strings.Repeat(lines[0]+lines[2], 2000),
		"an incomplete other": lines[0] + "root",
	} {
		t.Run(name, func(t *testing.T) {
			if kept, err := audit.ReadKept(strings.NewReader(text)); err == nil {
				t.Errorf("%d heads, %d records", len(kept.Heads), len(kept.Records))
			}
		})
	}
	bare, err := head.Line()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := audit.ReadKept(strings.NewReader(string(bare) + "\n\n" + string(bare)))
	if err != nil || cmp.Diff([]audit.Head{head, head}, kept.Heads) != "" || len(kept.Records) != 0 {
		t.Errorf("%+v, %v", kept, err)
	}
}

// TestManyExportedHeads become fewer where they are old.
func TestManyExportedHeads(t *testing.T) {
	var b bytes.Buffer
	const n = 20_000
	for i := range n {
		h := audit.HeadOf("example.org", "b1", audit.Ref{Sequence: uint64(i + 1), Hash: [32]byte{1}}, signedAt.Add(time.Duration(i)*time.Minute))
		b.WriteString(exportedHead(t, h))
	}
	kept, err := audit.ReadKept(&b)
	if err != nil {
		t.Fatal(err)
	}
	newest := 0
	for i, h := range kept.Heads {
		if i > 0 && h.Sequence <= kept.Heads[i-1].Sequence {
			t.Fatalf("head %d comes after %d", h.Sequence, kept.Heads[i-1].Sequence)
		}
		if h.Sequence > n-256 {
			newest++
		}
	}
	if len(kept.Heads) < 256 || len(kept.Heads) > 1024 || kept.Heads[0].Sequence != 1 || newest != 256 {
		t.Errorf("%d heads, the first %d, %d of the newest 256", len(kept.Heads), kept.Heads[0].Sequence, newest)
	}
}

func FuzzReadKept(f *testing.F) {
	dir := newDir(f)
	fill(f, audit.Config{Dir: dir}, 2)
	lines := exported(f, dir)
	line := exportedHead(f, audit.HeadOf("example.org", "b1", audit.Ref{Sequence: 7, Hash: [32]byte{1}}, signedAt))
	f.Add([]byte(strings.Join(lines, "") + line))
	f.Add([]byte(line + lines[1] + lines[0]))
	f.Fuzz(func(t *testing.T, text []byte) {
		kept, err := audit.ReadKept(bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, h := range kept.Heads {
			if again, err := h.Line(); err != nil {
				t.Errorf("%+v: %v", h, err)
			} else if _, err := audit.ParseHead(again); err != nil {
				t.Errorf("%s: %v", again, err)
			}
		}
	})
}
