package boundkeypair_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent/evidence/boundkeypair"
)

// What a broker does with it is tested beside its method, broker/join/boundkeypair.

func TestCreateKey(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "node.key")
	made, err := boundkeypair.CreateKey(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	read, err := boundkeypair.File{Path: file}.Public()
	if err != nil || !made.(*ecdsa.PublicKey).Equal(read) {
		t.Errorf("another key is read: %v", err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := boundkeypair.CreateKey(file); err == nil || !strings.Contains(err.Error(), "there is a file") {
		t.Errorf("a key is replaced: %v", err)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("it changed: %v", err)
	}
	if err := os.Symlink(filepath.Join(filepath.Dir(file), "absent"), file+".link"); err != nil {
		t.Fatal(err)
	}
	if _, err := boundkeypair.CreateKey(file + ".link"); err == nil {
		t.Error("a link was followed")
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "node.key")
	if _, err := boundkeypair.CreateKey(file); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		text []byte
		mode fs.FileMode
		want string // empty: taken
	}{
		{"ours", good, 0o600, ""},
		{"read-only", good, 0o400, ""},
		{"a group's to read", good, 0o640, ""},
		{"anybody's to read", good, 0o644, "others may use the file"},
		{"a group's to write", good, 0o660, "others may use the file"},
		{"anybody's to write", good, 0o602, "others may use the file"},
		{"empty", nil, 0o600, "one private key is wanted"},
		{"two", append(bytes.Clone(good), good...), 0o600, "more than one"},
		{"of another kind", bytes.ReplaceAll(good, []byte("PRIVATE KEY"), []byte("EC PRIVATE KEY")), 0o600, "one private key is wanted"},
		{"no key inside", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")}), 0o600, "no private key that signs"},
		{"too long", append(bytes.Clone(good), make([]byte, 32<<10)...), 0o600, "one private key is wanted"},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, row.text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, row.mode); err != nil {
				t.Fatal(err)
			}
			p := boundkeypair.New(boundkeypair.Config{TrustDomain: "example.org", Key: boundkeypair.File{Path: path}, StateFile: filepath.Join(dir, "none")})
			switch _, err := p.Evidence(t.Context()); {
			case row.want == "" && err != nil:
				t.Error(err)
			case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "join.key")):
				t.Errorf("the error is %v, want %q", err, row.want)
			case err != nil && strings.Contains(err.Error(), "secret"):
				t.Errorf("a secret is told: %v", err)
			}
		})
	}
	p := boundkeypair.New(boundkeypair.Config{Key: boundkeypair.File{Path: filepath.Join(dir, "absent")}})
	if _, err := p.Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "credence agent key create") {
		t.Errorf("no key: %v", err)
	}
}

// A counting key tells how often it signed.
type counting struct {
	boundkeypair.File
	signed *int
}

func (c counting) Sign(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	*c.signed++
	return c.File.Sign(digest, opts)
}

// TestNothingIsSignedBeforeItsStateIsKept holds that a node which can't keep what it
// would be held to says so, to a person and before it signs.
func TestNothingIsSignedBeforeItsStateIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if _, err := boundkeypair.CreateKey(key); err != nil {
		t.Fatal(err)
	}
	signed := 0
	prover := func(state string) *boundkeypair.Prover {
		return boundkeypair.New(boundkeypair.Config{TrustDomain: "example.org", Key: counting{boundkeypair.File{Path: key}, &signed}, StateFile: state})
	}
	if _, err := prover(filepath.Join(dir, "absent", "state")).AnswerFor(t.Context(), make([]byte, 72), []byte("key")); err == nil {
		t.Error("an answer without a place for its state")
	}
	for _, length := range []int{0, 32, 71, 73} {
		if _, err := prover(filepath.Join(dir, "state")).AnswerFor(t.Context(), make([]byte, length), []byte("key")); err == nil {
			t.Errorf("a challenge of %d bytes is answered", length)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "no JSON": "x", "no state": "{}", "a short one": `{"key":"k","next":"AAAA"}`, "more": `{"key":"k","more":1}`, "long": strings.Repeat(" ", 5<<10),
	} {
		bad := filepath.Join(dir, "bad")
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := prover(bad).Evidence(t.Context()); err == nil || !strings.Contains(err.Error(), "once removed, a join counts as a recovery") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := prover(bad).AnswerFor(t.Context(), make([]byte, 72), []byte("key")); err == nil {
			t.Errorf("%s: answered", name)
		}
		if after, err := os.ReadFile(bad); err != nil || string(after) != text {
			t.Errorf("%s: it was replaced: %v", name, err)
		}
	}
	if signed != 0 {
		t.Errorf("%d signatures", signed)
	}
	good := filepath.Join(dir, "state")
	if _, err := prover(good).AnswerFor(t.Context(), make([]byte, 72), []byte("key")); err != nil || signed != 1 {
		t.Errorf("%d signatures, %v", signed, err)
	}
	if info, err := os.Stat(good); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the state has mode %v, %v", info.Mode(), err)
	}
}

// FuzzState holds that a state that is taken answers any challenge, and is told as
// no other's.
func FuzzState(f *testing.F) {
	dir := f.TempDir()
	key := filepath.Join(dir, "key")
	if _, err := boundkeypair.CreateKey(key); err != nil {
		f.Fatal(err)
	}
	name, err := boundkeypair.New(boundkeypair.Config{Key: boundkeypair.File{Path: key}, StateFile: filepath.Join(dir, "absent")}).Evidence(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	next := strings.Repeat("A", 43) + "="
	f.Add([]byte(`{"key":"`+string(name)+`","joins":3,"next":"`+next+`"}`), make([]byte, 72))
	f.Add([]byte(`{"key":"`+string(name)+`","joins":3,"last":"`+next+`","next":"`+next+`"}`), bytes.Repeat([]byte{1}, 72))
	f.Add([]byte(`{"key":"another","joins":3,"next":"`+next+`"}`), make([]byte, 1))
	f.Fuzz(func(t *testing.T, state, challenge []byte) {
		file := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(file, state, 0o600); err != nil {
			t.Fatal(err)
		}
		p := boundkeypair.New(boundkeypair.Config{TrustDomain: "example.org", Key: boundkeypair.File{Path: key}, StateFile: file})
		_, bad := p.Evidence(t.Context())
		answer, err := p.AnswerFor(t.Context(), challenge, []byte("key"))
		if (err == nil) != (bad == nil && len(challenge) == 72) || err == nil && len(answer) <= 72 {
			t.Fatalf("%d bytes, %v, though %v", len(answer), err, bad)
		}
		if err == nil {
			if _, err := p.Evidence(t.Context()); err != nil {
				t.Errorf("what it kept: %v", err)
			}
		}
	})
}
