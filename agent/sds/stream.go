package sds

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/caller"
)

// A session is the state of one stream: what its caller wants and has.
type session[Q request, A any] interface {
	// take takes a request in. refused is the version of what the request says
	// it didn't take; empty: it refuses nothing that stands.
	take(Q) (refused string, err error)
	// answer is what is to be sent now; none is the zero A.
	answer(*catalog) (A, error)
}

// news is what came of a caller's view.
type news struct {
	update agent.Update
	err    error
}

// run serves a stream until it ends: one goroutine of its own follows the
// caller's view, another one waits for requests.
func run[Q request, A comparable](s *Server, stream interface {
	Context() context.Context
	Recv() (Q, error)
	Send(A) error
}, c session[Q, A]) error {
	p, err := caller.Required(stream.Context())
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	requests, ended := make(chan Q), make(chan error, 1)
	// It cannot be waited for: gRPC lets go of Recv only when we have returned.
	go func() {
		for {
			q, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- q:
			case <-ctx.Done():
				return
			}
		}
	}()

	var none A
	var updates chan news // nil until something is asked for
	l := &latest{server: s, process: p}
	for {
		select {
		case q := <-requests:
			if err := check(q); err != nil {
				return err
			}
			refused, err := c.take(q)
			if err != nil {
				return err
			}
			if refused != "" {
				s.refused(ctx, p, refused, q.GetErrorDetail())
			}
			l.asked(q)
			if updates == nil {
				updates = make(chan news, 1)
				running.Go(func() { s.follow(ctx, p, updates) })
			}
		case n := <-updates:
			l.take(n)
		case err := <-ended:
			if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
				return nil
			}
			return err
		}
		select { // a denial is not to wait behind requests
		case n := <-updates:
			l.take(n)
		default:
		}
		catalog, err := l.catalog()
		if err != nil {
			return agent.StatusOf(ctx, s.cfg.Log, err)
		}
		if catalog == nil {
			continue
		}
		m, err := c.answer(catalog)
		if err != nil {
			return s.statusOf(ctx, err)
		}
		if m == none {
			continue
		}
		if err := stream.Send(m); err != nil {
			return err
		}
	}
}

// follow tells of each change in a caller's view, the last one alone where
// nobody listened meanwhile, until the context or the view ends.
func (s *Server) follow(ctx context.Context, p *caller.Process, to chan news) {
	view := s.cfg.Identities(p)
	defer view.Close()
	for {
		u, err := view.Next(ctx)
		select { // what nobody took is out of date
		case <-to:
		default:
		}
		to <- news{u, err}
		if err != nil {
			return
		}
	}
}

// latest is what a stream's caller may have, as it was told last.
type latest struct {
	server  *Server
	process *caller.Process
	plain   bool
	known   bool // to be of a node that said what it is
	news    *news
}

func (l *latest) take(n news) { l.news = &n }

// asked notes what a node says of itself, which it may say once only.
func (l *latest) asked(q request) {
	if q.GetNode() != nil || !l.known {
		l.plain, l.known = plain(q.GetNode(), l.server.cfg.DisableSPIFFECertValidation), true
	}
}

// catalog is nil when there is nothing to give yet, or nothing any more that is
// valid: the view tells what becomes of that. The error is the agent's.
func (l *latest) catalog() (*catalog, error) {
	switch {
	case l.news == nil:
		return nil, nil
	case l.news.err != nil:
		return nil, l.news.err
	}
	u := l.news.update
	if len(u.SVIDs) == 0 {
		return nil, nil
	}
	for _, v := range u.SVIDs {
		if !l.server.cfg.Now().Before(v.Certificates[0].NotAfter) {
			return nil, nil
		}
	}
	// A later request may come from another program on the same connection.
	if err := l.process.Check(); err != nil {
		return nil, &agent.Denied{Reason: "the calling process is not the one that connected", Code: agent.ProcessChanged}
	}
	return l.server.catalogOf(u, l.plain), nil
}

func (s *Server) catalogOf(u agent.Update, plain bool) *catalog {
	return &catalog{names: s.cfg.Names, own: s.cfg.TrustDomain, plain: plain, Update: u}
}

// statusOf lets a status through, and makes one of another error.
func (s *Server) statusOf(ctx context.Context, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return agent.StatusOf(ctx, s.cfg.Log, err)
}
