package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/agent/caller"
)

// A Finding is what a check found; no error is good.
type Finding struct {
	what  string
	err   error
	later bool // it is bad one day
}

// Found makes a finding.
func Found(what string, err error) Finding { return Finding{what, err, false} }

// Warned makes a finding of what is good until something is due.
func Warned(what string, due error) Finding { return Finding{what, due, true} }

// findingView is a finding as programs read it.
type findingView struct {
	Check   string `json:"check"`
	OK      bool   `json:"ok"`
	Problem string `json:"problem"`
}

// Check tells findings. Where one is bad, its error is the exit code 1.
func (p *Program) Check(cmd *cobra.Command, findings []Finding) error {
	bad, views, rows := false, []findingView{}, [][]string{}
	for _, f := range findings {
		view, state := findingView{Check: f.what, OK: f.err == nil || f.later}, "ok"
		if f.err != nil {
			view.Problem = f.err.Error()
		}
		if !view.OK {
			bad, state = true, "no"
		}
		views = append(views, view)
		rows = append(rows, []string{state, view.Check, view.Problem})
	}
	err := p.Show(cmd, views, func() error { return p.Table("OK|CHECK|PROBLEM", rows) })
	if err == nil && bad {
		err = Coded{Code: ExitNo}
	}
	return err
}

// built is a moment before which no clock can be right.
var built = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// CheckClock refuses a time that cannot be.
func CheckClock(now time.Time) error {
	if now.Before(built) || now.After(built.AddDate(50, 0, 0)) {
		return fmt.Errorf("this machine's clock says %s, which cannot be: set it (NTP), or every certificate would be wrong", now.UTC().Format(time.RFC3339))
	}
	return nil
}

// CheckDir writes and syncs a file where the data would be.
func CheckDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "check-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(make([]byte, 64<<10))
	return errors.Join(err, f.Sync(), f.Close())
}

// CheckSocket listens where a socket would be.
func CheckSocket(path string) error {
	l, err := caller.Listen(path, 0o600)
	if err != nil {
		return err
	}
	return l.Close()
}

// CheckReach connects to an address.
func CheckReach(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
