package dir_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/credence-id/credence/federation/publish"
	"github.com/credence-id/credence/federation/publish/dir"
	"github.com/credence-id/credence/federation/publish/publishtest"
)

func TestStore(t *testing.T) {
	publishtest.RunStore(t, dir.Store{Dir: filepath.Join(t.TempDir(), "a", "b")})
}

// Whatever our umask is, a web server's user can read what is published; what
// was there keeps its mode.
func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	root := filepath.Join(t.TempDir(), "mine")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	s := dir.Store{Dir: filepath.Join(root, "public")}
	if err := s.Put(t.Context(), publish.Document{Name: publish.DiscoveryName, Body: []byte("{}")}, nil); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		root: 0o700, s.Dir: 0o755, filepath.Join(s.Dir, ".well-known"): 0o755, filepath.Join(s.Dir, publish.DiscoveryName): 0o644,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode().Perm(), err, want)
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.Dir, ".well-known"))
	if err != nil || len(entries) != 1 {
		t.Errorf("beside the document: %v, %v", entries, err)
	}
}

// A reader sees one document or the other, never half of one.
func TestReadersSeeWholeDocuments(t *testing.T) {
	s := dir.Store{Dir: t.TempDir()}
	document := func(n int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%d", n%10), 256<<10) }
	put := func(n int) {
		held, err := s.Get(t.Context(), publish.KeysName)
		if err == nil {
			err = s.Put(t.Context(), publish.Document{Name: publish.KeysName, Body: document(n)}, held)
		}
		if err != nil {
			t.Error(err)
		}
	}
	put(0)
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			body, err := os.ReadFile(filepath.Join(s.Dir, publish.KeysName))
			if err != nil || len(body) != 256<<10 || body[0] != body[len(body)-1] {
				t.Errorf("half a document: %d bytes, %v", len(body), err)
				return
			}
		}
	})
	for n := range 20 {
		put(n)
	}
	close(stop)
	reading.Wait()
}

func TestWhatIsNoDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := dir.Store{Dir: file}
	if err := s.Put(t.Context(), publish.Document{Name: publish.KeysName, Body: []byte("{}")}, nil); err == nil || errors.Is(err, publish.ErrConflict) {
		t.Errorf("put below a file: %v", err)
	}
}
