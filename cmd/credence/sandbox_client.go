package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/exchangers/sandbox/clouds"
)

func (p *program) sandboxFaultCommand() *cobra.Command {
	var f clouds.Fault
	var clear bool
	cmd := &cobra.Command{
		Use: "fault [SERVICE KIND | --clear]", Short: "Make a service of the sandbox fail, or tell what will", Args: cobra.MaximumNArgs(2),
		Long: `Fault makes the next responses of a service of the sandbox go wrong, by its
switchboard, and shows what waits; without arguments it only shows. Services are
those that sandbox run prints. Kinds of a response:

  429, 503           throttled, unavailable; with --retry-after S, a Retry-After
  500                an internal error, in the cloud's own form
  hang               no answer until the client goes away
  close              the connection ends in the middle of the body
  truncated          half a body, well ended
  empty-credentials  all texts of the answer are empty
  html               200 and a web page

and of the service's cloud:

  slow-jwks, jwks-500   its next fetches of an issuer's keys fail
  drop-jwks             what it has cached of issuers' keys is forgotten
  clock                 its clock is --offset ahead, until that is set again

The same by hand, on the socket, GET /faults, DELETE /faults and GET /requests too:

  curl --unix-socket "${CREDENCE_SANDBOX#unix://}" http://sandbox/faults \
    -d '{"service": "entra", "kind": "503", "count": 2, "retry_after": 3}'`,
		Example: `  credence sandbox fault sts 429 --count 2
  credence sandbox fault entra 503 --retry-after 2
  credence sandbox fault gcp_sts clock --offset -10m
  credence sandbox fault --clear`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return clouds.Kinds(), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			method, body := http.MethodGet, any(nil)
			switch {
			case clear && len(args) > 0 || len(args) == 1:
				return cli.BadInput(fmt.Errorf("a service and a kind are wanted, or --clear alone"))
			case clear:
				method = http.MethodDelete
			case len(args) == 2:
				f.Service, f.Kind = args[0], args[1]
				method, body = http.MethodPost, f
			case cmd.Flags().Changed("count") || cmd.Flags().Changed("retry-after") || cmd.Flags().Changed("offset"):
				return cli.BadInput(fmt.Errorf("a service and a kind are wanted with it"))
			}
			var states []clouds.State
			if err := askSandbox(cmd, method, "/faults", body, &states); err != nil {
				return err
			}
			return p.Show(cmd, states, func() error { return p.Table("SERVICE|QUEUED|JWKS|CLOCK", stateRows(states)) })
		},
	}
	cmd.Flags().IntVar(&f.Count, "count", 0, "how many responses (default 1)")
	cmd.Flags().IntVar(&f.RetryAfter, "retry-after", 0, "seconds, of 429 and 503; 0 sends none")
	cmd.Flags().StringVar(&f.Offset, "offset", "", "of clock: a duration such as -10m; 0s puts it right")
	cmd.Flags().BoolVar(&clear, "clear", false, "all is well again, clocks too")
	return cli.AddOutput(addSandbox(cmd))
}

// stateRows tells queued faults as runs: 429 x2, 500.
func stateRows(states []clouds.State) (rows [][]string) {
	for _, s := range states {
		var queued []string
		for _, q := range s.Queued {
			text := q.Kind
			if q.RetryAfter > 0 {
				text += fmt.Sprintf(" (after %ds)", q.RetryAfter)
			}
			queued = append(queued, text)
		}
		rows = append(rows, []string{s.Service, runs(queued), runs(s.Fetches), s.Offset})
	}
	return rows
}

func runs(all []string) string {
	var out []string
	for i := 0; i < len(all); {
		n := i + 1
		for n < len(all) && all[n] == all[i] {
			n++
		}
		text := all[i]
		if n-i > 1 {
			text += fmt.Sprintf(" x%d", n-i)
		}
		out, i = append(out, text), n
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, ", ")
}

func (p *program) sandboxRequestsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "requests [SERVICE]", Short: "Tell what was asked of the sandbox, and why it was refused", Args: cobra.MaximumNArgs(1),
		Long: `Requests shows the requests that the sandbox remembers, oldest first: what was
asked, the answer, and for a refusal exactly what was wrong, which no cloud tells.
Of tokens it has the digest alone.`,
		Example: `  credence sandbox requests
  credence sandbox requests sts -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/requests"
			if len(args) > 0 {
				path += "?" + url.Values{"service": args}.Encode()
			}
			var all []clouds.Request
			if err := askSandbox(cmd, http.MethodGet, path, nil, &all); err != nil {
				return err
			}
			return p.Show(cmd, all, func() error {
				var rows [][]string
				for _, r := range all {
					rows = append(rows, []string{r.Time.UTC().Format("15:04:05.000"), r.Service, r.Method + " " + r.Path, fmt.Sprint(r.Status), r.Code, r.Reason})
				}
				return p.Table("TIME|SERVICE|REQUEST|STATUS|CODE|REASON", rows)
			})
		},
	}
	return cli.AddOutput(addSandbox(cmd))
}

func addSandbox(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("socket", "", "the sandbox's switchboard: a path or unix:///path (default $"+sandboxVariable+")")
	return cmd
}

// askSandbox calls the switchboard.
func askSandbox(cmd *cobra.Command, method, path string, body, into any) error {
	where, _ := cmd.Flags().GetString("socket")
	if where == "" {
		where = os.Getenv(sandboxVariable)
	}
	if where == "" {
		return cli.BadInput(fmt.Errorf("which sandbox? set %s to the socket of its faults (sandbox run and dev print it), or give --socket", sandboxVariable))
	}
	socket, err := cli.SocketPath(where)
	if err != nil {
		return err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(cmd.Context(), method, "http://sandbox"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(r)
	if errors.Is(err, fs.ErrPermission) {
		return cli.WithCode(cli.ExitDenied, err)
	}
	if err != nil {
		return cli.WithCode(cli.ExitUnreachable, fmt.Errorf("the sandbox at %s is not reached: %w", socket, err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 256<<20))
	switch {
	case err != nil:
		return cli.WithCode(cli.ExitUnreachable, err)
	case resp.StatusCode == http.StatusForbidden:
		return cli.WithCode(cli.ExitDenied, errors.New(strings.TrimSpace(string(answer))))
	case resp.StatusCode == http.StatusBadRequest:
		var no struct{ Error string }
		if json.Unmarshal(answer, &no) == nil && no.Error != "" {
			return cli.BadInput(errors.New(no.Error))
		}
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the sandbox answers %s", resp.Status)
	}
	return json.Unmarshal(answer, into)
}
