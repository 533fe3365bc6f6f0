package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/credence-id/credence/broker/audit"
)

// TestAFullFileSystem fills a small one, where this process may mount it.
func TestAFullFileSystem(t *testing.T) {
	at := t.TempDir()
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skip("no file system can be mounted: ", err)
	}
	defer func() {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	dir := filepath.Join(at, "audit")
	l := open(t, audit.Config{Dir: dir, Reserve: 256 << 10})
	defer l.Close()
	refs := add(t, l, event(0))
	fill, err := os.Create(filepath.Join(at, "others"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = fill.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	granted, denied := 0, 0
	for i := range 1000 {
		ref, err := l.Append(t.Context(), event(i))
		if err != nil && !errors.Is(err, audit.ErrFull) {
			t.Fatal(err)
		}
		if err == nil {
			refs, granted = append(refs, ref...), granted+1
		}
		if ref, err := l.Append(t.Context(), audit.Event{Kind: "deny"}); err == nil {
			refs, denied = append(refs, ref...), denied+1
		}
	}
	if granted < 250 || granted == 1000 || denied > 30 { // what was left of the last page takes either
		t.Errorf("%d grants and %d denials were recorded on a full disk", granted, denied)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir, refs...); r.Records != uint64(len(refs)) || r.Files != 2 {
		t.Errorf("%d were confirmed, the report is %+v", len(refs), r)
	}
}
