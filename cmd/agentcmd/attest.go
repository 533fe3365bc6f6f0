package agentcmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/attest/containerd"
	"github.com/credence-id/credence/agent/attest/docker"
	"github.com/credence-id/credence/agent/attest/kubernetes"
	"github.com/credence-id/credence/agent/attest/systemd"
	"github.com/credence-id/credence/agent/attest/unix"
	"github.com/credence-id/credence/cmd/cli"
)

// attestFile says in agent.yaml what attests workloads besides the kernel's
// facts: attest: {docker: {}}.
type attestFile struct {
	Docker  *containerFile `yaml:"docker"`
	Podman  *containerFile `yaml:"podman"`
	Systemd *systemdFile   `yaml:"systemd"`

	Containerd *containerdFile `yaml:"containerd"`
	Kubernetes *kubernetesFile `yaml:"kubernetes"`
}

// containerdFile is where containerd is asked.
type containerdFile struct {
	Socket     string        `yaml:"socket"`     // default /run/containerd/containerd.sock
	Namespaces []string      `yaml:"namespaces"` // that are asked; default k8s.io, default. Docker's is moby
	Timeout    time.Duration `yaml:"timeout"`    // default 2s
}

// namespace is containerd's rule for one's name.
var namespace = regexp.MustCompile(`^[A-Za-z0-9]+([-._][A-Za-z0-9]+)*$`)

func (f *containerdFile) check() error {
	cli.SetDefault(&f.Socket, "/run/containerd/containerd.sock")
	if f.Namespaces == nil {
		f.Namespaces = []string{"k8s.io", "default"}
	}
	if !filepath.IsAbs(f.Socket) {
		return fmt.Errorf("socket %q: an absolute path is wanted", f.Socket)
	}
	if len(f.Namespaces) == 0 || len(f.Namespaces) > 8 {
		return errors.New("namespaces: one to eight are wanted")
	}
	for n, name := range f.Namespaces {
		if len(name) > 76 || !namespace.MatchString(name) || slices.Contains(f.Namespaces[:n], name) {
			return fmt.Errorf("namespaces: %.76q is none, or there twice", name)
		}
	}
	return checkTimeout(f.Timeout)
}

// kubernetesFile is who is asked for this node's pods: its API server, or its
// kubelet.
type kubernetesFile struct {
	API       string        `yaml:"api"`        // its URL, or in-cluster; this node's pods are watched there
	Kubelet   *kubeletFile  `yaml:"kubelet"`    // or this is asked for them
	Node      string        `yaml:"node"`       // this node's name in the cluster; default $NODE_NAME, which a pod has from spec.nodeName
	TokenFile string        `yaml:"token_file"` // default a pod's own
	CAFile    string        `yaml:"ca_file"`    // by which the server is verified: a CA's certificate or its own; default with in-cluster a pod's own, with api the system's
	Proof     string        `yaml:"proof"`      // a path in workloads, of a token for credence://TRUST DOMAIN/workload that is bound to their pod; default none
	Wait      time.Duration `yaml:"wait"`       // for a container that isn't known yet; default 2s
}

// kubeletFile is this node's kubelet.
type kubeletFile struct {
	URL        string `yaml:"url"`         // default https://127.0.0.1:10250
	ServerName string `yaml:"server_name"` // that its certificate carries; default node
	SkipVerify bool   `yaml:"skip_verify"` // instead of ca_file: whoever answers there gets the token, and is believed
}

// inCluster says that the API server is where a pod's environment has it.
const inCluster = "in-cluster"

func (f *kubernetesFile) check() error {
	switch {
	case (f.API == "") == (f.Kubelet == nil):
		return errors.New("either api or kubelet is wanted")
	case f.Kubelet != nil && f.Kubelet.SkipVerify == (f.CAFile != ""):
		return errors.New("kubelet: ca_file is wanted, the kubelet's own certificate will do; or skip_verify: true, and whoever answers is believed")
	case f.Proof != "" && (!filepath.IsAbs(f.Proof) || filepath.Clean(f.Proof) != f.Proof || f.Proof == "/"):
		return fmt.Errorf("proof: %q: an absolute path is wanted, in its shortest form", f.Proof)
	case f.Wait < 0 || f.Wait > 2500*time.Millisecond:
		return errors.New("wait: 2.5s is the most, for attestors have 3s in all")
	}
	if f.Kubelet != nil {
		cli.SetDefault(&f.Kubelet.URL, "https://127.0.0.1:10250")
		if err := kubernetes.CheckURL(f.Kubelet.URL); err != nil {
			return fmt.Errorf("kubelet: url: %w", err)
		}
	} else if f.API != inCluster {
		if err := kubernetes.CheckURL(f.API); err != nil {
			return fmt.Errorf("api: neither %s nor a server's: %w", inCluster, err)
		}
	}
	return nil
}

// attestor makes one. getenv is a pod's environment.
func (f *kubernetesFile) attestor(getenv func(string) string, log *slog.Logger) (*kubernetes.Attestor, error) {
	c := kubernetes.Config{Node: f.Node, Proof: f.Proof, Wait: f.Wait, Log: log}
	cli.SetDefault(&c.Node, getenv("NODE_NAME"))
	server := kubernetes.Server{URL: f.API, TokenFile: f.TokenFile, CAFile: f.CAFile}
	cli.SetDefault(&server.TokenFile, kubernetes.DefaultToken)
	if f.Kubelet != nil {
		server.URL, server.ServerName, server.SkipVerify = f.Kubelet.URL, f.Kubelet.ServerName, f.Kubelet.SkipVerify
		cli.SetDefault(&server.ServerName, c.Node)
		c.Kubelet = &server
		return kubernetes.New(c)
	}
	if f.API == inCluster {
		own, err := kubernetes.InCluster(getenv)
		if err != nil {
			return nil, err
		}
		server.URL = own.URL
		cli.SetDefault(&server.CAFile, own.CAFile)
	}
	c.API = &server
	if c.Node == "" {
		return nil, errors.New("attest: kubernetes: node: this node's name is wanted, or $NODE_NAME from spec.nodeName")
	}
	return kubernetes.New(c)
}

// systemdFile is where systemd is asked.
type systemdFile struct {
	Bus     string        `yaml:"bus"`     // D-Bus address; default the system's
	Timeout time.Duration `yaml:"timeout"` // default 2s
}

// containerFile is where a container runtime is asked.
type containerFile struct {
	Socket   string            `yaml:"socket"`   // of root's; default /var/run/docker.sock, /run/podman/podman.sock
	Rootless map[string]string `yaml:"rootless"` // by uid: the socket of that user's own runtime, which can say anything of that user's containers
	Timeout  time.Duration     `yaml:"timeout"`  // default 2s
}

func (f *attestFile) complete() error {
	for name, c := range map[string]*containerFile{"docker": f.Docker, "podman": f.Podman} {
		if c == nil {
			continue
		}
		cli.SetDefault(&c.Socket, map[string]string{"docker": "/var/run/docker.sock", "podman": "/run/podman/podman.sock"}[name])
		if err := c.check(); err != nil {
			return fmt.Errorf("attest: %s: %w", name, err)
		}
	}
	if f.Containerd != nil {
		if err := f.Containerd.check(); err != nil {
			return fmt.Errorf("attest: containerd: %w", err)
		}
	}
	if f.Kubernetes != nil {
		if err := f.Kubernetes.check(); err != nil {
			return fmt.Errorf("attest: kubernetes: %w", err)
		}
	}
	if f.Systemd == nil {
		return nil
	}
	if err := checkTimeout(f.Systemd.Timeout); err != nil {
		return fmt.Errorf("attest: systemd: %w", err)
	}
	return nil
}

func (c *containerFile) check() error {
	sockets := []string{c.Socket}
	for uid, socket := range c.Rootless {
		if n, err := strconv.ParseUint(uid, 10, 32); err != nil || n == 0 {
			return fmt.Errorf("rootless: %q is not a uid", uid)
		}
		sockets = append(sockets, socket)
	}
	for _, s := range sockets {
		if !filepath.IsAbs(s) {
			return fmt.Errorf("socket %q: an absolute path is wanted", s)
		}
	}
	return checkTimeout(c.Timeout)
}

func checkTimeout(d time.Duration) error {
	if d < 0 || d > 3*time.Second {
		return errors.New("timeout: 3s is what attestors have in all")
	}
	return nil
}

// attestors makes what agent.yaml names, and the kernel's facts always. What
// watch holds has to run while they are asked.
func attestors(f attestFile, log *slog.Logger) (all map[string]agent.Attestor, watch []func(context.Context) error, err error) {
	all = map[string]agent.Attestor{unix.Prefix: unix.New(unix.Config{})}
	if f.Systemd != nil {
		all[systemd.Prefix] = systemd.New(systemd.Config{Bus: f.Systemd.Bus, Timeout: f.Systemd.Timeout})
	}
	if c := f.Containerd; c != nil {
		a, err := containerd.New(containerd.Config{Socket: c.Socket, Namespaces: c.Namespaces, Timeout: c.Timeout})
		if err != nil {
			return nil, nil, err
		}
		all[containerd.Prefix] = a
	}
	if f.Kubernetes != nil {
		a, err := f.Kubernetes.attestor(os.Getenv, log)
		if err != nil {
			return nil, nil, err
		}
		all[kubernetes.Prefix], watch = a, append(watch, a.Run)
	}
	for name, c := range map[string]*containerFile{"docker": f.Docker, "podman": f.Podman} {
		if c == nil {
			continue
		}
		a, err := c.attestor(name)
		if err != nil {
			return nil, nil, err
		}
		all[a.Prefix()] = a
	}
	return all, watch, nil
}

func (c *containerFile) attestor(runtime string) (*docker.Attestor, error) {
	rootless := make(map[uint32]string)
	for uid, socket := range c.Rootless {
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return nil, err
		}
		rootless[uint32(n)] = socket
	}
	return docker.New(docker.Config{Runtime: runtime, Socket: c.Socket, Rootless: rootless, Timeout: c.Timeout})
}
