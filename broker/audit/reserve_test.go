package audit_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/audit"
)

// A fullDisk is the real one, until others have filled it: then nothing but what
// was reserved takes more.
type fullDisk struct {
	mu       sync.Mutex // guards what follows
	full     bool
	reserved os.FileInfo
	left     int
}

func (d *fullDisk) set(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

func (d *fullDisk) Reserve(path string, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return syscall.ENOSPC
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	info, err := os.Stat(path)
	d.reserved, d.left = info, int(size)
	return err
}

func (d *fullDisk) Open(path string) (audit.File, error) {
	f, err := audit.OpenFile(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	return &fullFile{f, d, info}, err
}

func (d *fullDisk) SyncDir(string) error { return nil }

type fullFile struct {
	audit.File
	disk *fullDisk
	info os.FileInfo
}

func (f *fullFile) Write(b []byte) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if !f.disk.full {
		return f.File.Write(b)
	}
	if f.disk.reserved == nil || !os.SameFile(f.disk.reserved, f.info) || f.disk.left < len(b) {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, syscall.ENOSPC
	}
	f.disk.left -= len(b)
	return f.File.Write(b)
}

func TestAFullDiskLeavesRoomForGrants(t *testing.T) {
	dir, disk, now := newDir(t), &fullDisk{}, signedAt
	var clock sync.Mutex
	c := audit.Config{Dir: dir, Reserve: 8 << 10, Now: func() time.Time { clock.Lock(); defer clock.Unlock(); return now }}
	l, err := audit.OpenOn(disk, c)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	denial := audit.Event{Kind: "deny", Code: "denied"}
	report := audit.Event{Kind: "exchange", OK: true, Spare: true}
	refused := func(e audit.Event) {
		t.Helper()
		if _, err := l.Append(t.Context(), e); !errors.Is(err, audit.ErrFull) || !strings.Contains(err.Error(), "kept for what is granted") {
			t.Errorf("%s on a full disk: %v", e.Kind, err)
		}
	}
	refs := add(t, l, event(0), denial, report)
	disk.set(true)
	refused(denial) // it is the one that finds the disk full
	refs = append(refs, add(t, l, event(1))...)
	refused(denial)
	refused(report)
	refs = append(refs, add(t, l, audit.Event{Kind: "revoke", OK: true}, denial)...) // of one decision: both
	granted := 0
	for i := range 100 {
		ref, err := l.Append(t.Context(), event(10+i))
		if err != nil {
			if !errors.Is(err, audit.ErrFull) {
				t.Fatal(err)
			}
			break
		}
		refs, granted = append(refs, ref...), granted+1
	}
	if granted < 8 || granted == 100 {
		t.Errorf("%d were recorded after the disk was full", granted)
	}
	refused(denial)
	disk.set(false) // somebody made room: it goes on by itself
	refs = append(refs, add(t, l, event(200))...)
	clock.Lock()
	now = now.Add(time.Minute)
	clock.Unlock()
	refs = append(refs, add(t, l, event(201))...)
	refs = append(refs, add(t, l, denial)...)
	disk.set(true) // and there is a reserve again
	refs = append(refs, add(t, l, event(202))...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := verified(t, dir, refs...)
	if r.Records != uint64(len(refs)) || r.Confirmed != len(refs) || r.Torn != 0 {
		t.Errorf("%d were confirmed, the report is %+v", len(refs), r)
	}
	if l, err = audit.OpenOn(disk, c); err != nil {
		t.Fatal(err)
	}
	refused(denial) // after a restart it is as full
	if _, err := os.Stat(filepath.Join(dir, "reserve")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the reserve: %v", err)
	}
}

// TestTheRestOfTheReserveIsUsedAfterARestart is of a broker that stops while it
// writes where the reserve was.
func TestTheRestOfTheReserveIsUsedAfterARestart(t *testing.T) {
	dir, disk := newDir(t), &fullDisk{}
	c := audit.Config{Dir: dir, Reserve: 8 << 10}
	var refs []audit.Ref
	for i := range 3 {
		l, err := audit.OpenOn(disk, c)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, add(t, l, event(i))...)
		disk.set(true)
		refs = append(refs, add(t, l, event(10+i))...)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if r := verified(t, dir, refs...); r.Records != 6 || r.Files != 2 {
		t.Errorf("%+v", r)
	}
}
