package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
)

// dial opens a connection to a broker, as the node that cert shows, or as
// nobody. refusal yields why a server was not accepted.
func (a *Agent) dial(address string, cert *tls.Certificate) (l *link, refusal func() error, err error) {
	var refused atomic.Pointer[error]
	config := a.clientTLS(cert, func(err error) { refused.Store(&err) })
	conn, err := grpc.NewClient("passthrough:///"+address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}),
		grpc.WithUnaryInterceptor(a.called),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(connectParams),
	}, a.cfg.Dial...)...)
	if err != nil {
		return nil, nil, fmt.Errorf("dialling the broker: %w", err)
	}
	return &link{address: address, conn: conn, gone: make(chan struct{})}, func() error {
		if p := refused.Load(); p != nil {
			return *p
		}
		return nil
	}, nil
}

// relink replaces the connection by one under the node's present SVID. Calls
// under way on the old one get the time to end.
func (a *Agent) relink() error {
	a.linking.Lock()
	defer a.linking.Unlock()
	return a.replaceLink(callTime)
}

// fresh returns the connection; one that failed and waits by gRPC's own clock
// is replaced: our pauses decide when to try. So is one to another broker than
// the one that is talked to now.
func (a *Agent) fresh() *link {
	a.linking.Lock()
	defer a.linking.Unlock()
	l := a.link.Load()
	if l.conn.GetState() == connectivity.TransientFailure || l.address != a.brokers.current() {
		if err := a.replaceLink(0); err != nil {
			a.cfg.Log.Warn("connection not replaced", "error", err)
		}
	}
	return a.link.Load()
}

// replaceLink must be called with linking held.
func (a *Agent) replaceLink(linger time.Duration) error {
	next, _, err := a.dial(a.brokers.current(), a.node.certificate())
	if err != nil {
		return err
	}
	old := a.link.Swap(next)
	if old == nil {
		return nil
	}
	old.replace()
	a.retired.Go(func() {
		select {
		case <-time.After(linger):
		case <-a.ended:
		}
		old.close()
	})
	return nil
}

// join proves this node to a broker by evidence, and keeps what it gets. The SVID
// that it has, if it is good, tells which node it is.
func (a *Agent) join(ctx context.Context, evidence []byte) (err error) {
	ctx, end := a.joining(ctx)
	defer func() { end(err) }()
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	key, der, err := newKey()
	if err != nil {
		return err
	}
	var known *tls.Certificate
	if a.node.mustJoin(a.cfg.Now()) == nil {
		known = a.node.certificate()
	}
	l, refusal, err := a.dial(a.brokers.current(), known)
	if err != nil {
		return err
	}
	defer l.close()
	joined, err := a.converse(ctx, l, evidence, der)
	if why := refusal(); why != nil {
		return notAccepted{why}
	}
	if err != nil {
		return err
	}
	was := a.NodeID()
	if err := a.keep(joined, key); err != nil {
		return fmt.Errorf("%w: %w", ErrFatal, err)
	}
	if was != "" && was != joined.GetNodeId() {
		a.withdraw() // it was decided for another node
	}
	a.cfg.Log.InfoContext(ctx, "joined", "spiffe_id", joined.GetNodeId())
	return nil
}

const joinTime = 20 * time.Second

// notAccepted is why a server is not our broker, or none that could be told.
type notAccepted struct{ error }

func (n notAccepted) Unwrap() error { return n.error }

// joinGrace is how long an agent that is told to stop still waits for the answer
// to evidence that it has shown: that may count once, and be spent.
const joinGrace = 2 * time.Second

// converse sends the start and answers challenges until joined.
func (a *Agent) converse(ctx context.Context, l *link, evidence, publicKey []byte) (*api.Joined, error) {
	stopped := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(stopped))
	defer cancel()
	atOnce := context.AfterFunc(stopped, cancel) // nothing is shown yet
	stream, err := api.NewNodeClient(l.conn).Join(ctx)
	if err != nil {
		return nil, err
	}
	if !atOnce() {
		return nil, stopped.Err()
	}
	defer context.AfterFunc(stopped, func() { defer time.AfterFunc(joinGrace, cancel).Stop(); <-ctx.Done() })()
	start := &api.JoinRequest_Start{
		Method: a.cfg.Join.Method, Rule: a.cfg.Join.Rule, Evidence: evidence, PublicKey: publicKey, AgentVersion: a.cfg.Version,
	}
	// A failed Send means that the stream has ended: Recv knows why.
	_ = stream.Send(&api.JoinRequest{Step: &api.JoinRequest_Start_{Start: start}})
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if joined := m.GetJoined(); joined != nil {
			return joined, nil
		}
		answer, err := a.answerJoin(ctx, m.GetChallenge(), publicKey)
		if err != nil {
			return nil, err
		}
		_ = stream.Send(&api.JoinRequest{Step: &api.JoinRequest_Answer{Answer: answer}})
	}
}

func (a *Agent) answerJoin(ctx context.Context, challenge, publicKey []byte) (answer []byte, err error) {
	switch j := a.cfg.Join; {
	case j.AnswerFor != nil:
		answer, err = j.AnswerFor(ctx, challenge, publicKey)
	case j.Answer != nil:
		answer, err = j.Answer(ctx, challenge)
	default:
		return nil, status.Errorf(codes.Unauthenticated, "the broker asks a challenge that join method %s has no answer to", j.Method)
	}
	if err != nil {
		return nil, fmt.Errorf("answering the broker's challenge: %w", err)
	}
	return answer, nil
}
