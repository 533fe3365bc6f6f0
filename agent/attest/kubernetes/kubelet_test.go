package kubernetes_test

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credence-id/credence/agent/attest/kubernetes"
	"github.com/credence-id/credence/agent/attest/kubernetes/kubernetestest"
)

// All who come while the kubelet is asked wait for that one answer.
func TestKubeletAskedOnce(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(web())
	a := polling(t, c, func(c *kubernetes.Config) { c.Wait = 10 * time.Second })
	release := c.Hold()
	var failed atomic.Int32
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if pod(t, a, in(id, uid)) != "web-5d9c" {
				failed.Add(1)
			}
		})
	}
	c.Await("kubelet", 1)
	release()
	all.Wait()
	if n := c.Asked("kubelet"); n != 1 || failed.Load() != 0 {
		t.Errorf("asked %d times, %d failed", n, failed.Load())
	}
}

// A container that isn't known yet has the kubelet asked again, at a pace.
func TestKubeletAskedAgain(t *testing.T) {
	c := kubernetestest.New(t, node)
	a := polling(t, c, func(c *kubernetes.Config) { c.Wait = 10 * time.Second })
	got := make(chan string)
	go func() { got <- pod(t, a, in(id, uid)) }()
	c.Await("kubelet", 2)
	c.Apply(web())
	if name := <-got; name != "web-5d9c" {
		t.Error(name)
	}

	paced := polling(t, c, func(c *kubernetes.Config) { c.Wait = 200 * time.Millisecond; c.Pause = time.Hour })
	before := c.Asked("kubelet")
	for range 3 {
		if got := pod(t, paced, in(otherID, uidOf(9))); !strings.Contains(got, "no pod of this node") {
			t.Error(got)
		}
	}
	if n := c.Asked("kubelet") - before; n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// An answer counts while it is fresh, and longer only while there is none newer.
func TestKubeletFresh(t *testing.T) {
	var elapsed atomic.Int64
	start := time.Now()
	c := kubernetestest.New(t, node)
	c.Apply(state("first"))
	a := polling(t, c, func(c *kubernetes.Config) {
		c.Pause = time.Nanosecond
		c.Now = func() time.Time { return start.Add(time.Duration(elapsed.Load())) }
	})
	if got := stateOf(t, a); got != "first" {
		t.Fatal(got)
	}
	c.Apply(state("second"))
	elapsed.Store(int64(4 * time.Second))
	if got := stateOf(t, a); got != "first" || c.Asked("kubelet") != 1 {
		t.Errorf("%s after %d questions", got, c.Asked("kubelet"))
	}
	elapsed.Store(int64(6 * time.Second))
	if got := stateOf(t, a); got != "second" {
		t.Error(got)
	}
	c.Fail(http.StatusInternalServerError)
	elapsed.Store(int64(20 * time.Second))
	before := c.Asked("kubelet")
	if got := stateOf(t, a); got != "second" || c.Asked("kubelet") != before+1 {
		t.Errorf("while it is away: %s after %d questions", got, c.Asked("kubelet")-before)
	}
	c.Fail(0)
	c.Apply(state("third"))
	elapsed.Store(int64(26 * time.Second))
	if got := stateOf(t, a); got != "third" {
		t.Error("when it is back: " + got)
	}
}

// A kubelet that hangs costs the wait, no more, and its last word counts.
func TestKubeletHangs(t *testing.T) {
	c := kubernetestest.New(t, node)
	c.Apply(web())
	a := polling(t, c, func(c *kubernetes.Config) { c.Wait = 100 * time.Millisecond; c.Fresh = time.Nanosecond })
	until(t, "an answer", func() bool { return pod(t, a, in(id, uid)) == "web-5d9c" })
	defer c.Hold()()
	if got := pod(t, a, in(id, uid)); got != "web-5d9c" {
		t.Error(got)
	}
	if got := pod(t, a, in(otherID, uidOf(9))); !strings.Contains(got, "no pod of this node") {
		t.Error(got)
	}
	fresh := polling(t, c, brief)
	if got := pod(t, fresh, in(id, uid)); !strings.Contains(got, "not answered yet") {
		t.Error(got)
	}
}
