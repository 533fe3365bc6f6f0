package audit_test

import (
	"os"
	"sync"

	"github.com/credence-id/credence/broker/audit"
)

// A faultyDisk is the real one with a hook before each act that can fail, and
// with the memory of what an fsync has not yet confirmed: an fsync that fails
// loses it, as a page cache may. It doesn't wait for the real disk: no test
// pulls the plug.
type faultyDisk struct {
	// fail is asked before each act, numbered from 1: "open", "write", "sync",
	// "truncate" or "syncdir". Its error is what the act returns.
	fail func(act string, n int) error

	mu    sync.Mutex
	acts  map[string]int
	total int
	dirty int // bytes written since the last good fsync
}

func newDisk(fail func(act string, n int) error) *faultyDisk {
	if fail == nil {
		fail = func(string, int) error { return nil }
	}
	return &faultyDisk{fail: fail, acts: make(map[string]int)}
}

func (d *faultyDisk) act(name string) error {
	d.mu.Lock()
	d.acts[name]++
	d.total++
	n := d.total
	d.mu.Unlock()
	return d.fail(name, n)
}

func (d *faultyDisk) count(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.acts[name]
}

func (d *faultyDisk) unsynced() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dirty
}

func (d *faultyDisk) wrote(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty += n
}

func (d *faultyDisk) Open(path string) (audit.File, error) {
	if err := d.act("open"); err != nil {
		return nil, err
	}
	f, err := audit.OpenFile(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return &faultyFile{disk: d, real: f, synced: info.Size(), size: info.Size()}, nil
}

func (d *faultyDisk) SyncDir(string) error {
	return d.act("syncdir")
}

type faultyFile struct {
	disk         *faultyDisk
	real         audit.File
	synced, size int64
}

func (f *faultyFile) Write(b []byte) (int, error) {
	if err := f.disk.act("write"); err != nil {
		n, _ := f.real.Write(b[:2*len(b)/3]) // a full disk takes what fits
		f.size += int64(n)
		return n, err
	}
	n, err := f.real.Write(b)
	f.size += int64(n)
	f.disk.wrote(n)
	return n, err
}

func (f *faultyFile) Sync() error {
	if err := f.disk.act("sync"); err != nil {
		if f.size > f.synced { // the pages are gone, the length stays
			_ = f.real.Truncate(f.synced)
			_ = f.real.Truncate(f.size)
		}
		return err
	}
	f.synced = f.size
	f.disk.wrote(-f.disk.unsynced())
	return nil
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.disk.act("truncate"); err != nil {
		return err
	}
	f.size, f.synced = size, min(size, f.synced)
	return f.real.Truncate(size)
}

func (f *faultyFile) Close() error { return f.real.Close() }
