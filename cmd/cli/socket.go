package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// DialSocket opens a gRPC connection to a Unix socket. The kernel tells the
// other side who we are: nothing is encrypted, nothing leaves the machine.
func DialSocket(where string) (*grpc.ClientConn, error) {
	path, err := SocketPath(where)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, WithCode(ExitUnreachable, fmt.Errorf("no socket at %s: is it running, and is that the right path?", path))
	}
	return grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

// Reached says who was not reached.
func Reached(who, where string, err error) error {
	var c Coded
	if errors.As(err, &c) {
		return err
	}
	switch status.Code(err) {
	case codes.Unavailable:
		return WithCode(ExitUnreachable, fmt.Errorf("the %s at %s is not available: %s", who, where, status.Convert(err).Message()))
	case codes.PermissionDenied, codes.Unauthenticated:
		return WithCode(ExitDenied, errors.New(status.Convert(err).Message()))
	}
	return err
}

// SocketPath reads a path or a unix:///path URL.
func SocketPath(text string) (string, error) {
	if text = strings.TrimSpace(text); text != "" && !strings.Contains(text, ":") {
		return filepath.Abs(text)
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "unix" || u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") || strings.HasSuffix(u.Path, "/") || strings.ContainsAny(text, "?#") {
		return "", BadInput(fmt.Errorf("socket %q: a path or unix:///path is wanted", text))
	}
	return u.Path, nil
}

// Traversable says whether every user gets to a directory.
func Traversable(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// Absolute is a path from the root, where that can be told.
func Absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// CheckTraversable says whether every user gets to a socket: whom it serves is
// the Identities' to say, not a directory's.
func CheckTraversable(socket string) error {
	dir := filepath.Dir(Absolute(socket))
	if _, err := os.Stat(dir); err == nil && !Traversable(dir) {
		return fmt.Errorf("other users' programs cannot reach %s: a directory above it lacks their x bit; open it, or name another socket", socket)
	}
	return nil
}

// WorkloadVariable names the Workload API (SPIFFE Workload Endpoint §4).
const WorkloadVariable = "SPIFFE_ENDPOINT_SOCKET"
