package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	images "github.com/containerd/containerd/api/services/images/v1"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxAnswer bounds a container's record, which holds its whole configuration.
const maxAnswer = 4 << 20

// errNoContainer is the error of an ID that a namespace doesn't have.
var errNoContainer = errors.New("it has no such container")

var (
	digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	pinned = regexp.MustCompile(`@(sha256:[0-9a-f]{64})$`)
)

// A container is what containerd says of one.
type container struct {
	id, namespace, image, digest string
	pid                          int
	labels                       map[string]string
}

// A socket is containerd's API.
type socket struct {
	containers containers.ContainersClient
	tasks      tasks.TasksClient
	images     images.ImagesClient
}

func newSocket(path string) (*socket, error) {
	cc, err := grpc.NewClient("passthrough:///containerd",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a Unix socket that root alone may use
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}, MinConnectTimeout: time.Second,
		}),
	)
	if err != nil {
		return nil, err
	}
	return &socket{containers.NewContainersClient(cc), tasks.NewTasksClient(cc), images.NewImagesClient(cc)}, nil
}

// inspect asks one namespace for a running container.
func (s *socket) inspect(ctx context.Context, namespace, id string) (container, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
	answer, err := s.containers.Get(ctx, &containers.GetContainerRequest{ID: id})
	if status.Code(err) == codes.NotFound {
		return container{}, errNoContainer
	}
	if err != nil {
		return container{}, err
	}
	record := answer.GetContainer()
	if record.GetID() != id {
		return container{}, fmt.Errorf("the answer is of another, %.64q", record.GetID())
	}
	first, err := s.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return container{}, fmt.Errorf("its first process: %w", err)
	}
	process := first.GetProcess()
	if state := process.GetStatus(); process.GetPid() == 0 || state != task.Status_RUNNING && state != task.Status_PAUSED {
		return container{}, errors.New("it does not run")
	}
	c := container{id: id, namespace: namespace, image: record.GetImage(), labels: record.GetLabels(), pid: int(process.GetPid())}
	c.digest = s.digest(ctx, record)
	return c, nil
}

// digest is what a container's image was when the container was made; empty if
// that isn't known.
func (s *socket) digest(ctx context.Context, record *containers.Container) string {
	if m := pinned.FindStringSubmatch(record.GetImage()); m != nil {
		return m[1]
	}
	if record.GetImage() == "" || record.GetCreatedAt() == nil {
		return ""
	}
	answer, err := s.images.Get(ctx, &images.GetImageRequest{Name: record.GetImage()})
	if err != nil || answer.GetImage().GetName() != record.GetImage() {
		return ""
	}
	image := answer.GetImage()
	made := record.GetCreatedAt().AsTime()
	if image.GetCreatedAt() == nil || image.GetUpdatedAt() == nil || !image.GetCreatedAt().AsTime().Before(made) || !image.GetUpdatedAt().AsTime().Before(made) {
		return "" // the name has been given again since
	}
	if is := image.GetTarget().GetDigest(); digest.MatchString(is) {
		return is
	}
	return ""
}
