package server

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// unaryWorkers is how many calls run on goroutines that stay.
const unaryWorkers = 32

// workers run calls on goroutines that stay, and with them their stacks: a
// signature needs a deep one, and growing it anew for each call costs a tenth of
// the call. gRPC's own workers would be taken by the first Watch streams for
// good.
type workers struct{ jobs chan func() }

func newWorkers() *workers { return &workers{make(chan func())} }

// run works until ctx ends, and then for those that have begun.
func (w *workers) run(ctx context.Context) {
	var running sync.WaitGroup
	for range unaryWorkers {
		running.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case job := <-w.jobs:
					job()
				}
			}
		})
	}
	running.Wait()
}

// unary runs a call on a worker, or where it is if none is free. What comes
// after it must not panic.
func (w *workers) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (response any, err error) {
	done := make(chan struct{})
	job := func() {
		defer close(done)
		response, err = next(ctx, req)
	}
	select {
	case w.jobs <- job:
		<-done
	default:
		job()
	}
	return response, err
}
