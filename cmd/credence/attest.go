package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/attest/docker"
	"github.com/credence-id/credence/agent/attest/systemd"
	"github.com/credence-id/credence/agent/attest/unix"
)

// attestFile says in agent.yaml what attests workloads besides the kernel's
// facts: attest: {docker: {}}.
type attestFile struct {
	Docker  *containerFile `yaml:"docker"`
	Podman  *containerFile `yaml:"podman"`
	Systemd *systemdFile   `yaml:"systemd"`
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
		setDefault(&c.Socket, map[string]string{"docker": "/var/run/docker.sock", "podman": "/run/podman/podman.sock"}[name])
		if err := c.check(); err != nil {
			return fmt.Errorf("attest: %s: %w", name, err)
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

// attestors makes what agent.yaml names, and the kernel's facts always.
func attestors(f attestFile) (map[string]agent.Attestor, error) {
	all := map[string]agent.Attestor{unix.Prefix: unix.New(unix.Config{})}
	if f.Systemd != nil {
		all[systemd.Prefix] = systemd.New(systemd.Config{Bus: f.Systemd.Bus, Timeout: f.Systemd.Timeout})
	}
	for name, c := range map[string]*containerFile{"docker": f.Docker, "podman": f.Podman} {
		if c == nil {
			continue
		}
		rootless := make(map[uint32]string)
		for uid, socket := range c.Rootless {
			n, err := strconv.ParseUint(uid, 10, 32)
			if err != nil {
				return nil, err
			}
			rootless[uint32(n)] = socket
		}
		a, err := docker.New(docker.Config{Runtime: name, Socket: c.Socket, Rootless: rootless, Timeout: c.Timeout})
		if err != nil {
			return nil, err
		}
		all[a.Prefix()] = a
	}
	return all, nil
}
