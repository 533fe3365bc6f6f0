package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/keys/disk"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/cmd/cli"
)

func (p *program) keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "keys -c broker.yaml", Short: "Try every key in use, and go on without those that are lost", Args: cobra.NoArgs,
		Long: `Keys tries to open every private key that the broker of broker.yaml signs with,
the root's too, where keys and root_keys say that they are. The broker must not
run, unless it shares its database: then it may, but for --forget. It exits 1
where a key can't be opened, with what to do.

With --rewrap it first encrypts the keys on disk under kek_file: those under one
of old_kek_files, and those that are not encrypted. Where brokers share a
database, those in it too, and it takes in the shared keys that a broker kept in
files before. To change the key-encryption key of them all, name
the new file as kek_file and the old one in old_kek_files on every broker and
restart one after the other; then rewrap on each; then take the old one out.

With --forget it sets authorities aside whose keys are lost for good; the broker
makes others when it starts, and nothing brings the old ones back. It refuses a
key that opens here. Where brokers share a database, JWT keys go from all of them,
also from one that can still open them: try keys on each first. An issuing CA is
this broker's alone, and the root goes when no broker's issuing CA is good any
more. What the lost keys signed stays valid until it ends. Where the root is
among them the broker makes another, and every agent and peer must be given
that: it says how.`,
		Example: `  credence broker init --trust-domain example.org --data ./broker > broker.yaml
  credence broker keys -c broker.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := brokerConfig(cmd)
			if err != nil {
				return err
			}
			rewrap, _ := cmd.Flags().GetBool("rewrap")
			forget, _ := cmd.Flags().GetStringSlice("forget")
			return p.keys(cmd, f, rewrap, forget)
		},
	}
	cmd.Flags().Bool("rewrap", false, "encrypt keys on disk under kek_file, as far as they are not")
	cmd.Flags().StringSlice("forget", nil, "IDs of authorities to set aside, JWT keys on all brokers that share the database: their keys are lost for good")
	cmd.Flags().StringP("config", "c", "broker.yaml", "configuration")
	cli.CompleteFiles(cmd, "config", "yaml", "yml")
	return cli.AddOutput(cmd)
}

// keyView is a key in use as programs read it.
type keyView struct {
	ID      string `json:"id"`
	Use     string `json:"use"`
	Alg     string `json:"alg"`
	State   string `json:"state"`
	Key     string `json:"key"` // its name where it is kept
	OK      bool   `json:"ok"`
	Problem string `json:"problem"`
}

func (p *program) keys(cmd *cobra.Command, f brokerFile, rewrap bool, forget []string) (err error) {
	ctx := cmd.Context()
	b := &brokerParts{file: f}
	defer func() { err = errors.Join(err, b.close()) }()
	where := f.storeConfig(p.Now)
	// What only reads, or what brokers that run see coming, need not wait for one's
	// end.
	beside := f.shared() && len(forget) == 0
	if beside {
		where.Dir = ""
	}
	if b.store, err = store.Open(ctx, where); err != nil {
		return cli.BadInput(err)
	}
	if beside {
		return p.checkKeys(cmd, b, rewrap)
	}
	if b.audit, err = audit.Open(f.Audit.config(f.Data, p.Logger())); err != nil {
		return cli.BadInput(err)
	}
	if len(forget) == 0 {
		return p.checkKeys(cmd, b, rewrap)
	}
	config, err := p.keysConfig(ctx, b)
	if err != nil {
		return cli.BadInput(err)
	}
	if rewrap {
		if err := p.rewrap(ctx, b, config); err != nil {
			return cli.BadInput(err)
		}
	}
	return p.forget(ctx, b, config, forget)
}

func (p *program) keysConfig(ctx context.Context, b *brokerParts) (config authority.Config, err error) {
	td, err := identity.ParseTrustDomain(b.file.TrustDomain)
	if err != nil {
		return config, err
	}
	return b.authorityConfig(ctx, td, brokerOptions{now: p.Now, log: p.Logger()})
}

func (p *program) checkKeys(cmd *cobra.Command, b *brokerParts, rewrap bool) error {
	ctx := cmd.Context()
	config, err := p.keysConfig(ctx, b)
	if err != nil {
		return cli.BadInput(err)
	}
	if rewrap {
		if err := p.rewrap(ctx, b, config); err != nil {
			return cli.BadInput(err)
		}
	}
	states, err := authority.CheckKeys(ctx, config)
	if err != nil {
		return err
	}
	path, _ := cmd.Flags().GetString("config")
	return p.showKeys(cmd, path, states)
}

func (p *program) showKeys(cmd *cobra.Command, path string, states []authority.KeyState) error {
	views, rows, lost := []keyView{}, [][]string{}, []string{}
	for _, s := range states {
		v, state := keyView{s.ID, string(s.Use), s.Alg, string(s.State), s.KeyRef, s.Err == nil, ""}, "ok"
		if s.Err != nil {
			v.Problem, state = s.Err.Error(), "no"
			lost = append(lost, s.ID)
		}
		views = append(views, v)
		rows = append(rows, []string{state, v.Use, v.Alg, v.State, v.ID, v.Problem})
	}
	if err := p.Show(cmd, views, func() error { return p.Table("OK|KIND|ALG|STATE|KEY|PROBLEM", rows) }); err != nil {
		return err
	}
	if len(lost) == 0 {
		return nil
	}
	return cli.WithCode(cli.ExitNo, fmt.Errorf("%d of %d keys can't be opened: bring back what is missing; what is lost for good, go on without: credence broker keys -c %s --forget %s",
		len(lost), len(states), cli.ShellWord(path), strings.Join(lost, ",")))
}

// rewrap encrypts the keys in each directory anew that has a key-encryption
// key, and those that brokers share in the database.
func (p *program) rewrap(ctx context.Context, b *brokerParts, config authority.Config) error {
	total, found := 0, false
	var errs []error
	for _, k := range b.keys {
		on, ok := k.Keys.(*disk.Keys)
		if !ok || !k.encrypted {
			continue
		}
		found = true
		n, err := on.Rewrap(ctx)
		if total += n; err != nil {
			errs = append(errs, fmt.Errorf("%s.%s: %w", k.field, k.kind, err))
		}
	}
	shared := false
	for _, keys := range []authority.Keys{config.JWTKeys, config.RootKeys} {
		_, ok := keys.(*sharedKeys)
		shared = shared || ok
	}
	if found = found || shared; shared { // after the files, from which keys may be taken in
		n, err := authority.Rewrap(ctx, config)
		total += n
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !found {
		return errors.New("nothing to encrypt under: broker.yaml names no kek_file")
	}
	_, err := fmt.Fprintf(p.Err, "%d keys were encrypted anew: old_kek_files are not needed any more\n", total)
	return err
}

// forget records what it does before it does it.
func (p *program) forget(ctx context.Context, b *brokerParts, config authority.Config, ids []string) error {
	states, err := authority.CheckKeys(ctx, config)
	if err != nil {
		return err
	}
	for _, id := range ids {
		event := audit.Event{Kind: "authority.forget", OK: true, Actor: fmt.Sprintf("uid:%d", os.Getuid()), Authority: id, Reason: "its key is lost"}
		if _, err := b.audit.Append(ctx, event); err != nil {
			return err
		}
	}
	if err := authority.ForgetKeys(ctx, config, ids); err != nil {
		return cli.BadInput(err)
	}
	uses := map[authority.Use]bool{}
	for _, s := range states {
		for _, id := range ids {
			uses[s.Use] = uses[s.Use] || s.ID == id
		}
	}
	return p.lines(afterForgetting(uses))
}

// afterForgetting says what to do, in its order.
func afterForgetting(uses map[authority.Use]bool) []string {
	all := []string{"set aside; start the broker: it makes what is missing"}
	if uses[authority.JWTKey] {
		all = append(all, "JWT keys: clouds and peers take tokens of the new ones as soon as they fetch our keys again: within minutes, or as long as they cache (a day at most)")
	}
	if uses[authority.Domain] {
		all = append(all, "our CA under the corporate root: nothing is signed until the PKI certifies another: credence ca csr, credence ca install")
	}
	if uses[authority.Root] {
		all = append(all,
			"the root: agents and peers know the old one only, and take nothing of the new one until they are given it:",
			"  each agent: stop it, delete its data directory, and join it again: credence token create prints its agent.yaml, with the new pin",
			"  each peer: give its operator the new bundle: credence bundle show",
			"  each cloud that has the old root as an anchor: credence target setup prints what to change",
			"  the old root stays in the bundle until what it signed has ended: then credence ca rotate root takes it out")
	}
	return all
}
