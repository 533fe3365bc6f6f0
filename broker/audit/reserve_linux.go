package audit

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// keepSize leaves a file's size as it is: the room lies beyond its end.
const keepSize = 1 // FALLOC_FL_KEEP_SIZE

// reserve makes an empty file with room for so many bytes.
func (osDisk) reserve(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	// One of an earlier run has its room already, which truncating would give away.
	if info, e := f.Stat(); e != nil || info.Size() > 0 {
		return errors.Join(e, fmt.Errorf("%s is not empty: somebody else wrote it", path), f.Close())
	}
	for {
		if err = syscall.Fallocate(int(f.Fd()), keepSize, 0, size); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		err = errors.ErrUnsupported
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path)
	}
	return err
}
