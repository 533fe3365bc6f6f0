package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	maxAnswer = 4 << 20
	maxHeld   = 1024
	heldFor   = 10 * time.Second
)

// errNoContainer is the error of an ID that the runtime doesn't know.
var errNoContainer = errors.New("the runtime knows no such container")

// A container is what a runtime says of one.
type container struct {
	id, name, image, imageID string
	pid                      int
	labels                   map[string]string
	env                      []string
	digests                  []string // nil: not told
}

// A socket is a runtime's API.
type socket struct {
	path   string
	client *http.Client
}

func newSocket(path string, timeout time.Duration) *socket {
	return &socket{path: path, client: &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			},
			MaxIdleConns: 2, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// inspect asks for a running container and its image. Where the image isn't
// told, its digests are nil.
func (s *socket) inspect(ctx context.Context, id string) (*container, error) {
	var answer struct {
		ID    string `json:"Id"`
		Name  string
		Image string
		State struct {
			Running bool
			Pid     int
		}
		Config struct {
			Image  string
			Labels map[string]string
			Env    []string
		}
	}
	if err := s.get(ctx, "/containers/"+id+"/json", &answer); err != nil {
		return nil, fmt.Errorf("asking %s of container %.12s: %w", s.path, id, err)
	}
	if answer.ID != id {
		return nil, fmt.Errorf("asking %s of container %.12s: the answer is of another, %.64q", s.path, id, answer.ID)
	}
	if !answer.State.Running || answer.State.Pid <= 0 {
		return nil, fmt.Errorf("asking %s of container %.12s: it does not run", s.path, id)
	}
	c := &container{
		id: id, name: strings.TrimPrefix(answer.Name, "/"), image: answer.Config.Image, imageID: digestOf(answer.Image), pid: answer.State.Pid,
		labels: answer.Config.Labels, env: answer.Config.Env,
	}
	c.digests = s.digests(ctx, c.imageID)
	return c, nil
}

// digestOf is an image's ID with its algorithm, which Podman leaves out.
func digestOf(image string) string {
	if len(image) == 64 && !strings.Contains(image, ":") {
		return "sha256:" + image
	}
	return image
}

// digests are those of an image's manifests. It is nil if the runtime doesn't
// say; an image that was built here has none.
func (s *socket) digests(ctx context.Context, image string) []string {
	algorithm, hex, ok := strings.Cut(image, ":")
	if !ok || algorithm != "sha256" || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return nil
	}
	var answer struct {
		ID          string `json:"Id"`
		RepoDigests []string
	}
	if err := s.get(ctx, "/images/"+image+"/json", &answer); err != nil || digestOf(answer.ID) != image || len(answer.RepoDigests) > 64 {
		return nil
	}
	all := []string{}
	for _, d := range answer.RepoDigests {
		if _, digest, ok := strings.Cut(d, "@"); ok {
			all = append(all, digest)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func (s *socket) get(ctx context.Context, path string, to any) error {
	// The host is not used: a Unix socket is dialled.
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://runtime"+path, nil)
	if err != nil {
		return err
	}
	response, err := s.client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case response.StatusCode == http.StatusNotFound:
		return errNoContainer
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("it answered %d", response.StatusCode)
	case len(body) > maxAnswer:
		return fmt.Errorf("it answered with more than %d bytes", maxAnswer)
	}
	return json.Unmarshal(body, to)
}

// held are answers of the last moments.
type held struct {
	mu  sync.Mutex // guards all
	all map[string]answer
}

type answer struct {
	c  *container
	at time.Time
}

func (h *held) get(key string, now time.Time) *container {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a, ok := h.all[key]; ok && now.Sub(a.at) < heldFor {
		return a.c
	}
	return nil
}

func (h *held) put(key string, c *container, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.all) >= maxHeld {
		clear(h.all)
	}
	if h.all == nil {
		h.all = make(map[string]answer)
	}
	h.all[key] = answer{c, now}
}
