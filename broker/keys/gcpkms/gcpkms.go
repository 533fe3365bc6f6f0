// Package gcpkms keeps signing keys in Google Cloud KMS: they are made there
// and never leave; what is to be signed goes there as a digest.
//
// It trusts the service as far as its TLS certificate goes; what travels is
// held against CRC32C both ways, and each signature against the public key
// that was read when the key was opened. Who may use the keys is left to IAM:
// the broker's account needs, on the key ring, cloudkms.cryptoKeys.create and
// cloudkms.cryptoKeyVersions.get, viewPublicKey, useToSign and, for Remove,
// destroy. Which key means what is left to broker/authority.
package gcpkms

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"

	"cloud.google.com/go/auth"
	kms "cloud.google.com/go/kms/apiv1"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Settings are what broker.yaml may say of Google Cloud KMS.
type Settings struct {
	KeyRing      string        `yaml:"key_ring"`      // projects/P/locations/L/keyRings/R; required; it must exist
	Protection   string        `yaml:"protection"`    // software, or hsm; empty: software
	Endpoint     string        `yaml:"endpoint"`      // host:port, of Private Service Connect, say; empty: Google's
	DeletionDays int           `yaml:"deletion_days"` // how long a removed key can be brought back: 1 to 120; 0: 30
	Timeout      time.Duration `yaml:"timeout"`       // of one operation, retries included: 1s to 60s; 0: 15s
}

var ringPattern = regexp.MustCompile(`^projects/[a-z0-9.:-]{1,63}/locations/[a-z0-9-]{1,63}/keyRings/[a-zA-Z0-9_-]{1,63}$`)

// Validate refuses what cannot work. It asks nobody.
func (s Settings) Validate() error {
	if !ringPattern.MatchString(s.KeyRing) {
		return fmt.Errorf("key_ring: %q: projects/PROJECT/locations/LOCATION/keyRings/RING is wanted", s.KeyRing)
	}
	if s.Protection != "" && s.Protection != "software" && s.Protection != "hsm" {
		return fmt.Errorf("protection: %q: software or hsm is wanted", s.Protection)
	}
	if s.Endpoint != "" {
		if host, port, err := net.SplitHostPort(s.Endpoint); err != nil || host == "" || port == "" || strings.Contains(host, "/") {
			return fmt.Errorf("endpoint: %q: host:port is wanted", s.Endpoint)
		}
	}
	if s.DeletionDays < 0 || s.DeletionDays > 120 {
		return fmt.Errorf("deletion_days: %d: Google takes 1 to 120", s.DeletionDays)
	}
	if s.Timeout != 0 && (s.Timeout < time.Second || s.Timeout > time.Minute) {
		return fmt.Errorf("timeout: %s: 1s to 60s is wanted", s.Timeout)
	}
	return nil
}

// Config is the wiring of Keys.
type Config struct {
	Settings
	TrustDomain string            // required; in each key's labels
	Purpose     string            // required: what the keys are for, such as "root"; in names and labels
	Credentials *auth.Credentials // nil: Application Default Credentials
	Dial        []grpc.DialOption // to the service; for tests
}

// Keys are the keys of a key ring. Its methods may be called concurrently, and
// none waits for another. Close it.
type Keys struct {
	cfg    Config
	client *kms.KeyManagementClient
}

var purposePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// New returns the keys that cfg leads to. It looks for this machine's
// credentials, and asks the service nothing yet.
func New(ctx context.Context, cfg Config) (*Keys, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.TrustDomain == "" || len(cfg.TrustDomain) > 255 || !purposePattern.MatchString(cfg.Purpose) {
		return nil, fmt.Errorf("using Google Cloud KMS: trust domain %q, purpose %q: both are wanted", cfg.TrustDomain, cfg.Purpose)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.DeletionDays == 0 {
		cfg.DeletionDays = 30
	}
	var opts []option.ClientOption
	if cfg.Endpoint != "" {
		opts = append(opts, option.WithEndpoint(cfg.Endpoint))
	}
	if cfg.Credentials != nil {
		opts = append(opts, option.WithAuthCredentials(cfg.Credentials))
	}
	for _, d := range cfg.Dial {
		opts = append(opts, option.WithGRPCDialOption(d))
	}
	client, err := kms.NewKeyManagementClient(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("using Google Cloud KMS: finding credentials (GOOGLE_APPLICATION_CREDENTIALS names a file): %w", err)
	}
	return &Keys{cfg: cfg, client: client}, nil
}

// Close ends the connection. Signers don't work after it.
func (k *Keys) Close() error { return k.client.Close() }

// An RSA key of Google's signs with one padding and one hash.
func algorithmOf(alg string) (kmspb.CryptoKeyVersion_CryptoKeyVersionAlgorithm, error) {
	switch alg {
	case "RS256", "RSA2048":
		return kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256, nil
	case "RSA3072":
		return kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_3072_SHA256, nil
	case "RSA4096":
		return kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_4096_SHA256, nil
	case "ES256", "P256":
		return kmspb.CryptoKeyVersion_EC_SIGN_P256_SHA256, nil
	case "P384":
		return kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384, nil
	}
	return 0, fmt.Errorf("making a key of %q in Google Cloud KMS: it makes RS256, ES256, P256, P384, RSA2048, RSA3072 and RSA4096", alg)
}

// Create makes a key of alg, with a name and labels that say whose it is. It
// waits until the key can sign, which takes seconds where it is made in
// hardware. ref is the name of the key's only version.
func (k *Keys) Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error) {
	algorithm, err := algorithmOf(alg)
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	protection := kmspb.ProtectionLevel_SOFTWARE
	if k.cfg.Protection == "hsm" {
		protection = kmspb.ProtectionLevel_HSM
	}
	id := make([]byte, 8)
	rand.Read(id) // never fails: it ends the program instead
	name := "credence-" + k.cfg.Purpose + "-" + hex.EncodeToString(id)
	c := call{act: fmt.Sprintf("making a key of %s in %s", alg, k.cfg.KeyRing), permission: "cloudkms.cryptoKeys.create", role: "roles/cloudkms.admin"}
	made, err := k.client.CreateCryptoKey(ctx, &kmspb.CreateCryptoKeyRequest{
		Parent: k.cfg.KeyRing, CryptoKeyId: name,
		CryptoKey: &kmspb.CryptoKey{
			Purpose:                  kmspb.CryptoKey_ASYMMETRIC_SIGN,
			VersionTemplate:          &kmspb.CryptoKeyVersionTemplate{ProtectionLevel: protection, Algorithm: algorithm},
			Labels:                   map[string]string{"credence-trust-domain": label(k.cfg.TrustDomain), "credence-purpose": k.cfg.Purpose, "credence-algorithm": strings.ToLower(alg)},
			DestroyScheduledDuration: durationpb.New(time.Duration(k.cfg.DeletionDays) * 24 * time.Hour),
		},
	}, c.options())
	want := k.cfg.KeyRing + "/cryptoKeys/" + name
	switch {
	case codeOf(err) == codes.AlreadyExists: // an answer was lost: nobody else would take that name
	case codeOf(err) == codes.NotFound:
		return "", nil, fmt.Errorf("%s: the key ring is not there: gcloud kms keyrings create makes it: %w", c.act, err)
	case err != nil:
		return "", nil, c.failure(ctx, err)
	case made.GetName() != want:
		return "", nil, fmt.Errorf("%s: the answer is about another key: %.256q", c.act, made.GetName())
	}
	ref = want + "/cryptoKeyVersions/1"
	if key, err = k.await(ctx, ref); err != nil {
		if stays := k.discard(ctx, ref); stays != nil {
			err = fmt.Errorf("%w; %w", err, stays)
		}
		return "", nil, err
	}
	return ref, key, nil
}

// label is a trust domain as a label's value: at most 63 of a-z, 0-9, _ and -.
func label(td string) string {
	text := strings.ReplaceAll(td, ".", "_")
	if len(text) > 63 {
		sum := sha256.Sum256([]byte(td))
		text = text[:54] + "-" + hex.EncodeToString(sum[:4])
	}
	return text
}

// await opens a key that may still be in the making.
func (k *Keys) await(ctx context.Context, ref string) (crypto.Signer, error) {
	pause := gax.Backoff{Initial: 100 * time.Millisecond, Max: 2 * time.Second, Multiplier: 1.5}
	for {
		key, err := k.open(ctx, ref)
		if !errors.Is(err, errMaking) {
			return key, err
		}
		if ended := gax.Sleep(ctx, pause.Pause()); ended != nil {
			return nil, fmt.Errorf("%w: %w", err, ended)
		}
	}
}

// discard lets go of a key that nobody will know, also after ctx has ended:
// else it would be paid for until somebody wonders.
func (k *Keys) discard(ctx context.Context, ref string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := k.remove(ctx, ref); err != nil {
		return fmt.Errorf("the key stays, unused: gcloud kms keys versions destroy %s: %w", ref, err)
	}
	return nil
}

// Open finds the key version named ref, and reads its public key once. It
// refuses one that is not enabled, or is of a kind that this source doesn't
// make.
func (k *Keys) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	return k.open(ctx, ref)
}

// Remove has the key version destroyed after DeletionDays, until when
// gcloud kms keys versions restore brings it back. It can't be used meanwhile.
func (k *Keys) Remove(ctx context.Context, ref string) error {
	if err := checkRef(ref); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	return k.remove(ctx, ref)
}

func (k *Keys) remove(ctx context.Context, ref string) error {
	c := call{act: "removing key " + ref, permission: "cloudkms.cryptoKeyVersions.destroy", role: "roles/cloudkms.admin"}
	_, err := k.client.DestroyCryptoKeyVersion(ctx, &kmspb.DestroyCryptoKeyVersionRequest{Name: ref}, c.options())
	if codeOf(err) == codes.FailedPrecondition { // it may be on its way already
		v, e := k.client.GetCryptoKeyVersion(ctx, &kmspb.GetCryptoKeyVersionRequest{Name: ref}, c.options())
		if e == nil && (v.GetState() == kmspb.CryptoKeyVersion_DESTROY_SCHEDULED || v.GetState() == kmspb.CryptoKeyVersion_DESTROYED) {
			return nil
		}
	}
	return c.failure(ctx, err)
}

var refPattern = regexp.MustCompile(`^projects/[a-z0-9.:-]{1,63}/locations/[a-z0-9-]{1,63}/keyRings/[a-zA-Z0-9_-]{1,63}/cryptoKeys/[a-zA-Z0-9_-]{1,63}/cryptoKeyVersions/[1-9][0-9]{0,9}$`)

func checkRef(ref string) error {
	if !refPattern.MatchString(ref) {
		return fmt.Errorf("opening a key in Google Cloud KMS: %.128q is not the name of a key's version", ref)
	}
	return nil
}
