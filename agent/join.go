package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
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

// dial opens a connection to the first broker that answers, as the node that
// cert shows, or as nobody. refusal yields why a server was not accepted.
func (a *Agent) dial(cert *tls.Certificate) (l *link, refusal func() error, err error) {
	var refused atomic.Pointer[error]
	config := a.clientTLS(cert, func(err error) { refused.Store(&err) })
	conn, err := grpc.NewClient("passthrough:///broker",
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithContextDialer(a.dialAny),
		grpc.WithUnaryInterceptor(a.called),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithConnectParams(connectParams),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("dialling the broker: %w", err)
	}
	return &link{conn: conn, gone: make(chan struct{})}, func() error {
		if p := refused.Load(); p != nil {
			return *p
		}
		return nil
	}, nil
}

const dialTime = 3 * time.Second

// dialAny tries the brokers in order.
func (a *Agent) dialAny(ctx context.Context, _ string) (net.Conn, error) {
	var errs []error
	for _, address := range a.cfg.Broker {
		d := net.Dialer{Timeout: dialTime} // the next one gets its turn
		conn, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// relink replaces the connection by one under the node's present SVID. Calls
// under way on the old one get the time to end.
func (a *Agent) relink() error {
	a.linking.Lock()
	defer a.linking.Unlock()
	return a.replaceLink(callTime)
}

// fresh returns the connection; one that failed and waits by gRPC's own clock
// is replaced: our pauses decide when to try.
func (a *Agent) fresh() *link {
	a.linking.Lock()
	defer a.linking.Unlock()
	if a.link.Load().conn.GetState() == connectivity.TransientFailure {
		if err := a.replaceLink(0); err != nil {
			a.cfg.Log.Warn("connection not replaced", "error", err)
		}
	}
	return a.link.Load()
}

// replaceLink must be called with linking held.
func (a *Agent) replaceLink(linger time.Duration) error {
	next, _, err := a.dial(a.node.certificate())
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

// establish goes on with the kept SVID, or joins, trying again while the
// broker is away.
func (a *Agent) establish(ctx context.Context) error {
	var p pause
	for a.node.certificate() == nil {
		err := a.join(ctx)
		if err == nil {
			break
		}
		if errors.Is(err, ErrFatal) || ctx.Err() != nil {
			return err
		}
		a.triedNode(err)
		p.longer(a.cfg.Now(), maxPause)
		a.cfg.Log.WarnContext(ctx, "not joined yet", "error", err, "brokers", a.cfg.Broker)
		a.rest(ctx, p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return a.relink()
}

// join proves this node to a broker and keeps what it gets.
func (a *Agent) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	key, der, err := newKey()
	if err != nil {
		return err
	}
	if a.cfg.Join.Evidence == nil {
		return fmt.Errorf("%w: it has no node SVID and no join method to get one", ErrFatal)
	}
	evidence, err := a.cfg.Join.Evidence(ctx)
	if err != nil {
		return fmt.Errorf("%w: making evidence: %w", ErrFatal, err)
	}
	l, refusal, err := a.dial(nil)
	if err != nil {
		return err
	}
	defer l.close()
	joined, err := a.converse(ctx, l, evidence, der)
	if why := refusal(); why != nil {
		return fmt.Errorf("%w: %w", ErrFatal, why)
	}
	if err != nil {
		return joinError(err)
	}
	return a.joined(ctx, joined, key)
}

func (a *Agent) joined(ctx context.Context, joined *api.Joined, key *ecdsa.PrivateKey) error {
	if err := a.keep(joined, key); err != nil {
		return fmt.Errorf("%w: %w", ErrFatal, err)
	}
	a.cfg.Log.InfoContext(ctx, "joined", "spiffe_id", joined.GetNodeId())
	return nil
}

// converse sends the start and answers challenges until joined.
func (a *Agent) converse(ctx context.Context, l *link, evidence, publicKey []byte) (*api.Joined, error) {
	stream, err := api.NewNodeClient(l.conn).Join(ctx)
	if err != nil {
		return nil, err
	}
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
		if a.cfg.Join.Answer == nil {
			return nil, status.Errorf(codes.Unauthenticated, "the broker asks a challenge that join method %s has no answer to", a.cfg.Join.Method)
		}
		answer, err := a.cfg.Join.Answer(ctx, m.GetChallenge())
		if err != nil {
			return nil, fmt.Errorf("answering the broker's challenge: %w", err)
		}
		_ = stream.Send(&api.JoinRequest{Step: &api.JoinRequest_Answer{Answer: answer}})
	}
}

// joinError tells what a person must mend from what time will.
func joinError(err error) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unauthenticated:
		return fmt.Errorf("%w: joining: %s: the token is spent, expired, or made by another broker; make a new one with: credence token create --node NAME", ErrFatal, s.Message())
	case codes.PermissionDenied, codes.InvalidArgument, codes.Unimplemented:
		return fmt.Errorf("%w: joining: %s", ErrFatal, s.Message())
	case codes.FailedPrecondition:
		return fmt.Errorf("%w: joining: %s: this node was evicted, or the broker's state changed under it", ErrFatal, s.Message())
	}
	return fmt.Errorf("joining: %s", s.Message())
}

// rejoin starts over when the broker no longer takes the node's SVID.
func (a *Agent) rejoin(ctx context.Context) error {
	a.cfg.Log.WarnContext(ctx, "the broker does not take this node's SVID; joining again")
	a.node.drop()
	a.kept.forget() // it may be another node from now on
	return a.establish(ctx)
}
