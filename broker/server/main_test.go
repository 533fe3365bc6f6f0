package server_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
)

const (
	socketEnv = "SERVER_TEST_SOCKET"
	benchEnv  = "SERVER_TEST_BENCH"
)

// TestMain runs this binary as an operator of another uid, or as one of the
// servers that benchmarks measure.
func TestMain(m *testing.M) {
	if socket := os.Getenv(socketEnv); socket != "" {
		fmt.Print(call(socket))
		os.Exit(0)
	}
	if role := os.Getenv(benchEnv); role != "" {
		os.Exit(benchChild(role))
	}
	os.Exit(m.Run())
}

// call makes a token, and says how that went.
func call(socket string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	r, err := api.NewAdminClient(conn).CreateToken(ctx, &api.CreateTokenRequest{Node: "n1"})
	return fmt.Sprintf("%s %s", status.Code(err), r.GetToken())
}
