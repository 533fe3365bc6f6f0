package agentcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"github.com/credence-id/credence/agent/output"
	"github.com/credence-id/credence/agent/output/awscredentials"
	"github.com/credence-id/credence/agent/output/kubernetessecret"
	"github.com/credence-id/credence/agent/output/sdk"
	"github.com/credence-id/credence/cmd/cli"
)

const (
	maxLeftovers = 4096             // places on the list
	eraseTime    = 15 * time.Second // of a Secret: the agent must start without its cluster
)

// A place is where an output writes, as the agent's own list has it: no secret is
// in it. What agent.yaml names no more is erased at the next start, for nothing
// else would before it ends.
type place struct {
	Output string `json:"output"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Kind   string `json:"kind"` // as the field of agent.yaml
	Path   string `json:"path,omitempty"`

	Profile string `json:"profile,omitempty"` // of aws_credentials

	Namespace string `json:"namespace,omitempty"` // of a Secret, and what follows
	Name      string `json:"name,omitempty"`
	Type      string `json:"type,omitempty"`
	API       string `json:"api,omitempty"`
	CAFile    string `json:"ca_file,omitempty"`
	TokenFile string `json:"token_file,omitempty"`
}

// written are the places that agent.yaml names.
func (f *File) written() (all []place) {
	for n := range f.Outputs {
		o := &f.Outputs[n]
		owner := o.owner()
		p := place{Output: o.Name, UID: owner.UID, GID: owner.GID}
		for _, at := range o.places() {
			p.Kind, p.Path, p.Profile = at.kind(), at.path, ""
			if o.AWS != nil && p.Path == o.AWS.File {
				c := o.aws()
				_ = c.Complete() // it was, when the file was read
				p.Profile = c.Profile
			}
			all = append(all, p)
		}
		if s := o.K8s; s != nil {
			all = append(all, place{
				Output: o.Name, UID: owner.UID, GID: owner.GID, Kind: "kubernetes_secret",
				Namespace: s.Namespace, Name: s.Name, Type: s.Type, API: s.API, CAFile: s.CAFile, TokenFile: s.TokenFile,
			})
		}
	}
	return all
}

// eraseLeftovers erases what earlier runs wrote at places that no output of
// agent.yaml claims any more, and notes the places of this one before anything is
// written there. What cannot be erased stays on the list, for the next start.
func (f *File) eraseLeftovers(ctx context.Context, log *slog.Logger) error {
	list := filepath.Join(f.Data, "node", "outputs.json")
	was, err := readPlaces(list)
	if err != nil {
		return fmt.Errorf("reading what earlier runs wrote (remove the file to go on, and look for what they left): %w", err)
	}
	now := f.written()
	for _, p := range was {
		if slices.Contains(now, p) {
			continue
		}
		if err := p.erase(ctx, f, now); err != nil {
			log.WarnContext(ctx, "what an output left, which agent.yaml names no more, is not erased: it is tried again at the next start", "output", p.Output, "kind", p.Kind, "place", p.at(), "error", err)
			now = append(now, p)
			continue
		}
		log.InfoContext(ctx, "what an output left, which agent.yaml names no more, is erased", "output", p.Output, "kind", p.Kind, "place", p.at())
	}
	if len(was) == 0 && len(now) == 0 {
		return nil
	}
	text, err := json.Marshal(now)
	if err == nil {
		err = renameio.WriteFile(list, text, 0o600, renameio.WithTempDir(filepath.Dir(list)))
	}
	if err != nil {
		return fmt.Errorf("noting where outputs are written: %w", err)
	}
	return nil
}

func readPlaces(list string) (all []place, err error) {
	text, err := cli.ReadSmall(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	if len(all) > maxLeftovers {
		return nil, fmt.Errorf("%s: %d places: it is not ours", list, len(all))
	}
	return all, nil
}

// at names a place for people.
func (p place) at() string {
	if p.Kind == "kubernetes_secret" {
		return p.Namespace + "/" + p.Name
	}
	return p.Path
}

// erase takes away what was written at a place, and what was made for it. Each
// kind's package touches only what it wrote itself, and follows no link. now are
// the places that are claimed.
func (p place) erase(ctx context.Context, f *File, now []place) error {
	owner := output.Owner{UID: p.UID, GID: p.GID}
	var err error
	switch p.Kind {
	case "files":
		set, e := output.NewSet(p.Path, owner)
		if e != nil {
			return e
		}
		err = set.Remove()
	case "aws_credentials":
		w, e := awscredentials.New(awscredentials.Config{File: p.Path, Owner: owner, Profile: p.Profile, Target: "removed", Output: p.Output})
		if e != nil {
			return e
		}
		err = w.Erase(ctx)
	case "sdk":
		err = sdk.Remove(p.Path, f.sdkState(p.Output))
	case "kubernetes_secret":
		if slices.ContainsFunc(now, p.sameSecret) {
			return nil // another output's, which writes it anew
		}
		w, e := kubernetessecret.New(p.secret())
		if e != nil {
			return e
		}
		ctx, cancel := context.WithTimeout(ctx, eraseTime)
		defer cancel()
		err = w.Erase(ctx)
	default:
		return fmt.Errorf("a %q is nothing that this program writes", p.Kind)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its directory is gone
	}
	return err
}

func (p place) sameSecret(o place) bool {
	return o.Kind == p.Kind && o.API == p.API && o.Namespace == p.Namespace && o.Name == p.Name
}

func (p place) secret() kubernetessecret.Config {
	o := outputFile{Name: p.Output, K8s: &secretFile{Namespace: p.Namespace, Name: p.Name, Type: p.Type, API: p.API, CAFile: p.CAFile, TokenFile: p.TokenFile}}
	return o.secret()
}

// sdkState is where an output's port and secrets are kept.
func (f *File) sdkState(name string) string {
	return filepath.Join(f.Data, "node", "sdk-"+name+".json")
}
