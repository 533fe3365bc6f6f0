// Package awskmstest is AWS KMS as far as awskms uses it, for tests: the same
// protocol, and as strict as the documentation says. It keeps its keys in
// memory and trusts nobody; who a caller is, it tells by the access key alone.
package awskmstest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/keys/keystest"
)

// AccessKey is the access key that the service takes.
const AccessKey = "AKIDEXAMPLE"

// Region and Account are where its keys are.
const (
	Region  = "eu-west-1"
	Account = "123456789012"
)

// Service is a KMS in one region. Faults are by operation, such as "Sign", and
// by key ARN.
type Service struct {
	keystest.Faults
	URL    string
	Client *http.Client // trusts it

	mu   sync.Mutex
	keys map[string]*Key
}

// A Key is what the service knows of one.
type Key struct {
	ARN, Alias, Spec, Usage, State string
	Tags                           map[string]string
	DeletionDays                   int
	Signer                         crypto.Signer
	unseen                         int // requests until which it isn't found everywhere
}

// New starts a service that ends with the test.
func New(t testing.TB) *Service {
	s := &Service{keys: map[string]*Key{}}
	server := httptest.NewTLSServer(s)
	t.Cleanup(server.Close)
	s.URL, s.Client = server.URL, server.Client()
	return s
}

// Key returns a copy of what is known of the key arn.
func (s *Service) Key(arn string) Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys[arn]; k != nil {
		return *k
	}
	return Key{}
}

// Keys returns the ARNs of all keys.
func (s *Service) Keys() (arns []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for arn := range s.keys {
		arns = append(arns, arn)
	}
	return arns
}

// Change changes the key arn.
func (s *Service) Change(arn string, change func(*Key)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.keys[arn])
}

// A refusal is the service's error.
type refusal struct {
	status        int
	kind, message string
}

func refuse(kind, format string, args ...any) *refusal {
	return &refusal{http.StatusBadRequest, kind, fmt.Sprintf(format, args...)}
}

var authPattern = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/([a-z0-9-]+)/kms/aws4_request, SignedHeaders=([a-z0-9;-]+), Signature=[0-9a-f]{64}$`)

func authenticate(r *http.Request) *refusal {
	m := authPattern.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		return refuse("IncompleteSignatureException", "no SigV4 of kms: %q", r.Header.Get("Authorization"))
	}
	date, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(date).Abs() > 5*time.Minute || date.Format("20060102") != m[2] {
		return refuse("InvalidSignatureException", "Signature expired: %q", r.Header.Get("X-Amz-Date"))
	}
	if m[3] != Region {
		return refuse("InvalidSignatureException", "Credential should be scoped to a valid region.")
	}
	signed := strings.Split(m[4], ";")
	for _, h := range []string{"content-type", "host", "x-amz-date", "x-amz-target"} {
		if !slices.Contains(signed, h) {
			return refuse("InvalidSignatureException", "%s is not signed", h)
		}
	}
	if m[1] != AccessKey {
		return refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	return nil
}

// ServeHTTP speaks AWS JSON 1.1.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, bad := s.serve(r)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", "7a0c1c1e-6d0b-4b41-9d2c-5a3f0c6b7e21")
	if bad != nil {
		w.WriteHeader(bad.status)
		answer = map[string]string{"__type": bad.kind, "message": bad.message}
	}
	_ = json.NewEncoder(w).Encode(answer) // the client may have left
}

func (s *Service) serve(r *http.Request) (any, *refusal) {
	op, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	if r.Method != http.MethodPost || r.URL.Path != "/" || !ok || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
		return nil, refuse("UnknownOperationException", "")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return nil, refuse("SerializationException", "%v", err)
	}
	if bad := authenticate(r); bad != nil {
		return nil, bad
	}
	var of struct{ KeyId, TargetKeyId string }
	if err := json.Unmarshal(body, &of); err != nil {
		return nil, refuse("SerializationException", "%v", err)
	}
	key := of.KeyId + of.TargetKeyId
	fault := s.Enter(r.Context(), op, key)
	switch {
	case r.Context().Err() != nil:
		return nil, refuse("Gone", "the caller left")
	case fault == keystest.Denied:
		return nil, refuse("AccessDeniedException", "User: arn:aws:sts::%s:assumed-role/broker/x is not authorized to perform: kms:%s because no identity-based policy allows it", Account, op)
	case fault == keystest.Throttled:
		return nil, refuse("ThrottlingException", "You have exceeded the rate at which you may call KMS.")
	}
	return s.do(op, body, fault == keystest.Broken)
}

func (s *Service) do(op string, body []byte, broken bool) (any, *refusal) {
	switch op {
	case "CreateKey":
		return s.create(body)
	case "CreateAlias":
		return s.alias(body)
	case "DescribeKey":
		return s.describe(body, broken)
	case "GetPublicKey":
		return s.public(body, broken)
	case "Sign":
		return s.sign(body, broken)
	case "ScheduleKeyDeletion":
		return s.remove(body)
	}
	return nil, refuse("UnknownOperationException", "%s", op)
}

// read is strict: what awskms doesn't send is not known here.
func read(body []byte, into any) *refusal {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return refuse("ValidationException", "%v", err)
	}
	return nil
}

var tagPattern = regexp.MustCompile(`^[A-Za-z0-9 _.:/=+@-]{1,128}$`)

func (s *Service) create(body []byte) (any, *refusal) {
	var in struct {
		KeySpec, KeyUsage, Description string
		Tags                           []struct{ TagKey, TagValue string }
	}
	if bad := read(body, &in); bad != nil {
		return nil, bad
	}
	if in.KeyUsage != "SIGN_VERIFY" || len(in.Description) > 8192 {
		return nil, refuse("ValidationException", "KeyUsage %q of %s", in.KeyUsage, in.KeySpec)
	}
	tags := map[string]string{}
	for _, t := range in.Tags {
		if !tagPattern.MatchString(t.TagKey) || strings.HasPrefix(t.TagKey, "aws:") || len(t.TagValue) > 256 {
			return nil, refuse("TagException", "%q", t.TagKey)
		}
		tags[t.TagKey] = t.TagValue
	}
	signer, err := generate(in.KeySpec)
	if err != nil {
		return nil, refuse("ValidationException", "%v", err)
	}
	id := make([]byte, 16)
	rand.Read(id)
	h := hex.EncodeToString(id)
	arn := fmt.Sprintf("arn:aws:kms:%s:%s:key/%s-%s-%s-%s-%s", Region, Account, h[:8], h[8:12], h[12:16], h[16:20], h[20:])
	k := &Key{ARN: arn, Spec: in.KeySpec, Usage: in.KeyUsage, State: "Enabled", Tags: tags, Signer: signer, unseen: 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[arn] = k
	return map[string]any{"KeyMetadata": k.metadata()}, nil
}

func generate(spec string) (crypto.Signer, error) {
	switch spec {
	case "RSA_2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "RSA_3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA_4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ECC_NIST_P256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECC_NIST_P384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	return nil, fmt.Errorf("KeySpec %q", spec)
}

func (k *Key) metadata() map[string]any {
	return map[string]any{
		"AWSAccountId": Account, "Arn": k.ARN, "KeyId": k.ARN[strings.LastIndexByte(k.ARN, '/')+1:], "CreationDate": 1.7e9,
		"Enabled": k.State == "Enabled", "KeyManager": "CUSTOMER", "KeySpec": k.Spec, "KeyState": k.State, "KeyUsage": k.Usage,
		"MultiRegion": false, "Origin": "AWS_KMS",
	}
}

// find finds a key by its ARN, but a new one not at once: KMS is eventually
// consistent.
func (s *Service) find(arn string) (*Key, *refusal) {
	k := s.keys[arn]
	if k == nil || k.unseen > 0 {
		if k != nil {
			k.unseen--
		}
		return nil, refuse("NotFoundException", "Key '%s' does not exist", arn)
	}
	return k, nil
}

var aliasPattern = regexp.MustCompile(`^alias/[a-zA-Z0-9/_-]{1,250}$`)

func (s *Service) alias(body []byte) (any, *refusal) {
	var in struct{ AliasName, TargetKeyId string }
	if bad := read(body, &in); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, bad := s.find(in.TargetKeyId)
	switch {
	case bad != nil:
		return nil, bad
	case !aliasPattern.MatchString(in.AliasName) || strings.HasPrefix(in.AliasName, "alias/aws/"):
		return nil, refuse("InvalidAliasNameException", "%q", in.AliasName)
	}
	for _, other := range s.keys {
		if other.Alias == in.AliasName {
			return nil, refuse("AlreadyExistsException", "An alias with the name %s already exists", in.AliasName)
		}
	}
	k.Alias = in.AliasName
	return struct{}{}, nil
}

func (s *Service) describe(body []byte, broken bool) (any, *refusal) {
	var in struct{ KeyId string }
	if bad := read(body, &in); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, bad := s.find(in.KeyId)
	if bad != nil {
		return nil, bad
	}
	m := k.metadata()
	if broken {
		m["Arn"] = strings.Replace(k.ARN, Account, "210987654321", 1)
	}
	return map[string]any{"KeyMetadata": m}, nil
}

func (s *Service) public(body []byte, broken bool) (any, *refusal) {
	var in struct{ KeyId string }
	if bad := read(body, &in); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, bad := s.find(in.KeyId)
	if bad != nil {
		return nil, bad
	}
	spki, err := x509.MarshalPKIXPublicKey(k.Signer.Public())
	if err != nil {
		return nil, refuse("KMSInternalException", "%v", err)
	}
	spec := k.Spec
	if broken {
		spec = "RSA_4096"
	}
	return map[string]any{"KeyId": k.ARN, "KeySpec": spec, "CustomerMasterKeySpec": spec, "KeyUsage": k.Usage, "PublicKey": spki}, nil
}

func (s *Service) remove(body []byte) (any, *refusal) {
	var in struct {
		KeyId               string
		PendingWindowInDays int
	}
	if bad := read(body, &in); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, bad := s.find(in.KeyId)
	switch {
	case bad != nil:
		return nil, bad
	case in.PendingWindowInDays < 7 || in.PendingWindowInDays > 30:
		return nil, refuse("ValidationException", "PendingWindowInDays %d", in.PendingWindowInDays)
	case k.State == "PendingDeletion":
		return nil, refuse("KMSInvalidStateException", "%s is pending deletion.", k.ARN)
	}
	k.State, k.DeletionDays = "PendingDeletion", in.PendingWindowInDays
	return map[string]any{"KeyId": k.ARN, "KeyState": k.State, "PendingWindowInDays": k.DeletionDays, "DeletionDate": 1.8e9}, nil
}
