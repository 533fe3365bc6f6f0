package sds_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// hello is a client's first bytes (RFC 9113 §3.4).
var hello = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(4, 0, 0, nil)...)

// frame is one of HTTP/2 (RFC 9113 §4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// headers open stream 1.
func headers() []byte {
	var fields []byte
	for _, f := range [][2]string{
		{":method", "POST"}, {":path", "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"}, {":authority", "credence"}, {":scheme", "http"},
		{"te", "trailers"}, {"content-type", "application/grpc"}, {"x-envoy-internal", "true"},
	} { // literals, RFC 7541 §6.2.2
		fields = append(fields, fmt.Sprintf("\x00%c%s%c%s", len(f[0]), f[0], len(f[1]), f[1])...)
	}
	return frame(1, 4, 1, fields)
}

// data is a request on stream 1.
func data(t *testing.T, q proto.Message) (out []byte) {
	t.Helper()
	body, err := proto.Marshal(q)
	must(t, err)
	body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	for len(body) > 0 {
		n := min(len(body), 16384)
		out, body = append(out, frame(0, 0, 1, body[:n])...), body[n:]
	}
	return out
}

// response speaks HTTP/2 until a response comes, or nil, at the stream's or the
// connection's end.
func response(t *testing.T, c net.Conn) *discovery.DiscoveryResponse {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	for header := make([]byte, 9); ; {
		if _, err := io.ReadFull(c, header); err != nil {
			return nil
		}
		payload := make([]byte, int(header[0])<<16|int(header[1])<<8|int(header[2]))
		_, err := io.ReadFull(c, payload)
		must(t, err)
		switch kind, ack := header[3], header[4]&1 != 0; {
		case kind == 6 && !ack:
			_, err = c.Write(frame(6, 1, 0, payload))
		case kind == 4 && !ack:
			_, err = c.Write(frame(4, 1, 0, nil))
		case kind == 0:
			m := &discovery.DiscoveryResponse{}
			must(t, proto.Unmarshal(payload[5:], m))
			return m
		case kind == 3 || kind == 7 || kind == 1 && ack:
			return nil
		}
		must(t, err)
	}
}

// extended is a request of a node that names as many extensions as an Envoy
// has, until it has this size.
func extended(t *testing.T, size int) *discovery.DiscoveryRequest {
	t.Helper()
	q := fetch("default")
	q.Node.UserAgentName = strings.Repeat("e", 80)
	for proto.Size(q) < size-300 {
		q.Node.Extensions = append(q.Node.Extensions, &core.Extension{
			Name: "envoy.filters.http.an_extension", Category: "envoy.filters.http", TypeUrls: []string{"envoy.extensions.filters.http.an_extension.v3.AnExtension"},
		})
	}
	q.Node.Cluster += strings.Repeat("c", size-proto.Size(q)-1) // its length takes two bytes now
	if n := proto.Size(q); n != size {
		t.Fatalf("%d bytes, want %d", n, size)
	}
	return q
}

// TestEnvoySpeaksFirst: Envoy tells of all its extensions, and fills the
// connection's window with that before it has read anything.
func TestEnvoySpeaksFirst(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	_, socket, _ := serve(t, v, nil)
	c, err := net.Dial("unix", socket)
	must(t, err)
	defer c.Close()
	const window = 65535 // RFC 9113 §6.9.2
	_, err = c.Write(append(append(hello, headers()...), data(t, extended(t, window-5))...))
	must(t, err)
	m := response(t, c)
	if m == nil {
		t.Fatal("turned away")
	}
	leaf(t, secrets(t, m.GetResources()...)["default"])
}

// TestLargeNode: a request may be larger than a window.
func TestLargeNode(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	m, err := client.FetchSecrets(t.Context(), extended(t, 200<<10))
	must(t, err)
	secrets(t, m.GetResources()...)
}

const helperEnv = "SDS_TEST_SOCKET"

// lend is another process: it connects, answers what a caller is asked, and
// hands the connection to the test before it ends.
func lend(socket string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	if _, err := c.Write(hello); err != nil {
		return err
	}
	challenge := make([]byte, 9+9+8) // settings, then a PING
	if _, err := io.ReadFull(c, challenge); err != nil {
		return err
	}
	if _, err := c.Write(frame(6, 1, 0, challenge[18:])); err != nil {
		return err
	}
	f, err := c.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, []byte{1}, unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
		return err
	}
	_, err = os.Stdin.Read(make([]byte, 1)) // until the test has had its answer
	return err
}

// TestALentConnection: what was given to a process is not given, under other
// names, to who has its connection when it has gone.
func TestALentConnection(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	v.set(w.update(), nil)
	_, socket, _ := serve(t, v, nil)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+socket, "GORACE=atexit_sleep_ms=0")
	cmd.ExtraFiles = []*os.File{theirs}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, theirs.Close())
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), rights, unix.MSG_CMSG_CLOEXEC)
	must(t, err)
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	must(t, err)
	fds, err := unix.ParseUnixRights(&messages[0])
	must(t, err)
	f := os.NewFile(uintptr(fds[0]), "lent")
	c, err := net.FileConn(f)
	must(t, err)
	must(t, f.Close())
	defer c.Close()

	_, err = c.Write(append(headers(), data(t, fetch("default"))...))
	must(t, err)
	m := response(t, c)
	if m == nil {
		t.Fatal("nothing came while the process was there")
	}
	must(t, stdin.Close())
	_ = cmd.Wait()
	q := fetch("default", "ROOTCA")
	q.ResponseNonce = m.GetNonce()
	_, err = c.Write(data(t, q))
	must(t, err)
	if m := response(t, c); m != nil {
		t.Errorf("%d secrets came when it had gone", len(m.GetResources()))
	}
}
