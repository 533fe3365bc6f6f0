package local

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/api"
)

// A Delivery is an output's view of what it may have. An *agent.Delivery is one.
type Delivery interface {
	Exchange(ctx context.Context, target, claims string) (agent.Exchanged, error)
	TargetToken(ctx context.Context, target string, toFile bool) (agent.JWTSVID, agent.Target, error)
}

// Delivered is a Source for an output: it hands out what was held last. The
// zero value denies everything.
type Delivered struct {
	Log *slog.Logger // nil discards

	mu    sync.Mutex // guards what follows
	from  Delivery
	svids map[spiffeid.ID]*agent.SVID
}

// Hold takes what an output may have from now on; without a Delivery that is
// nothing.
func (d *Delivered) Hold(from Delivery, svids []*agent.SVID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.from, d.svids = from, make(map[spiffeid.ID]*agent.SVID, len(svids))
	for _, v := range svids {
		if _, first := d.svids[v.ID]; !first {
			d.svids[v.ID] = v
		}
	}
}

func (d *Delivered) delivery() (Delivery, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.from == nil {
		return nil, status.Error(codes.PermissionDenied, "nothing is granted to the output")
	}
	return d.from, nil
}

// Fetch exchanges the output's SVID, with the errors of Service.Fetch.
func (d *Delivered) Fetch(ctx context.Context, target string) (*api.FetchResponse, error) {
	from, err := d.delivery()
	if err != nil {
		return nil, err
	}
	got, err := from.Exchange(ctx, target, "")
	if err != nil {
		return nil, fail(ctx, d.log(), err)
	}
	return response(got)
}

// Token is the output's JWT-SVID for a target, with the errors of Service.Token.
func (d *Delivered) Token(ctx context.Context, target string, toFile bool) (*api.TokenResponse, error) {
	from, err := d.delivery()
	if err != nil {
		return nil, err
	}
	svid, t, err := from.TargetToken(ctx, target, toFile)
	if err != nil {
		return nil, fail(ctx, d.log(), err)
	}
	return token(svid, t)
}

// X509 is one of the X509-SVIDs that are held.
func (d *Delivered) X509(_ context.Context, id string) (chain, key []byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.svids {
		if v.ID.String() == id {
			return certificates(v.Certificates), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: v.KeyDER}), nil
		}
	}
	return nil, nil, status.Errorf(codes.PermissionDenied, "the X509-SVID of %s is not granted any more", id)
}

func certificates(all []*x509.Certificate) (text []byte) {
	for _, c := range all {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}

func (d *Delivered) log() *slog.Logger {
	if d.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return d.Log
}
