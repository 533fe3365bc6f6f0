package exchangers_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/exchangers"
)

const leak = "wJalrXUtnFEMI/K7MDENG"

// hidden keeps a Secret where fmt cannot call its methods.
type hidden struct{ s exchangers.Secret }

// Regression: CVE-2025-62513
func TestSecretNeverPrints(t *testing.T) {
	secret := exchangers.NewSecret(leak)
	keys := exchangers.AWS{AccessKeyID: "ASIA", SecretAccessKey: secret, SessionToken: secret}
	bearer := exchangers.Bearer{Token: secret}
	cred := exchangers.Credential{Expires: time.Now(), AWS: &keys, Bearer: &bearer}
	values := map[string]any{
		"secret": secret, "pointer to secret": &secret, "unexported field": hidden{secret}, "pointer to it": &hidden{secret},
		"aws": keys, "bearer": bearer, "credential": cred, "pointer to credential": &cred,
		"slice": []exchangers.Secret{secret}, "map": map[string]exchangers.Secret{"k": secret},
		"map key": map[exchangers.Secret]int{secret: 1}, "struct": struct{ C exchangers.Credential }{cred},
		"any": []any{secret, cred, keys},
	}
	for name, v := range values {
		t.Run(name, func(t *testing.T) {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T", "%p", "%10.3s", "%w"} {
				refuseLeak(t, verb, fmt.Sprintf(verb, v))
			}
			j, err := json.Marshal(v)
			if err == nil {
				refuseLeak(t, "json", string(j))
			}
			y, err := yaml.Marshal(v)
			if err == nil {
				refuseLeak(t, "yaml", string(y))
			}
			refuseLeak(t, "error", fmt.Errorf("using %v: %w", v, &exchangers.Error{Message: exchangers.Clean("echo "+leak, secret)}).Error())
		})
	}
	if secret.Reveal() != leak || (exchangers.Secret{}).Reveal() != "" {
		t.Error("Reveal must give the text")
	}
}

func refuseLeak(t *testing.T, how, got string) {
	t.Helper()
	if strings.Contains(got, leak) || strings.Contains(got, fmt.Sprintf("%x", leak)) || strings.Contains(got, fmt.Sprintf("%X", leak)) {
		t.Errorf("%s leaks: %s", how, got)
	}
}

func TestClean(t *testing.T) {
	long := strings.Repeat("word ", 200)
	rows := map[string]struct {
		text, want string
		secret     string
	}{
		"plain":               {text: "Incorrect token audience", want: "Incorrect token audience"},
		"lines":               {text: "one\r\ntwo\n\tthree\x00\x1b[31mred", want: "one two three [31mred"},
		"bidi override":       {text: "a\u202eb", want: "a b"},
		"invalid utf-8":       {text: "a\xff\xfeb", want: "a b"},
		"jwt":                 {text: "token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln refused", want: "token [redacted] refused"},
		"jwt header":          {text: "token eyJhbGciOiJSUzI1NiJ9 refused", want: "token [redacted] refused"},
		"google token":        {text: "ya29.c.b0Aaekm1K-x_y/z bad", want: "[redacted] bad"},
		"known secret":        {text: "echo s3cr3t!", secret: "s3cr3t", want: "echo [redacted]!"},
		"long run":            {text: "key " + strings.Repeat("Ab9+", 30) + " end", want: "key [redacted] end"},
		"ARN stays":           {text: "arn:aws:iam::123456789012:role/team/checkout", want: "arn:aws:iam::123456789012:role/team/checkout"},
		"GUID and codes stay": {text: "AADSTS700213: Trace ID: 7f0c2f6e-8c5c-4f0e-9d5b-0a1b2c3d4e5f", want: "AADSTS700213: Trace ID: 7f0c2f6e-8c5c-4f0e-9d5b-0a1b2c3d4e5f"},
		"bounded":             {text: long, want: long[:512]},
		"bounded by runes":    {text: strings.Repeat("é", 300) + "x", want: strings.Repeat("é", 256)},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			var secrets []exchangers.Secret
			if row.secret != "" {
				secrets = append(secrets, exchangers.NewSecret(row.secret))
			}
			if got := exchangers.Clean(row.text, secrets...); got != row.want {
				t.Errorf("got  %q\nwant %q", got, row.want)
			}
		})
	}
}

func FuzzClean(f *testing.F) {
	f.Add("AADSTS700213: no\r\nmatch", "secret")
	f.Add("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln", "eyJh")
	f.Fuzz(func(t *testing.T, text, secret string) {
		got := exchangers.Clean(text, exchangers.NewSecret(secret))
		if len(got) > 512 || !utf8.ValidString(got) || strings.ContainsAny(got, "\r\n\x00\x1b") {
			t.Errorf("unfit: %q", got)
		}
	})
}
