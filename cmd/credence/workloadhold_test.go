package main_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// hold is a program that goes on for long, in one of three ways, and prints what
// it has each time that it asks or is told: "has ID NUMBER UNTIL", until in Unix
// seconds, or "none CODE".
//
//	stream   goes by an open stream, and keeps what came last
//	caller   asks for an X509-SVID each second, and keeps nothing
//	jwt      keeps a token, and asks for the next one from half of its life on
func hold(ctx context.Context, kind, socket string) error {
	switch kind {
	case "stream":
		return workloadapi.WatchX509Context(ctx, holder{}, workloadapi.WithAddr(socket))
	case "caller":
		return eachSecond(ctx, func(ctx context.Context) {
			svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(socket))
			holds(svid, err)
		})
	case "jwt":
		var until, next time.Time
		return eachSecond(ctx, func(ctx context.Context) {
			if time.Now().Before(next) {
				return
			}
			token, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "orders"}, workloadapi.WithAddr(socket))
			switch {
			case err == nil:
				until, next = token.Expiry, time.Now().Add(time.Until(token.Expiry)/2)
				fmt.Println("has", token.ID, token.Claims["jti"], until.Unix())
			case !time.Now().Before(until):
				fmt.Println("none", status.Code(err))
			}
		})
	}
	return fmt.Errorf("no way to hold an SVID: %q", kind)
}

func holds(svid *x509svid.SVID, err error) {
	if err != nil {
		fmt.Println("none", codeOf(err))
		return
	}
	leaf := svid.Certificates[0]
	fmt.Println("has", svid.ID, fmt.Sprintf("%x", leaf.SerialNumber), leaf.NotAfter.Unix())
}

// codeOf is gRPC's; a call that is not answered in time has none.
func codeOf(err error) codes.Code {
	if errors.Is(err, context.DeadlineExceeded) {
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}

type holder struct{}

func (holder) OnX509ContextUpdate(x *workloadapi.X509Context) { holds(x.DefaultSVID(), nil) }

// A stream that breaks takes nothing away; a denial does.
func (holder) OnX509ContextWatchError(err error) {
	if status.Code(err) == codes.PermissionDenied {
		holds(nil, err)
	}
}

func eachSecond(ctx context.Context, do func(context.Context)) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		call, cancel := context.WithTimeout(ctx, 3*time.Second)
		do(call)
		cancel()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
