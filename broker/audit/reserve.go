package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"syscall"
	"time"
)

// reserveName is an empty file that has room on the disk. When others have filled
// that, it becomes the next file of the record: what is granted and revoked goes
// on for as long. Nothing else takes of it: no denial, no count of strangers, no
// report of a node's.
const reserveName = "reserve"

// reserveEvery is how often the reserve is tried to be made anew.
const reserveEvery = 10 * time.Second

// reserve is the room that is kept. The tape's goroutine owns it.
type reserve struct {
	size  int64 // 0: none is kept
	ready bool
	short error     // why there is no reserve now, or none but what is being used; nil: there is room
	tried time.Time // when it was last tried to be made
}

// isFull says that there is no room on the disk, or none that we may have.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// replenish makes the reserve, if there is none and it is time to try.
func (t *tape) replenish(now time.Time) {
	r := &t.reserve
	if r.size <= 0 || r.ready || !r.tried.IsZero() && now.Sub(r.tried).Abs() < reserveEvery {
		return
	}
	r.tried = now
	err := t.disk.reserve(filepath.Join(t.dir, reserveName), r.size)
	switch {
	case err == nil:
		if r.short != nil {
			t.log.Info("audit record: there is room again")
		}
		r.ready, r.short = true, nil
	case isFull(err):
		t.shorten(err)
	default:
		r.size = 0
		level := slog.LevelWarn
		if errors.Is(err, errors.ErrUnsupported) {
			level = slog.LevelDebug
		}
		t.log.Log(context.Background(), level, "audit record: no room is kept for a full disk", "dir", t.dir, "error", err)
	}
}

// shorten notes that the disk is full.
func (t *tape) shorten(err error) {
	if t.reserve.short == nil {
		t.log.Error("audit record: the disk is full; what room is left is kept for what is granted and revoked", "dir", t.dir, "error", err)
	}
	t.reserve.short = err
}

// refusal is the error of what may not take of the reserve; nil: there is room.
func (t *tape) refusal() error {
	if t.reserve.short == nil {
		return nil
	}
	return t.failed(fmt.Errorf("what room is left is kept for what is granted and revoked: %w", t.reserve.short))
}

// spend makes the reserve the file of the record after head, and says whether it
// did.
func (t *tape) spend(head Ref) bool {
	if !t.reserve.ready {
		return false
	}
	if err := t.mend(head); err != nil { // what is incomplete goes first
		return false
	}
	t.reserve.ready = false
	if err := t.disk.rename(filepath.Join(t.dir, reserveName), fileName(t.dir, head.Sequence+1)); err != nil {
		t.log.Error("audit record: the room that was kept cannot be used", "error", err)
		return false
	}
	if t.size == 0 { // it took the place of an empty file
		t.drop()
		t.path = ""
	}
	if err := t.rotate(head); err != nil {
		t.log.Error("audit record: the room that was kept cannot be used", "error", err)
		return false
	}
	return true
}
