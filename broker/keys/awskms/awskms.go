// Package awskms keeps signing keys in AWS KMS: they are made there and never
// leave; what is to be signed goes there as a digest.
//
// It trusts the service as far as its TLS certificate goes, and checks each
// signature against the public key that it read when the key was opened. Who
// may use the keys is left to IAM and the keys' policies; the role needs
// kms:CreateKey, kms:TagResource, kms:CreateAlias, kms:DescribeKey,
// kms:GetPublicKey, kms:Sign and, for Remove, kms:ScheduleKeyDeletion. Which
// key means what is left to broker/authority.
package awskms

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Settings are what broker.yaml may say of AWS KMS.
type Settings struct {
	Region       string        `yaml:"region"`        // required
	Endpoint     string        `yaml:"endpoint"`      // https URL, of a VPC endpoint, say; empty: the region's
	Profile      string        `yaml:"profile"`       // in the shared AWS configuration; empty: the default chain
	DeletionDays int           `yaml:"deletion_days"` // how long a removed key can be brought back: 7 to 30; 0: 30
	Timeout      time.Duration `yaml:"timeout"`       // of one operation, retries included: 1s to 60s; 0: 15s
}

var regionPattern = regexp.MustCompile(`^[a-z]{2,8}(-[a-z]{2,12}){1,3}-[0-9]{1,2}$`)

// Validate refuses what cannot work. It asks nobody.
func (s Settings) Validate() error {
	if !regionPattern.MatchString(s.Region) {
		return fmt.Errorf("region: %q: an AWS region is wanted, such as eu-west-1", s.Region)
	}
	if s.Endpoint != "" {
		u, err := url.Parse(s.Endpoint)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("endpoint: %q: an https URL without a path is wanted", s.Endpoint)
		}
	}
	if s.DeletionDays != 0 && (s.DeletionDays < 7 || s.DeletionDays > 30) {
		return fmt.Errorf("deletion_days: %d: AWS takes 7 to 30", s.DeletionDays)
	}
	if s.Timeout != 0 && (s.Timeout < time.Second || s.Timeout > time.Minute) {
		return fmt.Errorf("timeout: %s: 1s to 60s is wanted", s.Timeout)
	}
	return nil
}

// Config is the wiring of Keys.
type Config struct {
	Settings
	TrustDomain string                  // required; in each key's tags and alias
	Purpose     string                  // required: what the keys are for, such as "root"; in tags and alias
	HTTPClient  *http.Client            // to KMS; nil: the SDK's
	Credentials aws.CredentialsProvider // nil: the SDK's default chain
}

// Keys are the keys of an account and region. Its methods may be called
// concurrently, and none waits for another.
type Keys struct {
	cfg    Config
	client *kms.Client
}

var purposePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// New returns the keys that cfg leads to. It reads the AWS configuration of
// this machine, and asks the service nothing yet.
func New(ctx context.Context, cfg Config) (*Keys, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.TrustDomain == "" || len(cfg.TrustDomain) > 255 || !purposePattern.MatchString(cfg.Purpose) {
		return nil, fmt.Errorf("using AWS KMS: trust domain %q, purpose %q: both are wanted", cfg.TrustDomain, cfg.Purpose)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.DeletionDays == 0 {
		cfg.DeletionDays = 30
	}
	load := []func(*config.LoadOptions) error{config.WithRegion(cfg.Region)}
	if cfg.Profile != "" {
		load = append(load, config.WithSharedConfigProfile(cfg.Profile))
	}
	if cfg.Credentials != nil {
		load = append(load, config.WithCredentialsProvider(cfg.Credentials))
	}
	shared, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("reading the AWS configuration: %w", err)
	}
	client := kms.NewFromConfig(shared, func(o *kms.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
		if cfg.HTTPClient != nil {
			o.HTTPClient = cfg.HTTPClient
		}
	})
	return &Keys{cfg: cfg, client: client}, nil
}

// specOf says what KMS calls a key of alg.
func specOf(alg string) (types.KeySpec, error) {
	switch alg {
	case "RS256", "RSA2048":
		return types.KeySpecRsa2048, nil
	case "RSA3072":
		return types.KeySpecRsa3072, nil
	case "RSA4096":
		return types.KeySpecRsa4096, nil
	case "ES256", "P256":
		return types.KeySpecEccNistP256, nil
	case "P384":
		return types.KeySpecEccNistP384, nil
	}
	return "", fmt.Errorf("making a key of %q in AWS KMS: it makes RS256, ES256, P256, P384, RSA2048, RSA3072 and RSA4096", alg)
}

// Create makes a key of alg, with tags and an alias that say whose it is. ref
// is its ARN: an alias could be led to another key.
func (k *Keys) Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error) {
	spec, err := specOf(alg)
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	act := fmt.Sprintf("making a key of %s in AWS KMS", alg)
	c := call{act: act, permission: "kms:CreateKey (and kms:TagResource)", throttledOnly: true}
	out, err := k.client.CreateKey(ctx, &kms.CreateKeyInput{
		KeySpec: spec, KeyUsage: types.KeyUsageTypeSignVerify,
		Description: aws.String("Credence signing key of " + k.cfg.TrustDomain + ", " + k.cfg.Purpose),
		Tags: []types.Tag{
			{TagKey: aws.String("credence:trust-domain"), TagValue: aws.String(k.cfg.TrustDomain)},
			{TagKey: aws.String("credence:purpose"), TagValue: aws.String(k.cfg.Purpose)},
			{TagKey: aws.String("credence:algorithm"), TagValue: aws.String(alg)},
		},
	}, c.options)
	if err != nil {
		return "", nil, c.failure(ctx, err)
	}
	if out.KeyMetadata == nil || k.checkRef(aws.ToString(out.KeyMetadata.Arn)) != nil || out.KeyMetadata.KeySpec != spec {
		return "", nil, fmt.Errorf("%s: its answer names no key of %s", act, spec)
	}
	ref = *out.KeyMetadata.Arn
	if key, err = k.name(ctx, ref); err != nil {
		if stays := k.discard(ctx, ref); stays != nil {
			err = fmt.Errorf("%w; %w", err, stays)
		}
		return "", nil, err
	}
	return ref, key, nil
}

// name gives a new key its alias, and opens it.
func (k *Keys) name(ctx context.Context, ref string) (crypto.Signer, error) {
	id := make([]byte, 8)
	rand.Read(id) // never fails: it ends the program instead
	alias := fmt.Sprintf("alias/credence/%.100s/%s/%s", strings.ReplaceAll(k.cfg.TrustDomain, ".", "_"), k.cfg.Purpose, hex.EncodeToString(id))
	c := call{act: "naming key " + ref, permission: "kms:CreateAlias", fresh: true}
	_, err := k.client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String(alias), TargetKeyId: aws.String(ref)}, c.options)
	var exists *types.AlreadyExistsException
	if err != nil && !errors.As(err, &exists) { // it exists where an answer was lost: nobody else could name it so
		return nil, c.failure(ctx, err)
	}
	return k.open(ctx, ref, true)
}

// discard lets go of a key that nobody will know, also after ctx has ended:
// else it would be paid for until somebody wonders.
func (k *Keys) discard(ctx context.Context, ref string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := k.remove(ctx, ref, 7, true); err != nil {
		return fmt.Errorf("the key stays, unused: aws kms schedule-key-deletion --key-id %s: %w", ref, err)
	}
	return nil
}

// Open finds the key whose ARN is ref, and reads its public key once. It
// refuses one that is disabled or waits for its deletion, is not for signing,
// or is of a kind that this source doesn't make.
func (k *Keys) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if err := k.checkRef(ref); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	return k.open(ctx, ref, false)
}

// Remove has the key deleted after DeletionDays, until when
// aws kms cancel-key-deletion brings it back. It can't be used meanwhile.
func (k *Keys) Remove(ctx context.Context, ref string) error {
	if err := k.checkRef(ref); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	return k.remove(ctx, ref, k.cfg.DeletionDays, false)
}

func (k *Keys) remove(ctx context.Context, ref string, days int, fresh bool) error {
	c := call{act: "removing key " + ref, permission: "kms:ScheduleKeyDeletion", fresh: fresh}
	_, err := k.client.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{
		KeyId: aws.String(ref), PendingWindowInDays: aws.Int32(int32(days)),
	}, c.options)
	var state *types.KMSInvalidStateException
	if errors.As(err, &state) && strings.Contains(strings.ToLower(state.ErrorMessage()), "pending deletion") {
		return nil // an answer was lost, or somebody was faster
	}
	return c.failure(ctx, err)
}

var arnPattern = regexp.MustCompile(`^arn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:key/(mrk-)?[0-9a-f-]{32,36}$`)

func (k *Keys) checkRef(ref string) error {
	m := arnPattern.FindStringSubmatch(ref)
	if m == nil {
		return fmt.Errorf("opening a key in AWS KMS: %.128q is not the ARN of one", ref)
	}
	if m[1] != k.cfg.Region {
		return fmt.Errorf("opening key %s: it is in region %s, the settings name %s", ref, m[1], k.cfg.Region)
	}
	return nil
}
