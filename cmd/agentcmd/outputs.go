package agentcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/local"
	"github.com/credence-id/credence/agent/output"
	"github.com/credence-id/credence/agent/output/awscredentials"
	"github.com/credence-id/credence/agent/output/files"
	"github.com/credence-id/credence/agent/output/kubernetessecret"
	"github.com/credence-id/credence/agent/output/sdk"
	"github.com/credence-id/credence/cmd/cli"
)

// maxOutputs is more than a node has services.
const maxOutputs = 256

// outputFile is one of agent.yaml's outputs: what the agent writes for
// processes that call nothing. It is decided on workload.output.name and the
// workload.unix.uid that it is for, and on nothing else.
type outputFile struct {
	Name  string      `yaml:"name"`  // required
	UID   *uint32     `yaml:"uid"`   // required; whose files they are
	GID   *uint32     `yaml:"gid"`   // of the files; default: the agent's
	Files *filesFile  `yaml:"files"` // this, aws_credentials, sdk or kubernetes_secret, or more of them
	AWS   *awsFile    `yaml:"aws_credentials"`
	SDK   *sdkFile    `yaml:"sdk"`
	K8s   *secretFile `yaml:"kubernetes_secret"`
	After *outputHook `yaml:"after"` // what to do after each write
}

// awsFile is a profile of an AWS shared credentials file, for programs that read
// nothing else. What else is in the file stays.
type awsFile struct {
	File    string `yaml:"file"`    // required; absolute; of the output's uid, in a directory that stands
	Profile string `yaml:"profile"` // default "default"
	Target  string `yaml:"target"`  // required; of AWS
}

// sdkFile is what exec gives to a command, for a service that nobody wraps: a
// directory with an environment file, and endpoints.
type sdkFile struct {
	Dir     string   `yaml:"dir"`     // required; absolute, of its own; the agent makes it
	Targets []string `yaml:"targets"` // required; the first of each cloud is its default
	Listen  string   `yaml:"listen"`  // 127.0.0.1:PORT; default: a free port, the same while it is free
}

// secretFile is a Secret of Kubernetes: one that is not there, or is labelled
// app.kubernetes.io/managed-by: credence. It is one agent's: of several that had
// it, each would put its own SVID there.
type secretFile struct {
	Namespace string `yaml:"namespace"`  // required
	Name      string `yaml:"name"`       // required
	Type      string `yaml:"type"`       // default kubernetes.io/tls: tls.crt, tls.key, ca.crt; or Opaque: svid.pem, svid_key.pem, ...
	Hint      string `yaml:"hint"`       // of the identity to write; default: the first
	API       string `yaml:"api"`        // https://HOST:PORT; default: as a pod is told
	CAFile    string `yaml:"ca_file"`    // default: a pod's
	TokenFile string `yaml:"token_file"` // default: a pod's; its account may get and patch this Secret, and create one
}

// filesFile is an output's directory of files. A name of "none" leaves a file
// out.
type filesFile struct {
	Dir       string      `yaml:"dir"`        // required; absolute, of its own; the agent makes it
	Mode      string      `yaml:"mode"`       // of key, tokens and stores; default "0600"
	Hint      string      `yaml:"hint"`       // of the identity to write; default: the first
	SVID      string      `yaml:"svid"`       // leaf and chain; default svid.pem
	Key       string      `yaml:"key"`        // default svid_key.pem
	Bundle    string      `yaml:"bundle"`     // our roots; default svid_bundle.pem; a peer's: PEER.svid_bundle.pem
	CRL       string      `yaml:"crl"`        // default svid_crl.pem, where there are CRLs
	Combined  string      `yaml:"combined"`   // key, leaf and chain in one
	BundleMap string      `yaml:"bundle_map"` // all trust domains' bundles, JSON
	JWTBundle string      `yaml:"jwt_bundle"` // their JWT keys, JSON
	PKCS12    *pkcs12File `yaml:"pkcs12"`
	JWTs      []jwtFile   `yaml:"jwts"`
	Targets   []string    `yaml:"targets"` // of each, TARGET.token for its SDK
}

type pkcs12File struct {
	File         string `yaml:"file"`          // default svid.p12
	Trust        string `yaml:"trust"`         // a store of our roots; default: none
	PasswordFile string `yaml:"password_file"` // required
}

type jwtFile struct {
	Audiences []string `yaml:"audiences"` // required
	File      string   `yaml:"file"`      // default jwt_svid.token
}

// outputHook is what to do after a write, in this order.
type outputHook struct {
	Signal  *signalHook  `yaml:"signal"`
	Reload  string       `yaml:"reload"` // a unit, by systemctl
	Command *commandHook `yaml:"command"`
}

type signalHook struct {
	PIDFile string `yaml:"pid_file"` // required
	Signal  string `yaml:"signal"`   // default HUP
}

type commandHook struct {
	Argv    []string `yaml:"argv"`    // required; an absolute path and arguments, no shell
	UID     *uint32  `yaml:"uid"`     // as whom; default: the output's
	GID     *uint32  `yaml:"gid"`     // default: the output's
	Timeout string   `yaml:"timeout"` // default 30s
}

// completeOutputs holds the outputs against each other. An error begins with
// the field's path.
func (f *File) completeOutputs() error {
	if len(f.Outputs) > maxOutputs {
		return fmt.Errorf("outputs: %d, at most %d are taken", len(f.Outputs), maxOutputs)
	}
	names, ports, secrets := make(map[string]bool), make(map[string]string), make(map[string]string)
	places := map[string]string{}
	if abs, err := filepath.Abs(f.Data); err == nil {
		places[filepath.Join(abs, "node")] = "the agent's own"
		places[filepath.Join(abs, "run")] = "the agent's own"
	}
	for n := range f.Outputs {
		o, at := &f.Outputs[n], "outputs["+strconv.Itoa(n)+"]"
		if err := o.complete(); err != nil {
			return fmt.Errorf("%s%w", at, err)
		}
		if names[o.Name] {
			return fmt.Errorf("%s.name: there is an output %s already", at, o.Name)
		}
		names[o.Name] = true
		if o.SDK != nil && o.SDK.Listen != "" {
			if other, taken := ports[o.SDK.Listen]; taken {
				return fmt.Errorf("%s.sdk.listen: output %s listens there", at, other)
			}
			ports[o.SDK.Listen] = o.Name
		}
		if s := o.K8s; s != nil {
			where := s.API + " " + s.Namespace + "/" + s.Name
			if other, taken := secrets[where]; taken {
				return fmt.Errorf("%s.kubernetes_secret.name: it is output %s's already", at, other)
			}
			secrets[where] = o.Name
		}
		for _, p := range o.places() {
			for other, whose := range places {
				if cli.Inside(p.path, other) || cli.Inside(other, p.path) {
					return fmt.Errorf("%s.%s: %s and %s, which is %s, overlap", at, p.field, p.path, other, whose)
				}
			}
			places[p.path] = "output " + o.Name + "'s"
		}
	}
	return nil
}

type outputPlace struct{ field, path string }

// kind is the field of agent.yaml that names it.
func (p outputPlace) kind() string {
	kind, _, _ := strings.Cut(p.field, ".")
	return kind
}

// places are where an output writes.
func (o *outputFile) places() (all []outputPlace) {
	if o.Files != nil {
		all = append(all, outputPlace{"files.dir", o.Files.Dir})
	}
	if o.AWS != nil {
		all = append(all, outputPlace{"aws_credentials.file", o.AWS.File})
	}
	if o.SDK != nil {
		all = append(all, outputPlace{"sdk.dir", o.SDK.Dir})
	}
	return all
}

// complete refuses what could not be run. The error begins with "." and a
// field's name.
func (o *outputFile) complete() error {
	if o.UID == nil {
		return errors.New(".uid: is required: whose processes read what is written")
	}
	if err := (agent.Output{Name: o.Name, UID: *o.UID}).Check(); err != nil {
		return fmt.Errorf(".name: %w", err)
	}
	if o.GID != nil && *o.GID == ^uint32(0) {
		return errors.New(".gid: is nobody's")
	}
	if o.Files == nil && o.AWS == nil && o.SDK == nil && o.K8s == nil {
		return errors.New(": files, aws_credentials, sdk or kubernetes_secret is wanted: what to write, and where")
	}
	if o.K8s != nil {
		c := o.secret()
		if err := c.Complete(); err != nil {
			return fmt.Errorf(".kubernetes_secret.%w", err)
		}
	}
	if o.Files != nil {
		if _, err := o.files(); err != nil {
			return fmt.Errorf(".files.%w", err)
		}
	}
	if o.AWS != nil {
		c := o.aws()
		if err := c.Complete(); err != nil {
			return fmt.Errorf(".aws_credentials.%w", err)
		}
	}
	if o.SDK != nil {
		c := o.sdk()
		if err := c.Complete(); err != nil {
			return fmt.Errorf(".sdk.%w", err)
		}
	}
	if _, err := o.hooks(); err != nil {
		return fmt.Errorf(".after.%w", err)
	}
	return nil
}

// owner is whose what is written will be.
func (o *outputFile) owner() output.Owner {
	owner := output.Owner{UID: *o.UID, GID: uint32(os.Getegid())}
	if o.GID != nil {
		owner.GID = *o.GID
	}
	return owner
}

// files is the configuration of the output's files.
func (o *outputFile) files() (files.Config, error) {
	f := o.Files
	c := files.Config{
		Dir: f.Dir, Owner: o.owner(), Hint: f.Hint, SVID: f.SVID, Key: f.Key, Bundle: f.Bundle, CRL: f.CRL,
		Combined: f.Combined, BundleMap: f.BundleMap, JWTBundle: f.JWTBundle, Targets: f.Targets,
	}
	if f.Mode != "" {
		mode, err := strconv.ParseUint(f.Mode, 8, 12)
		if err != nil {
			return c, fmt.Errorf("mode: %q: an octal mode in quotes is wanted, such as \"0640\"", f.Mode)
		}
		c.Mode = os.FileMode(mode)
	}
	if p := f.PKCS12; p != nil {
		c.PKCS12 = &files.PKCS12{File: p.File, Trust: p.Trust, PasswordFile: p.PasswordFile}
	}
	for _, j := range f.JWTs {
		c.JWTs = append(c.JWTs, files.JWT{Audiences: j.Audiences, File: j.File})
	}
	return c, c.Complete()
}

func (o *outputFile) aws() awscredentials.Config {
	return awscredentials.Config{File: o.AWS.File, Owner: o.owner(), Profile: o.AWS.Profile, Target: o.AWS.Target, Output: o.Name}
}

func (o *outputFile) sdk() sdk.Config {
	return sdk.Config{Dir: o.SDK.Dir, Owner: o.owner(), Targets: o.SDK.Targets, Listen: o.SDK.Listen}
}

func (o *outputFile) secret() kubernetessecret.Config {
	s := o.K8s
	return kubernetessecret.Config{
		Namespace: s.Namespace, Name: s.Name, Type: s.Type, Hint: s.Hint, Output: o.Name, Getenv: os.Getenv,
		Server: kubernetessecret.Server{URL: s.API, TokenFile: s.TokenFile, CAFile: s.CAFile},
	}
}

// hooks are what follows a write.
func (o *outputFile) hooks() (all []output.Hook, err error) {
	add := func(field string, h output.Hook, e error) {
		if e != nil && err == nil {
			err = fmt.Errorf("%s: %w", field, e)
		}
		all = append(all, h)
	}
	if o.After == nil {
		return nil, nil
	}
	if s := o.After.Signal; s != nil {
		cli.SetDefault(&s.Signal, "HUP")
		h, e := output.Signal(s.PIDFile, s.Signal)
		add("signal", h, e)
	}
	if o.After.Reload != "" {
		h, e := output.Reload(o.Name, o.After.Reload)
		add("reload", h, e)
	}
	if c := o.After.Command; c != nil {
		life, e := cli.LifeField("timeout", c.Timeout, time.Second, output.MaxTimeout)
		if e != nil {
			return nil, fmt.Errorf("command.%w", e)
		}
		owner := o.owner()
		if c.UID != nil {
			owner.UID = *c.UID
		}
		if c.GID != nil {
			owner.GID = *c.GID
		}
		h, e := output.Command(output.CommandConfig{Output: o.Name, Argv: c.Argv, UID: owner.UID, GID: owner.GID, Timeout: life})
		add("command", h, e)
	}
	if err == nil && len(all) == 0 {
		err = errors.New("signal: or reload, or command is wanted")
	}
	return all, err
}

// A delivered is one place that an output is written to.
type delivered struct {
	output agent.Output
	kind   string
	writer output.Writer
	check  func() error // whether this machine lets it be written
	hooks  []output.Hook
	serve  *sdk.Writer // the writer, where it serves too; else nil
}

// deliveries builds what agent.yaml's outputs name. A nil trace traces nothing.
func (f *File) deliveries(trace local.Trace, now func() time.Time, log *slog.Logger) (all []delivered, err error) {
	for n := range f.Outputs {
		o := &f.Outputs[n]
		hooks, err := o.hooks()
		if err != nil {
			return nil, err
		}
		what := agent.Output{Name: o.Name, UID: *o.UID}
		if o.Files != nil {
			c, err := o.files()
			if err != nil {
				return nil, err
			}
			c.Now = now
			w, err := files.New(c)
			if err != nil {
				return nil, err
			}
			all = append(all, delivered{what, "files", w, w.Check, hooks, nil})
		}
		if o.AWS != nil {
			c := o.aws()
			c.Now = now
			w, err := awscredentials.New(c)
			if err != nil {
				return nil, err
			}
			all = append(all, delivered{what, "aws_credentials", w, w.Check, hooks, nil})
		}
		if o.SDK != nil {
			c := o.sdk()
			c.State, c.Trace, c.Now, c.Log = f.sdkState(o.Name), trace, now, log.With("output", o.Name)
			w, err := sdk.New(c)
			if err != nil {
				return nil, err
			}
			all = append(all, delivered{what, "sdk", w, w.Check, hooks, w})
		}
		if o.K8s != nil {
			c := o.secret()
			c.Now = now
			w, err := kubernetessecret.New(c)
			if err != nil {
				return nil, err
			}
			all = append(all, delivered{what, "kubernetes_secret", w, w.Check, hooks, nil})
		}
	}
	return all, nil
}

// run delivers until ctx ends.
func (d delivered) run(ctx context.Context, a *agent.Agent, count func(act string, err error), now func() time.Time, log *slog.Logger) (err error) {
	view, err := a.Output(d.output)
	if err != nil {
		return err
	}
	defer view.Close()
	if d.serve != nil {
		defer func() { err = errors.Join(err, d.serve.Close()) }()
		if err := d.serve.Listen(); err != nil {
			log.WarnContext(ctx, "output does not listen yet", "output", d.output.Name, "error", err)
		}
	}
	output.Run(ctx, output.Config{Name: d.output.Name, Feed: view, Writer: d.writer, Hooks: d.hooks, Count: count, Now: now, Log: log})
	return nil
}
