// Package exchangers trades SVIDs for credentials: a provider each in a
// package below this one, and Source, which keeps, refreshes and classifies.
//
// It trusts the SVIDs that it is handed to be the workload's, and a provider
// only as far as its TLS certificate goes. Who may exchange is decided by the
// broker (a Target that an Identity lists); recording is left to the caller.
package exchangers

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// SVIDs are what an exchange may present. JWT asks for a fresh token for the
// Target's audience each time: an exchange calls it once, or twice where the
// provider wants a client assertion beside the token to exchange.
type SVIDs interface {
	ID() spiffeid.ID
	X509(ctx context.Context) (*x509svid.SVID, error)
	JWT(ctx context.Context) (string, error)
}

// An Exchanger obtains a credential from one provider. It keeps no cache and
// does not retry: Source does both.
type Exchanger interface {
	Exchange(context.Context, SVIDs) (Credential, error)
}

// A Challenged is an Exchanger of a provider whose resources may refuse a
// credential that has not expired, with a challenge that names the claims which
// the next one must have. Answer passes it on, and keeps nothing of it.
type Challenged interface {
	Answer(ctx context.Context, svids SVIDs, claims string) (Credential, error)
}

// A Credential is what a provider gave: exactly one of AWS and Bearer is set.
type Credential struct {
	Expires   time.Time
	AWS       *AWS
	Bearer    *Bearer
	RequestID string // the provider's, for its support
}

// AWS is a set of session credentials.
type AWS struct {
	AccessKeyID     string
	SecretAccessKey Secret
	SessionToken    Secret
	Region          string
	AssumedRole     string // ARN
}

// Bearer is an access token.
type Bearer struct {
	Token  Secret
	Scopes []string
	Vault  *Vault // whose token it is; nil: not OpenBao's or Vault's
}

// Vault is an OpenBao or Vault server, as its own tools find it.
type Vault struct {
	Address   string // https URL
	Namespace string // empty: the root
}

// A Secret prints as "[redacted]". It holds a pointer because fmt reads the
// strings in a struct's unexported fields without calling Format.
type Secret struct{ text *string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{&text} }

// Reveal returns the text, for the one place that must send or show it.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

const redacted = "[redacted]"

// String hides the text.
func (Secret) String() string { return redacted }

// GoString hides the text.
func (Secret) GoString() string { return redacted }

// Format hides the text from every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText hides the text from JSON, YAML and the like.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Class says what to do after a refusal.
type Class string

// The classes of refusal.
const (
	Config      Class = "config"      // fix what is set up; never retry
	Propagation Class = "propagation" // the provider has not yet seen a change: retry for minutes
	Throttled   Class = "throttled"   // retry after a pause
	Outage      Class = "outage"      // retry; serve what is still valid
)

// An Error is a provider's refusal.
type Error struct {
	Provider  string // "aws", "gcp", "azure" or "oauth"
	Status    int    // HTTP status; 0: there was no answer
	Code      string // the provider's own code, verbatim
	Message   string // the provider's text, bounded, without secrets
	Class     Class
	RequestID string
	Hint      string // the way out, for a person; may be empty
	Reason    string // for programs, and for ever the same: such as "issuer_unregistered"; empty: none is known
	Field     string // what to change, as in a Finding; may be empty
	Err       error  // the cause, if any

	RetryAfter time.Duration // the pause the provider asks for; 0: it asks for none
}

// Error names provider, status, code, message and the way out.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s refused (%d %s): %s", e.Provider, e.Status, e.Code, e.Message)
	switch {
	case e.Status == 0 && e.Class == Config: // we refused by ourselves
		s = fmt.Sprintf("%s not asked: %s", e.Provider, e.Message)
	case e.Status == 0:
		s = fmt.Sprintf("%s not reached: %s", e.Provider, e.Message)
	}
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Settings are one flow's part of a Target: what its YAML decodes into.
type Settings interface {
	Audience() string // of the JWT-SVID to present; empty: the X509-SVID is presented
	Validate() error  // names the field and what is allowed
}

// A Target is where an SVID can be exchanged, by exactly one flow.
type Target struct {
	Name     string
	Revision uint64
	Flow     string   // "aws_roles_anywhere", "aws_web_identity", "gcp", "azure", "oauth"
	Settings Settings // that flow's
	Endpoint string   // https URL; empty: the provider's own
	CAFile   string   // PEM on the machine that exchanges; empty: the system's roots
}
