package main

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cloud.google.com/go/auth"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/aws/aws-sdk-go-v2/aws"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/keys/awskms"
	"github.com/credence-id/credence/broker/keys/azurekv"
	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/keys/gcpkms"
	"github.com/credence-id/credence/broker/keys/pkcs11"
	"github.com/credence-id/credence/broker/keys/sealed"
	"github.com/credence-id/credence/cmd/cli"
)

// keySource says where private keys are kept: in exactly one of these.
type keySource struct {
	Disk    *diskKeys         `yaml:"disk"`
	AWSKMS  *awskms.Settings  `yaml:"awskms"`
	GCPKMS  *gcpkms.Settings  `yaml:"gcpkms"`
	AzureKV *azurekv.Settings `yaml:"azurekv"`
	PKCS11  *pkcs11.Settings  `yaml:"pkcs11"`
}

// diskKeys are files, encrypted under a key-encryption key if one is named.
type diskKeys struct {
	Dir           string `yaml:"dir"` // default DATA/keys; of root_keys DATA/root-keys
	disk.Settings `yaml:",inline"`
}

// The purposes that keys are made for. They are in the keys' names and tags,
// and bound into what is encrypted.
const (
	purposeKeys = "authority" // issuing CAs and JWT keys; the root too, where it has no source of its own
	purposeRoot = "root"
)

// completeKeys fills defaults in and holds the sources of keys against each
// other.
func (f *brokerFile) completeKeys() error {
	if f.Keys == nil {
		f.Keys = &keySource{Disk: &diskKeys{}}
	}
	if err := f.Keys.complete("keys", f.Data, "keys"); err != nil {
		return err
	}
	if err := f.Keys.sharable("keys", f.shared()); err != nil {
		return err
	}
	if f.RootKeys == nil {
		return nil
	}
	if err := f.RootKeys.complete("root_keys", f.Data, "root-keys"); err != nil {
		return err
	}
	if err := f.RootKeys.sharable("root_keys", f.shared()); err != nil {
		return err
	}
	if a, b := f.Keys.Disk, f.RootKeys.Disk; a != nil && b != nil && cli.Absolute(a.Dir) == cli.Absolute(b.Dir) {
		return fmt.Errorf("root_keys.disk.dir: %s is where keys has its own: name another, or leave root_keys out", b.Dir)
	}
	return nil
}

// sharable refuses keys on disk that other brokers need and could not open.
func (s *keySource) sharable(field string, shared bool) error {
	if shared && s.Disk != nil && s.Disk.KEKFile == "" {
		return fmt.Errorf("%s.disk.kek_file: is required with a database that brokers share: the root's and the JWT keys lie in it, encrypted under what this file holds (openssl rand -base64 32); the same file on every broker, outside of data", field)
	}
	return nil
}

func (s *keySource) complete(field, data, dir string) error {
	kinds := s.kinds()
	if len(kinds) != 1 {
		return fmt.Errorf("%s: one of disk, awskms, gcpkms, azurekv and pkcs11 is wanted%s", field, andNot(kinds))
	}
	field += "." + kinds[0]
	if s.Disk != nil {
		cli.SetDefault(&s.Disk.Dir, filepath.Join(data, dir))
		for _, kek := range slices.Concat([]string{s.Disk.KEKFile}, s.Disk.OldKEKFiles) {
			for _, with := range []string{data, s.Disk.Dir} {
				if kek != "" && cli.Inside(kek, with) {
					return fmt.Errorf("%s.kek_file: %s lies in %s, whose backup would carry the lock and its key: keep it elsewhere", field, kek, with)
				}
			}
		}
	}
	if err := s.settings().Validate(); err != nil {
		return fmt.Errorf("%s.%w", field, err)
	}
	return nil
}

func andNot(kinds []string) string {
	if len(kinds) == 0 {
		return ""
	}
	return ", not " + strings.Join(kinds, " and ")
}

func (s *keySource) kinds() (kinds []string) {
	for _, k := range []struct {
		name string
		set  bool
	}{{"disk", s.Disk != nil}, {"awskms", s.AWSKMS != nil}, {"gcpkms", s.GCPKMS != nil}, {"azurekv", s.AzureKV != nil}, {"pkcs11", s.PKCS11 != nil}} {
		if k.set {
			kinds = append(kinds, k.name)
		}
	}
	return kinds
}

func (s *keySource) settings() interface{ Validate() error } {
	switch {
	case s.AWSKMS != nil:
		return s.AWSKMS
	case s.GCPKMS != nil:
		return s.GCPKMS
	case s.AzureKV != nil:
		return s.AzureKV
	case s.PKCS11 != nil:
		return s.PKCS11
	}
	return s.Disk
}

// where names the place for people: what a key source calls itself.
func (s *keySource) where() string {
	switch {
	case s.AWSKMS != nil:
		return "awskms " + s.AWSKMS.Region
	case s.GCPKMS != nil:
		return "gcpkms " + s.GCPKMS.KeyRing
	case s.AzureKV != nil:
		return "azurekv " + s.AzureKV.VaultURL
	case s.PKCS11 != nil:
		return "pkcs11 " + s.PKCS11.TokenLabel
	}
	return "disk " + s.Disk.Dir
}

// sourceOf tells by a key's name which kind of source made it.
func sourceOf(ref string) string {
	for prefix, kind := range map[string]string{sealed.Prefix: "the brokers over a shared database", "arn:": "awskms", "projects/": "gcpkms", "https://": "azurekv", "pkcs11:": "pkcs11"} {
		if strings.HasPrefix(ref, prefix) {
			return kind
		}
	}
	return "disk"
}

// keyAccess is how the services are reached, where that is not as their SDKs
// do it.
type keyAccess struct {
	HTTP  *http.Client
	AWS   aws.CredentialsProvider
	Azure azcore.TokenCredential
	GCP   *auth.Credentials
	Dial  []grpc.DialOption
}

// sourceKeys are the keys of one source of broker.yaml.
type sourceKeys struct {
	authority.Keys
	field, kind, place string
	encrypted          bool // on disk, under a key-encryption key
	close              func() error
}

// openKeys opens the source in a field of f.
func openKeys(ctx context.Context, f brokerFile, field, purpose string, s *keySource, access keyAccess) (*sourceKeys, error) {
	k := &sourceKeys{field: field, kind: s.kinds()[0], place: s.where(), close: func() error { return nil }}
	var err error
	switch {
	case s.AWSKMS != nil:
		k.Keys, err = awskms.New(ctx, awskms.Config{Settings: *s.AWSKMS, TrustDomain: f.TrustDomain, Purpose: purpose, HTTPClient: access.HTTP, Credentials: access.AWS})
	case s.GCPKMS != nil:
		var kms *gcpkms.Keys
		if kms, err = gcpkms.New(ctx, gcpkms.Config{Settings: *s.GCPKMS, TrustDomain: f.TrustDomain, Purpose: purpose, Credentials: access.GCP, Dial: access.Dial}); err == nil {
			k.Keys, k.close = kms, kms.Close
		}
	case s.AzureKV != nil:
		k.Keys, err = azurekv.New(azurekv.Config{Settings: *s.AzureKV, TrustDomain: f.TrustDomain, Purpose: purpose, HTTPClient: access.HTTP, Credentials: access.Azure})
	case s.PKCS11 != nil:
		var token *pkcs11.Keys
		if token, err = pkcs11.New(pkcs11.Config{Settings: *s.PKCS11, Purpose: purpose}); err == nil {
			k.Keys, k.close = token, token.Close
		}
	default:
		k.encrypted = s.Disk.KEKFile != ""
		k.Keys, err = disk.New(disk.Config{Settings: s.Disk.Settings, Dir: s.Disk.Dir, Data: f.Data, TrustDomain: f.TrustDomain, Purpose: purpose})
	}
	if err != nil {
		return nil, fmt.Errorf("%s.%s: %w", field, k.kind, err)
	}
	return k, nil
}

// sharedKeys lie in the database, encrypted: what keys on disk become where
// brokers share it.
type sharedKeys struct {
	*sealed.Keys
	field string
}

// openShared opens the keys that brokers share, where a field of f says disk.
func openShared(f brokerFile, field, purpose string, s *keySource) (*sharedKeys, error) {
	k, err := sealed.New(sealed.Config{Settings: s.Disk.Settings, Data: f.Data, TrustDomain: f.TrustDomain, Purpose: purpose})
	if err != nil {
		return nil, fmt.Errorf("%s.disk: %w", field, err)
	}
	return &sharedKeys{k, field}, nil
}

// Unseal opens a key.
func (k *sharedKeys) Unseal(data []byte, bound ...string) (crypto.Signer, error) {
	key, err := k.Keys.Unseal(data, bound...)
	if err != nil {
		err = fmt.Errorf("%s.disk: %w", k.field, err)
	}
	return key, err
}

// String names the place for people.
func (k *sharedKeys) String() string { return "database, under " + k.field + ".disk.kek_file" }

var _ authority.SealedKeys = (*sharedKeys)(nil)

// Create makes a key.
func (k *sourceKeys) Create(ctx context.Context, alg string) (string, crypto.Signer, error) {
	ref, key, err := k.Keys.Create(ctx, alg)
	if err != nil {
		err = fmt.Errorf("%s.%s: %w", k.field, k.kind, err)
	}
	return ref, key, err
}

// Open finds a key again, and tells a key that another kind of source made.
func (k *sourceKeys) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if made := sourceOf(ref); made != k.kind {
		return nil, fmt.Errorf("%s.%s: the key %.256s was made by %s: broker.yaml must name that source until no key in use is in it", k.field, k.kind, ref, made)
	}
	key, err := k.Keys.Open(ctx, ref)
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = fmt.Errorf("%s.%s: it is not in %s: if it is elsewhere, name that place there; if it is lost, credence broker keys says how to go on: %w", k.field, k.kind, k.place, err)
	case err != nil:
		err = fmt.Errorf("%s.%s: %w", k.field, k.kind, err)
	}
	return key, err
}

// Remove takes a key out of a directory, of which somebody has a copy. What
// other sources hold they keep.
func (k *sourceKeys) Remove(ctx context.Context, ref string) error {
	keys, ok := k.Keys.(*disk.Keys)
	if !ok {
		return fmt.Errorf("%s.%s: %w: keys never leave %s", k.field, k.kind, authority.ErrRefused, k.place)
	}
	return keys.Remove(ctx, ref)
}

// String names the place for people.
func (k *sourceKeys) String() string { return k.place }

var _ authority.Keys = (*sourceKeys)(nil)
