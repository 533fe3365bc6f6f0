// Package awscredentials keeps one profile of an AWS shared credentials file
// fresh, for programs that read nothing else. Everything else in the file stays
// byte for byte.
//
// It trusts the file's owner with the file, and takes it to be one only if the
// kernel says so (output.Dir). AWS's own tools lock nothing: what they write
// meanwhile is seen before the file is replaced, and the rewriting begins again.
package awscredentials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/output"
	"github.com/credence-id/credence/exchangers"
)

// Config is the wiring of a Writer. Fields are required unless noted.
type Config struct {
	File    string // absolute; its directory must stand
	Owner   output.Owner
	Profile string           // empty means "default"
	Target  string           // of an AWS flow
	Output  string           // its name, for the mark in the file
	Now     func() time.Time // nil means time.Now
}

// Complete fills defaults in, and refuses what could not be written. The error
// begins with the field's name.
func (c *Config) Complete() error {
	if c.Profile == "" {
		c.Profile = "default"
	}
	if err := output.CheckPath(c.File); err != nil {
		return fmt.Errorf("file: %w", err)
	}
	if !profileName.MatchString(c.Profile) {
		return fmt.Errorf("profile: %q: up to 64 letters, digits and _.@/+- are wanted", c.Profile)
	}
	if c.Target == "" {
		return errors.New("target: is required: a target of AWS that the identity lists")
	}
	return nil
}

// A Writer keeps one profile. It is for one goroutine.
type Writer struct {
	cfg  Config
	last exchangers.AWS
}

// New returns a Writer. It refuses what Config.Complete refuses.
func New(cfg Config) (*Writer, error) {
	if err := cfg.Complete(); err != nil {
		return nil, err
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Writer{cfg: cfg}, nil
}

const (
	tries      = 5
	askAgain   = time.Minute      // for the next credential, while it is not there
	afterHalf  = 15 * time.Second // it is refreshed at half of its life
	credential = 0o600            // the mode
)

func (w *Writer) mark() string { return "# written by credence, output " + w.cfg.Output }

// Write puts the target's present credential into the profile. While there is no
// newer one, what is there stays.
func (w *Writer) Write(ctx context.Context, from output.Source, _ agent.Update) (output.Written, error) {
	got, err := from.Exchange(ctx, w.cfg.Target, "")
	if errors.Is(err, agent.ErrDenied) {
		return output.Written{}, errors.Join(err, w.Erase(ctx)) // no longer listed
	}
	if err != nil {
		return output.Written{}, err
	}
	if got.AWS == nil {
		return output.Written{}, fmt.Errorf("target %s gives no AWS credential", w.cfg.Target)
	}
	values := []keyValue{{ours[0], got.AWS.AccessKeyID}, {ours[1], got.AWS.SecretAccessKey.Reveal()}, {ours[2], got.AWS.SessionToken.Reveal()}}
	changed, err := w.rewrite(func(text []byte) ([]byte, error) { return put(text, w.cfg.Profile, w.mark(), values) })
	if err != nil {
		return output.Written{}, err
	}
	now := w.cfg.Now()
	again := output.HalfLife(now, got.Expires).Add(afterHalf)
	if got.AWS.AccessKeyID == w.last.AccessKeyID || again.Before(now.Add(askAgain)) {
		again = now.Add(askAgain)
	}
	w.last = *got.AWS
	return output.Written{Changed: changed, Again: again}, nil
}

// Erase takes our keys out of the profile.
func (w *Writer) Erase(context.Context) error {
	w.last = exchangers.AWS{}
	_, err := w.rewrite(func(text []byte) ([]byte, error) { return remove(text, w.cfg.Profile, w.mark()) })
	return err
}

// Check says whether the file could be rewritten.
func (w *Writer) Check() error {
	_, err := w.rewrite(func(text []byte) ([]byte, error) {
		_, err := put(text, w.cfg.Profile, w.mark(), nil)
		return text, err
	})
	return err
}

// rewrite replaces the file by what change makes of it, beginning again where
// somebody else wrote meanwhile.
func (w *Writer) rewrite(change func([]byte) ([]byte, error)) (changed bool, err error) {
	for range tries {
		if changed, err = w.once(change); !errors.Is(err, output.ErrChanged) {
			break
		}
	}
	if err != nil {
		return false, fmt.Errorf("rewriting %s: %w", w.cfg.File, err)
	}
	return changed, nil
}

func (w *Writer) once(change func([]byte) ([]byte, error)) (bool, error) {
	d, err := output.OpenDir(filepath.Dir(w.cfg.File), w.cfg.Owner.UID)
	if err != nil {
		return false, err
	}
	defer d.Close()
	if err := d.Lock(); err != nil {
		return false, err
	}
	name := filepath.Base(w.cfg.File)
	text, was, err := d.Read(name, w.cfg.Owner.UID, maxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	next, err := change(text)
	if err != nil {
		return false, err
	}
	if bytes.Equal(text, next) && (was == nil || was.Mode().Perm() == credential) {
		return false, nil
	}
	return true, d.Write(output.File{Name: name, Data: next, Mode: credential}, w.cfg.Owner, was)
}
