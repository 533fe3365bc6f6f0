package azurekvtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/keys/keystest"
)

func (s *Service) create(name string, body []byte) (any, *refusal) {
	var in struct {
		Kty        string            `json:"kty"`
		Crv        string            `json:"crv"`
		KeySize    int               `json:"key_size"`
		KeyOps     []string          `json:"key_ops"`
		Attributes map[string]any    `json:"attributes"`
		Tags       map[string]string `json:"tags"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	if len(in.Tags) > 15 || slices.ContainsFunc(in.KeyOps, func(op string) bool { return op != "sign" && op != "verify" }) {
		return nil, bad("%d tags, operations %v", len(in.Tags), in.KeyOps)
	}
	for k, v := range in.Tags {
		if len(k) > 512 || len(v) > 256 {
			return nil, bad("the tag %q", k)
		}
	}
	signer, refused := generate(in.Kty, in.Crv, in.KeySize)
	if refused != nil {
		return nil, refused
	}
	version := make([]byte, 16)
	rand.Read(version)
	k := &Key{
		Ref: URL + "/keys/" + name + "/" + hex.EncodeToString(version), Kty: in.Kty, Crv: in.Crv, KeyOps: in.KeyOps, Tags: in.Tags,
		Attributes: map[string]any{"enabled": true, "created": time.Now().Unix(), "updated": time.Now().Unix(), "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90},
		Signer:     signer,
	}
	for name, value := range in.Attributes {
		if name != "enabled" {
			return nil, bad("the attribute %s", name)
		}
		k.Attributes[name] = value
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.keys[name]; old != nil && old.Deleted {
		return nil, refuse(http.StatusConflict, "Conflict", "ObjectIsDeletedButRecoverable", "Key %s is currently in a deleted but recoverable state, and its name cannot be reused.", name)
	}
	s.keys[name] = k
	return k.bundle(), nil
}

func generate(kty, crv string, size int) (crypto.Signer, *refusal) {
	var key crypto.Signer
	var err error
	switch fmt.Sprint(strings.TrimSuffix(kty, "-HSM"), " ", crv, size) {
	case "EC P-2560":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EC P-3840":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "RSA 2048", "RSA 3072", "RSA 4096":
		key, err = rsa.GenerateKey(rand.Reader, size)
	default:
		return nil, bad("kty %q, crv %q, key_size %d", kty, crv, size)
	}
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, "InternalError", "", "%v", err)
	}
	return key, nil
}

func (k *Key) bundle() map[string]any {
	jwk := map[string]any{"kid": k.Ref, "kty": k.Kty, "key_ops": k.KeyOps}
	text := base64.RawURLEncoding.EncodeToString
	switch pub := k.Signer.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := pub.Bytes()
		if err != nil {
			panic(err)
		}
		half := len(point) / 2
		jwk["crv"], jwk["x"], jwk["y"] = k.Crv, text(point[1:1+half]), text(point[1+half:])
	case *rsa.PublicKey:
		jwk["n"], jwk["e"] = text(pub.N.Bytes()), text(big.NewInt(int64(pub.E)).Bytes())
	}
	return map[string]any{"key": jwk, "attributes": k.Attributes, "tags": k.Tags}
}

func (s *Service) find(name, version string) (*Key, *refusal) {
	k := s.keys[name]
	if k == nil || k.Deleted || version != "" && !strings.HasSuffix(k.Ref, "/"+version) {
		return nil, refuse(http.StatusNotFound, "KeyNotFound", "", "A key with (name/id) %s/%s was not found in this key vault. If you recently deleted this key you may be able to recover it using the correct recovery command.", name, version)
	}
	return k, nil
}

func (s *Service) get(name, version string, broken bool) (any, *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, refused := s.find(name, version)
	if refused != nil {
		return nil, refused
	}
	b := k.bundle()
	if broken {
		b["key"].(map[string]any)["kid"] = URL + "/keys/other/" + version
	}
	return b, nil
}

func (s *Service) delete(name string) (any, *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, refused := s.find(name, "")
	if refused != nil {
		return nil, refused
	}
	k.Deleted = true
	b := k.bundle()
	b["recoveryId"], b["deletedDate"] = URL+"/deletedkeys/"+name, time.Now().Unix()
	return b, nil
}

// sign gives what RFC 7518 §3 does: ECDSA's r and s side by side.
func (s *Service) sign(name, version string, body []byte, broken bool) (any, *refusal) {
	var in struct {
		Alg   string `json:"alg"`
		Value string `json:"value"`
	}
	if refused := read(body, &in); refused != nil {
		return nil, refused
	}
	digest, err := base64.RawURLEncoding.Strict().DecodeString(in.Value)
	if err != nil {
		return nil, bad("value: %v", err)
	}
	s.mu.Lock()
	k, refused := s.find(name, version)
	enabled := refused == nil && k.Attributes["enabled"] == true
	s.mu.Unlock()
	if refused != nil {
		return nil, refused
	}
	if !enabled {
		return nil, refuse(http.StatusForbidden, "Forbidden", "KeyDisabled", "Operation sign is not allowed on a disabled key.")
	}
	if !slices.Contains(k.KeyOps, "sign") {
		return nil, refuse(http.StatusForbidden, "Forbidden", "", "Operation sign is not permitted on this key.")
	}
	sig, refused := k.sign(in.Alg, digest)
	if refused != nil {
		return nil, refused
	}
	if broken {
		sig[len(sig)/2] ^= 1
	}
	kid := k.Ref
	if s.Enter(context.Background(), "sign.kid", kid) == keystest.Broken {
		kid = URL + "/keys/other/" + version
	}
	return map[string]string{"kid": kid, "value": base64.RawURLEncoding.EncodeToString(sig)}, nil
}

func (k *Key) sign(alg string, digest []byte) ([]byte, *refusal) {
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[strings.TrimLeft(alg, "ERPS")]
	if hash == 0 || len(digest) != hash.Size() {
		return nil, bad("Invalid length of 'value': %d bytes. Algorithm %s requires %d.", len(digest), alg, hash.Size())
	}
	var opts crypto.SignerOpts = hash
	kind := "RS"
	if pub, ok := k.Signer.Public().(*ecdsa.PublicKey); ok {
		kind = "ES"
		if pub.Curve.Params().BitSize != hash.Size()*8 {
			kind = ""
		}
	} else if strings.HasPrefix(alg, "PS") {
		kind, opts = "PS", &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	if !strings.HasPrefix(alg, kind) || kind == "" {
		return nil, bad("Key and signing key algorithm are incompatible. Key https://... is of type %s, and algorithm %s.", k.Kty, alg)
	}
	sig, err := k.Signer.Sign(rand.Reader, digest, opts)
	if err == nil && kind == "ES" {
		var rs struct{ R, S *big.Int }
		_, err = asn1.Unmarshal(sig, &rs)
		size := hash.Size()
		sig = make([]byte, 2*size)
		rs.R.FillBytes(sig[:size])
		rs.S.FillBytes(sig[size:])
	}
	if err != nil {
		return nil, refuse(http.StatusInternalServerError, "InternalError", "", "%v", err)
	}
	return sig, nil
}
