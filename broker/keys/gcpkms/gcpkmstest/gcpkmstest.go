// Package gcpkmstest is Google Cloud KMS as far as gcpkms uses it, for tests:
// the same gRPC service over TLS, and as strict as the documentation says. It
// keeps its keys in memory and trusts nobody but who has its token.
package gcpkmstest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/keys/keystest"
)

// KeyRing is the one key ring there is.
const KeyRing = "projects/acme/locations/europe-west1/keyRings/credence"

const token = "ya29.the-brokers-token"

// Service is a KMS. Faults are by method, such as "AsymmetricSign", and by
// the name of a key's version; Broken ones also by "METHOD.crc", which damages
// the checksum, and "METHOD.name".
type Service struct {
	kmspb.UnimplementedKeyManagementServiceServer
	keystest.Faults
	Endpoint string
	Dial     []grpc.DialOption // trusts it

	mu   sync.Mutex
	keys map[string]*Key
}

// A Key is what the service knows of a key and its one version.
type Key struct {
	Made    *kmspb.CryptoKey
	Version *kmspb.CryptoKeyVersion
	Signer  crypto.Signer
	making  int // requests until it is enabled
}

// New starts a service that ends with the test.
func New(t testing.TB) *Service {
	t.Helper()
	s := &Service{keys: map[string]*Key{}}
	cert, roots := certificate(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})),
		grpc.UnaryInterceptor(s.intercept),
	)
	kmspb.RegisterKeyManagementServiceServer(server, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }() // ends with Stop
	t.Cleanup(func() { server.Stop(); <-done })
	s.Endpoint = l.Addr().String()
	s.Dial = []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}))}
	return s
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// Credentials are what the service takes, or not.
func Credentials(good bool) *auth.Credentials {
	value := token
	if !good {
		value = "ya29.somebody-elses"
	}
	return auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: staticToken(value)})
}

type staticToken string

func (s staticToken) Token(context.Context) (*auth.Token, error) {
	return &auth.Token{Value: string(s), Type: "Bearer", Expiry: time.Now().Add(time.Hour)}, nil
}

// Key returns what is known of the key version ref.
func (s *Service) Key(ref string) *Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[ref]
}

// Refs returns the names of all versions.
func (s *Service) Refs() (refs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.keys {
		refs = append(refs, ref)
	}
	return refs
}

// Change changes the key version ref.
func (s *Service) Change(ref string, change func(*Key)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.keys[ref])
}

// intercept checks what every request must carry, and makes its fault.
func (s *Service) intercept(ctx context.Context, in any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer "+token {
		return nil, status.Error(codes.Unauthenticated, "Request had invalid authentication credentials.")
	}
	name, at := "", "name="
	switch in := in.(type) {
	case interface{ GetName() string }:
		name = in.GetName()
	case interface{ GetParent() string }:
		name, at = in.GetParent(), "parent="
	}
	if got := md.Get("x-goog-request-params"); len(got) != 1 || got[0] != at+url.QueryEscape(name) {
		return nil, status.Errorf(codes.InvalidArgument, "routing header %q", got)
	}
	method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	fault := s.Enter(ctx, method, name)
	switch {
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	case fault == keystest.Denied:
		return nil, status.Errorf(codes.PermissionDenied, "Permission denied on resource '%s' (or it may not exist).", name)
	case fault == keystest.Throttled:
		return nil, status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Cryptographic requests'")
	}
	return handler(context.WithValue(ctx, brokenKey{}, fault == keystest.Broken), in)
}

type brokenKey struct{}

// broken says whether a method's answer is to be damaged: as a whole, or at.
func (s *Service) broken(ctx context.Context, method, at string) bool {
	if at != "" {
		return s.Enter(ctx, method+"."+at, "") == keystest.Broken
	}
	broken, _ := ctx.Value(brokenKey{}).(bool)
	return broken
}

var (
	idPattern    = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,63}$`)
	labelKey     = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)
	labelPattern = regexp.MustCompile(`^[a-z0-9_-]{0,63}$`)
)

// CreateCryptoKey makes a key whose first version is not ready at once.
func (s *Service) CreateCryptoKey(_ context.Context, in *kmspb.CreateCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	made := in.GetCryptoKey()
	if in.GetParent() != KeyRing {
		return nil, status.Errorf(codes.NotFound, "KeyRing %s not found.", in.GetParent())
	}
	days := made.GetDestroyScheduledDuration().AsDuration()
	if !idPattern.MatchString(in.GetCryptoKeyId()) || made.GetPurpose() != kmspb.CryptoKey_ASYMMETRIC_SIGN || days < 24*time.Hour || days > 120*24*time.Hour {
		return nil, status.Errorf(codes.InvalidArgument, "key %q for %s, destroyed after %s", in.GetCryptoKeyId(), made.GetPurpose(), days)
	}
	for k, v := range made.GetLabels() {
		if !labelKey.MatchString(k) || !labelPattern.MatchString(v) {
			return nil, status.Errorf(codes.InvalidArgument, "label %q: %q", k, v)
		}
	}
	template := made.GetVersionTemplate()
	signer, err := generate(template.GetAlgorithm())
	if err != nil {
		return nil, err
	}
	made.Name = KeyRing + "/cryptoKeys/" + in.GetCryptoKeyId()
	ref := made.Name + "/cryptoKeyVersions/1"
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[ref] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "CryptoKey %s already exists.", made.Name)
	}
	s.keys[ref] = &Key{
		Made: made, Signer: signer, making: 1,
		Version: &kmspb.CryptoKeyVersion{
			Name: ref, State: kmspb.CryptoKeyVersion_PENDING_GENERATION, Algorithm: template.GetAlgorithm(), ProtectionLevel: template.GetProtectionLevel(),
		},
	}
	return made, nil
}

func generate(a kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm) (crypto.Signer, error) {
	switch a {
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256:
		return rsa.GenerateKey(rand.Reader, 2048)
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256:
		return rsa.GenerateKey(rand.Reader, 3072)
	case kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256:
		return rsa.GenerateKey(rand.Reader, 4096)
	case kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	return nil, status.Errorf(codes.InvalidArgument, "algorithm %s for ASYMMETRIC_SIGN", a)
}
