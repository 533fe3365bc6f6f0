package local

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/api"
)

// ContainerConfig is the wiring of a Container. All fields are required.
type ContainerConfig struct {
	Host   string // host:port that it listens on: what a Host header must say
	Secret string // what an Authorization header must say
	Fetch  func(context.Context) (*api.FetchResponse, error)
}

// A Container is the AWS container credential endpoint
// (AWS_CONTAINER_CREDENTIALS_FULL_URI) of one workload and one target.
type Container struct{ cfg ContainerConfig }

// minSecret keeps a secret from being guessed.
const minSecret = 32

// NewContainer returns the endpoint. It refuses a secret that could be guessed.
func NewContainer(cfg ContainerConfig) (*Container, error) {
	if len(cfg.Secret) < minSecret || cfg.Host == "" || cfg.Fetch == nil {
		return nil, errors.New("making a credential endpoint: host, a secret of 32 bytes or more, and a source are wanted")
	}
	return &Container{cfg}, nil
}

// ServeHTTP answers GET / with the credential, or with an error as the SDKs read
// it: {code, message}.
func (c *Container) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case r.Host != c.cfg.Host, has(r, "Origin"), has(r, "Referer"), has(r, "X-Forwarded-For"):
		refuse(w, http.StatusForbidden, "Forbidden", "this endpoint is for programs on this machine")
		return
	case !c.authorized(r):
		refuse(w, http.StatusUnauthorized, "Unauthorized", "the authorization token is missing or wrong")
		return
	case r.RequestURI != "/": // as it is spelled: no other path leads here, and no parameter counts
		refuse(w, http.StatusNotFound, "NotFound", "the path is /")
		return
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "GET is wanted")
		return
	}
	credential, err := c.cfg.Fetch(r.Context())
	if err != nil {
		refuseStatus(w, err)
		return
	}
	keys := credential.GetAws()
	if keys.GetAccessKeyId() == "" || keys.GetSecretAccessKey() == "" {
		refuse(w, http.StatusBadGateway, "NoCredential", "the target gives no AWS credential")
		return
	}
	// An error here means that the client has gone.
	_ = json.NewEncoder(w).Encode(map[string]string{
		"AccessKeyId": keys.GetAccessKeyId(), "SecretAccessKey": keys.GetSecretAccessKey(), "Token": keys.GetSessionToken(),
		"Expiration": time.Unix(credential.GetExpires(), 0).UTC().Format(time.RFC3339),
	})
}

// has says whether a header is there, though it be empty: programs send none.
func has(r *http.Request, header string) bool { return len(r.Header.Values(header)) > 0 }

// authorized wants the secret, once.
func (c *Container) authorized(r *http.Request) bool {
	shown := r.Header.Values("Authorization")
	return len(shown) == 1 && subtle.ConstantTimeCompare([]byte(shown[0]), []byte(c.cfg.Secret)) == 1
}

func refuseStatus(w http.ResponseWriter, err error) {
	s := status.Convert(err)
	switch s.Code() {
	case codes.PermissionDenied, codes.FailedPrecondition, codes.InvalidArgument:
		refuse(w, http.StatusForbidden, s.Code().String(), s.Message())
	default:
		refuse(w, http.StatusServiceUnavailable, s.Code().String(), s.Message())
	}
}

func refuse(w http.ResponseWriter, code int, short, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": short, "message": message}) // an error: the client has gone
}
