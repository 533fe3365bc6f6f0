package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/credence-id/credence/agent/attest"
)

const (
	podsPath = "/api/v1/pods"
	maxPause = 30 * time.Second
	listTime = 30 * time.Second
	// A watch that lived this long was one: the next isn't put off any longer
	// than the first.
	goodWatch = 10 * time.Second
)

// errGone says that the server has forgotten what was changed since then.
var errGone = errors.New("the changes since are no longer known to it")

// A watch holds this node's pods as the API server has them.
type watch struct {
	api   *client
	node  string
	wait  time.Duration
	pause time.Duration
	log   *slog.Logger

	mu      sync.Mutex    // guards what follows
	pods    *pods         // nil: no list was had yet
	changed chan struct{} // closed at the next change
	failed  error         // why there is no watch now
}

func newWatch(c Config, api *client) *watch {
	return &watch{api: api, node: c.Node, wait: c.Wait, pause: c.Pause, log: c.Log, changed: make(chan struct{})}
}

func (w *watch) find(ctx context.Context, id, pod string) (found, error) {
	ctx, cancel := context.WithTimeout(ctx, w.wait)
	defer cancel()
	for {
		w.mu.Lock()
		f, err := found{}, errors.New("the API server has not answered yet")
		if w.pods != nil {
			f, err = w.pods.find(id, pod)
		}
		changed, failed := w.changed, w.failed
		known := w.pods != nil && pod == "" // a container that no pod's cgroup holds is likely none's: not waited for
		w.mu.Unlock()
		if err == nil {
			return f, nil
		}
		if failed != nil {
			err = fmt.Errorf("%w; meanwhile it cannot be watched: %w", err, failed)
		}
		if known || errors.Is(err, attest.ErrAmbiguous) {
			return found{}, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return found{}, err
		}
	}
}

// run lists, then watches from there, and lists again only when it must.
func (w *watch) run(ctx context.Context) error {
	pause := w.pause
	from := "0" // the first list may come from the server's cache: all nodes of a cluster may start at once
	version := ""
	for {
		began := time.Now()
		var err error
		if version == "" {
			version, err = w.list(ctx, from)
			var r *refusal
			if errors.As(err, &r) && (r.status == http.StatusGone || r.status == http.StatusGatewayTimeout) {
				from = "" // its cache is behind us: then the newest
			}
		}
		if err == nil {
			from = version
			version, err = w.follow(ctx, version)
			if version != "" {
				from = version
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil || time.Since(began) > goodWatch {
			pause = w.pause
		}
		if err != nil {
			w.log.WarnContext(ctx, "watching pods", "server", w.api.server.URL, "error", err)
		}
		w.fail(err)
		if !sleep(ctx, pause/2+rand.N(pause)) {
			return ctx.Err()
		}
		if pause = min(2*pause, maxPause); err == nil {
			pause = w.pause
		}
	}
}

func (w *watch) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failed = err
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (w *watch) query() url.Values {
	return url.Values{"fieldSelector": {"spec.nodeName=" + w.node}}
}

// list takes the pods that there are now in place of those that were known.
func (w *watch) list(ctx context.Context, from string) (version string, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	all := newPods(w.node)
	query := w.query()
	if from != "" {
		query.Set("resourceVersion", from)
		query.Set("resourceVersionMatch", "NotOlderThan")
	}
	response, err := w.api.get(ctx, podsPath, query)
	if err != nil {
		return "", fmt.Errorf("listing the pods of %s: %w", w.node, err)
	}
	defer response.Body.Close()
	version, more, err := parseList(response.Body, func(o *object) error { return all.take(o, w.log) })
	if err == nil && (version == "" || version == "0" || more != "") {
		err = errors.New("it is not whole")
	}
	if err != nil {
		return "", fmt.Errorf("listing the pods of %s: %w", w.node, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pods, w.failed = all, nil
	w.tell()
	return version, nil
}

// take puts a pod; one that isn't well is left out, and too many are an error.
func (s *pods) take(o *object, log *slog.Logger) error {
	full, err := s.put(o)
	if full {
		return err
	}
	if err != nil {
		log.Warn("a pod is left out", "error", err)
	}
	return nil
}

// tell wakes who waits. w.mu is held.
func (w *watch) tell() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// follow watches from a version on. It returns the last version seen, or none
// if a list is needed; and no error where the server ended in good order.
func (w *watch) follow(ctx context.Context, version string) (string, error) {
	life := 5*time.Minute + rand.N(5*time.Minute)
	query := w.query()
	query.Set("watch", "true")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", version)
	query.Set("timeoutSeconds", strconv.Itoa(int(life.Seconds())))
	ctx, cancel := context.WithTimeout(ctx, life+30*time.Second)
	defer cancel()
	response, err := w.api.get(ctx, podsPath, query)
	var r *refusal
	if errors.As(err, &r) && r.status == http.StatusGone {
		return "", fmt.Errorf("watching the pods of %s: %w", w.node, errGone)
	}
	if err != nil {
		return version, fmt.Errorf("watching the pods of %s: %w", w.node, err)
	}
	defer response.Body.Close()
	w.fail(nil)
	for all := newEvents(response.Body); ; {
		e, err := all.next()
		if err == io.EOF {
			return version, nil
		}
		if err == nil {
			version, err = w.apply(e, version)
		}
		if err != nil {
			return version, fmt.Errorf("watching the pods of %s: %w", w.node, err)
		}
	}
}

// apply takes one event, and returns the version that it brings. With an error
// that needs a list the version is empty.
func (w *watch) apply(e event, version string) (string, error) {
	if e.Type == "ERROR" {
		var s struct {
			Code    int
			Message string
		}
		if err := json.Unmarshal(e.Object, &s); err == nil && s.Code == http.StatusGone {
			return "", errGone
		}
		return "", fmt.Errorf("it answered %d: %.200q", s.Code, s.Message)
	}
	var o object
	if err := json.Unmarshal(e.Object, &o); err != nil {
		return "", err
	}
	if o.Metadata.ResourceVersion == "" {
		return "", fmt.Errorf("an event %.32q without a version", e.Type)
	}
	if e.Type == "BOOKMARK" {
		return o.Metadata.ResourceVersion, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e.Type {
	case "ADDED", "MODIFIED":
		if err := w.pods.take(&o, w.log); err != nil {
			return "", err
		}
	case "DELETED":
		w.pods.remove(o.Metadata.UID)
	default:
		return "", fmt.Errorf("an event %.32q, which is none", e.Type)
	}
	w.tell()
	return o.Metadata.ResourceVersion, nil
}
