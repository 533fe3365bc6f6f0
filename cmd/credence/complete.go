package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/resource"
)

// completionTime is how long a person who pressed Tab waits for the broker.
const completionTime = 2 * time.Second

// A completion is what a shell may offer. Where the broker cannot be asked
// there is nothing to offer, and nothing to say: the person is typing.
type completion func(context.Context, api.AdminClient) []string

// completeFirst completes the first argument.
func completeFirst(ask completion) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return offer(cmd, ask), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlag completes a flag's value.
func completeFlag(cmd *cobra.Command, flag string, ask completion) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return offer(cmd, ask), cobra.ShellCompDirectiveNoFileComp
	})
}

func offer(cmd *cobra.Command, ask completion) []string {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	conn, _, err := dialAdmin(ctx, cmd)
	if err != nil {
		return nil
	}
	defer conn.Close()
	return ask(ctx, api.NewAdminClient(conn))
}

func completeNodes(ctx context.Context, c api.AdminClient) (names []string) {
	r, err := c.ListNodes(ctx, &api.ListNodesRequest{})
	if err != nil {
		return nil
	}
	for _, n := range r.GetNodes() {
		names = append(names, cobra.CompletionWithDesc(n.GetName(), nodeState(n)))
	}
	return names
}

// completeNamed completes the names of resources of a kind.
func completeNamed(kind string) completion {
	return func(ctx context.Context, c api.AdminClient) (names []string) {
		r, err := c.Get(ctx, &api.GetRequest{Kind: kind})
		if err != nil {
			return nil
		}
		for _, one := range r.GetResources() {
			names = append(names, one.GetName())
		}
		return names
	}
}

// completeOwners completes whose resources there are.
func completeOwners(ctx context.Context, c api.AdminClient) (owners []string) {
	r, err := c.Get(ctx, &api.GetRequest{})
	if err != nil {
		return nil
	}
	for _, one := range r.GetResources() {
		if !slices.Contains(owners, one.GetOwner()) {
			owners = append(owners, one.GetOwner())
		}
	}
	return owners
}

// completeRevisions completes the last changes of policy.
func completeRevisions(ctx context.Context, c api.AdminClient) (revisions []string) {
	r, err := c.ListRevisions(ctx, &api.ListRevisionsRequest{})
	if err != nil {
		return nil
	}
	for _, one := range r.GetRevisions() {
		revisions = append(revisions, cobra.CompletionWithDesc(fmt.Sprint(one.GetRevision()), whatOf(one)))
	}
	return revisions
}

// completeResource completes KIND NAME.
func completeResource(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		var kinds []string
		for _, k := range resource.Kinds {
			kinds = append(kinds, strings.ToLower(k))
		}
		return kinds, cobra.ShellCompDirectiveNoFileComp
	case 1:
		if kind, err := kindOf(args[0]); err == nil {
			return offer(cmd, completeNamed(kind)), cobra.ShellCompDirectiveNoFileComp
		}
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
