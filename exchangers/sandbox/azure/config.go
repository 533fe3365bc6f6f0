package azure

import (
	"crypto/rsa"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers/sandbox"
)

// Skew is how far Entra lets clocks differ, either way.
const Skew = 5 * time.Minute

// Audience is the audience of a federated identity credential in the public
// cloud, and the only one that a managed identity takes there.
const Audience = "api://AzureADTokenExchange"

// MaxCredentials is how many federated identity credentials an app can have.
const MaxCredentials = 20

// Config is the wiring of a [Cloud]. All of it is optional; an empty cloud
// refuses everything.
type Config struct {
	// Issuers says how issuers are reached. Its Now, Check and MaxKeys are
	// replaced by the cloud's.
	Issuers sandbox.IssuersConfig
	Tenants []Tenant
	// Audience is the cloud's audience of federated identity credentials, and
	// the only one that a managed identity takes; empty is the constant of that
	// name, the public cloud's.
	Audience string
	// Resources are the App ID URIs, or client IDs, for which tokens can be had.
	Resources []string
	// ARM are the audiences that the protected call takes; nil is
	// https://management.azure.com with and without a slash at the end.
	ARM []string
	// Authority is the URL of Login, such as https://127.0.0.1:8443, without a
	// path. Empty takes it from each request's Host.
	Authority string
	// LenientAlgorithms (lenient_algorithms) takes RS384, RS512 and PS256 to
	// PS512 too. The documents promise RS256 alone.
	LenientAlgorithms bool
	// Skew replaces the constant of that name unless it is zero.
	Skew time.Duration
	// Key signs access tokens; nil makes one at first use.
	Key *rsa.PrivateKey
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log is told of each request; nil discards.
	Log func(sandbox.Entry)
}

// A Tenant is a directory.
type Tenant struct {
	ID     string // GUID
	Domain string // such as contoso.example; empty for none
	Apps   []App
}

// Kind says what an App is.
type Kind string

// The kinds of an app.
const (
	Application     Kind = "application"
	ManagedIdentity Kind = "managed identity" // user-assigned
)

// An App is an app registration with its service principal, or a user-assigned
// managed identity.
type App struct {
	Kind        Kind
	ClientID    string // GUID
	ObjectID    string // GUID of the service principal
	Credentials []Credential
}

// A Credential is a federated identity credential.
type Credential struct {
	Name     string // 3 to 120 of A-Z, a-z, 0-9, _ and -
	Issuer   string
	Subject  string
	Audience string
	// Expression is the claimsMatchingExpression of a flexible credential, in
	// place of Subject. For issuers like ours Entra lets it be created and
	// refuses each exchange (AADSTS7002241); so does this.
	Expression string
}

// A CreateError says why the directory does not take an object.
type CreateError struct {
	Status int // 400 or 409
	Text   string
}

func (e *CreateError) Error() string { return e.Text }

var (
	guid           = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	domainName     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$`)
	credentialName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{2,119}$`)
	flexibleHosts  = []string{"https://token.actions.githubusercontent.com", "https://gitlab.com", "https://app.terraform.io"}
)

func bad(format string, args ...any) error {
	return &CreateError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func conflict(format string, args ...any) error {
	return &CreateError{http.StatusConflict, fmt.Sprintf(format, args...)}
}

func (t Tenant) check() error {
	if !guid.MatchString(t.ID) {
		return bad("tenant %q: the ID is not a lower-case GUID", t.ID)
	}
	if t.Domain != "" && !domainName.MatchString(t.Domain) {
		return bad("tenant %s: %q is not a domain in lower case", t.ID, t.Domain)
	}
	return nil
}

func (a App) check(issuers *sandbox.Issuers, audience string) error {
	if !guid.MatchString(a.ClientID) || !guid.MatchString(a.ObjectID) {
		return bad("app %q: client ID or object ID %q is not a lower-case GUID", a.ClientID, a.ObjectID)
	}
	if a.Kind != Application && a.Kind != ManagedIdentity {
		return bad("app %s: kind %q is neither %q nor %q", a.ClientID, a.Kind, Application, ManagedIdentity)
	}
	if len(a.Credentials) > MaxCredentials {
		return conflict("app %s: %d federated identity credentials, at most %d", a.ClientID, len(a.Credentials), MaxCredentials)
	}
	names, pairs := map[string]bool{}, map[[2]string]bool{}
	for _, c := range a.Credentials {
		if err := c.check(a.Kind, issuers, audience); err != nil {
			return err
		}
		pair := [2]string{c.Issuer, c.Subject + "\x00" + c.Expression}
		if names[c.Name] || pairs[pair] {
			return conflict("credential %q: its name or its issuer and subject stand twice", c.Name)
		}
		names[c.Name], pairs[pair] = true, true
	}
	return nil
}

func (c Credential) check(kind Kind, issuers *sandbox.Issuers, audience string) error {
	if !credentialName.MatchString(c.Name) {
		return bad("credential %q: a name has 3 to 120 of A-Z, a-z, 0-9, _ and -, and starts with none of the last two", c.Name)
	}
	if err := issuers.CheckURL(c.Issuer); err != nil {
		return bad("credential %q: %v", c.Name, err)
	}
	for what, s := range map[string]string{"audience": c.Audience, "subject or expression": c.Subject + c.Expression} {
		if s == "" || len([]rune(s)) > 600 {
			return bad("credential %q: %s of %d characters, 1 to 600", c.Name, what, len([]rune(s)))
		}
	}
	if kind == ManagedIdentity && c.Audience != audience {
		return bad("credential %q: the audience of a managed identity is %s", c.Name, audience)
	}
	if c.Expression == "" {
		return nil
	}
	flexible := slices.ContainsFunc(flexibleHosts, func(h string) bool { return strings.HasPrefix(c.Issuer, h) })
	if c.Subject != "" || kind != Application || flexible {
		return bad("credential %q: an expression excludes a subject, is for applications, and not emulated for %v", c.Name, flexibleHosts)
	}
	return nil
}
