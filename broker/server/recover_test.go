package server_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/join"
)

// Whatever panics ends one call, with a stack in the log and nothing of it in
// the answer; the next call is served.
func TestPanicEndsOneCall(t *testing.T) {
	e := newEnv(t, with(func(context.Context, []byte, join.Challenge) (join.Proof, error) { panic("join method") }))
	e.apply(fakeRule)
	for name, call := range map[string]func() error{
		"an agents' stream": func() error {
			return e.try(&api.JoinRequest_Start{Method: "fake", Rule: "r1", Evidence: []byte("e")})
		},
		"an agents' call": func() error {
			e.log.panicAt.Store(new("caller refused"))
			_, err := e.stranger().Renew(t.Context(), &api.RenewRequest{})
			return err
		},
		"an operator's call": func() error {
			e.panicking.Store(true)
			defer e.panicking.Store(false)
			_, err := e.admin().CreateToken(t.Context(), &api.CreateTokenRequest{Node: "n1"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			text := wantCode(t, call(), codes.Internal)
			wantSilence(t, text, "join method", "log", "actor", "panic", "goroutine")
			_, quote, _ := strings.Cut(text, "quote ")
			quote, _, _ = strings.Cut(quote, " ")
			line := e.log.line(quote)
			for _, want := range []string{"call panicked", "method=/credence.broker.v1.", "goroutine", "_test.go:"} {
				if !strings.Contains(line, want) {
					t.Errorf("no %q in the log: %s", want, line)
				}
			}
		})
	}
	e.join("n1") // it lives
}
