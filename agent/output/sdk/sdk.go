// Package sdk keeps, for one output, what stock cloud SDKs look for: the files
// and loopback endpoints of agent/local, and an environment file that leads
// there, for services that nobody wraps.
//
// A service reads the environment once. So the port and the secrets outlast the
// agent: they stand in its own state, and the SDKs of a running service find the
// next agent where they found the last. Until it is there, others could take the
// port and answer; a port below 1024 is taken by nobody but root.
//
// It trusts the output's user with all of it: any of its processes may ask. Who
// asks as another user is refused by agent/local.
package sdk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/agent/output"
)

// EnvFile is the file with the environment.
const EnvFile = "env"

// lookAgain is when files are looked after.
const lookAgain = time.Minute

// Config is the wiring of a Writer. Fields are required unless noted.
type Config struct {
	Dir     string // absolute, of its own; what is above it must stand
	Owner   output.Owner
	Targets []string         // the first of each cloud is that cloud's default
	Listen  string           // 127.0.0.1:PORT; empty: a free port, the same while it is free
	State   string           // a file of the agent's own, for port and secrets
	Trace   local.Trace      // of requests at endpoints; nil: they are not traced
	Log     *slog.Logger     // nil discards
	Now     func() time.Time // nil means time.Now
}

var (
	targetName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	loopback   = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)

// Complete refuses what could not be served. The error begins with the field's
// name.
func (c *Config) Complete() error {
	if err := output.CheckPath(c.Dir); err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	if len(c.Targets) == 0 {
		return errors.New("targets: is required: targets that the identity lists")
	}
	for n, name := range c.Targets {
		if !targetName.MatchString(name) {
			return fmt.Errorf("targets: %q: that is no target's name", name)
		}
		if slices.Contains(c.Targets[:n], name) {
			return fmt.Errorf("targets: %s is named twice", name)
		}
	}
	if c.Listen == "" {
		return nil
	}
	at, err := netip.ParseAddrPort(c.Listen)
	if err != nil || at.Addr() != loopback || at.Port() == 0 || at.String() != c.Listen {
		return fmt.Errorf("listen: %q: 127.0.0.1 and a port are wanted, such as 127.0.0.1:911", c.Listen)
	}
	return nil
}

// A Writer serves one output. It is for one goroutine.
type Writer struct {
	cfg      Config
	source   *local.Delivered
	door     *local.Door     // nil: it is not open
	surfaces *local.Surfaces // nil: nothing is served
	made     string          // what surfaces were made of
	kept     kept
}

// New returns a Writer. It refuses what Config.Complete refuses.
func New(cfg Config) (*Writer, error) {
	if err := cfg.Complete(); err != nil {
		return nil, err
	}
	if cfg.State == "" {
		return nil, errors.New("serving SDKs: a file for the state is wanted")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Writer{cfg: cfg, source: &local.Delivered{Log: cfg.Log}}, nil
}

// Listen takes the port, and answers errors there until something is granted.
// What it cannot do, Write tries again.
func (w *Writer) Listen() error {
	if w.door != nil {
		return nil
	}
	var err error
	if w.kept, err = load(w.cfg.State, w.cfg.Owner.UID); err != nil {
		return err
	}
	if w.door, err = w.listen(); err != nil {
		return err
	}
	if w.kept.Listen == w.door.Addr() {
		return nil
	}
	w.kept.Listen = w.door.Addr()
	if err := w.kept.save(w.cfg.State); err != nil {
		w.door.Close()
		w.door = nil
		return err
	}
	return nil
}

// listen opens the door where it was, unless it is to be somewhere else.
func (w *Writer) listen() (*local.Door, error) {
	const free = "127.0.0.1:0"
	at, uid := cmp.Or(w.cfg.Listen, w.kept.Listen, free), int(w.cfg.Owner.UID)
	door, err := local.OpenDoor(at, uid)
	if errors.Is(err, syscall.EADDRINUSE) && w.cfg.Listen == "" {
		w.cfg.Log.Warn("the port of before is taken: those who read the environment before must read it again", "port", at)
		door, err = local.OpenDoor(free, uid)
	}
	return door, err
}

// Close ends what is served. What was written stays.
func (w *Writer) Close() error {
	err := w.leave()
	if w.door != nil {
		w.door.Close()
		w.door = nil
	}
	return err
}

func (w *Writer) leave() (err error) {
	if w.surfaces != nil {
		err = w.surfaces.Close()
	}
	w.surfaces, w.made = nil, ""
	return err
}

// Write serves what the output may have now, all targets or nothing the first
// time. It has changed when a program must read the environment, or a file that
// its SDK reads once, again.
func (w *Writer) Write(ctx context.Context, from output.Source, u agent.Update) (output.Written, error) {
	written := output.Written{Again: w.cfg.Now().Add(lookAgain)}
	w.source.Hold(from, u.SVIDs)
	if err := w.Listen(); err != nil {
		return written, err
	}
	var err error
	if made := w.ingredients(u); made != w.made {
		if err = w.open(ctx, made); err == nil {
			return w.changed(written)
		}
	}
	switch {
	case w.surfaces != nil: // each target by itself
		w.surfaces.Refresh(ctx)
	case err != nil:
		w.door.Refuse(err)
		if status.Code(err) == codes.PermissionDenied { // what an earlier agent left
			err = errors.Join(err, w.erase())
		}
	}
	return written, err
}

// ingredients are what the files are made of, but for what is fresh each time.
func (w *Writer) ingredients(u agent.Update) string {
	var all strings.Builder
	for _, name := range w.cfg.Targets {
		for _, v := range u.SVIDs {
			for _, t := range v.Targets {
				if t.Name == name {
					fmt.Fprintf(&all, "%s %s %d\n", v.ID, name, t.Revision)
				}
			}
		}
	}
	return all.String() + "."
}

// open puts new surfaces in the place of those that are there, or leaves them.
func (w *Writer) open(ctx context.Context, made string) error {
	if err := w.place(); err != nil {
		return err
	}
	next, err := local.Open(ctx, local.Config{
		Dir: w.cfg.Dir, UID: int(w.cfg.Owner.UID), GID: int(w.cfg.Owner.GID), Targets: w.cfg.Targets, Source: w.source,
		Door: w.door, Seed: w.kept.Seed, Keep: true, EnvFile: EnvFile, Trace: w.cfg.Trace, Log: w.cfg.Log, Now: w.cfg.Now,
	})
	if err != nil {
		return err
	}
	err = w.leave()
	w.surfaces, w.made = next, made
	if err != nil {
		w.cfg.Log.WarnContext(ctx, "what was served before is not closed", "error", err)
	}
	return nil
}

// place holds everything above the directory to be nobody else's.
func (w *Writer) place() error {
	above, err := output.OpenDir(filepath.Dir(w.cfg.Dir))
	if err != nil {
		return err
	}
	above.Close()
	return nil
}

// changed says what the programs found before, in this run of the agent or an
// earlier one.
func (w *Writer) changed(written output.Written) (output.Written, error) {
	print := w.surfaces.Fingerprint()
	if print == w.kept.Fingerprint {
		return written, nil
	}
	w.kept.Fingerprint, written.Changed = print, true
	return written, w.kept.save(w.cfg.State)
}

// Erase ends what is served, and removes every file. The port answers errors.
func (w *Writer) Erase(context.Context) error {
	w.source.Hold(nil, nil)
	err := errors.Join(w.leave(), w.Listen())
	if w.door != nil {
		w.door.Refuse(status.Error(codes.PermissionDenied, "nothing is granted to the output"))
	}
	return errors.Join(err, w.erase())
}

func (w *Writer) erase() error {
	err := w.place()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = local.Erase(w.cfg.Dir)
	}
	if err != nil || w.kept.Fingerprint == "" {
		return err
	}
	w.kept.Fingerprint = ""
	return w.kept.save(w.cfg.State)
}

// Check says whether the directory could be written. It changes nothing.
func (w *Writer) Check() error {
	if err := w.place(); err != nil {
		return err
	}
	return local.CheckKept(w.cfg.Dir, int(w.cfg.Owner.UID))
}

// Remove takes away what a Writer left in a directory, with its state, where no
// output is to have it any more.
func Remove(dir, state string) error {
	above, err := output.OpenDir(filepath.Dir(dir))
	if err == nil {
		above.Close()
		err = eraseDir(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Remove(state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func eraseDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory, and no link is followed", dir)
	}
	return local.Erase(dir)
}
