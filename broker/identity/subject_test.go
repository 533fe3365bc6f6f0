package identity_test

import (
	"crypto/x509/pkix"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/identity"
)

func TestParseSubject(t *testing.T) {
	for _, row := range []struct{ in, want string }{
		{"", ""},
		{"CN=a", "CN=a"},
		{"cn=a,O=Acme\\, Inc.,C=DE", "CN=a,O=Acme\\, Inc.,C=DE"},
		{"CN=a, O=Acme", "CN=a,O=Acme"},
		{`CN=\20a\2C`, `CN=\ a\,`},
		{`CN=a\\`, `CN=a\\`},
		{`CN=a\ `, `CN=a\ `},
		{`CN=\#a`, `CN=\#a`},
		{`O=M\C3\BCller`, `O=Müller`},
		{"OU=a,OU=b", "OU=a,OU=b"},
	} {
		seq, err := identity.ParseSubject(row.in)
		if err != nil {
			t.Errorf("%q: %v", row.in, err)
			continue
		}
		if got := seq.String(); got != row.want {
			t.Errorf("%q gave %q, want %q", row.in, got, row.want)
		}
	}
}

func TestParseSubjectRefuses(t *testing.T) {
	for _, s := range []string{
		"CN", "CN=", "=a", "XX=a", "2.5.4.3=a", "CN=a,", ",CN=a", "CN=a,CN=b", "CN=a+O=b", "CN=#0401", "CN= a", "CN=a ",
		`CN=a\\ `, `CN="a"`, "CN=a;b", "CN=<a>", `CN=a\`, `CN=a\x`, `CN=\00`, "CN=a\nb", `CN=\ff`, "CN=\xff", "C=de", "C=DEU", "DC=org",
		"CN=" + strings.Repeat("a", 65), strings.Repeat("OU=a,", 16) + "OU=a", strings.Repeat("a", 1025),
	} {
		if seq, err := identity.ParseSubject(s); err == nil {
			t.Errorf("%.60q gave %q", s, seq)
		}
	}
}

func FuzzParseSubject(f *testing.F) {
	for _, s := range []string{"CN=a,O=Acme\\, Inc.", `CN=\20a`, "OU=a, OU=b", "C=DE"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		seq, err := identity.ParseSubject(s)
		if err != nil || strings.Contains(strings.ToUpper(s), "UID") { // which pkix writes by its OID
			return
		}
		again, err := identity.ParseSubject(seq.String())
		if err != nil || again.String() != seq.String() {
			t.Errorf("%q gave %q, and that %q, %v", s, seq, again, err)
		}
		var name pkix.Name
		if name.FillFromRDNSequence(&seq); strings.Contains(name.CommonName, "\x00") {
			t.Errorf("%q holds NUL", s)
		}
	})
}
