package sds_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/agent/agenttest"
)

// frame is one of HTTP/2 (RFC 9113 §4.1).
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// extended is a node that names as many extensions as an Envoy has, until the
// request has this size.
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
	body, err := proto.Marshal(extended(t, 65535-5))
	must(t, err)
	body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	out := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	out = append(out, frame(4, 0, 0, nil)...)
	var fields []byte
	for _, f := range [][2]string{
		{":method", "POST"}, {":path", "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"}, {":authority", "credence"}, {":scheme", "http"},
		{"te", "trailers"}, {"content-type", "application/grpc"}, {"x-envoy-internal", "true"},
	} { // literals, RFC 7541 §6.2.2
		fields = append(fields, fmt.Sprintf("\x00%c%s%c%s", len(f[0]), f[0], len(f[1]), f[1])...)
	}
	out = append(out, frame(1, 4, 1, fields)...)
	for len(body) > 0 {
		n := min(len(body), 16384)
		out, body = append(out, frame(0, 0, 1, body[:n])...), body[n:]
	}
	c, err := net.Dial("unix", socket)
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = c.Write(out)
	must(t, err)
	for header := make([]byte, 9); ; {
		_, err := io.ReadFull(c, header)
		must(t, err)
		payload := make([]byte, int(header[0])<<16|int(header[1])<<8|int(header[2]))
		_, err = io.ReadFull(c, payload)
		must(t, err)
		switch kind, ack := header[3], header[4]&1 != 0; {
		case kind == 6 && !ack:
			_, err = c.Write(frame(6, 1, 0, payload))
		case kind == 4 && !ack:
			_, err = c.Write(frame(4, 1, 0, nil))
		case kind == 0:
			m := &discovery.DiscoveryResponse{}
			must(t, proto.Unmarshal(payload[5:], m))
			leaf(t, secrets(t, m.GetResources()...)["default"])
			return
		case kind == 3 || kind == 7 || kind == 1 && header[4]&1 != 0:
			t.Fatalf("frame %d ends it: %q", kind, payload)
		}
		must(t, err)
	}
}

// TestLargeNode: a request may be larger than a window.
func TestLargeNode(t *testing.T) {
	t.Parallel()
	w, v := newWorld(t, "/a"), newViews()
	w.peers = []*agenttest.CA{agenttest.NewCA(t, "peer.example")}
	v.set(w.update(), nil)
	client, _, _ := serve(t, v, nil)
	m, err := client.FetchSecrets(t.Context(), extended(t, 200<<10))
	must(t, err)
	secrets(t, m.GetResources()...)
}
