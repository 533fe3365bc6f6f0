package main

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/oidc"
	"github.com/credence-id/credence/cmd/cli"
	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/endpoint"
	"github.com/credence-id/credence/federation/publish"
)

func (p *program) publishCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "publish --to PLACE", Short: "Push bundle, OIDC discovery and keys to where others serve them", Args: cobra.NoArgs,
		Long: `Publish is for a broker that clouds and peers cannot reach. It asks the broker for
its bundle and, where it has an issuer, for OIDC discovery and keys, and pushes
them to a place that they can reach:

  dir:///PATH                              a directory, for a web server of yours
  s3://BUCKET/PREFIX                       Amazon S3, or by --endpoint what speaks its protocol
  gs://BUCKET/PREFIX                       Google Cloud Storage
  azblob://ACCOUNT/CONTAINER/PREFIX        Azure Blob Storage
  rolesanywhere:ARN                        the roots, to an AWS Roles Anywhere trust anchor

The issuer's URL must lead to the place: ISSUER/.well-known/openid-configuration
and ISSUER/keys are the objects PREFIX/.well-known/openid-configuration and
PREFIX/keys; the bundle is PREFIX/bundle. Credentials are those that the cloud's
own tools would find here.

With --watch it goes on: it publishes each change within seconds, mends what
others changed there, and tells of every failure. Without it, run it from a timer.
A place that holds a newer bundle, or what is not ours, is left alone.

Name each place under publish_to in broker.yaml too: then a new JWT key signs only
once it has been at all of them for jwt_key_lead (24h). Without that the lead
counts from the broker's own bundle, and what publishes later cuts clouds off.

Exit codes: 1 a place could not be published to; 4 it denied us.`,
		Example: `  credence bundle publish --to "dir://$PWD/public"
  credence bundle publish --to "dir://$PWD/public" --to "dir://$PWD/mirror" -o json`,
		RunE: p.publish,
	}
	cmd.Flags().StringArray("to", nil, "where to: "+placeForms+"; may be repeated")
	cmd.Flags().String("endpoint", "", "URL of the service, in place of the cloud's own: MinIO, a sovereign cloud, a private endpoint")
	cmd.Flags().Bool("watch", false, "go on until told to stop")
	_ = cmd.MarkFlagRequired("to")
	return cli.AddOutput(addAdmin(cmd))
}

func (p *program) publish(cmd *cobra.Command, _ []string) error {
	to, _ := cmd.Flags().GetStringArray("to")
	at, _ := cmd.Flags().GetString("endpoint")
	watch, _ := cmd.Flags().GetBool("watch")
	if watch && cli.OutputOf(cmd) != "table" {
		return cli.BadInput(fmt.Errorf("-o %s: --watch writes lines; a single publication can be written so", cli.OutputOf(cmd)))
	}
	var places []destination
	for _, text := range to {
		one, err := parseDestination(text, at)
		if err != nil {
			return err
		}
		places = append(places, one)
	}
	targets := make([]publish.Target, len(places))
	for i, one := range places {
		var err error
		if targets[i], err = one.open(cmd.Context()); err != nil {
			return cli.BadInput(fmt.Errorf("--to %s: %w", one.text, err))
		}
	}
	return adminConn(cmd, func(ctx context.Context, conn *grpc.ClientConn) error {
		from := publishing{api.NewAdminClient(conn), api.NewAuthoritiesClient(conn)}
		if watch {
			return p.watchPlaces(ctx, from, places, targets)
		}
		return p.publishOnce(ctx, cmd, from, places, targets)
	})
}

// publishedView is what came of one place.
type publishedView struct {
	To       string   `json:"to"`
	Sequence uint64   `json:"sequence"`
	Changed  []string `json:"changed"`
	Problem  string   `json:"problem"`
}

func (p *program) publishOnce(ctx context.Context, cmd *cobra.Command, from publishing, places []destination, targets []publish.Target) error {
	set, err := from.set(ctx)
	if err != nil {
		return err
	}
	sequence, views, rows := sequenceOf(set), []publishedView{}, [][]string{}
	var failed cli.Coded
	for i, one := range places {
		progress := p.StartProgress("publishing to " + one.text)
		changed, err := targets[i].Publish(ctx, set)
		progress.Stop()
		if err == nil {
			err = from.confirm(ctx, one.text, set)
		}
		if slices.Contains(changed, publish.KeysName) {
			w := &placeWatch{to: one.text, from: from, now: p.Now}
			for _, line := range w.leads(ctx, keyIDs(set), keyIsThere) {
				fmt.Fprintln(p.Err, line)
			}
		}
		view, state := publishedView{To: one.text, Sequence: sequence, Changed: append([]string{}, changed...)}, "ok"
		if err != nil {
			view.Problem, state = err.Error(), "no"
			failed.Code = max(failed.Code, cli.ExitNo)
			if deniedBy(err) {
				failed.Code = cli.ExitDenied
			}
		}
		views = append(views, view)
		rows = append(rows, []string{state, view.To, fmt.Sprint(sequence), orNothing(changed), view.Problem})
	}
	err = p.Show(cmd, views, func() error { return p.Table("OK|TO|SEQUENCE|CHANGED|PROBLEM", rows) })
	if err == nil && failed.Code != 0 {
		return failed
	}
	return err
}

func orNothing(changed []string) string {
	if len(changed) == 0 {
		return "nothing"
	}
	return strings.Join(changed, ", ")
}

// watchPlaces publishes to each place by itself: none waits for another.
func (p *program) watchPlaces(ctx context.Context, from publishing, places []destination, targets []publish.Target) error {
	var printing sync.Mutex
	var watching sync.WaitGroup
	for i, one := range places {
		w := &placeWatch{to: one.text, from: from, now: p.Now}
		watching.Go(func() {
			_ = publish.Watch(ctx, publish.Config{Source: from.set, Target: targets[i], Look: 2 * time.Second, Now: p.Now, Report: func(o publish.Outcome) {
				lines := w.lines(ctx, o)
				printing.Lock()
				defer printing.Unlock()
				for _, line := range lines {
					fmt.Fprintln(p.Err, p.Now().UTC().Format(time.RFC3339), line)
				}
			}}) // its parts are all there
		})
	}
	watching.Wait()
	return nil
}

// placeWatch knows which keys a place has.
type placeWatch struct {
	to   string
	from publishing
	now  func() time.Time
	keys []string // IDs of those that are there
}

func (w *placeWatch) lines(ctx context.Context, o publish.Outcome) []string {
	wanted := keyIDs(o.Set)
	missing := slices.DeleteFunc(slices.Clone(wanted), func(id string) bool { return slices.Contains(w.keys, id) })
	if o.Err == nil {
		w.keys = wanted
		if err := w.from.confirm(ctx, w.to, o.Set); err != nil {
			return []string{"error: " + err.Error()}
		}
		lines := []string{fmt.Sprintf("%s: %s changed, sequence %d is there", w.to, orNothing(o.Changed), sequenceOf(o.Set))}
		return append(lines, w.leads(ctx, missing, keyIsThere)...)
	}
	since := "since it was started"
	if !o.Since.IsZero() {
		since = "since " + o.Since.UTC().Format(time.RFC3339)
	}
	lines := []string{fmt.Sprintf("error: %s: not published %s: %v", w.to, since, o.Err)}
	return append(lines, w.leads(ctx, missing, keyIsMissing)...)
}

// What is told of a place, a key and the time until it signs.
const (
	keyIsThere   = "%s: key %s is there %s before it signs"
	keyIsMissing = "error: %s: key %s is not there and signs in %s: who relies on this place then refuses its tokens"
)

// leads says of keys that don't sign yet how long it is until they do.
func (w *placeWatch) leads(ctx context.Context, ids []string, format string) (lines []string) {
	if len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, err := w.from.c.ListAuthorities(ctx, &api.ListAuthoritiesRequest{})
	if err != nil {
		return []string{fmt.Sprintf("error: %s: when its keys sign is not known: %v", w.to, cli.Reached("broker", "its socket", err))}
	}
	for _, a := range all.GetAuthorities() {
		if slices.Contains(ids, a.GetId()) && a.GetState() == string(authority.Published) && a.GetNextAt() != 0 {
			left := time.Unix(a.GetNextAt(), 0).Sub(w.now()).Round(time.Second)
			lines = append(lines, fmt.Sprintf(format, w.to, a.GetId(), max(left, 0)))
		}
	}
	return lines
}

// publishing makes sets of what a broker has.
type publishing struct {
	c    api.AdminClient
	keys api.AuthoritiesClient
}

// confirm tells the broker what a place has: a key's lead may wait for it.
func (f publishing) confirm(ctx context.Context, place string, set publish.Set) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var b jose.JSONWebKeySet
	if err := json.Unmarshal(set.Bundle, &b); err != nil {
		return fmt.Errorf("reading the bundle: %w", err)
	}
	r := &api.ConfirmPublishedRequest{Place: place}
	for _, k := range b.Keys {
		if k.Use == "jwt-svid" {
			r.Keys = append(r.Keys, k.KeyID)
		}
	}
	if _, err := f.keys.ConfirmPublished(ctx, r); err != nil {
		return fmt.Errorf("telling the broker what %s has: %w", place, cli.Reached("broker", "its socket", err))
	}
	return nil
}

// set is what the broker's own listeners serve now, byte for byte.
func (f publishing) set(ctx context.Context) (publish.Set, error) {
	st, err := f.c.Status(ctx, &api.StatusRequest{})
	if err != nil {
		return publish.Set{}, err
	}
	r, err := f.c.ShowBundle(ctx, &api.ShowBundleRequest{})
	if err != nil {
		return publish.Set{}, err
	}
	td, err := spiffeid.TrustDomainFromString(r.GetTrustDomain())
	if err != nil {
		return publish.Set{}, err
	}
	b, err := federation.ParseBundle(td, r.GetDocument())
	if err != nil {
		return publish.Set{}, err
	}
	hint, _ := b.RefreshHint()
	set := publish.Set{TrustDomain: td, Bundle: r.GetDocument(), BundleCache: endpoint.CacheControl(hint)}
	if st.GetIssuer() == "" {
		return set, nil
	}
	keys, err := jwtKeys(r.GetDocument())
	if err != nil {
		return publish.Set{}, err
	}
	if len(keys) == 0 {
		return publish.Set{}, cli.WithCode(cli.ExitNo, errors.New("the issuer's first keys are not made yet: try again in a moment"))
	}
	set.Issuer, set.OIDCCache = st.GetIssuer(), oidc.CacheControl(hint)
	set.Discovery, set.Keys, err = oidc.Documents(set.Issuer, keys)
	return set, err
}

// jwtKeys are those of RS256 in a bundle of ours, in its order.
func jwtKeys(document []byte) (keys []authority.PublicKey, err error) {
	var b jose.JSONWebKeySet
	if err := json.Unmarshal(document, &b); err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	for _, k := range b.Keys {
		if key, ok := k.Key.(*rsa.PublicKey); ok && k.Use == "jwt-svid" {
			keys = append(keys, authority.PublicKey{ID: k.KeyID, Alg: "RS256", Key: key})
		}
	}
	return keys, nil
}

func keyIDs(s publish.Set) (ids []string) {
	keys, err := jwtKeys(s.Bundle)
	if err != nil {
		return nil // there is no bundle
	}
	for _, k := range keys {
		ids = append(ids, k.ID)
	}
	return ids
}

func sequenceOf(s publish.Set) uint64 {
	b, err := federation.ParseBundle(s.TrustDomain, s.Bundle)
	if err != nil {
		return 0
	}
	n, _ := b.SequenceNumber()
	return n
}
