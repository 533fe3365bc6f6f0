package kubernetes_test

import (
	"encoding/base64"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/keys/kek"
	"github.com/credence-id/credence/broker/resource/strict"
)

// What the broker's manifest has besides; a field that is not here is taken for a
// mistake.
type (
	Header struct {
		APIVersion string   `yaml:"apiVersion"`
		Kind       string   `yaml:"kind"`
		Metadata   metadata `yaml:"metadata"`
	}
	service struct {
		Header `yaml:",inline"`
		Spec   struct {
			Type                  string            `yaml:"type"`
			ClusterIP             string            `yaml:"clusterIP"`
			ExternalTrafficPolicy string            `yaml:"externalTrafficPolicy"`
			Selector              map[string]string `yaml:"selector"`
			Ports                 []struct {
				Name       string `yaml:"name"`
				Port       int    `yaml:"port"`
				TargetPort string `yaml:"targetPort"`
			} `yaml:"ports"`
		} `yaml:"spec"`
	}
	budget struct {
		Header `yaml:",inline"`
		Spec   struct {
			MaxUnavailable             int    `yaml:"maxUnavailable"`
			UnhealthyPodEvictionPolicy string `yaml:"unhealthyPodEvictionPolicy"`
			Selector                   labels `yaml:"selector"`
		} `yaml:"spec"`
	}
	networkPolicy struct {
		Header `yaml:",inline"`
		Spec   struct {
			PodSelector labels        `yaml:"podSelector"`
			PolicyTypes []string      `yaml:"policyTypes"`
			Ingress     []networkRule `yaml:"ingress"`
			Egress      []networkRule `yaml:"egress"`
		} `yaml:"spec"`
	}
	networkRule struct {
		From  []networkPeer `yaml:"from"`
		To    []networkPeer `yaml:"to"`
		Ports []struct {
			Protocol string `yaml:"protocol"`
			Port     string `yaml:"port"` // a number, or the name of a container's
		} `yaml:"ports"`
	}
	networkPeer struct {
		Namespaces labels            `yaml:"namespaceSelector"`
		Pods       labels            `yaml:"podSelector"`
		Block      map[string]string `yaml:"ipBlock"`
	}
)

// A brokers is all that credence-broker.yaml has.
type brokers struct {
	headers   []Header
	namespace object
	config    object
	set       object
	services  map[string]service
	budget    budget
	policy    networkPolicy
}

func readBrokers(t *testing.T) (b brokers) {
	t.Helper()
	const file = "credence-broker.yaml"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := strict.Documents(file, text)
	if err != nil {
		t.Fatal(err)
	}
	b.services = map[string]service{}
	for _, d := range docs {
		var h Header
		if err := yaml.NodeToValue(d, &h); err != nil {
			t.Fatal(err)
		}
		b.headers = append(b.headers, h)
		var account object
		var s service
		into, known := map[string]any{
			"Namespace": &b.namespace, "ServiceAccount": &account, "ConfigMap": &b.config, "StatefulSet": &b.set,
			"Service": &s, "PodDisruptionBudget": &b.budget, "NetworkPolicy": &b.policy,
		}[h.Kind]
		if !known {
			t.Fatalf("%s: kind %q", file, h.Kind)
		}
		if err := yaml.NodeToValue(d, into, yaml.Strict()); err != nil {
			t.Fatalf("%s: %s %s: %v", file, h.Kind, h.Metadata.Name, err)
		}
		if h.Kind == "Service" {
			b.services[h.Metadata.Name] = s
		}
	}
	return b
}

func (b brokers) pod() pod { return b.set.WorkloadSpec.Template.Spec }

func (b brokers) broker() container { return b.pod().Containers[0] }

// brokerFile is what of the ConfigMap's broker.yaml the pod must agree with. That
// the broker takes it, a test of cmd/credence and run.sh say.
type brokerFile struct {
	Data   string            `yaml:"data"`
	Issuer string            `yaml:"issuer"`
	Store  string            `yaml:"store"`
	Listen map[string]string `yaml:"listen"`
	WebTLS map[string]string `yaml:"web_tls"`
	Admin  string            `yaml:"admin"`
	Health struct {
		Listen string `yaml:"listen"`
	} `yaml:"health"`
	Keys struct {
		Disk struct {
			KEKFile string `yaml:"kek_file"`
		} `yaml:"disk"`
	} `yaml:"keys"`
}

func (b brokers) file(t *testing.T) (f brokerFile) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(b.config.Data["broker.yaml"]), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// ports of broker.yaml, by the names of the pod's.
func (b brokers) ports(t *testing.T) map[string]string {
	t.Helper()
	f, all := b.file(t), map[string]string{}
	for name, address := range map[string]string{"agents": f.Listen["agents"], "spiffe": f.Listen["spiffe"], "web": f.Listen["web"], "health": f.Health.Listen} {
		host, port, err := net.SplitHostPort(address)
		if err != nil || host != "0.0.0.0" {
			t.Errorf("%s: %q is not what others reach: %v", name, address, err)
		}
		all[name] = port
	}
	return all
}

// What broker.yaml and the environment name is where the pod has it, and on the
// volume is what must outlive it.
func TestBrokerPaths(t *testing.T) {
	b := readBrokers(t)
	f, p, c := b.file(t), b.pod(), b.broker()
	if m, v := p.at(t, c.Args[len(c.Args)-1]); c.Args[len(c.Args)-1] != m.MountPath+"/broker.yaml" || v.ConfigMap.Name != b.config.Metadata.Name {
		t.Errorf("the ConfigMap is not at %s", c.Args[len(c.Args)-1])
	}
	for file, secret := range map[string]string{
		f.WebTLS["cert"]: "credence-broker-web", f.WebTLS["key"]: "credence-broker-web",
		p.env("PGPASSFILE"): "credence-broker-database", p.env("PGSSLROOTCERT"): "credence-broker-database",
	} {
		if m, v := p.at(t, file); v.Secret.Name != secret || !m.ReadOnly || v.Secret.DefaultMode != 0o400 || path.Dir(file) != m.MountPath {
			t.Errorf("%s is in %+v of %+v", file, m, v)
		}
	}
	if m, v := p.at(t, f.Admin); m.ReadOnly || v.EmptyDir == nil || p.env("CREDENCE_ADMIN") != "unix://"+f.Admin {
		t.Errorf("admin: %s is in %+v, the environment has %s", f.Admin, v, p.env("CREDENCE_ADMIN"))
	}
	claims, m := b.set.WorkloadSpec.Claims, c.mount(f.Data)
	if len(claims) != 1 || m.Name != claims[0].Metadata.Name || m.ReadOnly || !slices.Equal(claims[0].Spec.AccessModes, []string{"ReadWriteOnce"}) || claims[0].Spec.Resources["requests"]["storage"] == "" {
		t.Errorf("data: %s is in %+v of %+v", f.Data, m, claims)
	}
	if path.Dir(f.Data) != m.MountPath {
		t.Errorf("data: %s: the broker makes its directory; the volume's own is open to the group", f.Data)
	}
	for _, file := range append([]string{f.Keys.Disk.KEKFile, f.Admin}, p.env("PGPASSFILE")) {
		if strings.HasPrefix(file, m.MountPath+"/") {
			t.Errorf("%s is on the volume: a copy of it has it too", file)
		}
	}
	for _, m := range c.VolumeMounts {
		if m.Name != claims[0].Metadata.Name {
			p.at(t, m.MountPath)
		}
	}
}

// The key-encryption key is taken as the kubelet mounts it, and not if more may
// read it.
func TestBrokerKEK(t *testing.T) {
	b := readBrokers(t)
	f, p := b.file(t), b.pod()
	if m, v := p.at(t, f.Keys.Disk.KEKFile); !m.ReadOnly || v.Secret.Name != "credence-broker-kek" || v.Secret.DefaultMode != 0o400 || path.Dir(f.Keys.Disk.KEKFile) != m.MountPath {
		t.Errorf("keys: %s is in %+v of %+v", f.Keys.Disk.KEKFile, m, v)
	}
	dir := t.TempDir()
	secret, data := filepath.Join(dir, path.Base(f.Keys.Disk.KEKFile)), filepath.Join(dir, "data")
	if err := os.WriteFile(secret, []byte(base64.StdEncoding.EncodeToString([]byte("a key-encryption key of 32 bytes"))+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, taken := range map[os.FileMode]bool{
		0o440: os.Geteuid() == 0, // what fsGroup makes of 0400, if the file is root's as there
		0o444: false,
	} {
		if err := os.Chmod(secret, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := kek.New(kek.Settings{KEKFile: secret}, data); (err == nil) != taken {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}

// Whatever leads to a port leads to one that the broker listens on, and probes are
// the kubelet's alone.
func TestBrokerPorts(t *testing.T) {
	b := readBrokers(t)
	listens, open := b.ports(t), map[string]string{}
	for _, p := range b.broker().Ports {
		open[p.Name] = strconv.Itoa(p.ContainerPort)
	}
	if diff := cmp.Diff(listens, open); diff != "" {
		t.Errorf("the pod's ports are not broker.yaml's: %s", diff)
	}
	reached := map[string][]string{}
	for name, s := range b.services {
		for _, p := range s.Spec.Ports {
			reached[name] = append(reached[name], p.TargetPort)
			if want := listens[p.TargetPort]; strconv.Itoa(p.Port) != want && (p.TargetPort != "web" || p.Port != 443) {
				t.Errorf("Service %s: port %d, want %s", name, p.Port, want)
			}
		}
		if lb := s.Spec.Type == "LoadBalancer"; lb != (s.Spec.ExternalTrafficPolicy == "Local") {
			t.Errorf("Service %s hides who calls, or has no use for the policy: %+v", name, s.Spec)
		}
	}
	want := map[string][]string{"credence-broker": {"agents"}, "credence-agents": {"agents"}, "credence-spiffe": {"spiffe"}, "credence-web": {"web"}}
	if diff := cmp.Diff(want, reached); diff != "" {
		t.Errorf("Services: %s", diff)
	}
	if issuer, err := url.Parse(b.file(t).Issuer); err != nil || issuer.Port() != "" || b.services["credence-web"].Spec.Ports[0].Port != 443 {
		t.Errorf("the issuer %s is at another port than credence-web: %v", b.file(t).Issuer, err)
	}

	in := b.policy.Spec.Ingress
	allowed := func(r networkRule) (all []string) {
		for _, p := range r.Ports {
			if p.Protocol != "TCP" {
				t.Errorf("%+v", p)
			}
			all = append(all, p.Port)
		}
		return all
	}
	if len(in) != 2 || !slices.Equal(allowed(in[0]), []string{"agents"}) || !slices.Equal(allowed(in[1]), []string{"spiffe", "web"}) || len(in[0].From) != 2 || len(in[1].From) != 0 {
		t.Fatalf("who comes in: %+v", in)
	}
	agent := manifest(t, "credence-agent.yaml")
	if got := in[0].From[0].Pods["matchLabels"]; !cmp.Equal(got, agent["DaemonSet"].WorkloadSpec.Template.Metadata.Labels) {
		t.Errorf("agents have other labels than %v", got)
	}
	if got := in[0].From[0].Namespaces["matchLabels"]["kubernetes.io/metadata.name"]; got != agent["DaemonSet"].Metadata.Namespace {
		t.Errorf("agents are in another namespace than %q", got)
	}
	if got := b.policy.Spec.PolicyTypes; !slices.Equal(got, []string{"Ingress", "Egress"}) {
		t.Errorf("it rules %v", got)
	}
	out := b.policy.Spec.Egress
	database, err := url.Parse(b.file(t).Store)
	if err != nil || len(out) != 3 {
		t.Fatalf("%d ways out, %v", len(out), err)
	}
	if got := out[0].Ports; len(got) != 2 || got[0].Protocol != "UDP" || got[1].Protocol != "TCP" || got[0].Port != "53" || got[1].Port != "53" {
		t.Errorf("DNS: %+v", got)
	}
	if !slices.Equal(allowed(out[1]), []string{database.Port()}) || len(out[1].To) != 1 {
		t.Errorf("the database is at %s: %+v", database.Host, out[1])
	}
	if !slices.Equal(allowed(out[2]), []string{"443", listens["spiffe"]}) {
		t.Errorf("peers and clouds: %+v", out[2])
	}
	for _, r := range out {
		if len(r.To) == 0 {
			t.Errorf("no rule is for any destination by saying none: %+v", r)
		}
	}
}

// Everything is about the same pods, in one namespace.
func TestBrokerSelectors(t *testing.T) {
	b := readBrokers(t)
	set := b.set.WorkloadSpec
	is := set.Template.Metadata.Labels
	selectors := map[string]map[string]string{
		"StatefulSet": set.Selector["matchLabels"], "PodDisruptionBudget": b.budget.Spec.Selector["matchLabels"],
		"NetworkPolicy": b.policy.Spec.PodSelector["matchLabels"],
	}
	for name, s := range b.services {
		selectors["Service "+name] = s.Spec.Selector
	}
	for _, a := range append(slices.Clone(set.Template.Spec.Affinity.Anti.Required), set.Template.Spec.Spread...) {
		selectors[a.TopologyKey] = a.Selector["matchLabels"]
	}
	if len(selectors) != 9 {
		t.Errorf("%d selectors", len(selectors))
	}
	for what, selects := range selectors {
		if diff := cmp.Diff(is, selects); diff != "" || len(is) == 0 {
			t.Errorf("%s: %s", what, diff)
		}
	}
	seen := map[string]bool{}
	for _, h := range b.headers {
		if name := h.Kind + " " + h.Metadata.Name; seen[name] {
			t.Errorf("two objects %s", name)
		} else {
			seen[name] = true
		}
		if h.Kind != "Namespace" && h.Metadata.Namespace != b.namespace.Metadata.Name {
			t.Errorf("%s %s is in namespace %q", h.Kind, h.Metadata.Name, h.Metadata.Namespace)
		}
	}
	if s := b.services[set.ServiceName]; s.Spec.ClusterIP != "None" {
		t.Errorf("pods have no names by Service %q: %+v", set.ServiceName, s.Spec)
	}
	if !seen["ServiceAccount "+set.Template.Spec.ServiceAccountName] {
		t.Errorf("no ServiceAccount %s", set.Template.Spec.ServiceAccountName)
	}
}

// A node that is drained, an update and a broker that hangs leave two brokers.
func TestBrokersStay(t *testing.T) {
	b := readBrokers(t)
	set, c := b.set.WorkloadSpec, b.broker()
	if set.Replicas != 3 || set.UpdateStrategy.Type != "RollingUpdate" || set.UpdateStrategy.RollingUpdate != nil || set.PodManagement != "Parallel" || set.MinReady == 0 {
		t.Errorf("%+v", set)
	}
	if b.budget.Spec.MaxUnavailable != 1 || b.budget.Spec.UnhealthyPodEvictionPolicy != "AlwaysAllow" {
		t.Errorf("%+v", b.budget.Spec)
	}
	if anti := b.pod().Affinity.Anti.Required; len(anti) != 1 || anti[0].TopologyKey != "kubernetes.io/hostname" {
		t.Errorf("two brokers may be on one node: %+v", anti)
	}
	if diff := cmp.Diff(map[string]string{"whenDeleted": "Retain", "whenScaled": "Retain"}, set.Retention); diff != "" {
		t.Errorf("the record goes with its pod: %s", diff)
	}
	if b.pod().TerminationGracePeriodSeconds < 10 {
		t.Error("it is killed amid its end")
	}
	for want, got := range map[string]probe{"/live": c.LivenessProbe, "/ready": c.ReadinessProbe, "/live ": c.StartupProbe} {
		if got.HTTPGet != (httpGet{Path: strings.TrimSpace(want), Port: "health"}) || got.PeriodSeconds == 0 || got.TimeoutSeconds == 0 {
			t.Errorf("%s is asked by %+v", want, got)
		}
	}
	if s := c.StartupProbe; s.PeriodSeconds*s.FailureThreshold < 600 {
		t.Error("examples/systemd lets a start take ten minutes")
	}
}

// The namespace admits nothing but what restricts itself, and these pods do; they
// run as the image's user, without a token for the API server.
func TestBrokerLeastPrivilege(t *testing.T) {
	b := readBrokers(t)
	p := b.pod()
	if got := b.namespace.Metadata.Labels["pod-security.kubernetes.io/enforce"]; got != "restricted" {
		t.Errorf("Pod Security is %q", got)
	}
	s := p.SecurityContext
	for what, id := range map[string]*int{"runAsUser": s.RunAsUser, "runAsGroup": s.RunAsGroup, "fsGroup": s.FSGroup} {
		if id == nil || *id != 65532 {
			t.Errorf("%s is not the image's", what)
		}
	}
	if !s.RunAsNonRoot || s.SeccompProfile["type"] != "RuntimeDefault" || p.HostPID || p.HostNetwork {
		t.Errorf("%+v", s)
	}
	if s.FSGroupChangePolicy != "OnRootMismatch" {
		t.Error("each mount would open keys and record to the group, and the broker would refuse them")
	}
	if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken || p.EnableServiceLinks == nil || *p.EnableServiceLinks {
		t.Error("it has a token, or variables of Services")
	}
	if len(p.Containers) != 1 {
		t.Fatalf("%d containers", len(p.Containers))
	}
	for _, c := range append(slices.Clone(p.InitContainers), p.Containers...) {
		if diff := cmp.Diff(map[string][]string{"drop": {"ALL"}}, c.SecurityContext.Capabilities); diff != "" {
			t.Errorf("%s: capabilities: %s", c.Name, diff)
		}
		if s := c.SecurityContext; s.Privileged || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || s.RunAsUser != nil || s.RunAsGroup != nil {
			t.Errorf("%s: %+v", c.Name, s)
		}
		if c.Resources["requests"]["cpu"] == "" || c.Resources["requests"]["memory"] == "" || c.Resources["limits"]["memory"] == "" {
			t.Errorf("%s: resources: %v", c.Name, c.Resources)
		}
		if !strings.HasSuffix(c.Image, ":VERSION") {
			t.Errorf("%s: image %s: a version is named, by whoever applies this", c.Name, c.Image)
		}
	}
	if c := b.broker(); c.Image != "ghcr.io/credence-id/credence:VERSION" {
		t.Errorf("image %s", c.Image)
	}
}
