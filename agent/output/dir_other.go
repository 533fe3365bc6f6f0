//go:build !linux

package output

import (
	"errors"
	"os"
)

var errLinux = errors.New("outputs are written on Linux only")

// Replace is for Linux only.
func (s *Set) Replace([]File) (uint64, error) { return 0, errLinux }

// Remove is for Linux only.
func (s *Set) Remove() error { return errLinux }

// Check is for Linux only.
func (s *Set) Check() error { return errLinux }

// ErrChanged is for Linux only.
var ErrChanged = errLinux

// A Dir is for Linux only.
type Dir struct{}

// OpenDir is for Linux only.
func OpenDir(string, ...uint32) (*Dir, error) { return nil, errLinux }

// Close does nothing.
func (d *Dir) Close() {}

// Lock is for Linux only.
func (d *Dir) Lock() error { return errLinux }

// Read is for Linux only.
func (d *Dir) Read(string, uint32, int) ([]byte, os.FileInfo, error) { return nil, nil, errLinux }

// Write is for Linux only.
func (d *Dir) Write(File, Owner, os.FileInfo) error { return errLinux }

// Remove is for Linux only.
func (d *Dir) Remove(string, os.FileInfo) error { return errLinux }
