package unix_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/attest/unix"
)

func opened(t *testing.T, content string) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(name, []byte(content), 0o600))
	f, err := os.Open(name)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// A file changed a moment ago may change again and look the same.
func TestFreshFileIsNotRemembered(t *testing.T) {
	for name, row := range map[string]struct {
		ahead time.Duration
		want  int
	}{"written just now": {0, 0}, "written an hour ago": {time.Hour, 1}} {
		t.Run(name, func(t *testing.T) {
			f := opened(t, "x")
			info, err := f.Stat()
			must(t, err)
			a := unix.New(unix.Config{Now: func() time.Time { return info.ModTime().Add(row.ahead) }})
			_, err = a.Digest(t.Context(), 1, f)
			must(t, err)
			if got := a.Cached(); got != row.want {
				t.Errorf("%d digests remembered, want %d", got, row.want)
			}
		})
	}
}

func TestDigestsAreBounded(t *testing.T) {
	a := unix.New(unix.Config{})
	for i := range unix.MaxDigests + 10 {
		a.RememberDigest(i)
	}
	if got := a.Cached(); got != unix.MaxDigests {
		t.Errorf("%d digests remembered", got)
	}
}

// Who has a large file read waits for its end with their next one; others don't.
func TestOneFileAtATimeForAUser(t *testing.T) {
	a := unix.New(unix.Config{})
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	done := make(chan error)
	go func() {
		_, err := a.Digest(t.Context(), 1, r)
		done <- err
	}()
	_, err = w.Write(make([]byte, 1<<20)) // more than a pipe holds: it is being read now
	must(t, err)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Digest(cancelled, 1, opened(t, "next")); !errors.Is(err, context.Canceled) {
		t.Errorf("the same user's next file: %v", err)
	}
	if _, err := a.Digest(t.Context(), 2, opened(t, "another's")); err != nil {
		t.Errorf("another user's file: %v", err)
	}
	must(t, w.Close())
	<-done // a pipe's times may have changed with the writing
	if got := a.Waiting(); got != 0 {
		t.Errorf("%d users are kept", got)
	}
}

func TestFileChangedWhileRead(t *testing.T) {
	for name, row := range map[string]struct{ change, ok bool }{"changed": {true, false}, "left alone": {false, true}} {
		path := filepath.Join(t.TempDir(), "fifo")
		must(t, syscall.Mkfifo(path, 0o600))
		r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		must(t, err)
		defer r.Close()
		w, err := os.OpenFile(path, os.O_WRONLY, 0)
		must(t, err)
		done := make(chan error)
		go func() {
			_, err := unix.New(unix.Config{}).Digest(t.Context(), 1, r)
			done <- err
		}()
		if row.change {
			_, err = w.Write(make([]byte, 1<<20)) // more than it holds: it is being read now
			must(t, err)
			must(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
		}
		must(t, w.Close())
		if err := <-done; (err == nil) != row.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDigestStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unix.New(unix.Config{}).Digest(ctx, 1, opened(t, "x")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
