package kubernetes_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/credence-id/credence/broker/resource/strict"
)

// What the manifests have of Kubernetes' objects; a field that is not here is
// taken for a mistake.
type (
	object struct {
		APIVersion   string            `yaml:"apiVersion"`
		Kind         string            `yaml:"kind"`
		Metadata     metadata          `yaml:"metadata"`
		Automount    *bool             `yaml:"automountServiceAccountToken"`
		Rules        []rule            `yaml:"rules"`
		RoleRef      map[string]string `yaml:"roleRef"`
		Subjects     []map[string]any  `yaml:"subjects"`
		Data         map[string]string `yaml:"data"`
		WorkloadSpec workload          `yaml:"spec"`
	}
	metadata struct {
		Name      string            `yaml:"name"`
		Namespace string            `yaml:"namespace"`
		Labels    map[string]string `yaml:"labels"`
	}
	rule struct {
		APIGroups []string `yaml:"apiGroups"`
		Resources []string `yaml:"resources"`
		Verbs     []string `yaml:"verbs"`
	}
	workload struct {
		Replicas       int                          `yaml:"replicas"`
		ServiceName    string                       `yaml:"serviceName"`
		PodManagement  string                       `yaml:"podManagementPolicy"`
		MinReady       int                          `yaml:"minReadySeconds"`
		Retention      map[string]string            `yaml:"persistentVolumeClaimRetentionPolicy"`
		Claims         []claim                      `yaml:"volumeClaimTemplates"`
		Selector       map[string]map[string]string `yaml:"selector"`
		UpdateStrategy struct {
			Type          string         `yaml:"type"`
			RollingUpdate map[string]any `yaml:"rollingUpdate"`
		} `yaml:"updateStrategy"`
		Template struct {
			Metadata metadata `yaml:"metadata"`
			Spec     pod      `yaml:"spec"`
		} `yaml:"template"`
	}
	claim struct {
		Metadata metadata `yaml:"metadata"`
		Spec     struct {
			AccessModes []string                     `yaml:"accessModes"`
			Resources   map[string]map[string]string `yaml:"resources"`
		} `yaml:"spec"`
	}
	pod struct {
		ServiceAccountName            string              `yaml:"serviceAccountName"`
		AutomountServiceAccountToken  *bool               `yaml:"automountServiceAccountToken"`
		PriorityClassName             string              `yaml:"priorityClassName"`
		TerminationGracePeriodSeconds int                 `yaml:"terminationGracePeriodSeconds"`
		NodeSelector                  map[string]string   `yaml:"nodeSelector"`
		Tolerations                   []map[string]string `yaml:"tolerations"`
		HostPID                       bool                `yaml:"hostPID"`
		HostNetwork                   bool                `yaml:"hostNetwork"`
		DNSPolicy                     string              `yaml:"dnsPolicy"`
		EnableServiceLinks            *bool               `yaml:"enableServiceLinks"`
		Affinity                      affinity            `yaml:"affinity"`
		Spread                        []spread            `yaml:"topologySpreadConstraints"`
		SecurityContext               security            `yaml:"securityContext"`
		InitContainers                []container         `yaml:"initContainers"`
		Containers                    []container         `yaml:"containers"`
		Volumes                       []volume            `yaml:"volumes"`
	}
	labels   map[string]map[string]string // a selector
	affinity struct {
		Anti struct {
			Required []spread `yaml:"requiredDuringSchedulingIgnoredDuringExecution"`
		} `yaml:"podAntiAffinity"`
	}
	spread struct {
		MaxSkew     int    `yaml:"maxSkew"`
		TopologyKey string `yaml:"topologyKey"`
		Otherwise   string `yaml:"whenUnsatisfiable"`
		Selector    labels `yaml:"labelSelector"`
	}
	security struct {
		RunAsUser                *int                `yaml:"runAsUser"`
		RunAsGroup               *int                `yaml:"runAsGroup"`
		RunAsNonRoot             bool                `yaml:"runAsNonRoot"`
		FSGroup                  *int                `yaml:"fsGroup"`
		FSGroupChangePolicy      string              `yaml:"fsGroupChangePolicy"`
		SeccompProfile           map[string]string   `yaml:"seccompProfile"`
		Privileged               bool                `yaml:"privileged"`
		AllowPrivilegeEscalation *bool               `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool                `yaml:"readOnlyRootFilesystem"`
		Capabilities             map[string][]string `yaml:"capabilities"`
	}
	container struct {
		Name            string                       `yaml:"name"`
		Image           string                       `yaml:"image"`
		Command         []string                     `yaml:"command"`
		Args            []string                     `yaml:"args"`
		Env             []variable                   `yaml:"env"`
		Ports           []port                       `yaml:"ports"`
		StartupProbe    probe                        `yaml:"startupProbe"`
		ReadinessProbe  probe                        `yaml:"readinessProbe"`
		LivenessProbe   probe                        `yaml:"livenessProbe"`
		Resources       map[string]map[string]string `yaml:"resources"`
		SecurityContext security                     `yaml:"securityContext"`
		VolumeMounts    []mount                      `yaml:"volumeMounts"`
	}
	variable struct {
		Name      string                       `yaml:"name"`
		Value     string                       `yaml:"value"`
		ValueFrom map[string]map[string]string `yaml:"valueFrom"`
	}
	port struct {
		Name          string `yaml:"name"`
		ContainerPort int    `yaml:"containerPort"`
	}
	probe struct {
		Exec                struct{ Command []string } `yaml:"exec"`
		HTTPGet             httpGet                    `yaml:"httpGet"`
		InitialDelaySeconds int                        `yaml:"initialDelaySeconds"`
		PeriodSeconds       int                        `yaml:"periodSeconds"`
		TimeoutSeconds      int                        `yaml:"timeoutSeconds"`
		FailureThreshold    int                        `yaml:"failureThreshold"`
	}
	httpGet struct {
		Host string `yaml:"host"`
		Path string `yaml:"path"`
		Port string `yaml:"port"`
	}
	mount struct {
		Name      string `yaml:"name"`
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	}
	volume struct {
		Name      string `yaml:"name"`
		ConfigMap struct {
			Name string `yaml:"name"`
		} `yaml:"configMap"`
		Secret struct {
			Name        string `yaml:"secretName"`
			DefaultMode int    `yaml:"defaultMode"`
		} `yaml:"secret"`
		Projected struct {
			DefaultMode int `yaml:"defaultMode"`
			Sources     []struct {
				Token struct {
					Audience          string `yaml:"audience"`
					ExpirationSeconds int    `yaml:"expirationSeconds"`
					Path              string `yaml:"path"`
				} `yaml:"serviceAccountToken"`
			} `yaml:"sources"`
		} `yaml:"projected"`
		HostPath struct {
			Path string `yaml:"path"`
			Type string `yaml:"type"`
		} `yaml:"hostPath"`
		EmptyDir *struct {
			Medium    string `yaml:"medium"`
			SizeLimit string `yaml:"sizeLimit"`
		} `yaml:"emptyDir"`
	}
)

// manifest reads a file's objects by kind.
func manifest(t *testing.T, file string) map[string]object {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	docs, err := strict.Documents(file, text)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]object{}
	for _, d := range docs {
		var o object
		if err := yaml.NodeToValue(d, &o, yaml.Strict()); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if _, twice := all[o.Kind]; twice {
			t.Fatalf("%s: two objects %s", file, o.Kind)
		}
		all[o.Kind] = o
	}
	return all
}

// An install is all that runs the agent, in one of the ways that README shows.
type install struct {
	config object
	role   object
	pod    pod
}

func installs(t *testing.T) map[string]install {
	t.Helper()
	base, other := manifest(t, "credence-agent.yaml"), manifest(t, "kubelet.yaml")
	patched := base["DaemonSet"].WorkloadSpec.Template.Spec
	patched.merge(manifest(t, "kubelet-patch.yaml")[""].WorkloadSpec.Template.Spec)
	return map[string]install{
		"the API server": {base["ConfigMap"], base["ClusterRole"], base["DaemonSet"].WorkloadSpec.Template.Spec},
		"the kubelet":    {other["ConfigMap"], other["ClusterRole"], patched},
	}
}

// merge does what kubectl patch does with what the patch has: lists are merged by
// name (a strategic merge patch).
func (p *pod) merge(patch pod) {
	p.HostNetwork, p.DNSPolicy = patch.HostNetwork, patch.DNSPolicy
	p.Volumes = append(slices.Clone(p.Volumes), patch.Volumes...)
	p.Containers = slices.Clone(p.Containers)
	for _, c := range patch.Containers {
		for i := range p.Containers {
			if p.Containers[i].Name == c.Name {
				p.Containers[i].VolumeMounts = append(slices.Clone(p.Containers[i].VolumeMounts), c.VolumeMounts...)
				p.Containers[i].LivenessProbe.HTTPGet.Host = c.LivenessProbe.HTTPGet.Host
			}
		}
	}
}

// at is the mount that a path of a container is in, and its volume.
func (p pod) at(t *testing.T, path string) (mount, volume) {
	t.Helper()
	best := p.Containers[0].mount(path)
	for _, v := range p.Volumes {
		if v.Name == best.Name {
			return best, v
		}
	}
	t.Fatalf("no volume has %s", path)
	return mount{}, volume{}
}

// mount is the one that a path is in.
func (c container) mount(path string) (best mount) {
	for _, m := range c.VolumeMounts {
		if (path == m.MountPath || strings.HasPrefix(path, m.MountPath+"/")) && len(m.MountPath) > len(best.MountPath) {
			best = m
		}
	}
	return best
}

func (p pod) env(name string) string {
	for _, v := range p.Containers[0].Env {
		if v.Name == name {
			return v.Value + v.ValueFrom["fieldRef"]["fieldPath"]
		}
	}
	return ""
}
