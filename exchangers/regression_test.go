package exchangers_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
)

type both struct{}

func (both) Exchange(context.Context, exchangers.SVIDs) (exchangers.Credential, error) {
	return exchangers.Credential{Expires: time.Now().Add(time.Hour), Bearer: &exchangers.Bearer{Token: exchangers.NewSecret("t")}}, errors.New("and a failure")
}

// A credential that comes with an error is nobody's, now and later.
//
// Regression: CVE-2026-46405
func TestACredentialWithAnErrorIsNone(t *testing.T) {
	s := exchangers.NewSource(exchangers.SourceConfig{Target: "orders", Exchanger: both{}, SVIDs: svids{}})
	defer s.Close()
	for range 2 {
		if c, err := s.Credential(t.Context()); err == nil || c != (exchangers.Credential{}) {
			t.Errorf("got %v, %v", c, err)
		}
	}
}
