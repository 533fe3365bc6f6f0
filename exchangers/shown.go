package exchangers

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// shown hands out SVIDs and notes which, for the report: a provider's request id
// leads to the records of these, and they to it.
type shown struct {
	SVIDs

	mu      sync.Mutex // guards serials
	serials []string
}

// maxShown is how many SVIDs one exchange shows: for itself, and for its client.
const maxShown = 4

func (s *shown) X509(ctx context.Context) (*x509svid.SVID, error) {
	svid, err := s.SVIDs.X509(ctx)
	if err == nil && len(svid.Certificates) > 0 {
		s.note(hex.EncodeToString(svid.Certificates[0].SerialNumber.Bytes()))
	}
	return svid, err
}

func (s *shown) JWT(ctx context.Context) (string, error) {
	token, err := s.SVIDs.JWT(ctx)
	if err == nil {
		s.note(tokenID(token))
	}
	return token, err
}

func (s *shown) note(serial string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if serial != "" && len(s.serials) < maxShown && !slices.Contains(s.serials, serial) {
		s.serials = append(s.serials, serial)
	}
}

func (s *shown) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.serials)
}

// tokenID is the jti of a token that our broker made; empty: it has none.
func tokenID(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	var claims struct {
		ID string `json:"jti"`
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(text, &claims) != nil {
		return ""
	}
	return claims.ID
}
