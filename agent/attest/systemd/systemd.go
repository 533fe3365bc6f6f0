// Package systemd attests in which unit of systemd a process is, as the facts
// workload.systemd.*.
//
//	unit           the outermost unit, such as nginx.service
//	slice          its slice, such as system.slice
//	fragment_path  the file that defines the unit, if there is one
//
// It trusts the kernel's cgroups as far as agent/attest does, and the manager
// that answers on the system bus: both must name the same unit, else all its
// facts are unknown. What runs in a user's own units is in that user's
// user@UID.service: the names below it are the user's to give, and are not told.
// So are a container's cgroups: its unit is its scope on this machine, if it has
// one.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sync/singleflight"

	"github.com/credence-id/credence/agent/attest"
	"github.com/credence-id/credence/agent/caller"
)

// Prefix is what the names of its facts begin with.
const Prefix = "workload.systemd"

// Config is the wiring of an Attestor. The zero Config is good.
type Config struct {
	Bus     string        // D-Bus address; empty: the system bus, or systemd's own socket
	Timeout time.Duration // of the manager's answers; 0 means 2 s
}

// An Attestor tells facts of units. It is safe for concurrent use, and holds one
// connection to the bus.
type Attestor struct {
	cfg     Config
	dialing singleflight.Group

	mu   sync.Mutex // guards conn
	conn *dbus.Conn // nil: none
}

// New returns an Attestor. It connects when it is first asked.
func New(c Config) *Attestor {
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Second
	}
	return &Attestor{cfg: c}
}

// Attest returns the facts of the unit that p is in; none if it is in none. No
// fact is costly.
func (a *Attestor) Attest(ctx context.Context, p *caller.Process, _ func(string) bool) (facts map[string][]string, unknown []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	facts, err = a.attest(ctx, p)
	if err = errors.Join(err, p.Check()); err != nil {
		return nil, nil, fmt.Errorf("attesting process %d: %w", p.PID(), err)
	}
	return facts, nil, nil
}

func (a *Attestor) attest(ctx context.Context, p *caller.Process) (map[string][]string, error) {
	place, err := attest.Of(p)
	if err != nil {
		return nil, err
	}
	conn, err := a.connected(ctx)
	if err != nil {
		return nil, fmt.Errorf("reaching systemd on the bus: %w", err)
	}
	if place.Unit == "" {
		return nil, nil
	}
	unit, err := conn.GetUnitNameByPID(ctx, uint32(p.PID()))
	if err != nil {
		return nil, fmt.Errorf("asking systemd for its unit: %w", err)
	}
	if unit != place.Unit {
		return nil, fmt.Errorf("it is in the cgroup of %q, and systemd says %q", place.Unit, unit)
	}
	fragment, err := conn.GetUnitPropertyContext(ctx, unit, "FragmentPath")
	if err != nil {
		return nil, fmt.Errorf("asking systemd of %s: %w", unit, err)
	}
	path, ok := fragment.Value.Value().(string)
	if !ok {
		return nil, fmt.Errorf("asking systemd of %s: its FragmentPath is no text", unit)
	}
	facts := make(map[string][]string)
	for name, value := range map[string]string{"unit": unit, "slice": place.Slice, "fragment_path": path} {
		if !printable(value) {
			return nil, fmt.Errorf("its %s cannot be told: %.100q", name, value)
		}
		if value != "" {
			facts[Prefix+"."+name] = []string{value}
		}
	}
	return facts, nil
}

func printable(v string) bool {
	return len(v) <= 4096 && utf8.ValidString(v) && !strings.ContainsFunc(v, unicode.IsControl)
}

// connected returns the connection, a new one if the last is gone. The bus may
// hang for longer than ctx: then who comes next waits for the same attempt.
func (a *Attestor) connected(ctx context.Context) (*dbus.Conn, error) {
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	if conn != nil && conn.Connected() {
		return conn, nil
	}
	dialed := a.dialing.DoChan("", func() (any, error) { return nil, a.connect() })
	select {
	case r := <-dialed:
		if r.Err != nil {
			return nil, r.Err
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn == nil {
		return nil, errors.New("it was closed")
	}
	return a.conn, nil
}

func (a *Attestor) connect() error {
	var conn *dbus.Conn
	var err error
	if a.cfg.Bus == "" {
		conn, err = dbus.NewWithContext(context.Background())
	} else {
		conn, err = dbus.NewConnection(func() (*godbus.Conn, error) { return godbus.Connect(a.cfg.Bus) })
	}
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil {
		a.conn.Close()
	}
	a.conn = conn
	return nil
}

// Close ends the connection to the bus.
func (a *Attestor) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}
