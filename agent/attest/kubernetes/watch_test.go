package kubernetes_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/attest/kubernetes"
	"github.com/credence-id/credence/agent/attest/kubernetes/kubernetestest"
)

// renamed is web with a label that says which state of it is meant.
func state(label string) kubernetestest.Pod {
	p := web()
	p.Labels = map[string]string{"state": label}
	return p
}

// stateOf is that label, as attested.
func stateOf(t *testing.T, a *kubernetes.Attestor) string {
	t.Helper()
	facts, _, err := a.Describe(t.Context(), in(id, uid))
	if err != nil {
		return err.Error()
	}
	return strings.Join(facts["workload.kubernetes.labels.state"], " ")
}

// A pod that starts after the list is waited for.
func TestWaitsForTheWatch(t *testing.T) {
	c := kubernetestest.New(t, node)
	a := watching(t, c, nil)
	c.Await("watch", 1)
	got := make(chan string)
	go func() { got <- pod(t, a, in(id, uid)) }()
	elsewhere := web()
	elsewhere.Node, elsewhere.UID = "other", otherUID
	c.Apply(elsewhere)
	c.Apply(web())
	if name := <-got; name != "web-5d9c" {
		t.Error(name)
	}
	if l, w := c.Asked("list"), c.Asked("watch"); l != 1 || w != 1 {
		t.Errorf("%d lists, %d watches", l, w)
	}
}

// A container that no pod's cgroup holds is not waited for: it is another
// runtime's, most likely.
func TestDoesntWaitForOthers(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(web())
	for source, a := range map[string]*kubernetes.Attestor{
		"watch":   watching(t, c, func(c *kubernetes.Config) { c.Wait = time.Hour }),
		"kubelet": polling(t, c, func(c *kubernetes.Config) { c.Wait = time.Hour }),
	} {
		if got := pod(t, a, in(otherID, "")); !strings.Contains(got, "no pod of this node") {
			t.Errorf("%s: %s", source, got)
		}
	}
}

func TestChanges(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(state("first"))
	a := watching(t, c, nil)
	if got := stateOf(t, a); got != "first" {
		t.Fatal(got)
	}
	c.Apply(state("second"))
	until(t, "the second", func() bool { return stateOf(t, a) == "second" })

	// The container is started again: another ID.
	again := state("restarted")
	again.Containers[0].ID = "containerd://" + otherID
	c.Apply(again)
	if got := pod(t, a, in(otherID, uid)); got != "web-5d9c" {
		t.Error(got)
	}
	short := a // the old one has ended
	if got := pod(t, short, in(id, "")); !strings.Contains(got, "no pod of this node") {
		t.Error("the old container: " + got)
	}

	// The pod is deleted and made again with its name.
	c.Delete(uid)
	made := web()
	made.UID, made.ServiceAccount = otherUID, "another"
	c.Apply(made)
	facts, _, err := a.Describe(t.Context(), in(id, otherUID))
	if err != nil || facts["workload.kubernetes.service_account"][0] != "another" || facts["workload.kubernetes.pod_uid"][0] != otherUID {
		t.Errorf("%v, %v", facts, err)
	}
	if got := pod(t, a, in(id, uid)); !strings.Contains(got, "cannot be told") {
		t.Error("the deleted pod's: " + got)
	}
	if got := pod(t, a, in(otherID, "")); !strings.Contains(got, "no pod of this node") {
		t.Error("the deleted pod's container: " + got)
	}
	if n := c.Asked("list") + c.Asked("watch"); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

// A watch that breaks off is taken up where it was: from the last event, or a
// bookmark, without a list.
func TestDropped(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(state("first"))
	a := watching(t, c, nil)
	c.Await("watch", 1)
	c.Bookmark()
	marked := c.Version()
	c.Drop()
	until(t, "another watch", func() bool { return len(c.Since()) == 2 })
	c.Apply(state("second"))
	until(t, "the second", func() bool { return stateOf(t, a) == "second" })
	second := c.Version()
	c.Drop()
	until(t, "a third watch", func() bool { return len(c.Since()) == 3 })
	if since := c.Since(); since[1] != marked || since[2] != second {
		t.Errorf("watched from %v; want from %s, %s", since, marked, second)
	}
	if n := c.Asked("list"); n != 1 {
		t.Errorf("%d lists", n)
	}
}

// Changes that the server has forgotten are made up for by a list, and what it
// doesn't hold any more is forgotten here.
func TestGone(t *testing.T) {
	for name, gone := range map[string]func(c *kubernetestest.Cluster){
		"an event":        func(c *kubernetestest.Cluster) { c.Forget() },
		"another error":   func(c *kubernetestest.Cluster) { c.Send("ERROR", map[string]any{"kind": "Status", "code": 500}) },
		"no version":      func(c *kubernetestest.Cluster) { c.Send("MODIFIED", map[string]any{"kind": "Pod"}) },
		"an unknown kind": func(c *kubernetestest.Cluster) { c.Send("MOVED", web().Object(1)) },
		"no pod":          func(c *kubernetestest.Cluster) { c.Send("ADDED", map[string]any{"metadata": 7}) },
	} {
		t.Run(name, func(t *testing.T) {
			c := kubernetestest.New(t, node)
			c.Apply(web())
			a := watching(t, c, nil)
			until(t, "a watch", func() bool { return len(c.Since()) == 1 })
			c.Fail(http.StatusServiceUnavailable) // so that the deletion is not seen
			c.Drop()
			c.Await("watch", 2)
			c.Delete(uid)
			again := web()
			again.UID, again.Containers[0].ID = otherUID, "containerd://"+otherID
			c.Apply(again)
			c.Forget()
			c.Fail(0)
			c.Await("list", 2)
			if got := pod(t, a, in(otherID, otherUID)); got != "web-5d9c" {
				t.Error(got)
			}
			if got := pod(t, a, in(id, "")); !strings.Contains(got, "no pod of this node") {
				t.Error("the deleted pod's: " + got)
			}
			until(t, "a watch after the list", func() bool { return len(c.Since()) >= 3 })
			gone(c)
			c.Drop()
			c.Await("list", 3)
		})
	}
}

// HTTP 410 to the watch or the list does the same as the event.
func TestGoneStatus(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(web())
	a := watching(t, c, nil)
	until(t, "a watch", func() bool { return len(c.Since()) == 1 })
	c.Bookmark()
	marked := c.Version()
	c.Drop()
	until(t, "another watch", func() bool { return len(c.Since()) == 2 })
	c.Fail(http.StatusGone)
	c.Drop()
	c.Await("list", 3)
	if got := c.Listed(); got[0] != "0" || got[1] != marked || got[2] != "" {
		t.Errorf("lists from %q, the second wanted from %s", got, marked)
	}
	c.Fail(0)
	until(t, "a watch", func() bool { return len(c.Since()) == 3 })
	if got := pod(t, a, in(id, uid)); got != "web-5d9c" {
		t.Error(got)
	}
}

// While the API server is away its last word counts.
func TestAway(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(web())
	a := watching(t, c, func(c *kubernetes.Config) { c.Wait = 100 * time.Millisecond })
	until(t, "the pod", func() bool { return pod(t, a, in(id, uid)) == "web-5d9c" })
	c.Fail(http.StatusInternalServerError)
	c.Drop()
	c.Await("watch", 2)
	if got := pod(t, a, in(id, uid)); got != "web-5d9c" {
		t.Error(got)
	}
	until(t, "a reason", func() bool { return strings.Contains(pod(t, a, in(otherID, uidOf(1))), "it answered 500") })
}

// A service account's token is replaced while the agent runs.
func TestTokenRotation(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(state("first"))
	a := watching(t, c, nil)
	k := polling(t, c, func(c *kubernetes.Config) { c.Fresh = time.Nanosecond })
	if got := stateOf(t, a) + stateOf(t, k); got != "firstfirst" {
		t.Fatal(got)
	}
	c.Rotate("second")
	c.Drop()
	c.Apply(state("second"))
	until(t, "the second", func() bool { return stateOf(t, a) == "second" })
	if got := stateOf(t, k); got != "second" {
		t.Error(got)
	}
	if l, k := c.Asked("list"), c.Asked("kubelet"); l != 1 || k != 2 {
		t.Errorf("%d lists, the kubelet asked %d times", l, k)
	}
}

// So is the CA.
func TestCARotation(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(web())
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(c.CAFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(otherCA)
	k := polling(t, c, func(c *kubernetes.Config) { c.Wait = 50 * time.Millisecond })
	until(t, "a refusal", func() bool { return strings.Contains(pod(t, k, in(id, uid)), "certificate") })
	write(string(ca))
	until(t, "an answer", func() bool { return pod(t, k, in(id, uid)) == "web-5d9c" })
}

func writeList(w io.Writer, pods ...kubernetestest.Pod) {
	items := []any{}
	for _, p := range pods {
		items = append(items, p.Object(1))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "PodList", "metadata": map[string]any{"resourceVersion": "7"}, "items": items})
}

// A list of 20 MB: pods that have ended cost nothing, and running ones in such
// numbers are refused, in bounded memory.
func TestHostileList(t *testing.T) {
	many := func(ended bool) []byte {
		var template, good bytes.Buffer
		p := numbered(0)
		p.Labels = map[string]string{"a": "\x01\n", "b": "c"}
		p.Annotations = map[string]string{"pad": strings.Repeat("x", 1400)}
		p.Containers[0].Ended = ended
		writeList(&template, p)
		writeList(&good, web())
		head, item, _ := strings.Cut(template.String(), `"items":[`)
		item, tail, _ := strings.Cut(item, "],\"kind\":\"PodList\"")
		_, last, _ := strings.Cut(good.String(), `"items":[`)
		last, _, _ = strings.Cut(last, "],\"kind\":\"PodList\"")
		var text strings.Builder
		text.WriteString(head + `"items":[`)
		for n := range 10000 {
			uid := uidOf(n + 1)
			if n%3 == 0 {
				uid = "../" + uid
			}
			text.WriteString(strings.ReplaceAll(strings.ReplaceAll(item, uidOf(0), uid), idOf(0), idOf(n+1)) + ",")
		}
		text.WriteString(last + "],\"kind\":\"PodList\"" + tail)
		return []byte(text.String())
	}
	if text := many(false); len(text) < 18<<20 {
		t.Errorf("%d bytes alone", len(text))
	} else if n, err := kubernetes.Listed(bytes.NewReader(text)); err == nil || !strings.Contains(err.Error(), "more than 4096 running pods") || n > 4096 {
		t.Errorf("%d containers, %v", n, err)
	}
	if n, err := kubernetes.Listed(bytes.NewReader(many(true))); err != nil || n != 4 { // those of web
		t.Errorf("%d containers, %v", n, err)
	}
}

// Fewer pods are too many if each has much to say.
func TestKeptIsBounded(t *testing.T) {
	var text bytes.Buffer
	var pods []kubernetestest.Pod
	for n := range 400 {
		p := numbered(n)
		p.Labels = map[string]string{"a": strings.Repeat("a", 23<<10)}
		pods = append(pods, p)
	}
	writeList(&text, pods...)
	if n, err := kubernetes.Listed(&text); err == nil || n > 380 {
		t.Errorf("%d containers, %v", n, err)
	}
}

// A pod that changes often is kept once.
func TestKeptOnce(t *testing.T) {
	var text bytes.Buffer
	p := numbered(0)
	p.Labels = map[string]string{"a": strings.Repeat("a", 23<<10)}
	writeList(&text, slices.Repeat([]kubernetestest.Pod{p}, 400)...)
	if n, err := kubernetes.Listed(&text); err != nil || n != 1 {
		t.Errorf("%d containers, %v", n, err)
	}
}

// What Kubernetes would not have let pass is not known at all.
func TestMalformed(t *testing.T) {
	for name, change := range map[string]func(*kubernetestest.Pod){
		"a UID":       func(p *kubernetestest.Pod) { p.UID = "../" + p.UID },
		"no node":     func(p *kubernetestest.Pod) { p.Node = "" },
		"an image ID": func(p *kubernetestest.Pod) { p.Containers[0].ImageID = strings.Repeat("a", 5000) },
		"containers": func(p *kubernetestest.Pod) {
			for n := range 600 {
				p.Containers = append(p.Containers, kubernetestest.Container{Name: "a", ID: "containerd://" + idOf(n+1)})
			}
		},
	} {
		var text bytes.Buffer
		p := numbered(0)
		change(&p)
		writeList(&text, p)
		if n, err := kubernetes.Listed(&text); err != nil || n != 0 {
			t.Errorf("%s: %d containers, %v", name, n, err)
		}
	}
}

// endless is a text without an end.
type endless struct{ head string }

func (e *endless) Read(p []byte) (int, error) {
	if n := copy(p, e.head); n > 0 {
		e.head = e.head[n:]
		return n, nil
	}
	for n := range p {
		p[n] = 'a'
	}
	return len(p), nil
}

// Nothing without an end is read to it.
func TestEndless(t *testing.T) {
	if _, err := kubernetes.Listed(&endless{`{"kind":"PodList","items":[{"metadata":{"name":"`}); err == nil || !strings.Contains(err.Error(), "more than 67108864 bytes") {
		t.Error(err)
	}
	var log buffer
	c := kubernetestest.New(t, node)
	c.Answer("watch", func(w io.Writer) { _, _ = io.Copy(w, &endless{`{"type":"ADDED","object":{"x":"`}) })
	watching(t, c, func(c *kubernetes.Config) { c.Log, c.Pause = slog.New(slog.NewTextHandler(&log, nil)), time.Hour })
	until(t, "an end", func() bool { return strings.Contains(log.String(), "an event of more than") })
}

// buffer is a log.
type buffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// A list that isn't whole, or isn't one, replaces nothing.
func TestNoList(t *testing.T) {
	for name, body := range map[string]string{
		"HTML":        "<html>",
		"another":     `{"kind":"SecretList","metadata":{"resourceVersion":"7"},"items":[]}`,
		"a part":      `{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"x"},"items":[]}`,
		"no version":  `{"kind":"PodList","metadata":{},"items":[]}`,
		"cut off":     `{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[`,
		"a map":       `{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":{}}`,
		"pods of ''":  `{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[""]}`,
		"nothing":     ``,
		"two answers": `[]`,
	} {
		t.Run(name, func(t *testing.T) {
			c := kubernetestest.New(t, node)
			c.Apply(web())
			c.Answer("list", func(w io.Writer) { _, _ = io.WriteString(w, body) })
			a := watching(t, c, brief)
			c.Await("list", 2)
			if n := c.Asked("watch"); n != 0 {
				t.Errorf("%d watches", n)
			}
			c.Answer("list", nil)
			until(t, "the pod", func() bool { return pod(t, a, in(id, uid)) == "web-5d9c" })
		})
	}
}
