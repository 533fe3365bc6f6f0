// Package azurekv keeps signing keys in Azure Key Vault, or in a Managed HSM:
// they are made there and never leave; what is to be signed goes there as a
// digest.
//
// It trusts the service as far as its TLS certificate goes, and checks each
// signature against the public key that it read when the key was opened. Who
// may use the keys is left to the vault: the broker's identity needs keys/create,
// keys/get, keys/sign and, for Remove, keys/delete, which the role Key Vault
// Crypto Officer has. Which key means what is left to broker/authority.
package azurekv

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

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azkeys"
)

// Settings are what broker.yaml may say of Azure Key Vault.
type Settings struct {
	VaultURL   string        `yaml:"vault_url"`  // required: https://NAME.vault.azure.net, or the one of a Managed HSM or another cloud
	Protection string        `yaml:"protection"` // software, or hsm; empty: software. A Managed HSM wants hsm
	Timeout    time.Duration `yaml:"timeout"`    // of one operation, retries included: 1s to 60s; 0: 15s
}

var hostPattern = regexp.MustCompile(`^[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+$`)

// Validate refuses what cannot work. It asks nobody.
func (s Settings) Validate() error {
	host, ok := strings.CutPrefix(strings.TrimSuffix(s.VaultURL, "/"), "https://")
	if !ok || len(host) > 253 || !hostPattern.MatchString(host) {
		return fmt.Errorf("vault_url: %q: https://NAME.vault.azure.net is wanted, in lower case", s.VaultURL)
	}
	if s.Protection != "" && s.Protection != "software" && s.Protection != "hsm" {
		return fmt.Errorf("protection: %q: software or hsm is wanted", s.Protection)
	}
	if s.Timeout != 0 && (s.Timeout < time.Second || s.Timeout > time.Minute) {
		return fmt.Errorf("timeout: %s: 1s to 60s is wanted", s.Timeout)
	}
	return nil
}

// Config is the wiring of Keys.
type Config struct {
	Settings
	TrustDomain string                 // required; in each key's tags
	Purpose     string                 // required: what the keys are for, such as "root"; in names and tags
	HTTPClient  *http.Client           // to the vault and, without Credentials, to Microsoft Entra; nil: Go's
	Credentials azcore.TokenCredential // nil: azidentity's DefaultAzureCredential, which the AZURE_* variables steer
}

// Keys are the keys of a vault. Its methods may be called concurrently, and
// none waits for another, but for the first token.
type Keys struct {
	cfg    Config
	host   string
	client *azkeys.Client
}

var purposePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// New returns the keys that cfg leads to. It looks for this machine's
// credentials, and asks the vault nothing yet.
func New(cfg Config) (*Keys, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.TrustDomain == "" || len(cfg.TrustDomain) > 255 || !purposePattern.MatchString(cfg.Purpose) {
		return nil, fmt.Errorf("using Azure Key Vault: trust domain %q, purpose %q: both are wanted", cfg.TrustDomain, cfg.Purpose)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	cfg.VaultURL = strings.TrimSuffix(cfg.VaultURL, "/")
	opts := azcore.ClientOptions{Transport: transport(cfg.HTTPClient)}
	if cfg.Credentials == nil {
		found, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: opts})
		if err != nil {
			return nil, fmt.Errorf("finding Azure credentials: %s", oneLine(err.Error()))
		}
		cfg.Credentials = found
	}
	client, err := azkeys.NewClient(cfg.VaultURL, credentials{cfg.Credentials}, &azkeys.ClientOptions{ClientOptions: opts})
	if err != nil {
		return nil, fmt.Errorf("using %s: %w", cfg.VaultURL, err)
	}
	return &Keys{cfg: cfg, host: strings.TrimPrefix(cfg.VaultURL, "https://"), client: client}, nil
}

// parametersOf says how the vault is asked for a key of alg.
func (k *Keys) parametersOf(alg string) (azkeys.CreateKeyParameters, error) {
	var p azkeys.CreateKeyParameters
	ec, rs := azkeys.KeyTypeEC, azkeys.KeyTypeRSA
	if k.cfg.Protection == "hsm" {
		ec, rs = azkeys.KeyTypeECHSM, azkeys.KeyTypeRSAHSM
	}
	curve := map[string]azkeys.CurveName{"ES256": azkeys.CurveNameP256, "P256": azkeys.CurveNameP256, "P384": azkeys.CurveNameP384}[alg]
	size := map[string]int32{"RS256": 2048, "RSA2048": 2048, "RSA3072": 3072, "RSA4096": 4096}[alg]
	switch {
	case curve != "":
		p.Kty, p.Curve = &ec, &curve
	case size != 0:
		p.Kty, p.KeySize = &rs, &size
	default:
		return p, fmt.Errorf("making a key of %q in Azure Key Vault: it makes RS256, ES256, P256, P384, RSA2048, RSA3072 and RSA4096", alg)
	}
	sign, verify, enabled := azkeys.KeyOperationSign, azkeys.KeyOperationVerify, true
	purpose := k.cfg.Purpose
	p.KeyOps = []*azkeys.KeyOperation{&sign, &verify}
	p.KeyAttributes = &azkeys.KeyAttributes{Enabled: &enabled}
	p.Tags = map[string]*string{"credence-trust-domain": &k.cfg.TrustDomain, "credence-purpose": &purpose, "credence-algorithm": &alg}
	return p, nil
}

// Create makes a key of alg, with a name and tags that say whose it is. ref is
// the URL of its only version: without the version, a rotation by the vault
// would lead to another key.
func (k *Keys) Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error) {
	params, err := k.parametersOf(alg)
	if err != nil {
		return "", nil, err
	}
	id := make([]byte, 8)
	rand.Read(id) // never fails: it ends the program instead
	name := "credence-" + k.cfg.Purpose + "-" + hex.EncodeToString(id)
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	c := call{act: fmt.Sprintf("making a key of %s in %s", alg, k.cfg.VaultURL), permission: "keys/create"}
	// Where an answer was lost, a second version is made, and this one is ours.
	made, err := do(ctx, &c, func(ctx context.Context) (azkeys.CreateKeyResponse, error) {
		return k.client.CreateKey(ctx, name, params, nil)
	})
	if err != nil {
		return "", nil, err
	}
	if made.Key == nil || made.Key.KID == nil {
		return "", nil, fmt.Errorf("%s: its answer names no key", c.act)
	}
	ref = string(*made.Key.KID)
	got, _, err := k.parseRef(ref)
	if err == nil && got != name {
		err = errors.New("the answer is about another key")
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", c.act, err)
	}
	if key, err = k.open(ctx, ref); err != nil {
		if stays := k.discard(ctx, ref); stays != nil {
			err = fmt.Errorf("%w; %w", err, stays)
		}
		return "", nil, err
	}
	return ref, key, nil
}

// discard lets go of a key that nobody will know, also after ctx has ended:
// else it would stay until somebody wonders.
func (k *Keys) discard(ctx context.Context, ref string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := k.remove(ctx, ref); err != nil {
		return fmt.Errorf("the key stays, unused: az keyvault key delete --id %s: %w", ref, err)
	}
	return nil
}

// Open finds the key version whose URL is ref, and reads its public key once.
// It refuses one that is disabled or expired, is not for signing, or is of a
// kind that this source doesn't make.
func (k *Keys) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if _, _, err := k.parseRef(ref); err != nil {
		return nil, fmt.Errorf("opening a key in Azure Key Vault: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	return k.open(ctx, ref)
}

// Remove has the vault delete the key, in all its versions. Until the vault's
// retention ends, az keyvault key recover brings it back. It can't be used
// meanwhile.
func (k *Keys) Remove(ctx context.Context, ref string) error {
	if _, _, err := k.parseRef(ref); err != nil {
		return fmt.Errorf("removing a key in Azure Key Vault: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	return k.remove(ctx, ref)
}

func (k *Keys) remove(ctx context.Context, ref string) error {
	name, _, err := k.parseRef(ref)
	if err != nil {
		return err
	}
	c := call{act: "removing key " + ref, permission: "keys/delete"}
	_, err = do(ctx, &c, func(ctx context.Context) (azkeys.DeleteKeyResponse, error) {
		return k.client.DeleteKey(ctx, name, nil)
	})
	var refused *refusal
	if errors.As(err, &refused) && refused.inner == "ObjectIsBeingDeleted" {
		return nil // an answer was lost, or somebody was faster
	}
	return err
}

var refPattern = regexp.MustCompile(`^https://([a-z0-9.-]{1,253})/keys/([0-9a-zA-Z-]{1,127})/([0-9a-f]{32})$`)

// parseRef takes the URL of a key's version in our vault.
func (k *Keys) parseRef(ref string) (name, version string, err error) {
	m := refPattern.FindStringSubmatch(ref)
	if m == nil {
		return "", "", fmt.Errorf("%.128q is not the URL of a key's version", ref)
	}
	if m[1] != k.host {
		return "", "", fmt.Errorf("key %s is in %s, the settings name %s", ref, (&url.URL{Scheme: "https", Host: m[1]}).String(), k.cfg.VaultURL)
	}
	return m[2], m[3], nil
}
