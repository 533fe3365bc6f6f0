package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
)

const jwt = "eyJhbGciOiJSUzI1NiJ9." + "eyJzdWIiOiJzcGlmZmUifQ." + "c2lnbmF0dXJlLXNpZ25hdHVyZQ"

func TestALeakIsRedWhereverItStands(t *testing.T) {
	secret := "IQoJ" + canary + "AbCd+/"
	pem := "-----BEGIN " + "PRIVATE KEY-----"
	rows := map[string]struct {
		test, text string
		red        bool
	}{
		"nothing":                {test: "TestA", text: "all is well"},
		"the marker":             {test: "TestA", text: "token " + secret, red: true},
		"in JSON":                {test: "TestA", text: `{"SecretAccessKey":"` + secret + `"}`, red: true},
		"in hex":                 {test: "TestA", text: hex.EncodeToString([]byte(secret)), red: true},
		"in base64":              {test: "TestA", text: base64.StdEncoding.EncodeToString([]byte(secret)), red: true},
		"in base64, one later":   {test: "TestA", text: base64.StdEncoding.EncodeToString([]byte("x" + secret)), red: true},
		"in base64, two later":   {test: "TestA", text: base64.RawURLEncoding.EncodeToString([]byte("xy" + secret)), red: true},
		"a JWT":                  {test: "TestA", text: "level=INFO msg=got token=" + jwt, red: true},
		"half a JWT":             {test: "TestA", text: "eyJhbGciOiJSUzI1NiJ9."},
		"a private key":          {test: "TestA", text: pem, red: true},
		"an EC key":              {test: "TestA", text: strings.Replace(pem, "PRIVATE", "EC PRIVATE", 1), red: true},
		"a key in quotes":        {test: "TestA", text: `"` + pem + `\nMIIE"`, red: true},
		"a certificate":          {test: "TestA", text: "-----BEGIN CERTIFICATE-----"},
		"a package's own output": {text: secret, red: true},
		"a script's stdout":      {test: "TestScripts/exec", text: "> credence credentials gcp\n[stdout]\n" + secret},
		"a script's stderr":      {test: "TestScripts/exec", text: "> credence credentials gcp\n[stderr]\n" + secret, red: true},
		"its stderr after":       {test: "TestScripts/exec", text: "[stdout]\n" + secret + "\n[stderr]\n" + jwt, red: true},
		"its next command":       {test: "TestScripts/exec", text: "[stdout]\n" + secret + "\n> echo " + jwt, red: true},
		"another test's stdout":  {test: "TestOther", text: "[stdout]\n" + secret, red: true},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			var in, out bytes.Buffer
			for text := range strings.Lines(row.text + "\n") {
				_ = json.NewEncoder(&in).Encode(line{Action: "output", Package: "p", Test: row.test, Output: text})
			}
			_ = json.NewEncoder(&in).Encode(line{Action: "pass", Package: "p", Test: row.test})
			if code := run(&in, &out); (code == 1) != row.red {
				t.Errorf("exit code %d: %s", code, &out)
			}
			if strings.Contains(out.String(), secret) || strings.Contains(out.String(), jwt) {
				t.Error("the check leaks")
			}
		})
	}
}

func TestWhatIsNotOfATestIsSearchedToo(t *testing.T) {
	var out bytes.Buffer
	if code := run(strings.NewReader("panic: "+jwt+"\n"), &out); code != 1 {
		t.Errorf("exit code %d: %s", code, &out)
	}
}

func TestAFailedTestIsRedAndShown(t *testing.T) {
	var out bytes.Buffer
	in := `{"Action":"output","Package":"p","Test":"TestA","Output":"why\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestA"}` + "\n"
	if code := run(strings.NewReader(in), &out); code != 1 || !strings.Contains(out.String(), "why") {
		t.Errorf("exit code %d: %s", code, &out)
	}
}
