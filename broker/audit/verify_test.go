package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

const (
	four  = "000000000004.jsonl"
	seven = "000000000007.jsonl"
)

// files returns a record of nine, in three files of three.
func files(t *testing.T) map[string][]byte {
	t.Helper()
	dir := newDir(t)
	fill(t, audit.Config{Dir: dir, MaxBytes: 1500}, 9)
	out := make(map[string][]byte)
	for _, name := range []string{one, four, seven} {
		out[name] = read(t, filepath.Join(dir, name))
		if n := bytes.Count(out[name], []byte("\n")); n != 3 {
			t.Fatalf("%s has %d lines", name, n)
		}
	}
	return out
}

// lines edits the lines of one file.
func lines(name string, edit func([][]byte) [][]byte) func(map[string][]byte) {
	return func(f map[string][]byte) {
		f[name] = bytes.Join(edit(bytes.SplitAfter(f[name], []byte("\n"))), nil)
	}
}

// rehash gives a changed line the hash that it would have.
func rehash(t *testing.T, line []byte) []byte {
	t.Helper()
	body := line[:bytes.LastIndex(line, []byte(`,"hash":"`))]
	prev := body[len(body)-65 : len(body)-1]
	return append(append(append(bytes.Clone(body), `,"hash":"`...), sum(t, prev, append(bytes.Clone(body), '}'))...), "\"}\n"...)
}

func TestTampering(t *testing.T) {
	replace := func(old, new string) func([]byte) []byte {
		return func(line []byte) []byte {
			out := bytes.Replace(line, []byte(old), []byte(new), 1)
			if bytes.Equal(out, line) {
				t.Fatalf("no %s in %s", old, line)
			}
			return out
		}
	}
	line := func(name string, n int, edit func([]byte) []byte) func(map[string][]byte) {
		return lines(name, func(ls [][]byte) [][]byte { ls[n-1] = edit(ls[n-1]); return ls })
	}
	again := func(edit func([]byte) []byte) func([]byte) []byte {
		return func(l []byte) []byte { return rehash(t, edit(l)) }
	}
	for name, c := range map[string]struct {
		tamper func(map[string][]byte)
		file   string
		line   int
		says   string
		opens  bool // the newest file and its link are not touched
	}{
		"a value edited":               {line(four, 2, replace("checkout", "checkouT")), four, 2, "changed", true},
		"a value edited and rehashed":  {line(four, 2, again(replace("checkout", "checkouT"))), four, 3, "replaced", true},
		"the last line of a file too":  {line(four, 3, again(replace("checkout", "checkouT"))), seven, 1, "replaced", false},
		"in the newest file":           {line(seven, 2, replace("checkout", "checkouT")), seven, 2, "changed", false},
		"the hash edited":              {line(one, 1, func(l []byte) []byte { l[len(l)-5] ^= 1; return l }), one, 1, "", true},
		"the hash in capitals":         {line(seven, 3, upperHash), seven, 3, "form", false},
		"the sequence edited":          {line(one, 2, again(replace(`:2,`, `:3,`))), one, 2, "missing", true},
		"the sequence with a zero":     {line(seven, 3, again(replace(`:9,`, `:09,`))), seven, 3, "not a record", true},
		"a line removed":               {lines(four, func(l [][]byte) [][]byte { return append(l[:1], l[2:]...) }), four, 2, "missing", true},
		"the first line removed":       {lines(one, func(l [][]byte) [][]byte { return l[1:] }), one, 1, "missing", true},
		"the last line of a file":      {lines(four, func(l [][]byte) [][]byte { return l[:2] }), seven, 0, "the one before was cut", false},
		"lines changed places":         {lines(one, func(l [][]byte) [][]byte { l[1], l[2] = l[2], l[1]; return l }), one, 2, "missing", true},
		"a line twice":                 {lines(one, func(l [][]byte) [][]byte { return append(l[:2:2], l[1], l[2]) }), one, 3, "repeated", true},
		"a line of another record":     {line(one, 2, again(replace(`"revision":7`, `"revision":8`))), one, 3, "replaced", true},
		"another start":                {line(one, 1, again(replace(strings.Repeat("0", 64), strings.Repeat("1", 64)))), one, 1, "replaced", true},
		"a member twice":               {line(seven, 3, again(replace(`"ok":true`, `"ok":false,"ok":true`))), seven, 3, "canonical", true},
		"a member that is not known":   {line(seven, 3, again(replace(`"ok":true`, `"ok":true,"extra":1`))), seven, 3, "unknown field", true},
		"no kind":                      {line(seven, 3, again(replace(`"issue.x509"`, `""`))), seven, 3, "no kind", true},
		"a space":                      {line(seven, 3, again(replace(`"ok":true`, `"ok": true`))), seven, 3, "canonical", true},
		"not JSON":                     {line(seven, 3, again(replace(`"ok":true`, `"ok":tru`))), seven, 3, "not a record", true},
		"an empty line":                {lines(four, func(l [][]byte) [][]byte { return append(l[:1:1], []byte("\n"), l[1], l[2]) }), four, 2, "form", true},
		"a line without end":           {line(seven, 3, func([]byte) []byte { return bytes.Repeat([]byte("x"), 2*audit.MaxLine) }), seven, 3, "too long", false},
		"zeros and much after them":    {line(seven, 3, func([]byte) []byte { return append(make([]byte, 9<<20), '\n') }), seven, 3, "", false},
		"a file cut in the middle":     {func(f map[string][]byte) { f[four] = f[four][:700] }, four, 2, "cut off", false},
		"zeros in a middle file":       {line(four, 2, func(l []byte) []byte { clear(l[:100]); return l }), four, 2, "form", true},
		"the first file missing":       {func(f map[string][]byte) { delete(f, one) }, four, 0, "missing", true},
		"a file missing in the middle": {func(f map[string][]byte) { delete(f, four) }, seven, 0, "missing", false},
		"all but the newest missing":   {func(f map[string][]byte) { delete(f, one); delete(f, four) }, seven, 0, "missing", false},
		"a file emptied":               {func(f map[string][]byte) { f[four] = nil }, four, 0, "empty", false},
		"a file renamed":               {func(f map[string][]byte) { f["000000000005.jsonl"] = f[four]; delete(f, four) }, "000000000005.jsonl", 0, "missing", true},
		"a file of another name":       {func(f map[string][]byte) { f["x.jsonl"] = nil }, "x.jsonl", 0, "no file that the record made", false},
		"a name with a zero less":      {func(f map[string][]byte) { f["7.jsonl"] = f[seven] }, "7.jsonl", 0, "no file that the record made", false},
	} {
		t.Run(name, func(t *testing.T) {
			f := files(t)
			c.tamper(f)
			dir := place(t, f)
			_, err := audit.Verify(dir)
			broken, ok := errors.AsType[*audit.BrokenError](err)
			if !ok || filepath.Base(broken.File) != c.file || broken.Line != c.line || !strings.Contains(err.Error(), c.says) {
				t.Errorf("verify: %v; want %s line %d, %q", err, c.file, c.line, c.says)
			}
			failed := false
			for _, err := range audit.Read(t.Context(), dir, 0) {
				failed = err != nil
			}
			if !failed {
				t.Error("read: no error")
			}
			l, err := audit.Open(audit.Config{Dir: dir})
			if (err == nil) != c.opens {
				t.Errorf("open: %v, want success: %v", err, c.opens)
			}
			if err == nil {
				_ = l.Close()
				return
			}
			for name, b := range f {
				if !bytes.Equal(b, read(t, filepath.Join(dir, name))) {
					t.Errorf("open changed %s, which is evidence", name)
				}
			}
		})
	}
}

func upperHash(l []byte) []byte {
	i := bytes.LastIndex(l, []byte(`"hash":"`)) + len(`"hash":"`)
	return append(append(bytes.Clone(l[:i]), bytes.ToUpper(l[i:i+64])...), l[i+64:]...)
}

func TestKnownHeads(t *testing.T) {
	dir := newDir(t)
	refs := fill(t, audit.Config{Dir: dir}, 4)
	verified(t, dir, append(refs, audit.Ref{})...)
	for range 2 { // anew, with other content
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		l := open(t, audit.Config{Dir: dir})
		add(t, l, event(90), event(91))
		_ = l.Close()
	}
	for name, c := range map[string]struct {
		ref  audit.Ref
		says string
	}{
		"cut off":      {refs[3], "the end was cut off"},
		"written anew": {refs[1], "written anew"},
	} {
		if _, err := audit.Verify(dir, c.ref); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNothingToVerify(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "absent")} {
		if _, err := audit.Verify(dir); err == nil {
			t.Errorf("%s: no error", dir)
		}
	}
}

// TestPlainLines holds the short look at a line to the long one: where it says
// yes, so does the other; and it says yes of what brokers write.
func TestPlainLines(t *testing.T) {
	whole := audit.Event{
		Kind: "k", OK: true, Node: "n", SPIFFEID: "s", Identity: "i", Revision: 7, Serial: "s", Authority: "a", Issued: signedAt, NotAfter: signedAt.Add(time.Millisecond),
		Digest: "d", Audiences: []string{"a", ""}, Target: "t", Actor: "a", Code: "c", Reason: "r", Facts: map[string][]string{"a": {"b", "<&>"}, "b": {"c"}}, Count: 2, Detail: map[string]string{"d": "", "e": "f"},
	}
	l := open(t, audit.Config{Dir: newDir(t)})
	add(t, l, whole, event(1), audit.Event{Kind: "deny"})
	n := 0
	_ = l.Follow(t.Context(), 3, func(r audit.Record) error {
		line, err := r.Line()
		if err != nil || !audit.IsPlain(line) {
			t.Errorf("%s is not plain: %v", line, err)
		}
		for i := range line { // each change of a byte, each byte left out, and each twice
			for _, changed := range [][]byte{
				append(append(bytes.Clone(line[:i]), 'x'), line[i+1:]...), append(append(bytes.Clone(line[:i]), '0'), line[i+1:]...),
				append(bytes.Clone(line[:i]), line[i+1:]...), append(append(bytes.Clone(line[:i]), line[i]), line[i:]...), append(append(bytes.Clone(line[:i]), ' '), line[i:]...),
			} {
				if !bytes.Contains(changed, []byte(`,"hash":"`)) || bytes.LastIndex(changed, []byte(`,"hash":"`)) < 66 {
					continue
				}
				changed = bytes.TrimSuffix(rehash(t, changed), []byte("\n"))
				if audit.Linked(changed) && audit.IsPlain(changed) {
					if _, err := audit.Decode(changed); err != nil {
						t.Fatalf("%s is plain, and yet: %v", changed, err)
					}
				}
			}
		}
		if n++; n == 3 {
			return errDone
		}
		return nil
	})
	if n != 3 {
		t.Errorf("%d lines", n)
	}
}

func FuzzParseLine(f *testing.F) {
	l, err := audit.Open(audit.Config{Dir: newDir(f)})
	if err != nil {
		f.Fatal(err)
	}
	defer l.Close()
	if _, err := l.Append(f.Context(), event(1), audit.Event{Kind: "deny", Audiences: []string{}, Facts: map[string][]string{"a": nil}}); err != nil {
		f.Fatal(err)
	}
	err = l.Follow(f.Context(), 2, func(r audit.Record) error {
		line, err := r.Line()
		f.Add(line, false)
		f.Add(bytes.Replace(line, []byte("deny"), []byte("d\\u0065ny"), 1), true)
		if r.Sequence == 2 {
			return errors.Join(err, errDone)
		}
		return err
	})
	if !errors.Is(err, errDone) {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line []byte, fix bool) {
		if fix && bytes.Contains(line, []byte(`,"hash":"`)) && bytes.LastIndex(line, []byte(`,"hash":"`)) > 65 {
			line = bytes.TrimSuffix(rehash(t, line), []byte("\n"))
		}
		r, err := audit.ParseLine(line)
		if err != nil && audit.Linked(line) && audit.IsPlain(line) {
			t.Errorf("%s is plain, and yet: %v", line, err)
		}
		if err != nil {
			return
		}
		if again, err := r.Line(); err != nil || !bytes.Equal(again, line) {
			t.Errorf("%s\nwas read as\n%s\n%v", line, again, err)
		}
		if r.Sequence == 0 || r.Kind == "" || r.Ref().Sequence != r.Sequence {
			t.Errorf("accepted %s", line)
		}
	})
}
