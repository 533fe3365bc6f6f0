package agentcmd

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/cli"
)

// maxMetrics bounds what is read of an agent's metrics.
const maxMetrics = 64 << 20

func (p *verbs) metricsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "metrics", Short: "The agent's metrics, as Prometheus reads them", Args: cobra.NoArgs,
		Long: `Metrics prints what GET /metrics answers on the agent's admin socket, in
Prometheus' text format. For Prometheus itself, metrics.listen in agent.yaml names
a port on loopback.`,
		Example: "  " + p.name + " metrics | grep expiry",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, where, err := DialAdmin(cmd) // it says what is wrong with the socket's name
			if err != nil {
				return err
			}
			conn.Close()
			path, err := cli.SocketPath(where)
			if err != nil {
				return err
			}
			return p.copyMetrics(cmd.Context(), path)
		},
	}
	AdminFlag(cmd, "")
	return cmd
}

func (p *verbs) copyMetrics(ctx context.Context, socket string) error {
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/metrics", nil)
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(r)
	if err != nil {
		return cli.WithCode(cli.ExitUnreachable, fmt.Errorf("the agent at %s is not available: %w", socket, err))
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent at %s answers %s", socket, answer.Status)
	}
	_, err = io.Copy(p.Out, io.LimitReader(answer.Body, maxMetrics))
	return err
}
