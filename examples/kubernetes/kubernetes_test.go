// Package kubernetes_test holds the manifests beside it against the agent that
// they run.
package kubernetes_test

import (
	"io"
	"net"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/agent/evidence/kubernetes"
	"github.com/credence-id/credence/cmd/agentcmd"
	"github.com/credence-id/credence/cmd/cli"
)

// agentFile is the ConfigMap's agent.yaml, as the agent would read it.
func agentFile(t *testing.T, i install) agentcmd.File {
	t.Helper()
	var f agentcmd.File
	if err := cli.ParseFile("agent.yaml", []byte(i.config.Data["agent.yaml"]), &f); err != nil {
		t.Fatal(err)
	}
	if err := f.Complete(); err != nil {
		t.Fatal(err)
	}
	return f
}

// What agent.yaml names is where the pod has it, and outlives it where it must.
func TestPaths(t *testing.T) {
	for name, i := range installs(t) {
		t.Run(name, func(t *testing.T) {
			f, p := agentFile(t, i), i.pod
			args := p.Containers[0].Args
			if m, v := p.at(t, args[len(args)-1]); args[len(args)-1] != m.MountPath+"/agent.yaml" || v.ConfigMap.Name != i.config.Metadata.Name {
				t.Errorf("the ConfigMap is not at %s", args[len(args)-1])
			}
			if m, v := p.at(t, f.Data); m.ReadOnly || v.HostPath.Path != m.MountPath || v.HostPath.Type != "DirectoryOrCreate" || f.Data == m.MountPath {
				t.Errorf("data: %s outlives no pod, or is the kubelet's to make: %+v", f.Data, v)
			}
			if m, v := p.at(t, f.Socket); m.ReadOnly || v.HostPath.Path != m.MountPath || path.Dir(f.Socket) != m.MountPath {
				t.Errorf("socket: %s is not seen by others: %+v", f.Socket, v)
			}
			if m, v := p.at(t, f.Admin); m.ReadOnly || v.EmptyDir == nil {
				t.Errorf("admin: %s is to be this pod's alone: root in another's is uid 0 too: %+v", f.Admin, v)
			}
			if got, want := p.env("CREDENCE_AGENT_ADMIN"), "unix://"+f.Admin; got != want {
				t.Errorf("CREDENCE_AGENT_ADMIN is %s, want %s", got, want)
			}
			if got := p.env("NODE_NAME"); got != "spec.nodeName" {
				t.Errorf("NODE_NAME is of %q", got)
			}
			if k := f.Attest.Kubernetes; k.Kubelet != nil {
				if _, v := p.at(t, k.CAFile); v.HostPath.Type != "File" || !p.HostNetwork {
					t.Errorf("the kubelet's certificate, or the kubelet, is not there: %+v", v)
				}
			} else if p.HostNetwork || p.AutomountServiceAccountToken == nil || !*p.AutomountServiceAccountToken {
				t.Error("it has the host's network, or no token for the API server")
			}
		})
	}
}

// The token that the kubelet makes is the one that the agent shows, and the broker
// takes.
func TestJoinToken(t *testing.T) {
	for name, i := range installs(t) {
		f := agentFile(t, i)
		if f.Join.Method != "kubernetes" || f.Join.TokenFile != kubernetes.DefaultFile {
			t.Fatalf("%s: join: %+v", name, f.Join)
		}
		m, v := i.pod.at(t, f.Join.TokenFile)
		if len(v.Projected.Sources) != 1 || !m.ReadOnly {
			t.Fatalf("%s: no token at %s", name, f.Join.TokenFile)
		}
		token := v.Projected.Sources[0].Token
		if got := m.MountPath + "/" + token.Path; got != f.Join.TokenFile {
			t.Errorf("%s: the token is at %s", name, got)
		}
		if want := "credence://" + f.TrustDomain + "/join"; token.Audience != want || token.ExpirationSeconds > 3600 || v.Projected.DefaultMode != 0o400 {
			t.Errorf("%s: it is %+v, %#o; want %s, for at most 1h, root's", name, token, v.Projected.DefaultMode, want)
		}
	}
}

// Probes ask where the agent answers.
func TestProbes(t *testing.T) {
	for name, i := range installs(t) {
		f, c := agentFile(t, i), i.pod.Containers[0]
		live := c.LivenessProbe
		host, port, err := net.SplitHostPort(f.Health.Listen)
		if err != nil || live.HTTPGet.Path != "/live" || len(c.Ports) != 1 || live.HTTPGet.Port != c.Ports[0].Name || port != strconv.Itoa(c.Ports[0].ContainerPort) {
			t.Errorf("%s: %s is asked at %+v of %+v, %v", name, f.Health.Listen, live.HTTPGet, c.Ports, err)
		}
		if i.pod.HostNetwork && (host != live.HTTPGet.Host || f.Health.AnyAddress) || !i.pod.HostNetwork && !f.Health.AnyAddress {
			t.Errorf("%s: the kubelet asks %q, the agent listens on %s", name, live.HTTPGet.Host, host)
		}
		if got := c.ReadinessProbe.Exec.Command; !slices.Equal(got, []string{"/credence-agent", "status", "--ready"}) {
			t.Errorf("%s: readiness asks %q", name, got)
		}
	}
}

// The way that asks the kubelet differs from the other in nothing else.
func TestInstallsAgree(t *testing.T) {
	all := installs(t)
	api, kubelet := agentFile(t, all["the API server"]), agentFile(t, all["the kubelet"])
	type same struct {
		TrustDomain, Data, Socket, Admin string
		Broker                           []string
	}
	of := func(f agentcmd.File) same { return same{f.TrustDomain, f.Data, f.Socket, f.Admin, f.Broker} }
	if diff := cmp.Diff(of(api), of(kubelet)); diff != "" {
		t.Error(diff)
	}
	for kind, of := range map[string]func(install) metadata{"ConfigMap": func(i install) metadata { return i.config.Metadata }, "ClusterRole": func(i install) metadata { return i.role.Metadata }} {
		if diff := cmp.Diff(of(all["the API server"]), of(all["the kubelet"])); diff != "" {
			t.Errorf("one %s does not replace the other: %s", kind, diff)
		}
	}
}

// The workload looks for the socket where the agent puts it.
func TestDemo(t *testing.T) {
	all := manifest(t, "demo.yaml")
	f := agentFile(t, installs(t)["the API server"])
	p := all["Deployment"].WorkloadSpec.Template.Spec
	if got, want := p.env("SPIFFE_ENDPOINT_SOCKET"), "unix://"+f.Socket; got != want {
		t.Errorf("SPIFFE_ENDPOINT_SOCKET is %s, want %s", got, want)
	}
	m, v := p.at(t, f.Socket)
	if !m.ReadOnly || v.HostPath.Path != path.Dir(f.Socket) || v.HostPath.Path != m.MountPath || v.HostPath.Type != "Directory" {
		t.Errorf("the socket's directory is %+v of %+v", m, v)
	}
	if p.ServiceAccountName != all["ServiceAccount"].Metadata.Name || *p.AutomountServiceAccountToken || p.HostPID {
		t.Error("it runs as another account, or with more than it needs")
	}
}

// No container has more than README says, and all have what they need to be
// scheduled and told apart.
func TestLeastPrivilege(t *testing.T) {
	pods := map[string]pod{"demo": manifest(t, "demo.yaml")["Deployment"].WorkloadSpec.Template.Spec}
	for name, i := range installs(t) {
		pods[name] = i.pod
	}
	for name, p := range pods {
		agent := name != "demo"
		if len(p.Containers) != 1 || p.HostPID != agent || p.SecurityContext.SeccompProfile["type"] != "RuntimeDefault" || p.SecurityContext.RunAsNonRoot == agent {
			t.Errorf("%s: %+v", name, p.SecurityContext)
		}
		c := p.Containers[0]
		s := c.SecurityContext
		want := map[string][]string{"drop": {"ALL"}}
		if agent {
			want["add"] = []string{"SYS_PTRACE"}
		}
		if diff := cmp.Diff(want, s.Capabilities); diff != "" {
			t.Errorf("%s: capabilities: %s", name, diff)
		}
		if s.Privileged || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem {
			t.Errorf("%s: %+v", name, s)
		}
		if !strings.HasSuffix(c.Image, "/credence-agent:VERSION") {
			t.Errorf("%s: image %s: a version is named, by whoever applies this", name, c.Image)
		}
		if c.Resources["requests"]["memory"] == "" || c.Resources["limits"]["memory"] == "" {
			t.Errorf("%s: resources: %v", name, c.Resources)
		}
	}
	d := manifest(t, "credence-agent.yaml")["DaemonSet"].WorkloadSpec
	if diff := cmp.Diff(map[string]any{"maxUnavailable": "10%", "maxSurge": uint64(0)}, d.UpdateStrategy.RollingUpdate); diff != "" {
		t.Errorf("two agents would want one data directory: %s", diff)
	}
	if diff := cmp.Diff(d.Template.Metadata.Labels, d.Selector["matchLabels"]); diff != "" {
		t.Error(diff)
	}
}

var typed = regexp.MustCompile(`/credence-agent ([a-z][^\x60\n#|]*)`)

// Whatever is to be run, the program has.
func TestCommands(t *testing.T) {
	all := map[string][]string{}
	for name, i := range installs(t) {
		c := i.pod.Containers[0]
		all[name] = append(slices.Clone(c.Command), c.Args...)
		all[name+", readiness"] = c.ReadinessProbe.Exec.Command
	}
	demo := manifest(t, "demo.yaml")["Deployment"].WorkloadSpec.Template.Spec.Containers[0]
	all["demo"] = append(slices.Clone(demo.Command), demo.Args...)
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range typed.FindAllStringSubmatch(string(readme), -1) {
		all["README: "+m[1]] = append([]string{"/credence-agent"}, strings.Fields(m[1])...)
	}
	if len(all) < 7 {
		t.Errorf("README types nothing: %d commands", len(all))
	}
	for name, words := range all {
		root := agentcmd.Root(&cli.Program{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard, Now: time.Now})
		cmd, rest, err := root.Find(words[1:])
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err != nil || words[0] != "/credence-agent" || !cmd.Runnable() || cmd == root {
			t.Errorf("%s: %q: %v", name, words, err)
		}
	}
}
