package resource_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/resource"
)

const (
	identityHead = "kind: Identity\nname: a\nspiffe_id: /a\nmatch: [{node.name: n}]\n"
	jsonHead     = `{"kind":"Identity","name":"a","spiffe_id":"/a","match":[{"node.name":"n"}]`
)

// alike compares resources, whatever text they were read from.
var alike = cmp.Options{
	cmpopts.IgnoreUnexported(resource.Resource{}), cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(spiffeid.ID{}, spiffeid.TrustDomain{}),
	cmp.FilterValues(func(x, y any) bool { return zero(x) && zero(y) }, cmp.Ignore()), // of two types
}

func zero(v any) bool { return v == int64(0) || v == uint64(0) }

// readAlike holds both readings of what Text writes against the resource.
func readAlike(t *testing.T, r resource.Resource) {
	t.Helper()
	text, err := r.Text()
	if err != nil {
		if strings.Contains(err.Error(), "which JSON can't say") {
			return
		}
		t.Fatal(err)
	}
	for name, read := range map[string]func(string, []byte) ([]resource.Resource, error){"Read": registry().Read, "Parse": registry().Parse} {
		again, err := read("f", text)
		if err != nil {
			t.Fatalf("%s of %s: %v", name, text, err)
		}
		if diff := cmp.Diff([]resource.Resource{r}, again, alike); diff != "" {
			t.Fatalf("%s of %s:\n%s", name, text, diff)
		}
		if twice, err := again[0].Text(); err != nil || !bytes.Equal(twice, text) {
			t.Fatalf("%v\n%s is written again as\n%s", err, text, twice)
		}
	}
	if again, _ := registry().Read("f", text); text[0] == '{' && again[0].At("match", "").Line != 0 {
		t.Fatalf("%s was read by Parse", text)
	}
}

func TestTextIsReadAsParseDoes(t *testing.T) {
	yaml := whole
	for _, more := range []string{
		"match: [{node.name: \"\\0\\x07\\e\\u0085\\u2028<&>'\\\"\\\\ \\U0001F600\"}]", "match: [{node.name: n, when: \"a < b && c > \\\"d\\\"\"}]",
		"match: [{any_node: true}, {node.name: 12, any_node: false}]", "match: []", "match:", "match: [{when: x, any_node: true, node.name: z, a: b}]",
		"match: [{node.name: n}]\nx509: {}\njwt: {}", "match: [{\"null\": n}]\njwt: {ttl: 0s, audiences: []}",
		"match: [{node.name: n}]\njwt: {claims: {a: 1, b: -1, c: 1.0, d: -2.5, e: 1.5e+21, f: null, g: [true, {h: []}, {}], i: 18446744073709551615, j: -0.0, \"\": x, k: \"1\"}}",
		"match: [{node.name: n}]\njwt: {claims: {a: .inf}}", "match: [{node.name: n}]\njwt: {claims: {a: 1.0e-7, b: 1234567890123456789012.5}}",
		"match: [{node.name: n}]\nhint: |\n  a\n\n  b\n", "match: [{node.name: n}]\nhint: 5\ntargets: [~, a, a]",
		"match: [{node.name: n}]\nx509: {ttl: 1h30m0.5s, dns_names: [a, b]}",
	} {
		yaml += fmt.Sprintf("---\nkind: Identity\nname: n%d\nspiffe_id: /a\n%s\n", len(yaml), more)
	}
	yaml += "---\nkind: Peer\nname: other.example\nurl: https://o.example/b\nhttps_spiffe: {endpoint_id: spiffe://other.example/e, fingerprint: \"sha256:" + strings.Repeat("0a", 32) + "\"}\nallow_private: true\n"
	yaml += "---\nkind: Peer\nname: file.example\nurl: https://f.example/b\nhttps_spiffe: {endpoint_id: spiffe://file.example/e, bundle_file: b.json}\n"
	all, err := registry().Parse("f", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	var stream []byte
	var finite []resource.Resource
	for _, r := range all {
		readAlike(t, r)
		if text, err := r.Text(); err == nil {
			stream, finite = append(append(stream, "---\n"...), text...), append(finite, r)
		}
	}
	if len(finite) != len(all)-1 {
		t.Errorf("%d of %d resources can be written", len(finite), len(all))
	}
	if bytes.Contains(stream, []byte("\n\n")) {
		t.Errorf("there is an empty line in %s", stream)
	}
	again, err := registry().Read("f", stream)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(finite, again, alike); diff != "" {
		t.Error(diff)
	}
}

// What Text would not have written is left to Parse, which refuses most of it.
func TestReadTakesNoMoreThanParse(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "{}" + strings.Repeat("}", n) }
	for _, text := range []string{
		jsonHead, jsonHead + "}", jsonHead + "}\n\n", jsonHead + "}\n" + jsonHead + "}\n", jsonHead + "}\n---\n" + jsonHead + "}\n",
		jsonHead + `,"unknown":1}` + "\n", jsonHead + `,"Hint":"x"}` + "\n", jsonHead + `,"hint":""}` + "\n", jsonHead + `,"hint":"x","hint":"y"}` + "\n",
		jsonHead + `,"match":[{"node.id":"m"}]}` + "\n", jsonHead + `,"hint": "x"}` + "\n", jsonHead + `,"hint":"\u0078"}` + "\n", jsonHead + `,"hint":null}` + "\n",
		jsonHead + `,"x509":{"ttl":"1h"}}` + "\n", jsonHead + `,"x509":{"ttl":3600}}` + "\n", jsonHead + `,"x509":{"ttl":"-1h0m0s"}}` + "\n", jsonHead + `,"x509":{"ttl":"x"}}` + "\n",
		jsonHead + `,"jwt":{"claims":{"a":1,"a":2}}}` + "\n", jsonHead + `,"jwt":{"claims":{"a":1e3}}}` + "\n", jsonHead + `,"jwt":{"claims":{"a":1.50}}}` + "\n",
		jsonHead + `,"jwt":{"claims":{"a":99999999999999999999}}}` + "\n", jsonHead + `,"jwt":{"claims":{"a":` + deep(20) + `}}}` + "\n", jsonHead + `,"jwt":{"claims":{"a":` + deep(21) + `}}}` + "\n",
		strings.Replace(jsonHead, `"n"`, `5`, 1) + "}\n", strings.Replace(jsonHead, `"n"`, `true`, 1) + "}\n", strings.Replace(jsonHead, `"n"`, `null`, 1) + "}\n",
		strings.Replace(jsonHead, `"n"`, `["n"]`, 1) + "}\n", strings.Replace(jsonHead, `"n"`, `"n","node.name":"n"`, 1) + "}\n",
		strings.Replace(jsonHead, `"n"`, `"n","any_node":false`, 1) + "}\n", strings.Replace(jsonHead, `"n"`, `"n","any_node":"true"`, 1) + "}\n",
		strings.Replace(jsonHead, `"n"`, `"n","any_node":true,"when":"x"`, 1) + "}\n", strings.Replace(jsonHead, `"n"`, `"n","when":true`, 1) + "}\n",
		strings.Replace(jsonHead, `"n"`, `"n","when":"x","when":"y"`, 1) + "}\n", strings.Replace(jsonHead, `"n"`, `"n","when":""`, 1) + "}\n",
		strings.Replace(jsonHead, `"n"`, "\"\xff\"", 1) + "}\n", strings.Replace(jsonHead, `[{"node.name":"n"}]`, "null", 1) + "}\n",
		strings.Replace(jsonHead, `"a"`, `""`, 1) + "}\n", strings.Replace(jsonHead, `"a"`, `"A"`, 1) + "}\n", strings.Replace(jsonHead, `Identity`, `Other`, 1) + "}\n",
		`{"kind":"Peer","name":"p.example","url":"http://p.example","https_web":{}}` + "\n", `{"kind":"Peer","name":"p.example","url":"https://p.example/","https_web":{"a":"b"}}` + "\n",
		`{"kind":"Peer","name":"P.example","url":"https://p.example/","https_web":{}}` + "\n", `{"kind":"Peer","name":"p.example","url":"https://p.example/"}` + "\n",
		`{"kind":"Target","name":"a","cloud":{"role":"x"}}` + "\n", `{"kind":"JoinRule","name":"a","github":{},"allow":[]}` + "\n",
		"---\n" + jsonHead + "}\n---\n" + identityHead, "---\n" + jsonHead + "}\n---\nkind: Deny\nname: d\n", "---\n" + jsonHead + "}\n---\nkind: Deny\nmatch: [\n", "---\n" + jsonHead + "}\n---\n", "---\n",
		strings.Repeat("---\n"+`{"kind":"Deny","name":"a","match":[]}`+"\n", 2), "# a comment\n---\n" + jsonHead + "}\n", "\n" + jsonHead + "}\n",
	} {
		readsAsParse(t, []byte(text))
	}
	var many strings.Builder
	for i := range resource.MaxDocuments + 1 {
		fmt.Fprintf(&many, "---\n{\"kind\":\"Deny\",\"name\":\"d%d\",\"match\":[]}\n", i)
	}
	if _, err := registry().Read("f", []byte(many.String())); err == nil || !strings.Contains(err.Error(), "documents are not taken") {
		t.Errorf("too many: %v", err)
	}
	if _, err := registry().Read("f", []byte(jsonHead+`,"hint":"`+strings.Repeat("x", resource.MaxBytes)+`"}`+"\n")); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("too large: %v", err)
	}
}

// readsAsParse holds Read to Parse: the same resources, or a refusal. Of two
// mistakes the YAML library tells now one, now the other.
func readsAsParse(t *testing.T, text []byte) {
	t.Helper()
	want, wrong := registry().Parse("f", text)
	got, err := registry().Read("f", text)
	if (err == nil) != (wrong == nil) {
		t.Fatalf("%q: Read says %v, Parse says %v", text, err, wrong)
	}
	if diff := cmp.Diff(want, got, alike); diff != "" {
		t.Fatalf("%q:\n%s", text, diff)
	}
}

// Read takes what Parse takes; and what Parse takes, both read alike when it
// is written by Text.
func FuzzRead(f *testing.F) {
	f.Add([]byte(whole))
	all, err := registry().Parse("f", []byte(whole))
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range all {
		text, err := r.Text()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(identityHead + "jwt: {claims: {a: [1, -1, 1.0, {b: null}]}}\n"))
	f.Add([]byte(identityHead + "hint: \"\\u2028\\x85\\0<&>\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		readsAsParse(t, text)
		all, err := registry().Parse("f", text)
		if err != nil {
			return
		}
		for _, r := range all {
			readAlike(t, r)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	all, err := registry().Parse("f", []byte("kind: Identity\nname: other-1\nspiffe_id: /other/1\nmatch: [{node.name: n1, workload.unix.uid: 5001}]\n"))
	if err != nil {
		b.Fatal(err)
	}
	text, err := all[0].Text()
	if err != nil {
		b.Fatal(err)
	}
	for name, read := range map[string]func(string, []byte) ([]resource.Resource, error){"Read": registry().Read, "Parse": registry().Parse} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := read("f", text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
