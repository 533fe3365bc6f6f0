//go:build linux || darwin

package audit

import "syscall"

// room is what others than root may still write where a directory is.
func room(dir string) int64 {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return -1
	}
	return int64(s.Bavail) * int64(s.Bsize)
}
