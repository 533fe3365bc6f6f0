package gcpkmstest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"hash/crc32"
	"strings"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// find finds a version. It comes to be while it is looked at.
func (s *Service) find(ref string) (*Key, error) {
	k := s.keys[ref]
	if k == nil {
		return nil, status.Errorf(codes.NotFound, "CryptoKeyVersion %s not found.", ref)
	}
	if k.Version.State == kmspb.CryptoKeyVersion_PENDING_GENERATION {
		if k.making--; k.making < 0 {
			k.Version.State = kmspb.CryptoKeyVersion_ENABLED
		}
	}
	return k, nil
}

// enabled finds a version that may be used.
func (s *Service) enabled(ref string) (*Key, error) {
	k, err := s.find(ref)
	if err == nil && k.Version.State != kmspb.CryptoKeyVersion_ENABLED {
		err = status.Errorf(codes.FailedPrecondition, "%s is not enabled, current state is: %s.", ref, k.Version.State)
	}
	return k, err
}

// GetCryptoKeyVersion tells of a version.
func (s *Service) GetCryptoKeyVersion(ctx context.Context, in *kmspb.GetCryptoKeyVersionRequest) (*kmspb.CryptoKeyVersion, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(in.GetName())
	if err != nil {
		return nil, err
	}
	v := proto.Clone(k.Version).(*kmspb.CryptoKeyVersion)
	if s.broken(ctx, "GetCryptoKeyVersion", "") {
		v.Name = strings.Replace(v.Name, "acme", "evil", 1)
	}
	return v, nil
}

// GetPublicKey gives a version's public key and its checksum.
func (s *Service) GetPublicKey(ctx context.Context, in *kmspb.GetPublicKeyRequest) (*kmspb.PublicKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.enabled(in.GetName())
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(k.Signer.Public())
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
	out := &kmspb.PublicKey{Name: in.GetName(), Algorithm: k.Version.Algorithm, Pem: text, PemCrc32C: sum([]byte(text)), ProtectionLevel: k.Version.ProtectionLevel}
	if s.broken(ctx, "GetPublicKey", "") {
		out.Pem = strings.Replace(out.Pem, "M", "N", 1)
	}
	if s.broken(ctx, "GetPublicKey", "crc") {
		out.PemCrc32C = nil
	}
	if s.broken(ctx, "GetPublicKey", "name") {
		out.Name = strings.Replace(out.Name, "acme", "evil", 1)
	}
	return out, nil
}

func sum(data []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))))
}

// AsymmetricSign signs a digest of the version's own hash, whose checksum must
// come along and fit.
func (s *Service) AsymmetricSign(ctx context.Context, in *kmspb.AsymmetricSignRequest) (*kmspb.AsymmetricSignResponse, error) {
	s.mu.Lock()
	k, err := s.enabled(in.GetName())
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	digest, hash := in.GetDigest().GetSha256(), crypto.SHA256
	if k.Version.Algorithm == kmspb.CryptoKeyVersion_EC_SIGN_P384_SHA384 {
		digest, hash = in.GetDigest().GetSha384(), crypto.SHA384
	}
	if len(digest) != hash.Size() || len(in.GetData()) != 0 {
		return nil, status.Errorf(codes.InvalidArgument, "The digest type or length does not fit %s.", k.Version.Algorithm)
	}
	if in.GetDigestCrc32C() == nil || in.GetDigestCrc32C().GetValue() != sum(digest).GetValue() {
		return nil, status.Error(codes.InvalidArgument, "The checksum in field digest_crc32c did not match the data in field digest.")
	}
	sig, err := k.Signer.Sign(rand.Reader, digest, hash)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	out := &kmspb.AsymmetricSignResponse{Name: in.GetName(), Signature: sig, SignatureCrc32C: sum(sig), VerifiedDigestCrc32C: true, ProtectionLevel: k.Version.ProtectionLevel}
	s.damage(ctx, out)
	return out, nil
}

func (s *Service) damage(ctx context.Context, out *kmspb.AsymmetricSignResponse) {
	if s.broken(ctx, "AsymmetricSign", "") { // and nobody notices on the way
		out.Signature[len(out.Signature)-1] ^= 1
		out.SignatureCrc32C = sum(out.Signature)
	}
	if s.broken(ctx, "AsymmetricSign", "crc") {
		out.SignatureCrc32C.Value ^= 1
	}
	if s.broken(ctx, "AsymmetricSign", "nocrc") {
		out.SignatureCrc32C = nil
	}
	if s.broken(ctx, "AsymmetricSign", "unverified") {
		out.VerifiedDigestCrc32C = false
	}
	if s.broken(ctx, "AsymmetricSign", "name") {
		out.Name = strings.Replace(out.Name, "acme", "evil", 1)
	}
}

// DestroyCryptoKeyVersion schedules a version's end.
func (s *Service) DestroyCryptoKeyVersion(_ context.Context, in *kmspb.DestroyCryptoKeyVersionRequest) (*kmspb.CryptoKeyVersion, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.find(in.GetName())
	if err != nil {
		return nil, err
	}
	switch k.Version.State {
	case kmspb.CryptoKeyVersion_ENABLED, kmspb.CryptoKeyVersion_DISABLED:
		k.Version.State = kmspb.CryptoKeyVersion_DESTROY_SCHEDULED
		return k.Version, nil
	}
	return nil, status.Errorf(codes.FailedPrecondition, "%s is in state %s.", in.GetName(), k.Version.State)
}
