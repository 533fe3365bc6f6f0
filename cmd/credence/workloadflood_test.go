package main_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// flood keeps streams open, so many on each of so many connections, and prints
// when all of them have told the first SVID, and when all have told the next one.
func flood(ctx context.Context, socket, connections, streams string) error {
	n, err1 := strconv.Atoi(connections)
	each, err2 := strconv.Atoi(streams)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("%s connections of %s streams", connections, streams)
	}
	ctx, cancel := context.WithCancelCause(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"))
	defer cancel(nil)
	var first, next, over sync.WaitGroup
	first.Add(n * each)
	next.Add(n * each)
	for range n {
		conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		for range each {
			over.Go(func() { cancel(follow(ctx, conn, first.Done, next.Done)) })
		}
	}
	defer over.Wait()
	told := func(all *sync.WaitGroup, what string) {
		all.Wait()
		fmt.Println(what)
	}
	go told(&first, "all have one")
	go told(&next, "all have another")
	<-ctx.Done()
	return context.Cause(ctx)
}

// follow reads a stream's SVIDs: what is sent again is not counted.
func follow(ctx context.Context, conn *grpc.ClientConn, first, next func()) error {
	stream, err := workloadpb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	if err != nil {
		return err
	}
	var last string
	for n := 0; ; {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		now := string(m.GetSvids()[0].GetX509Svid())
		if now == last {
			continue
		}
		last = now
		switch n++; n {
		case 1:
			first()
		case 2:
			next()
		}
	}
}
