package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/credence-id/credence/agent/attest"
)

// pollTime bounds one question to the kubelet.
const pollTime = 2 * time.Second

// A kubelet is asked when its last answer is no longer fresh or doesn't have a
// container, once for all who wait, and never again before a pause is over.
type kubelet struct {
	api                *client
	node               string
	wait, fresh, pause time.Duration
	log                *slog.Logger
	now                func() time.Time

	mu     sync.Mutex // guards what follows
	pods   *pods      // of the last good answer; nil: none
	asked  time.Time  // when it was asked for
	failed error      // of the last question
	tried  time.Time  // when that ended
	next   time.Time  // no question before
	asking chan struct{}
}

func newKubelet(c Config, api *client) *kubelet {
	return &kubelet{api: api, node: c.Node, wait: c.Wait, fresh: c.Fresh, pause: c.Pause, log: c.Log, now: c.Now}
}

func (k *kubelet) find(ctx context.Context, id, pod string) (found, error) {
	ctx, cancel := context.WithTimeout(ctx, k.wait)
	defer cancel()
	began := k.now()
	for {
		f, err, answered := k.look(id, pod, began)
		if answered {
			return f, err
		}
		select {
		case <-k.ask(ctx):
		case <-ctx.Done():
			return k.last(id, pod, err)
		}
	}
}

// look looks into the last answer, and says whether that settles it for one who
// began to ask then.
func (k *kubelet) look(id, pod string, began time.Time) (f found, err error, answered bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pods == nil {
		return found{}, errors.Join(errors.New("the kubelet has not answered yet"), k.failed), false
	}
	f, err = k.pods.find(id, pod)
	now := k.now()
	fresh := now.Sub(k.asked) < k.fresh || !k.asked.Before(began)
	switch {
	case err == nil: // it is away, and was tried just now: its last word counts
		return f, nil, fresh || k.failed != nil && now.Sub(k.tried) < k.fresh
	case errors.Is(err, attest.ErrAmbiguous):
		return found{}, err, fresh
	}
	// A container that no pod's cgroup holds is likely none's: not waited for.
	return found{}, errors.Join(err, k.failed), pod == "" && !k.asked.Before(began)
}

// last is what the kubelet last said, where it doesn't answer in time.
func (k *kubelet) last(id, pod string, otherwise error) (found, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pods == nil {
		return found{}, otherwise
	}
	f, err := k.pods.find(id, pod)
	if err != nil {
		return found{}, otherwise
	}
	return f, nil
}

// ask has the kubelet asked, if nobody does yet, and returns what is closed when
// there is an answer.
func (k *kubelet) ask(ctx context.Context) <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.asking != nil {
		return k.asking
	}
	k.asking = make(chan struct{})
	go k.question(context.WithoutCancel(ctx), k.next.Sub(k.now()), k.asking) // it ends by its own time
	return k.asking
}

func (k *kubelet) question(ctx context.Context, pause time.Duration, done chan struct{}) {
	sleep(ctx, pause)
	ctx, cancel := context.WithTimeout(ctx, pollTime)
	defer cancel()
	asked := k.now()
	all, err := k.list(ctx)
	if err != nil {
		k.log.WarnContext(ctx, "asking the kubelet for its pods", "server", k.api.server.URL, "error", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed = err; err == nil {
		k.pods, k.asked = all, asked
	}
	k.tried = k.now()
	k.next = k.tried.Add(k.pause)
	k.asking = nil
	close(done)
}

func (k *kubelet) list(ctx context.Context) (*pods, error) {
	response, err := k.api.get(ctx, "/pods", nil)
	if err != nil {
		return nil, fmt.Errorf("asking the kubelet: %w", err)
	}
	defer response.Body.Close()
	all := newPods(k.node)
	if _, _, err := parseList(response.Body, func(o *object) error { return all.take(o, k.log) }); err != nil {
		return nil, fmt.Errorf("asking the kubelet: %w", err)
	}
	return all, nil
}
