package agentcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
)

// sockets are those that the service manager hands over (sd_listen_fds), by
// name: workload and admin.
type sockets map[string]*os.File

// handed takes what the service manager hands over. Children get none of it. On
// an error the process ends.
func handed() (sockets, error) {
	all := sockets{}
	for _, f := range activation.Files(true) {
		name := f.Name()
		switch {
		case name != "workload" && name != "admin":
			return nil, fmt.Errorf("the service manager hands over a socket called %q: FileDescriptorName=workload or admin is wanted", name)
		case all[name] != nil:
			return nil, fmt.Errorf("the service manager hands over two sockets called %q: one ListenStream= is wanted", name)
		}
		all[name] = f
	}
	return all, nil
}

// listen is caller.Listen, or takes over what was handed to us by that name.
func (s sockets) listen(name, path string, mode os.FileMode) (net.Listener, error) {
	f := s[name]
	if f == nil {
		return caller.Listen(path, mode)
	}
	delete(s, name)
	return caller.Inherit(f, path, mode)
}

// close closes what nobody took.
func (s sockets) close() (err error) {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		err = errors.Join(err, s[name].Close())
		delete(s, name)
	}
	return err
}

// statusEvery is how often the service manager is told how we do, if that changed.
const statusEvery = 10 * time.Second

// service tells the service manager how the agent does (sd_notify).
type service struct {
	watchdog bool // whether to say that we live, or be killed
	every    time.Duration
	log      *slog.Logger
}

// newService is nil where no service manager listens.
func newService(log *slog.Logger) *service {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	s := &service{every: statusEvery, log: log}
	if limit, err := daemon.SdWatchdogEnabled(false); err != nil {
		log.Warn("the service manager's watchdog is not served", "error", err)
	} else if limit > 0 {
		s.watchdog, s.every = true, min(s.every, max(limit/3, time.Millisecond))
	}
	return s
}

// watchable is an agent, as the service manager sees it.
type watchable interface {
	Hung() []string
	Joined() <-chan struct{}
	Status() agent.Status
}

// run tells until ctx ends: that it is ready once its sockets serve identities,
// how it does and, for the watchdog, that none of its loops hangs. Nothing is said
// for a loop that does: the manager starts us anew then, with what is kept.
func (s *service) run(ctx context.Context, a watchable) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	joined, told := a.Joined(), ""
	for {
		words := a.Hung()
		if status := statusOf(a, words, joined == nil); status != told {
			s.tell("STATUS=" + status)
			told = status
		}
		if s.watchdog && len(words) == 0 {
			s.tell(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			s.tell(daemon.SdNotifyStopping + "\nSTATUS=stopping")
			return
		case <-joined:
			s.tell(daemon.SdNotifyReady)
			joined = nil
		case <-tick.C:
		}
	}
}

func (s *service) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("the service manager was not told", "error", err)
	}
}

// statusOf is one line for an operator.
func statusOf(a watchable, hung []string, joined bool) string {
	st := a.Status()
	text := "not joined yet"
	switch {
	case len(hung) > 0:
		text = strings.Join(hung, "; ")
	case joined && st.Connected:
		text = st.Node + ": serving"
	case joined:
		text = st.Node + ": serving what it holds, no broker is connected"
	}
	if !st.Connected && st.Trouble != "" {
		text += ": " + st.Trouble
	}
	return strings.Join(strings.Fields(text), " ")
}
