// Package pkcs11 keeps signing keys on a PKCS#11 token, such as a hardware
// security module or a smart card: they are made there and never leave; what
// is to be signed goes there as a digest.
//
// It needs cgo and the build tag pkcs11; without them New refuses, and says
// how to build. It trusts the vendor's module, which it loads into this
// process, and checks each signature against the public key that it read when
// the key was opened. Who may use the token is left to its PIN, which a file
// holds; which key means what is left to broker/authority.
package pkcs11

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Settings are what broker.yaml may say of a token.
type Settings struct {
	Module     string        `yaml:"module"`      // required: the vendor's library, by absolute path
	TokenLabel string        `yaml:"token_label"` // required: as pkcs11-tool --list-token-slots shows it
	PINFile    string        `yaml:"pin_file"`    // required: holds the user's PIN; mode 0600, absolute path
	Timeout    time.Duration `yaml:"timeout"`     // of one operation: 1s to 60s; 0: 15s
	PIN        any           `yaml:"pin"`         // refused
}

// Validate refuses what cannot work. It opens nothing.
func (s Settings) Validate() error {
	if s.PIN != nil {
		return errors.New("pin: a PIN does not belong in this file, which many may read: put it in one of mode 0600 and name that as pin_file")
	}
	if !filepath.IsAbs(s.Module) {
		return fmt.Errorf("module: %q: the absolute path of the vendor's library is wanted, such as /usr/lib/softhsm/libsofthsm2.so", s.Module)
	}
	if s.TokenLabel == "" || len(s.TokenLabel) > 32 || strings.TrimSpace(s.TokenLabel) != s.TokenLabel {
		return fmt.Errorf("token_label: %q: a token's label of at most 32 bytes is wanted", s.TokenLabel)
	}
	if !filepath.IsAbs(s.PINFile) {
		return fmt.Errorf("pin_file: %q: an absolute path is wanted", s.PINFile)
	}
	if s.Timeout != 0 && (s.Timeout < time.Second || s.Timeout > time.Minute) {
		return fmt.Errorf("timeout: %s: 1s to 60s is wanted", s.Timeout)
	}
	return nil
}

// Config is the wiring of Keys.
type Config struct {
	Settings
	Purpose string // required: what the keys are for, such as "root"; in their labels
}

var purposePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

func (cfg Config) validate() error {
	if err := cfg.Settings.Validate(); err != nil {
		return err
	}
	if !purposePattern.MatchString(cfg.Purpose) {
		return fmt.Errorf("using token %s: purpose %q: one is wanted", cfg.TokenLabel, cfg.Purpose)
	}
	return nil
}
