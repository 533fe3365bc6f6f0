package publishtest

import (
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// A Service is a cloud's, on a TLS server of its own.
type Service struct {
	URL    string
	Client *http.Client // trusts it
	PEM    []byte       // its certificate

	mu      sync.Mutex
	refused []string
	fault   func(*http.Request) int
	serve   func(w http.ResponseWriter, r *http.Request, body []byte) (refused string)
}

func (s *Service) start(t testing.TB) {
	server := httptest.NewTLSServer(s)
	t.Cleanup(server.Close)
	s.URL, s.Client = server.URL, server.Client()
	s.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

// Fault has the service answer with a status in place of doing what it is asked
// for; 0 leaves it alone.
func (s *Service) Fault(status func(*http.Request) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = status
}

// Refused are the requests that broke the protocol or had no right to be made.
func (s *Service) Refused() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.refused...)
}

// ServeHTTP serves one request after the other.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		if status := s.fault(r); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	if err != nil {
		return // the client left
	}
	if refused := s.serve(w, r, body); refused != "" {
		s.refused = append(s.refused, r.Method+" "+r.URL.Path+": "+refused)
	}
}
