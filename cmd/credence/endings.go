package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/azure"
	"github.com/credence-id/credence/cmd/cli"
)

// endingSoon is when to tell of a certificate that nodes join by: the methods of clouds
// and TPMs log it from then on too.
const endingSoon = 90 * 24 * time.Hour

// checkEndings looks at the certificates by which nodes join: those that are built in,
// and those of the JoinRules of the broker that runs by this file, if one does.
func (p *program) checkEndings(ctx context.Context, f brokerFile) []cli.Finding {
	const what = "certificates that nodes join by"
	findings := ending("built in", new(azure.Settings), p.Now())
	rules, err := rulesOf(ctx, f)
	if err != nil {
		return append(findings, cli.Found(what, err))
	}
	for _, r := range rules {
		findings = append(findings, ending("join rule "+r.Name, r.Settings, p.Now())...)
	}
	if len(findings) == 0 {
		findings = append(findings, cli.Found(what, nil))
	}
	return findings
}

// ending is a finding for each certificate that has ended, or will soon.
func ending(whose string, s join.Settings, now time.Time) (findings []cli.Finding) {
	ends, ok := s.(interface{ Endings() []join.Ending })
	if !ok {
		return nil
	}
	for _, e := range ends.Endings() {
		on := e.At.UTC().Format(time.DateOnly)
		switch {
		case e.At.Before(now):
			findings = append(findings, cli.Found(whose, fmt.Errorf("the certificate %s ended on %s: nobody joins by it", e.What, on)))
		case e.At.Before(now.Add(endingSoon)):
			findings = append(findings, cli.Warned(whose, fmt.Errorf("the certificate %s ends on %s: give the rule the next one beside it", e.What, on)))
		}
	}
	return findings
}

// rulesOf asks a running broker for its JoinRules; where none runs there are none.
func rulesOf(ctx context.Context, f brokerFile) (rules []*join.Rule, err error) {
	conn, err := cli.DialSocket(f.Admin)
	if err != nil {
		return nil, nil // it has no socket, or none that could be: another check tells
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := api.NewAdminClient(conn).Get(ctx, &api.GetRequest{Kind: "JoinRule"})
	if status.Code(err) == codes.Unavailable {
		return nil, nil // a socket that was left
	}
	if err != nil {
		return nil, cli.Reached("broker", f.Admin, err)
	}
	for _, one := range r.GetResources() {
		parsed, err := registry().Parse("JoinRule "+one.GetName(), one.GetYaml())
		if err != nil {
			return nil, err
		}
		for _, rule := range parsed {
			rules = append(rules, rule.JoinRule)
		}
	}
	return rules, nil
}
