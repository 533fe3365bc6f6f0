package backup_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/backup"
)

func identity(t testing.TB) ([]age.Identity, string) {
	t.Helper()
	file, recipient, err := backup.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	ids, err := backup.ParseIdentities(file)
	if err != nil {
		t.Fatal(err)
	}
	return ids, recipient
}

var manifest = backup.Manifest{TrustDomain: "example.org", Broker: "b1", MadeAt: time.Unix(1_800_000_000, 0).UTC(), Revision: 7, Sequence: 8, Record: 9, Keys: 1}

// long is more than one chunk of a database.
var long = bytes.Repeat([]byte("row "), 700_000)

func made(t testing.TB, recipients ...string) []byte {
	t.Helper()
	to, err := backup.ParseRecipients(recipients)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	b, err := backup.Create(&file, to, manifest)
	if err == nil {
		err = b.Database(func(w io.Writer) error {
			for part := range slices.Chunk(long, 300_000) {
				if _, err := w.Write(part); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err == nil {
		err = b.Add("keys/a.pem", []byte("a key"))
	}
	if err == nil {
		err = b.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestRoundTrip(t *testing.T) {
	one, first := identity(t)
	two, second := identity(t)
	file := made(t, first, second)
	if bytes.Contains(file, []byte("example.org")) || bytes.Contains(file, []byte("a key")) {
		t.Error("it can be read without a key")
	}
	want := manifest
	want.Format = 1
	for _, ids := range [][]age.Identity{one, two} {
		var dump bytes.Buffer
		b, err := backup.Read(bytes.NewReader(file), ids, func(r io.Reader) error { _, err := dump.ReadFrom(r); return err })
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, b.Manifest); d != "" || !bytes.Equal(dump.Bytes(), long) || string(b.Files["keys/a.pem"]) != "a key" || len(b.Files) != 1 {
			t.Errorf("%s, a database of %d bytes, files %v", d, dump.Len(), b.Names())
		}
		again, err := backup.Read(bytes.NewReader(file), ids, nil)
		if err != nil || again.Digest != b.Digest {
			t.Errorf("without its database: %v", err)
		}
	}
}

func TestWhatIsNoBackup(t *testing.T) {
	ids, recipient := identity(t)
	other, _ := identity(t)
	file := made(t, recipient)
	if _, err := backup.Read(bytes.NewReader(file), other, nil); !errors.Is(err, backup.ErrKey) {
		t.Errorf("with another's key: %v", err)
	}
	for _, at := range []int{0, 100, 300, len(file) / 2, len(file) - 1} {
		bad := bytes.Clone(file)
		bad[at] ^= 1
		if _, err := backup.Read(bytes.NewReader(bad), ids, nil); err == nil {
			t.Errorf("byte %d of %d was flipped, and nobody saw", at, len(file))
		}
	}
	for _, n := range []int{0, 100, 300, len(file) / 2, len(file) - 70_000, len(file) - 1} {
		if _, err := backup.Read(bytes.NewReader(file[:n]), ids, nil); err == nil {
			t.Errorf("%d of %d bytes are taken for all", n, len(file))
		}
	}
	if _, err := backup.Read(bytes.NewReader(append(bytes.Clone(file), 0)), ids, nil); err == nil {
		t.Error("a byte after the end is taken")
	}
	var chunks bytes.Buffer // cut where age cuts, as an attacker would
	if _, err := backup.Read(io.TeeReader(io.LimitReader(bytes.NewReader(file), int64(len(file)-len(file)%65552)), &chunks), ids, nil); err == nil {
		t.Error("a file without its last part is taken")
	}
}

func TestRecipients(t *testing.T) {
	for _, bad := range [][]string{nil, {""}, {"age1"}, {"ssh-ed25519 AAAA"}, {"AGE-SECRET-KEY-1"}} {
		if _, err := backup.ParseRecipients(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := backup.ParseIdentities([]byte("AGE-SECRET-KEY-1SECRET")); err == nil || bytes.Contains([]byte(err.Error()), []byte("SECRET\"")) {
		t.Errorf("%v", err)
	}
}

// FuzzRead gives Read what somebody made who has the recipient, as everybody may.
func FuzzRead(f *testing.F) {
	ids, recipient := identity(f)
	to, err := backup.ParseRecipients([]string{recipient})
	if err != nil {
		f.Fatal(err)
	}
	plain, err := age.Decrypt(bytes.NewReader(made(f, recipient)), ids...)
	if err != nil {
		f.Fatal(err)
	}
	text, err := io.ReadAll(plain)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text[:4096])
	f.Add([]byte("manifest.json"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var file bytes.Buffer
		w, err := age.Encrypt(&file, to...)
		if err == nil {
			_, err = w.Write(text)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := backup.Read(&file, ids, func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err })
		if err == nil && b.Manifest.Format != 1 {
			t.Error("a backup of no form")
		}
	})
}
