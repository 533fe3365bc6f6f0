package store_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/broker/store"
)

// TestSealed opens what was sealed, and nothing that was changed, reordered or cut.
func TestSealed(t *testing.T) {
	snapshot := store.Snapshot{TrustDomain: "example.org", Keys: [][]byte{secret}}
	now := time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)
	const head, chunk = 18 + 32 + 8, 64<<10 + 16
	for _, size := range []int{0, 1, 64<<10 - 1, 64 << 10, 3 * 64 << 10, 3*64<<10 + 5} {
		plain := bytes.Repeat([]byte{'p'}, size)
		var sealed bytes.Buffer
		if err := snapshot.Seal(&sealed, now, plain); err != nil {
			t.Fatal(err)
		}
		made, got, err := snapshot.Unseal(&sealed, now)
		if err != nil || !made.Equal(now) || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %d of %v (%v)", size, len(got), made, err)
		}
	}
	var sealed bytes.Buffer
	if err := snapshot.Seal(&sealed, now, bytes.Repeat([]byte{'p'}, 3*64<<10)); err != nil {
		t.Fatal(err)
	}
	whole := sealed.Bytes()
	swapped := bytes.Clone(whole)
	copy(swapped[head:], whole[head+chunk:][:chunk])
	copy(swapped[head+chunk:], whole[head:][:chunk])
	bad := map[string][]byte{
		"chunks in another order": swapped, "more at its end": append(bytes.Clone(whole), 0), "nothing": nil,
		"without its last chunk": whole[:head+3*chunk], "without a chunk": append(bytes.Clone(whole[:head+chunk]), whole[head+2*chunk:]...),
		"a last chunk before its end": append(bytes.Clone(whole[:head]), whole[head+3*chunk:]...),
	}
	for at := 0; at < len(whole); at += 1 + len(whole)/97 {
		flipped := bytes.Clone(whole)
		flipped[at] ^= 1
		bad["byte flipped"] = flipped
		for what, text := range bad {
			if _, _, err := snapshot.Unseal(bytes.NewReader(text), now); err == nil {
				t.Errorf("%s (%d): it is opened", what, at)
			}
		}
		clear(bad)
	}
	for what, other := range map[string]store.Snapshot{
		"no key": {TrustDomain: "example.org"}, "a short key": {TrustDomain: "example.org", Keys: [][]byte{secret[:8]}}, "no trust domain": {Keys: [][]byte{secret}},
	} {
		if err := other.Seal(io.Discard, now, nil); err == nil {
			t.Errorf("%s: it is sealed", what)
		}
		if _, _, err := other.Unseal(bytes.NewReader(whole), now); err == nil {
			t.Errorf("%s: it is opened", what)
		}
	}
}

// TestKeeper holds when a snapshot is made: some seconds after a change, with all
// that came in them, and every ten minutes.
func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	apply(t, s, "a")
	path := filepath.Join(dir, "snapshot.sealed")
	synctest.Test(t, func(t *testing.T) {
		keeper := store.Keeper{Store: s, Snapshot: store.Snapshot{Path: path, TrustDomain: "example.org", Keys: [][]byte{secret}}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- keeper.Run(ctx) }()
		var last []byte
		after := func(what string, wait time.Duration, anew bool) {
			t.Helper()
			time.Sleep(wait)
			synctest.Wait()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if made := !bytes.Equal(text, last); made != anew {
				t.Errorf("%s: made %v", what, made)
			}
			last = text
		}
		after("at the start", 2*time.Second, true)
		after("without a change", 8*time.Minute, false)
		change := func(name string) {
			t.Helper()
			apply(t, s, name)
			if _, err := s.Revision(ctx); err != nil { // as who looks each second
				t.Fatal(err)
			}
		}
		change("b")
		after("at once", 3*time.Second, false)
		change("c")
		after("after some seconds", 4*time.Second, true)
		change("d")
		after("in the pause", 10*time.Second, false)
		after("after it", 15*time.Second, true)
		after("in a long time", 11*time.Minute, true)
		change("e")
		keeper.Hurry()
		after("in a hurry", 2*time.Second, true)
		change("f")
		keeper.Hurry()
		after("in a hurry, in the pause", 2*time.Second, true)
		after("no more than once", 2*time.Minute, false)
		stands, err := s.Revision(ctx)
		anew := &store.Keeper{Snapshot: keeper.Snapshot}
		if err != nil || keeper.Kept() != stands || anew.Kept() != stands {
			t.Errorf("the snapshot goes up to %d, its file to %d, the store to %d (%v)", keeper.Kept(), anew.Kept(), stands, err)
		}
		none := store.Snapshot{Path: filepath.Join(dir, "none"), TrustDomain: "example.org", Keys: keeper.Snapshot.Keys}
		if kept := (&store.Keeper{Snapshot: none}).Kept(); kept != 0 {
			t.Errorf("none goes up to %d", kept)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v (%v)", info, err)
	}
}
