//go:build pkcs11 && cgo

package pkcs11

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"
)

// gone are the codes of a token that was unplugged, or of a login that ended
// with that.
var gone = []p11.Error{
	p11.CKR_DEVICE_REMOVED, p11.CKR_DEVICE_ERROR, p11.CKR_TOKEN_NOT_PRESENT, p11.CKR_TOKEN_NOT_RECOGNIZED, p11.CKR_SLOT_ID_INVALID,
	p11.CKR_SESSION_CLOSED, p11.CKR_SESSION_HANDLE_INVALID, p11.CKR_USER_NOT_LOGGED_IN, p11.CKR_CRYPTOKI_NOT_INITIALIZED,
}

func isGone(err error) bool {
	var code p11.Error
	return errors.As(err, &code) && slices.Contains(gone, code)
}

// failure says what went wrong, and the way out, on one line.
func (k *Keys) failure(act string, err error) error {
	if err == nil {
		return nil
	}
	if hint := k.hint(err); hint != "" {
		return fmt.Errorf("%s: %s: %w", act, hint, err)
	}
	return fmt.Errorf("%s: %w", act, err)
}

func (k *Keys) hint(err error) string {
	if strings.Contains(err.Error(), "could not find PKCS#11 token") { // crypto11 doesn't export it
		err = p11.Error(p11.CKR_TOKEN_NOT_PRESENT)
	}
	if strings.Contains(err.Error(), "failed to open module") {
		if _, missing := os.Stat(k.cfg.Module); missing != nil {
			return "module: " + missing.Error()
		}
		return "module: " + k.cfg.Module + " is not a PKCS#11 library of this machine's kind"
	}
	var code p11.Error
	if !errors.As(err, &code) {
		return ""
	}
	switch code {
	case p11.CKR_PIN_INCORRECT, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_INVALID:
		return "it takes another PIN than " + k.cfg.PINFile + " holds: correct that file; this PIN is not tried again, as too many tries lock the token"
	case p11.CKR_PIN_EXPIRED:
		return "its PIN has expired: set another (pkcs11-tool --change-pin), and write it to " + k.cfg.PINFile
	case p11.CKR_PIN_LOCKED:
		return "its PIN is locked: its security officer sets another (pkcs11-tool --login --login-type so --init-pin)"
	case p11.CKR_MECHANISM_INVALID, p11.CKR_MECHANISM_PARAM_INVALID, p11.CKR_CURVE_NOT_SUPPORTED, p11.CKR_KEY_SIZE_RANGE, p11.CKR_DOMAIN_PARAMS_INVALID:
		return "the token can't do that: pkcs11-tool --list-mechanisms shows what it can"
	case p11.CKR_KEY_FUNCTION_NOT_PERMITTED, p11.CKR_ACTION_PROHIBITED, p11.CKR_ATTRIBUTE_READ_ONLY, p11.CKR_TOKEN_WRITE_PROTECTED, p11.CKR_SESSION_READ_ONLY, p11.CKR_FUNCTION_REJECTED:
		return "the token does not permit it: its user may make, use and remove keys only as its policy says"
	case p11.CKR_DEVICE_MEMORY:
		return "the token is full: remove keys that nobody needs"
	}
	if slices.Contains(gone, code) {
		return "no token labelled " + k.cfg.TokenLabel + " is there: plug it in, or correct token_label; pkcs11-tool --list-token-slots shows what is"
	}
	return ""
}
