package spool

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
)

// run is the one writer. It takes whatever has gathered while the disk was at
// work: the slower the disk, the more share one fsync.
func (s *Spool) run(t *tape) {
	defer close(s.done)
	defer t.drop()
	for {
		batch, more := s.take()
		if !more {
			s.keepLosses()
			return
		}
		s.commit(t, batch)
		s.keepLosses()
	}
}

// take waits for calls, for losses to write or for the end.
func (s *Spool) take() (batch []*call, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 && !s.closing && !s.lost.dirty {
		s.work.Wait()
	}
	if len(s.queue) == 0 && s.closing {
		return nil, false
	}
	n, size := 0, 0
	for n < len(s.queue) && (n == 0 || size+len(s.queue[n].data) <= maxBatch) {
		size += len(s.queue[n].data)
		n++
	}
	batch = slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	return batch, true
}

// A write is one group commit.
type write struct {
	data  []byte
	next  uint64
	gap   *Gap
	taken []*call
}

// plan gives the calls their lines, as far as there is room: first of all the
// count of what was lost.
func (s *Spool) plan(batch []*call) write {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := write{next: s.next}
	// Where a record of any size would fit: else the next gap follows at once.
	room := int64(MaxRecord + 2*reserve)
	if s.trouble != nil {
		room = 2 * reserve // it tries the disk besides
	}
	if s.lost.untold() > 0 && !s.full(room) {
		w.gap = s.lost.gap()
		if text, err := json.Marshal(w.gap); err == nil { // a gap's always can
			w.data = appendLine(w.data, w.next, 'g', text)
			w.next++
		}
	}
	for _, c := range batch {
		line, size := []byte(nil), int64(reserve)
		if c.data != nil {
			line = appendLine(nil, w.next, 'r', c.data)
			size = int64(len(line))
		}
		if s.full(int64(len(w.data)) + size) {
			s.lost.add(c.count(), LostFull, s.cfg.Now())
			c.err = fmt.Errorf("%w: %d bytes have not arrived, at most %d are kept", ErrFull, s.bytes, s.cfg.Max)
			close(c.done)
			continue
		}
		if line != nil {
			w.data = append(w.data, line...)
			w.next++
		}
		w.taken = append(w.taken, c)
	}
	return w
}

func (s *Spool) commit(t *tape, batch []*call) {
	w := s.plan(batch)
	err := s.put(t, w)
	s.mu.Lock()
	if err != nil {
		if s.trouble == nil {
			s.cfg.Log.Error("reports cannot be spooled", "dir", s.cfg.Dir, "error", err)
		}
		s.trouble = err
	} else if len(w.data) > 0 {
		if s.trouble != nil {
			s.cfg.Log.Info("reports are spooled again", "dir", s.cfg.Dir)
		}
		s.trouble = nil
		if w.gap != nil {
			s.lost.told(w.gap)
		}
		s.next = w.next
		s.nudge()
	}
	for _, c := range w.taken {
		if err != nil {
			c.err = fmt.Errorf("%w: %w", ErrDisk, err)
			s.lost.add(c.count(), LostDisk, s.cfg.Now())
		} else if s.trouble != nil {
			c.err = fmt.Errorf("%w: %w", ErrDisk, s.trouble)
		}
		close(c.done)
	}
	s.mu.Unlock()
}

// put writes to the segment, or to a new one when that is full.
func (s *Spool) put(t *tape, w write) error {
	if len(w.data) == 0 {
		return nil
	}
	s.mu.Lock()
	at, first := s.segments[len(s.segments)-1], s.next
	s.mu.Unlock()
	if at.size > 0 && (t.fresh || at.size >= s.cfg.Segment) {
		if err := t.begin(first); err != nil {
			return err
		}
		s.mu.Lock()
		s.segments = append(s.segments, segment{first: first})
		at = s.segments[len(s.segments)-1]
		s.mu.Unlock()
		s.shed()
	}
	if err := t.append(at, w.data); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.segments[len(s.segments)-1].size += int64(len(w.data))
	s.bytes += int64(len(w.data))
	return nil
}

// keepLosses makes the count of what is lost durable, if the disk lets it.
func (s *Spool) keepLosses() {
	s.mu.Lock()
	l := s.lost
	s.lost.dirty = false // until the next loss: what fails now fails then too
	s.mu.Unlock()
	if !l.dirty {
		return
	}
	if err := s.cfg.disk.place(filepath.Join(s.cfg.Dir, lossFile), l.encode(), true); err != nil {
		s.cfg.Log.Warn("the count of lost reports is in memory alone", "lost", l.Total, "error", err)
	}
}
