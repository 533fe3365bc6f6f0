package kubernetes

import (
	"context"
	"io"

	"github.com/credence-id/credence/agent/attest"
)

// Describe is Attest of a place instead of a process.
func (a *Attestor) Describe(ctx context.Context, place attest.Place) (map[string][]string, []string, error) {
	return a.describe(ctx, place)
}

// Listed takes a PodList and returns how many containers are known of it.
func Listed(list io.Reader) (containers int, err error) {
	s := newPods("")
	_, _, err = parseList(list, func(o *object) error {
		full, err := s.put(o)
		if full {
			return err
		}
		return nil
	})
	for id := range s.byContainer {
		for _, p := range s.byContainer[id] {
			if f, err := s.find(id, p.pod.uid); err == nil {
				p.container = f.container
				f.told()
			}
		}
	}
	return len(s.byContainer), err
}

// Events reads a watch's events and says how many there were.
func Events(r io.Reader) (n int) {
	for e := newEvents(r); ; n++ {
		if _, err := e.next(); err != nil {
			return n
		}
	}
}

// Meanwhile has f called while a proof is read.
func (a *Attestor) Meanwhile(f func()) { a.prover.meanwhile = f }
