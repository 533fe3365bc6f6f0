package pkcs11_test

import (
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/keys/pkcs11"
)

func TestSettings(t *testing.T) {
	var s pkcs11.Settings
	text := "module: /usr/lib/p11.so\ntoken_label: credence\npin_file: /run/secrets/pin\ntimeout: 5s\n"
	if err := yaml.NewDecoder(strings.NewReader(text), yaml.Strict()).Decode(&s); err != nil {
		t.Fatal(err)
	}
	want := pkcs11.Settings{Module: "/usr/lib/p11.so", TokenLabel: "credence", PINFile: "/run/secrets/pin", Timeout: 5 * time.Second}
	if diff := cmp.Diff(want, s); diff != "" || s.Validate() != nil {
		t.Error(diff, s.Validate())
	}
	for field, change := range map[string]func(*pkcs11.Settings){
		"pin: a PIN":        func(s *pkcs11.Settings) { s.PIN = uint64(1234) },
		`module: ""`:        func(s *pkcs11.Settings) { s.Module = "" },
		`module: "p11.so"`:  func(s *pkcs11.Settings) { s.Module = "p11.so" },
		`token_label: ""`:   func(s *pkcs11.Settings) { s.TokenLabel = "" },
		`token_label: "  x`: func(s *pkcs11.Settings) { s.TokenLabel = "  x" },
		`token_label: "xxx`: func(s *pkcs11.Settings) { s.TokenLabel = strings.Repeat("x", 33) },
		`pin_file: ""`:      func(s *pkcs11.Settings) { s.PINFile = "" },
		`pin_file: "1234"`:  func(s *pkcs11.Settings) { s.PINFile = "1234" },
		"timeout: 1ms":      func(s *pkcs11.Settings) { s.Timeout = time.Millisecond },
		"timeout: 2m0s":     func(s *pkcs11.Settings) { s.Timeout = 2 * time.Minute },
	} {
		bad := want
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%+v: %v, want %q", bad, err, field)
		}
		if _, err := pkcs11.New(pkcs11.Config{Settings: bad, Purpose: "root"}); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%+v: New: %v, want %q", bad, err, field)
		}
	}
	for _, purpose := range []string{"", "Root/"} {
		if _, err := pkcs11.New(pkcs11.Config{Settings: want, Purpose: purpose}); err == nil || !strings.Contains(err.Error(), "purpose") {
			t.Errorf("purpose %q: %v", purpose, err)
		}
	}
}
