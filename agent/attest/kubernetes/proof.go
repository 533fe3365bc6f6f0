package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/credence-id/credence/agent/caller"
)

// Bounds of a proof, and of how many are read at once: a file system that a
// workload has may never answer.
const (
	maxProof = 16 << 10
	maxReads = 16
)

// A prover reads what proves a workload's pod.
type prover struct {
	path  string
	reads chan struct{} // as many as are under way
	// meanwhile is called while a file is read, by tests.
	meanwhile func()
}

func newProver(path string) prover {
	return prover{path: path, reads: make(chan struct{}, maxReads), meanwhile: func() {}}
}

// jws is the form of a token. What isn't one is nobody's to see: a workload may have
// put anything there that we may read.
var jws = regexp.MustCompile(`^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// Prove returns the token that p has at the configured path, below its own root;
// none where there is no such file. It reads a regular file in the form of a token
// and nothing else, and judges nothing.
func (a *Attestor) Prove(ctx context.Context, p *caller.Process) ([]byte, error) {
	if a.prover.path == "" {
		return nil, nil
	}
	token, err := a.prover.prove(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("reading the token %s of process %d: %w", a.prover.path, p.PID(), err)
	}
	return token, nil
}

func (r prover) prove(ctx context.Context, p *caller.Process) ([]byte, error) {
	root, err := p.Root()
	if err != nil {
		return nil, err
	}
	select {
	case r.reads <- struct{}{}:
	case <-ctx.Done():
		root.Close()
		return nil, ctx.Err()
	}
	type got struct {
		token []byte
		err   error
	}
	c := make(chan got, 1)
	go func() { // it ends when the file system answers
		defer func() { <-r.reads }()
		defer root.Close()
		token, err := readProof(int(root.Fd()), r.path, r.meanwhile)
		c <- got{token, err}
	}()
	select {
	case g := <-c:
		if err := errors.Join(g.err, p.Check()); err != nil || g.token == nil {
			return nil, err
		}
		if !jws.Match(g.token) {
			return nil, errors.New("it is no token")
		}
		return g.token, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
