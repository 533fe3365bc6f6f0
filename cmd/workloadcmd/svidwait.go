package workloadcmd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/cmd/cli"
)

// Pauses between tries.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
	tellAfter  = time.Second // why it takes so long
)

// patiently does something until it is done, it is refused for good, or --wait
// is over; then the last refusal stands.
func (a *asked) patiently(ctx context.Context, do func(context.Context) error) error {
	began, pause, told := time.Now(), firstPause, ""
	for {
		err := do(ctx)
		left := a.wait - time.Since(began)
		if err == nil || !passing(err) || left <= 0 || ctx.Err() != nil {
			return a.refused(err)
		}
		if why := cli.ExplainStatus(a.refused(err)); time.Since(began) >= tellAfter && why != told {
			fmt.Fprintf(a.Err, "%s: waiting, for at most %s more: %s\n", a.name, left.Round(time.Second), why)
			told = why
		}
		rest := min(left, pause/2+rand.N(pause))
		if silent := tellAfter - time.Since(began); silent > 0 {
			rest = min(rest, silent)
		}
		select {
		case <-time.After(rest):
		case <-ctx.Done():
			return a.refused(err)
		}
		pause = min(2*pause, maxPause)
	}
}

// refused is an error with its exit code.
func (a *asked) refused(err error) error {
	if err == nil {
		return nil
	}
	if status.Code(err) == codes.Unimplemented && a.ttl > 0 {
		return cli.BadInput(fmt.Errorf("--ttl: whoever serves %s is no agent of ours, or an older one: SPIFFE's Workload API has no field for a life", a.socket))
	}
	return cli.Reached("agent", a.socket, err)
}

// passing says whether a refusal may be another one later: the agent or the
// broker is not there yet, or nothing is granted yet. What was asked for in vain
// for its own sake stays so.
func passing(err error) bool {
	if c := (cli.Coded{}); errors.As(err, &c) {
		return c.Code == cli.ExitUnreachable
	}
	if info := agent.InfoOf(err); info != nil {
		switch info.GetReason() {
		case agent.LifeRefused, agent.RequestRefused, agent.ProcessChanged, agent.NodeEvicted:
			return false
		}
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.PermissionDenied:
		return true
	}
	return false
}
