package workloadcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/output"
	"github.com/credence-id/credence/cmd/cli"
)

// maxRetry is the longest pause between tries to get what is due.
const maxRetry = time.Minute

// keepFresh writes the files of --out at each change, all at once, until ctx
// ends, which is no error. What is withdrawn is erased; while nobody answers,
// what is there stays.
func (a *asked) keepFresh(ctx context.Context, kind svidKind, first fetched) error {
	set, err := output.NewSet(cli.Absolute(a.out), output.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())})
	if err != nil {
		return cli.BadInput(err)
	}
	w := &watched{asked: a, set: set}
	if err := w.write(first); err != nil {
		return cli.BadInput(err)
	}
	err = kind.follow(ctx, a, first, func(got fetched, err error) {
		switch {
		case ctx.Err() != nil:
		case err == nil:
			w.tried(w.write(got))
		case status.Code(err) == codes.PermissionDenied:
			w.tried(w.erase(err))
		default:
			w.tried(err)
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return a.refused(err)
}

// watched are the files of a --watch.
type watched struct {
	*asked
	set     *output.Set
	last    []svidFile // as they stand; none: erased
	trouble string     // as it was told
}

// write replaces the files where they are others than before.
func (w *watched) write(got fetched) error {
	all, err := got.files()
	if err != nil || slices.EqualFunc(all, w.last, func(a, b svidFile) bool { return a.name == b.name && string(a.text) == string(b.text) }) {
		return err
	}
	files, names := []output.File{}, []string{}
	for _, f := range all {
		files, names = append(files, output.File{Name: f.name, Data: f.text, Mode: f.mode}), append(names, f.name)
	}
	n, err := w.set.Replace(files)
	if n > 0 {
		w.last = all
		about := got.about()
		w.say(map[string]any{"event": "written", "generation": n, "spiffe_id": about.id, "not_after": cli.Moment(about.ends.Unix()), "files": names},
			fmt.Sprintf("wrote %s of %s to %s, version %d, which ends at %s", strings.Join(names, ", "), about.id, w.out, n, cli.When(about.ends.Unix())))
	}
	return err
}

func (w *watched) erase(why error) error {
	if w.last == nil {
		return why // told once
	}
	n, err := w.set.Replace(nil)
	if n > 0 {
		w.last = nil
		w.trouble = cli.ExplainStatus(why)
		w.say(map[string]any{"event": "erased", "generation": n, "reason": status.Convert(why).Message()}, "erased what was in "+w.out+": "+status.Convert(why).Message())
	}
	return err
}

// tried tells of trouble once.
func (w *watched) tried(err error) {
	if err == nil {
		w.trouble = ""
		return
	}
	if text := cli.ExplainStatus(err); text != w.trouble {
		w.trouble = text
		w.say(map[string]any{"event": "waiting", "reason": text}, "not renewed yet, what is there stays: "+text)
	}
}

// say tells of one change.
func (w *watched) say(v map[string]any, line string) {
	if cli.OutputOf(w.cmd) == "json" {
		v["time"] = cli.Moment(w.Now().Unix())
		_ = json.NewEncoder(w.Out).Encode(v) // who reads no more is not served less
		return
	}
	fmt.Fprintf(w.Err, "%s: %s\n", w.name, line)
}

// follow has the agent tell of each rotation or, with a life that is asked for,
// asks again at half of it.
func (k x509Kind) follow(ctx context.Context, a *asked, first fetched, tell func(fetched, error)) error {
	if a.ttl > 0 {
		return again(ctx, a, k, first, tell)
	}
	return a.workloadAPI(ctx, func(c *workloadapi.Client) error {
		return c.WatchX509Context(ctx, watcher(tell))
	})
}

// follow asks again at half of each token's life.
func (j jwtKind) follow(ctx context.Context, a *asked, first fetched, tell func(fetched, error)) error {
	return again(ctx, a, j, first, tell)
}

// again asks for the next at half of each one's life, and where there is none, at
// pauses that grow.
func again(ctx context.Context, a *asked, kind svidKind, last fetched, tell func(fetched, error)) error {
	pause := time.Second
	at := output.HalfLife(a.Now(), last.about().ends)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(at.Sub(a.Now()), firstPause)):
		}
		got, err := kind.fetch(ctx, a)
		tell(got, err)
		if err != nil {
			at, pause = a.Now().Add(pause), min(2*pause, maxRetry)
			continue
		}
		at, pause = output.HalfLife(a.Now(), got.about().ends), time.Second
	}
}

// A watcher passes on what the Workload API tells.
type watcher func(fetched, error)

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (w watcher) OnX509ContextUpdate(x *workloadapi.X509Context) { w(x509Fetched{x}, nil) }

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w watcher) OnX509ContextWatchError(err error) {
	if !errors.Is(err, context.Canceled) && status.Code(err) != codes.Canceled {
		w(nil, err)
	}
}
