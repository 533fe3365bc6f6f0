package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/authority"
)

// CRLPath is where the CRL of the issuer with an authority ID is served.
func CRLPath(id string) string { return crlPrefix + id + crlSuffix }

const (
	crlPrefix = "/crl/"
	crlSuffix = ".crl"
)

// crl serves CRLs as RFC 2585 §4.2 has it. What is not current is not served: a
// relying party that finds an old list must not take it for news.
func (s *Server) crl(w http.ResponseWriter, r *http.Request) {
	id := strings.TrimSuffix(strings.TrimPrefix(r.URL.EscapedPath(), crlPrefix), crlSuffix)
	all := s.cfg.Authority.CRLs()
	i := slices.IndexFunc(all, func(l authority.CRL) bool { return l.Issuer == id })
	if i < 0 || r.URL.EscapedPath() != CRLPath(id) {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "GET and HEAD are answered here", http.StatusMethodNotAllowed)
		return
	}
	// No cache may keep it past its end, nor hide for long that there is a newer
	// one, which comes as soon as somebody revokes.
	age := min(s.cfg.RefreshHint, all[i].NextUpdate.Sub(s.cfg.Now())).Truncate(time.Second)
	header := w.Header()
	header.Set("Content-Type", "application/pkix-crl")
	header.Set("Cache-Control", fmt.Sprintf("max-age=%d, must-revalidate", max(age, 0)/time.Second))
	header.Set("ETag", fmt.Sprintf("%q", all[i].Number.Text(16))) // an issuer never uses one twice
	header.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all[i].DER))
}

// ListCRLs returns the CRLs that are current.
func (a authoritiesService) ListCRLs(context.Context, *api.ListCRLsRequest) (*api.ListCRLsResponse, error) {
	response := &api.ListCRLsResponse{}
	for _, l := range a.s.cfg.Authority.CRLs() {
		response.Lists = append(response.Lists, &api.ListCRLsResponse_List{Issuer: l.Issuer, Crl: wireCRL(l)})
	}
	return response, nil
}

func wireCRL(l authority.CRL) *api.CRL { return &api.CRL{Der: l.DER, Issuer: l.Chain} }

// crls are the lists for agents, and what tells them from others.
func (s *Server) crls() (all []*api.CRL, mark string) {
	for _, l := range s.cfg.Authority.CRLs() {
		all = append(all, wireCRL(l))
		mark += l.Issuer + " " + l.Number.Text(16) + "\n"
	}
	return all, mark
}

// Lists is a broker.Lister over the authority that makes the CRLs.
type Lists struct {
	Authority interface {
		Revoke(context.Context, []authority.Revocation) error
	}
}

// List implements broker.Lister.
func (l Lists) List(ctx context.Context, rows []broker.Issued, reason string) (refused []string, err error) {
	by := make(map[string][]authority.Revocation)
	for _, i := range rows {
		serial, ok := new(big.Int).SetString(i.Serial, 16)
		if !ok || i.Authority == "" {
			refused = append(refused, fmt.Sprintf("serial %.64q of %.200q is on no CRL: its record names no issuer or no hex serial number", i.Serial, i.Authority))
			continue
		}
		by[i.Authority] = append(by[i.Authority], authority.Revocation{Serial: serial, Issuer: i.Authority, NotAfter: i.ExpiresAt, Reason: reason})
	}
	for _, issuer := range slices.Sorted(maps.Keys(by)) {
		err := l.Authority.Revoke(ctx, by[issuer])
		switch {
		case errors.Is(err, authority.ErrFull), errors.Is(err, authority.ErrRefused):
			refused = append(refused, err.Error())
		case err != nil:
			return refused, err
		}
	}
	return refused, nil
}
