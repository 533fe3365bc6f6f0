package main_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// source is an SVID that rotates, and what verifies others'.
func source(ctx context.Context, socket string) (*workloadapi.X509Source, error) {
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket)))
}

// serveMTLS answers each line of a caller with the serial of the caller's SVID.
func serveMTLS(ctx context.Context, socket, caller string) error {
	id, err := spiffeid.FromString(caller)
	if err != nil {
		return err
	}
	ours, err := source(ctx, socket)
	if err != nil {
		return err
	}
	defer ours.Close()
	l, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", spiffetls.MTLSServerWithRawConfig(tlsconfig.AuthorizeID(id), ours, ours))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Println("serving on", l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go answer(conn)
	}
}

func answer(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if _, err := fmt.Fprintln(conn, lines.Text(), shown(conn)); err != nil {
			return
		}
	}
}

// shown is the serial of what the other side has shown.
func shown(conn net.Conn) string {
	state := conn.(interface{ ConnectionState() tls.ConnectionState }).ConnectionState()
	if len(state.PeerCertificates) == 0 {
		return "nothing" // before the first byte
	}
	return fmt.Sprintf("%x", state.PeerCertificates[0].SerialNumber)
}

// callMTLS makes requests, on a new connection and on one that stays, until each
// side has shown a new SVID so many times.
func callMTLS(ctx context.Context, socket, address, server string, rotations int) error {
	id, err := spiffeid.FromString(server)
	if err != nil {
		return err
	}
	ours, err := source(ctx, socket)
	if err != nil {
		return err
	}
	defer ours.Close()
	dial := func() (net.Conn, error) {
		return spiffetls.DialWithMode(ctx, "tcp", address, spiffetls.MTLSClientWithRawConfig(tlsconfig.AuthorizeID(id), ours, ours))
	}
	stays, err := dial()
	if err != nil {
		return err
	}
	defer stays.Close()
	requests, failed, last := 0, 0, [2]string{}
	for n := -1; n < rotations && failed < 10 && ctx.Err() == nil; {
		now, err := exchangeOn(dial)
		if err == nil {
			_, err = exchange(stays)
		}
		if requests += 2; err != nil {
			failed++
			fmt.Println("failed:", err)
			continue
		}
		if now[0] != last[0] && now[1] != last[1] {
			n, last = n+1, now
			fmt.Printf("rotation %d: the server is %s, the client %s, after %d requests\n", n, now[0], now[1], requests)
		}
	}
	fmt.Printf("%d requests over %d rotations of both sides, %d failed\n", requests, rotations, failed)
	return ctx.Err()
}

func exchangeOn(dial func() (net.Conn, error)) (serials [2]string, err error) {
	conn, err := dial()
	if err != nil {
		return serials, err
	}
	defer conn.Close()
	return exchange(conn)
}

// exchange says something, and returns what both sides have shown.
func exchange(conn net.Conn) (serials [2]string, err error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return serials, err
	}
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return serials, err
	}
	var word string
	if _, err := fmt.Fscan(conn, &word, &serials[1]); err != nil {
		return serials, err
	}
	if word != "hello" {
		return serials, fmt.Errorf("the server said %q", word)
	}
	serials[0] = shown(conn)
	return serials, nil
}
