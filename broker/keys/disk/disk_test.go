package disk_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/keys/disk"
)

func open(t *testing.T) (*disk.Keys, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	k, err := disk.New(disk.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return k, dir
}

func create(t *testing.T, k *disk.Keys, alg string) (string, crypto.Signer) {
	t.Helper()
	ref, key, err := k.Create(t.Context(), alg)
	if err != nil {
		t.Fatal(err)
	}
	return ref, key
}

func TestCreateThenOpen(t *testing.T) {
	k, dir := open(t)
	for alg, bits := range map[string]int{"ES256": 256, "P256": 256, "P384": 384, "RS256": 2048, "RSA2048": 2048} {
		t.Run(alg, func(t *testing.T) {
			ref, key := create(t, k, alg)
			again, err := disk.New(disk.Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			found, err := again.Open(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			if !found.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
				t.Error("another key was found")
			}
			if got := size(key.Public()); got != bits {
				t.Errorf("key of %d bits, want %d", got, bits)
			}
		})
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 || strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s has mode %04o", e.Name(), info.Mode().Perm())
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
}

func size(pub crypto.PublicKey) int {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return k.Curve.Params().BitSize
	case *rsa.PublicKey:
		return k.N.BitLen()
	}
	return 0
}

func TestCreateRefuses(t *testing.T) {
	k, dir := open(t)
	for _, alg := range []string{"", "P521", "Ed25519", "RSA1024", "rs256"} {
		if _, _, err := k.Create(t.Context(), alg); err == nil {
			t.Errorf("made a key of %q", alg)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := k.Create(ctx, "P256"); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller left: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A directory that others can enter is refused when it is used, not only at
// the start.
func TestDirectory(t *testing.T) {
	for _, mode := range []fs.FileMode{0o750, 0o701, 0o770} {
		k, dir := open(t)
		ref, _ := create(t, k, "P256")
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := disk.New(disk.Config{Dir: dir}); err == nil {
			t.Errorf("%04o: opened", mode)
		}
		if _, _, err := k.Create(t.Context(), "P256"); err == nil {
			t.Errorf("%04o: made a key", mode)
		}
		if _, err := k.Open(t.Context(), ref); err == nil {
			t.Errorf("%04o: opened a key", mode)
		}
	}
	_, dir := open(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", link, file, filepath.Join(dir, "not", "there")} {
		if _, err := disk.New(disk.Config{Dir: dir}); err == nil {
			t.Errorf("opened %q", dir)
		}
	}
}

func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	k, dir := open(t)
	ref, _ := create(t, k, "P256")
	file := filepath.Join(dir, ref+".pem")
	if err := os.Chown(file, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(t.Context(), ref); err == nil || !strings.Contains(err.Error(), "12345") {
		t.Errorf("a key of another user: %v", err)
	}
	if err := os.Chown(dir, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.New(disk.Config{Dir: dir}); err == nil {
		t.Error("opened a directory of another user")
	}
}

func TestOpenRefuses(t *testing.T) {
	k, dir := open(t)
	ref, _ := create(t, k, "P256")
	good, err := os.ReadFile(filepath.Join(dir, ref+".pem"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte, mode fs.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name+".pem")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("readable", good, 0o640)
	write("world", good, 0o604)
	write("empty", nil, 0o600)
	write("text", []byte("not a key"), 0o600)
	write("two", append(good, good...), 0o600)
	write("large", append(good, make([]byte, 16<<10)...), 0o600)
	write("type", []byte(strings.ReplaceAll(string(good), "PRIVATE KEY", "EC PRIVATE KEY")), 0o600)
	write(".new-1", good, 0o600)
	if err := os.Symlink(filepath.Join(dir, ref+".pem"), filepath.Join(dir, "link.pem")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.pem"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{
		"readable", "world", "empty", "text", "two", "large", "type", "link", "dir", ".new-1",
		"", ".", "..", "../keys/" + ref, "/" + ref, ref + "\x00", strings.Repeat("a", 200), strings.ToUpper(ref), "absent",
	} {
		if _, err := k.Open(t.Context(), ref); err == nil {
			t.Errorf("opened %q", ref)
		} else if strings.Contains(err.Error(), "MI") {
			t.Errorf("the error may show a key: %v", err)
		}
	}
	if _, err := k.Open(t.Context(), "absent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key that is not there: %v", err)
	}
	write("fine", good, 0o400)
	if _, err := k.Open(t.Context(), "fine"); err != nil {
		t.Error(err)
	}
}
