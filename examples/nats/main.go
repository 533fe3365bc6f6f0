// Command nats is a client of a NATS server whose users are SPIFFE IDs: it takes
// its SVID and roots from the Workload API, and publishes or subscribes; or
// it says which certificate the server shows. Real programs give tlsconfig.MTLSClientConfig to their NATS library.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	server := flag.String("server", "localhost:4222", "the NATS server")
	id := flag.String("id", "spiffe://example.org/nats", "the server's SPIFFE ID")
	publish := flag.String("publish", "", "a subject to publish the arguments to")
	subscribe := flag.String("subscribe", "", "a subject to print one message of; the first line says that it is subscribed")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := connect(ctx, *server, *id)
	switch {
	case err != nil:
	case *subscribe != "":
		err = c.subscribe(*subscribe)
	case *publish != "":
		err = c.publish(*publish, strings.Join(flag.Args(), " "))
	default:
		fmt.Printf("serial=%X\n", c.conn.ConnectionState().PeerCertificates[0].SerialNumber)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A client speaks NATS's protocol over mTLS.
type client struct {
	conn *tls.Conn
	in   *bufio.Reader
}

// connect fetches an SVID, and is a user when the server has answered its ping:
// whom it does not know, it tells by -ERR.
func connect(ctx context.Context, server, id string) (*client, error) {
	expect, err := spiffeid.FromString(id)
	if err != nil {
		return nil, err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return nil, fmt.Errorf("fetching an SVID: %w", err)
	}
	defer source.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	// The server says INFO before TLS begins, and no more than that line.
	if info, err := bufio.NewReader(conn).ReadSlice('\n'); err != nil || !bytes.HasPrefix(info, []byte("INFO ")) {
		return nil, fmt.Errorf("%s speaks no NATS: %q", server, info)
	}
	c := &client{conn: tls.Client(conn, tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(expect)))}
	c.in = bufio.NewReaderSize(c.conn, 4096)
	if err := c.conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return c, c.send(`CONNECT {"verbose":false,"pedantic":false,"tls_required":true,"lang":"go","version":"1","protocol":1}`)
}

// send is done when the server has done it, or tells what it refused.
func (c *client) send(lines ...string) error {
	if _, err := fmt.Fprint(c.conn, strings.Join(append(lines, "PING"), "\r\n")+"\r\n"); err != nil {
		return err
	}
	for {
		switch line, err := c.line(); {
		case err != nil:
			return err
		case line == "PONG":
			return nil
		case strings.HasPrefix(line, "-ERR"):
			return errors.New("the server says " + line)
		}
	}
}

func (c *client) line() (string, error) {
	line, err := c.in.ReadSlice('\n')
	return strings.TrimSpace(string(line)), err
}

func (c *client) publish(subject, text string) error {
	return c.send(fmt.Sprintf("PUB %s %d", subject, len(text)), text)
}

// subscribe prints the first message.
func (c *client) subscribe(subject string) error {
	if err := c.send("SUB " + subject + " 1"); err != nil {
		return err
	}
	fmt.Println("subscribed to", subject)
	for {
		line, err := c.line()
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, "MSG ") {
			text, err := c.line()
			fmt.Println(text)
			return err
		}
	}
}
