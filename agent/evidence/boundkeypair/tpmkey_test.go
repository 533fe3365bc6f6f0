package boundkeypair_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/credence-id/credence/agent/evidence/boundkeypair"
	"github.com/credence-id/credence/agent/tpm"
	"github.com/credence-id/credence/agent/tpmseal/tpmtest"
)

// inTPM makes a key in a TPM.
func inTPM(t *testing.T, device string) (boundkeypair.File, *ecdsa.PublicKey) {
	t.Helper()
	f := boundkeypair.File{Path: filepath.Join(t.TempDir(), "node.key"), Device: device}
	key, err := boundkeypair.CreateTPMKey(f.Path, device)
	if err != nil {
		t.Fatal(err)
	}
	return f, key.(*ecdsa.PublicKey)
}

func open(t *testing.T, device string) transport.TPM {
	t.Helper()
	opened, err := tpm.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return opened
}

// signs holds that a key signs.
func signs(t *testing.T, f boundkeypair.File, key *ecdsa.PublicKey) {
	t.Helper()
	digest := sha256.Sum256([]byte("what is signed"))
	if signature, err := f.Sign(digest[:], crypto.SHA256); err != nil || !ecdsa.VerifyASN1(key, digest[:], signature) {
		t.Errorf("it does not sign: %v", err)
	}
	if held, err := f.Held(); err != nil || !key.Equal(held) {
		t.Errorf("it is not held: %v", err)
	}
}

func refuses(t *testing.T, f boundkeypair.File, want string) {
	t.Helper()
	digest := sha256.Sum256([]byte("what is signed"))
	if _, err := f.Sign(digest[:], crypto.SHA256); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "join.key") {
		t.Errorf("the error is %v, want %q", err, want)
	}
	if _, err := f.Held(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v, want %q", err, want)
	}
}

func TestTPMKey(t *testing.T) {
	t.Parallel()
	device := tpmtest.Start(t)
	f, key := inTPM(t, device)
	if info, err := os.Stat(f.Path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := boundkeypair.CreateTPMKey(f.Path, device); err == nil || !strings.Contains(err.Error(), "there is a file") {
		t.Errorf("a key is replaced: %v", err)
	}
	for range 8 { // nothing stays loaded: a TPM has room for three
		signs(t, f, key)
	}
	out, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 8}.Execute(open(t, device))
	if err != nil {
		t.Fatal(err)
	}
	if handles, err := out.CapabilityData.Data.Handles(); err != nil || len(handles.Handle) > 0 {
		t.Errorf("it left %v, %v", handles, err)
	}
	for hash, size := range map[crypto.Hash]int{crypto.SHA384: 48, crypto.SHA512_256: 32, crypto.SHA256: 20, 0: 32} {
		if _, err := f.Sign(make([]byte, size), hash); err == nil || !strings.Contains(err.Error(), "SHA-256 digests alone") {
			t.Errorf("%d bytes of %v are signed: %v", size, hash, err)
		}
	}
	none := f
	none.Device = filepath.Join(t.TempDir(), "none")
	if read, err := none.Public(); err != nil || !key.Equal(read) {
		t.Errorf("the public key needs a TPM: %v", err)
	}
	refuses(t, none, "no TPM")
	if _, err := boundkeypair.CreateTPMKey(none.Device+".key", none.Device); !errors.Is(err, tpm.ErrAbsent) {
		t.Errorf("no TPM: %v", err)
	}
	if _, err := os.Stat(none.Device + ".key"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left a file: %v", err)
	}
}

// A TPM's key survives the power, and neither the disk in another machine nor the
// clearing of the TPM.
func TestTPMsLife(t *testing.T) {
	t.Parallel()
	dir := tpmtest.Dir(t)
	var f boundkeypair.File
	var key *ecdsa.PublicKey
	path := filepath.Join(t.TempDir(), "node.key")
	t.Run("before the power goes", func(t *testing.T) {
		f, key = inTPM(t, tpmtest.StartIn(t, dir))
		if err := os.Rename(f.Path, path); err != nil {
			t.Fatal(err)
		}
	})
	f.Path = path
	refuses(t, f, "TPM")
	f.Device = tpmtest.StartIn(t, dir)
	signs(t, f, key)
	refuses(t, boundkeypair.File{Path: path, Device: tpmtest.Start(t)}, "another TPM")
	signs(t, f, key)

	opened, err := tpm.Open(f.Device)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.Clear{AuthHandle: tpm2.TPMRHLockout}).Execute(opened); err != nil {
		t.Fatal(err)
	}
	opened.Close()
	refuses(t, f, "cleared")
}

// password gives a TPM's owner one.
func password(t *testing.T, device string) {
	t.Helper()
	opened, err := tpm.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: tpm2.TPMRHOwner, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("secret")}}).Execute(opened); err != nil {
		t.Fatal(err)
	}
}

// Of a TPM whose owner has a password the storage key that stands is used.
func TestTPMWithAPassword(t *testing.T) {
	t.Parallel()
	device := tpmtest.Start(t)
	before, _ := inTPM(t, device)
	opened, err := tpm.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm.Guidance)}.Execute(opened)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: tpm.Standing}).Execute(opened); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(opened); err != nil {
		t.Fatal(err)
	}
	opened.Close()
	password(t, device)
	refuses(t, before, "password")
	f, key := inTPM(t, device)
	signs(t, f, key)

	bare := tpmtest.Start(t)
	password(t, bare)
	if _, err := boundkeypair.CreateTPMKey(filepath.Join(t.TempDir(), "key"), bare); err == nil {
		t.Error("a key without a storage key")
	}
}

// form is what a file holds, as the draft has it.
type form struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"optional,explicit,tag:0"`
	Parent    int64
	Public    []byte
	Private   []byte
}

func readForm(t testing.TB, path string) (f form) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "TSS2 PRIVATE KEY" {
		t.Fatalf("it holds %s", text)
	}
	if rest, err := asn1.Unmarshal(block.Bytes, &f); err != nil || len(rest) > 0 {
		t.Fatal(err)
	}
	return f
}

func (f form) pem(t testing.TB) []byte {
	t.Helper()
	der, err := asn1.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: der})
}

// TestTPMGivesNoKey holds that a TPM which has the key gives its private half to
// nobody, whatever they ask.
func TestTPMGivesNoKey(t *testing.T) {
	t.Parallel()
	device := tpmtest.Start(t)
	f, _ := inTPM(t, device)
	held := readForm(t, f.Path)
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](held.Public)
	if err != nil {
		t.Fatal(err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](held.Private)
	if err != nil {
		t.Fatal(err)
	}
	opened := open(t, device)
	storage, err := tpm.MakeStorage(opened, tpm.KeyFiles)
	if err != nil {
		t.Fatal(err)
	}
	defer storage.Close()
	err = storage.Load(*public, *private, func(key tpm2.NamedHandle) error {
		out, err := tpm2.ReadPublic{ObjectHandle: key.Handle}.Execute(opened)
		if err != nil {
			return err
		}
		contents, err := out.OutPublic.Contents()
		if err != nil {
			return err
		}
		want := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true}
		if contents.ObjectAttributes != want {
			t.Errorf("attributes %+v", contents.ObjectAttributes)
		}
		auth := tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)}
		if _, err := (tpm2.Unseal{ItemHandle: auth}).Execute(opened); err == nil {
			t.Error("it is unsealed")
		}
		auth.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(tpm transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
			_, err := tpm2.PolicyCommandCode{PolicySession: session, Code: tpm2.TPMCCDuplicate}.Execute(tpm)
			return err
		})
		if _, err := (tpm2.Duplicate{ObjectHandle: auth, NewParentHandle: tpm2.TPMRHNull, Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull}}).Execute(opened); err == nil {
			t.Error("it is duplicated")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// change replaces the attributes that a file says its key has.
func (f form) change(t *testing.T, how func(*tpm2.TPMTPublic)) form {
	t.Helper()
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](f.Public)
	if err != nil {
		t.Fatal(err)
	}
	contents, err := public.Contents()
	if err != nil {
		t.Fatal(err)
	}
	how(contents)
	f.Public = tpm2.Marshal(tpm2.New2B(*contents))
	return f
}

func TestTPMKeysThatAreRefused(t *testing.T) {
	t.Parallel()
	device := tpmtest.Start(t)
	f, key := inTPM(t, device)
	other, _ := inTPM(t, device)
	good, stranger := readForm(t, f.Path), readForm(t, other.Path)
	with := func(change func(*form)) []byte {
		bad := good
		bad.Public, bad.Private = bytes.Clone(good.Public), bytes.Clone(good.Private)
		change(&bad)
		return bad.pem(t)
	}
	public := func(change func(*tpm2.TPMTPublic)) []byte { return good.change(t, change).pem(t) }
	block, _ := pem.Decode(good.pem(t))
	der := func(bytes []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: bytes})
	}
	const none = "it holds no key on P-256"
	for _, row := range []struct {
		name string
		text []byte
		want string // said of the file; empty: by the TPM
	}{
		{"half of it", der(block.Bytes[:len(block.Bytes)/2]), none},
		{"something follows", der(append(bytes.Clone(block.Bytes), 0)), none},
		{"nothing", der(nil), none},
		{"two", slices.Concat(good.pem(t), good.pem(t)), "more than one"},
		{"too long", append(good.pem(t), make([]byte, 32<<10)...), "one private key is wanted"},
		{"to be imported", with(func(f *form) { f.Type = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 4} }), none},
		{"sealed data", with(func(f *form) { f.Type = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5} }), none},
		{"with a password", with(func(f *form) { f.EmptyAuth = false }), none},
		{"below nothing", with(func(f *form) { f.Parent = 0 }), "below 0x0"},
		{"below another hierarchy", with(func(f *form) { f.Parent = 0x4000000b }), "below 0x4000000b"},
		{"below what is no handle", with(func(f *form) { f.Parent = 1<<32 + 0x40000001 }), "below 0x1"},
		{"below a negative", with(func(f *form) { f.Parent = -1 }), "below -0x1"},
		{"no public half", with(func(f *form) { f.Public = nil }), none},
		{"a longer public half", with(func(f *form) { f.Public = append(f.Public, 0) }), none},
		{"no private half", with(func(f *form) { f.Private = nil }), none},
		{"a longer private half", with(func(f *form) { f.Private = append(f.Private, 0) }), none},
		{"off the curve", public(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte{1}}, Y: tpm2.TPM2BECCParameter{Buffer: []byte{1}}})
		}), none},
		{"at infinity", public(func(p *tpm2.TPMTPublic) { p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}) }), none},
		{"a point too long", public(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 33)}})
		}), none},
		{"another curve", public(func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP384})
		}), none},
		{"it may leave its TPM", public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }), none},
		{"it may leave its parent", public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false }), none},
		{"it came from elsewhere", public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false }), none},
		{"by policy alone", public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = false }), none},
		{"it signs nothing", public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false }), none},
		{"it signs what is the TPM's", public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = true }), none},
		{"another attribute", public(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.NoDA = false }), ""},
		{"another's public half", with(func(f *form) { f.Public = stranger.Public }), ""},
		{"a private half changed", with(func(f *form) { f.Private[len(f.Private)-1] ^= 1 }), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			bad := boundkeypair.File{Path: filepath.Join(t.TempDir(), "key"), Device: device}
			if err := os.WriteFile(bad.Path, row.text, 0o600); err != nil {
				t.Fatal(err)
			}
			if row.want == "" {
				refuses(t, bad, "another TPM")
				return
			}
			if _, err := bad.Public(); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("the error is %v, want %q", err, row.want)
			}
			refuses(t, bad, row.want)
		})
	}
	signs(t, f, key)
	plain := boundkeypair.File{Path: filepath.Join(t.TempDir(), "key"), Device: device}
	if _, err := boundkeypair.CreateKey(plain.Path); err != nil {
		t.Fatal(err)
	}
	refuses(t, plain, "join.device")
	plain.Device = ""
	if _, err := plain.Held(); err == nil || !strings.Contains(err.Error(), "name another file") {
		t.Errorf("a key in a file is a TPM's: %v", err)
	}
}

// FuzzTPMKey looks for a file that is read as something else than what was written.
func FuzzTPMKey(f *testing.F) {
	f.Add([]byte{})
	at := elliptic.P256().Params()
	public := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true},
		Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: at.Gx.Bytes()}, Y: tpm2.TPM2BECCParameter{Buffer: at.Gy.Bytes()},
		}),
	}
	for _, parent := range []int64{0x40000001, 0x81000001} {
		der, err := asn1.Marshal(form{asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}, true, parent, tpm2.Marshal(tpm2.New2B(public)), []byte{0, 1, 0}})
		if err != nil {
			f.Fatal(err)
		}
		if _, err := boundkeypair.TPMKeyAgain(der); err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		again, err := boundkeypair.TPMKeyAgain(der)
		if err == nil && !bytes.Equal(der, again) {
			t.Errorf("%x became %x", der, again)
		}
	})
}
