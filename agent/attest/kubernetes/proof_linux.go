package kubernetes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// readProof reads a regular file below root, where links lead no further than root
// does. Nothing else is opened: a pipe would wait, and a device do as it likes.
func readProof(root int, path string, meanwhile func()) ([]byte, error) {
	fd, err := unix.Openat2(root, strings.TrimPrefix(path, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var at, before, after unix.Stat_t
	if err := unix.Fstat(fd, &at); err != nil {
		return nil, err
	}
	if at.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("it is no regular file")
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_NONBLOCK, 0) // that very file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Fstat(int(f.Fd()), &before); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxProof+2))
	if err != nil {
		return nil, err
	}
	meanwhile()
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return nil, err
	}
	if before.Size != after.Size || before.Mtim != after.Mtim || len(text) <= maxProof && before.Size != int64(len(text)) {
		return nil, errors.New("it is written to meanwhile")
	}
	if text = bytes.TrimSpace(text); len(text) == 0 || len(text) > maxProof {
		return nil, fmt.Errorf("a token of %d bytes: 1 to %d are taken", before.Size, maxProof)
	}
	return text, nil
}
