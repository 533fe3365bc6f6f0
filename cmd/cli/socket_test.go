package cli_test

import (
	"testing"

	"github.com/credence-id/credence/cmd/cli"
)

// The endpoint addresses of the vectors' section F.1. A Workload API on TCP
// cannot know its caller, so that there is none of ours, and none is asked.
func TestEndpointAddressVectors(t *testing.T) {
	tests := []struct{ name, address, path string }{
		{"EP-01", "unix:///run/agent.sock", "/run/agent.sock"},
		{"EP-02 no authority", "unix:/run/agent.sock", "/run/agent.sock"},
		{"EP-03 a directory", "unix:///", ""},
		{"EP-04 two slashes", "unix://run/agent.sock", ""},
		{"EP-06 no path", "unix://", ""},
		{"EP-07 relative", "unix:relative.sock", ""},
		{"EP-08 relative, dotted", "unix:./relative.sock", ""},
		{"EP-09 query", "unix:///run/a.sock?x=1", ""},
		{"empty query", "unix:///run/a.sock?", ""},
		{"fragment", "unix:///run/a.sock#x", ""},
		{"empty fragment", "unix:///run/a.sock#", ""},
		{"EP-11 user information", "unix://u@h/run/a.sock", ""},
		{"user information, no host", "unix://u@/run/a.sock", ""},
		{"EP-12 abstract", "unix:@abstract", ""},
		{"EP-13 another scheme", "unix-abstract:foo", ""},
		{"EP-14 scheme in capitals", "UNIX:///run/a.sock", "/run/a.sock"},
		{"EP-16 blank", " ", ""},
		{"EP-17 TCP", "tcp://127.0.0.1:8000", ""},
		{"EP-18 TCP, IPv6", "tcp://[::1]:8000", ""},
		{"EP-19 TCP with a path", "tcp://127.0.0.1:8000/foo", ""},
		{"EP-21 no port", "tcp://127.0.0.1", ""},
		{"EP-22 empty port", "tcp://127.0.0.1:", ""},
		{"EP-23 no host", "tcp://:8000", ""},
		{"EP-24 a name", "tcp://localhost:8000", ""},
		{"EP-26 port out of range", "tcp://127.0.0.1:99999", ""},
		{"EP-27 port 0", "tcp://127.0.0.1:0", ""},
		{"EP-28 TCP with user information", "tcp://u@127.0.0.1:8000", ""},
		{"EP-29 TCP with a query", "tcp://127.0.0.1:8000?x", ""},
		{"EP-31 opaque", "tcp:127.0.0.1:8000", ""},
		{"EP-32 HTTP", "http://127.0.0.1:8000", ""},
		{"EP-33 a pipe", `npipe:pipe\spire`, ""},
		{"EP-34 leading zero", "tcp://010.0.0.1:8000", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := cli.SocketPath(tt.address)
			if (err != nil) != (tt.path == "") || err == nil && got != tt.path {
				t.Errorf("%q is read as %q, %v; want %q", tt.address, got, err, tt.path)
			}
		})
	}
}
