package main_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	workloadpb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	credence "github.com/credence-id/credence/cmd/credence"
)

// workload is a program that knows go-spiffe and a socket, and nothing of ours.
//
//	watch SOCKET         prints each X509-SVID that its open stream brings
//	calls SOCKET TOKEN   calls each method once, and prints what comes
//	meet SOCKET SOCKET   two of different trust domains meet
//	bundles SOCKET       prints the trust domains whose bundles it is given
//	pose DIR             serves TLS with the SVID in DIR, as a broker would
//	serve SOCKET ID      answers whoever shows that ID, by mTLS
//	flood SOCKET N M     keeps M streams open on each of N connections
//	hold KIND SOCKET     goes on for long, and prints what it has
//	call SOCKET ADDRESS ID N   asks a server until both have shown N new SVIDs
func workload(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case len(args) == 2 && args[0] == "watch":
		err = watch(ctx, args[1])
	case len(args) == 3 && args[0] == "calls":
		err = calls(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "meet":
		err = meet(ctx, args[1], args[2])
	case len(args) == 2 && args[0] == "bundles":
		err = bundles(ctx, args[1])
	case len(args) == 2 && args[0] == "pose":
		err = pose(ctx, args[1])
	case len(args) == 3 && args[0] == "serve":
		err = serveMTLS(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "hold":
		err = hold(ctx, args[1], args[2])
	case len(args) == 4 && args[0] == "flood":
		err = flood(ctx, args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "call":
		n, _ := strconv.Atoi(args[4]) // no number is none
		err = callMTLS(ctx, args[1], args[2], args[3], n)
	default:
		err = fmt.Errorf("arguments: %q", args)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Println("failed:", err)
		return 1
	}
	return 0
}

// pose is a workload that would be taken for the broker: it shows its own SVID
// and, as the broker does, the root, and takes whatever comes.
func pose(ctx context.Context, dir string) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem"))
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "svid_bundle.pem"))
	if err != nil {
		return err
	}
	root, _ := pem.Decode(text)
	cert.Certificate = append(cert.Certificate, root.Bytes)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS13})))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println("poses on", l.Addr())
	defer context.AfterFunc(ctx, server.Stop)()
	return server.Serve(l)
}

func watch(ctx context.Context, socket string) error {
	at := workloadapi.WithClientOptions(workloadapi.WithAddr(socket))
	source, err := workloadapi.NewX509Source(ctx, at)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	tokens, err := workloadapi.NewJWTSource(ctx, at)
	if err != nil {
		return err
	}
	defer tokens.Close()
	token, err := tokens.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "orders"})
	if err != nil {
		return err
	}
	fmt.Println("source", svid.ID, token.ID, token.Audience)
	return workloadapi.WatchX509Context(ctx, printer{}, workloadapi.WithAddr(socket))
}

// meet has a workload at each of two agents believe the other: X509-SVIDs in
// mTLS, each as server once, and JWT-SVIDs by each one's Workload API.
func meet(ctx context.Context, first, second string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var ids []string
	var sources []*workloadapi.X509Source
	for _, socket := range []string{first, second} {
		source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket)))
		if err != nil {
			return err
		}
		defer source.Close()
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		sources, ids = append(sources, source), append(ids, svid.ID.String())
	}
	for i, sockets := range [][2]string{{first, second}, {second, first}} {
		if err := greet(ctx, sources[i], sources[1-i]); err != nil {
			return fmt.Errorf("mTLS with %s as server: %w", ids[1-i], err)
		}
		if err := present(ctx, sockets[0], sockets[1], ids[i]); err != nil {
			return fmt.Errorf("JWT-SVID of %s: %w", ids[i], err)
		}
	}
	fmt.Println(ids[0], "and", ids[1], "believe each other: mTLS both ways, JWT-SVIDs both ways")
	return nil
}

func bundles(ctx context.Context, socket string) error {
	set, err := workloadapi.FetchX509Bundles(ctx, workloadapi.WithAddr(socket))
	if err != nil {
		return err
	}
	var names []string
	for _, b := range set.Bundles() {
		names = append(names, b.TrustDomain().Name())
	}
	slices.Sort(names)
	fmt.Println("bundles of", strings.Join(names, " "))
	return nil
}

// greet has client say a word to server; each knows the other's ID.
func greet(ctx context.Context, client, server *workloadapi.X509Source) error {
	theirs, err := server.GetX509SVID()
	if err != nil {
		return err
	}
	ours, err := client.GetX509SVID()
	if err != nil {
		return err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeID(ours.ID)))
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			fmt.Fprint(conn, "hello")
			conn.Close()
		}
	}()
	conn, err := (&tls.Dialer{Config: tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeID(theirs.ID))}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	word, err := io.ReadAll(conn)
	if err == nil && string(word) != "hello" {
		err = fmt.Errorf("the server said %q", word)
	}
	return err
}

// present has a token of one workload validated at the other's agent.
func present(ctx context.Context, from, to, id string) error {
	holder, err := workloadapi.New(ctx, workloadapi.WithAddr(from))
	if err != nil {
		return err
	}
	defer holder.Close()
	token, err := holder.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "reports"})
	if err != nil {
		return err
	}
	validator, err := workloadapi.New(ctx, workloadapi.WithAddr(to))
	if err != nil {
		return err
	}
	defer validator.Close()
	valid, err := validator.ValidateJWTSVID(ctx, token.Marshal(), "reports")
	if err == nil && valid.ID.String() != id {
		err = fmt.Errorf("it was taken for %s", valid.ID)
	}
	return err
}

// printer prints what a stream brings, a line each.
type printer struct{}

func (printer) OnX509ContextUpdate(x *workloadapi.X509Context) {
	leaf := x.DefaultSVID().Certificates[0]
	fmt.Println("svid", x.DefaultSVID().ID, leaf.NotAfter.Sub(leaf.NotBefore).Round(10*time.Minute), fmt.Sprintf("%x", leaf.SerialNumber))
}

func (printer) OnX509ContextWatchError(err error) { fmt.Println("error", status.Code(err)) }

func calls(ctx context.Context, socket, token string) error {
	conn, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), patience)
	defer cancel()
	c := workloadpb.NewSpiffeWorkloadAPIClient(conn)
	say := func(method string, got any, err error) {
		if err != nil {
			got = status.Code(err)
		}
		fmt.Println(method, got)
	}
	x, err := c.FetchX509SVID(ctx, &workloadpb.X509SVIDRequest{})
	first(x, err, "FetchX509SVID", say)
	b, err := c.FetchX509Bundles(ctx, &workloadpb.X509BundlesRequest{})
	first(b, err, "FetchX509Bundles", say)
	j, err := c.FetchJWTSVID(ctx, &workloadpb.JWTSVIDRequest{Audience: []string{"orders"}})
	say("FetchJWTSVID", fmt.Sprint(len(j.GetSvids()), " SVIDs"), err)
	k, err := c.FetchJWTBundles(ctx, &workloadpb.JWTBundlesRequest{})
	first(k, err, "FetchJWTBundles", say)
	v, err := c.ValidateJWTSVID(ctx, &workloadpb.ValidateJWTSVIDRequest{Audience: "orders", Svid: token})
	say("ValidateJWTSVID", v.GetSpiffeId(), err)
	return nil
}

// first reports the first answer of a stream.
func first[T any](stream grpc.ServerStreamingClient[T], err error, method string, say func(string, any, error)) {
	if err == nil {
		_, err = stream.Recv()
	}
	say(method, "an answer", err)
}

// limited is credence on a disk that USR1 fills and USR2 empties.
func limited() {
	signal.Ignore(syscall.SIGXFSZ) // a full disk sends none
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1, syscall.SIGUSR2)
	var free syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &free); err != nil {
		panic(err)
	}
	go func() {
		for s := range asked {
			limit, word := free, "the disk has room"
			if s == syscall.SIGUSR1 {
				limit.Cur, word = 1, "the disk is full"
			}
			if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
				panic(err)
			}
			fmt.Println(word)
		}
	}()
	credence.Main()
}

// bare is a gRPC server that does nothing but answer: what the transport alone
// costs.
func bare(args []string) int {
	l, err := net.Listen("unix", args[0])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	go func() { <-ctx.Done(); s.Stop() }()
	fmt.Println("serving")
	if err := s.Serve(l); err != nil {
		return 1
	}
	return 0
}
