package caller

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	procRoot  = "/proc"
	maxStatus = 1 << 20 // 65,536 groups of 11 bytes fit
)

// A fileID tells one file from all others, as long as it is held open.
type fileID struct {
	major, minor uint32
	inode        uint64
}

// ids are a process's effective ids, and its supplementary groups.
type ids struct {
	uid, gid uint32
	groups   []uint32
}

// gone says whether err is how /proc answers for a process that has ended.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)
}

func (p *Process) reading(what string, err error) error {
	if gone(err) {
		return fmt.Errorf("process %d: %w", p.pid, ErrGone)
	}
	return fmt.Errorf("reading %s: %w", strings.TrimSuffix(fmt.Sprintf("%s/%d/%s", procRoot, p.pid, what), "/"), err)
}

// read returns what a file of the process's says, until the next read: one
// buffer serves all, since each call of a workload reads a few.
func (p *Process) read(name string) ([]byte, error) {
	fd, err := unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, p.reading(name, err)
	}
	defer unix.Close(fd)
	b := p.scratch()[:0] // one read does, but for a process of many groups
	for {
		if len(b) == cap(b) {
			b = slices.Grow(b, len(b))
			p.buf = b[:cap(b)]
		}
		n, err := unix.Read(fd, b[len(b):cap(b)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, p.reading(name, err)
		case n == 0:
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) > maxStatus {
			return nil, fmt.Errorf("reading %s/%d/%s: more than %d bytes", procRoot, p.pid, name, maxStatus)
		}
	}
}

func (p *Process) startTime() (uint64, error) {
	b, err := p.read("stat")
	if err != nil {
		return 0, err
	}
	return parseStartTime(b)
}

func (p *Process) status() (ids, error) {
	b, err := p.read("status")
	if err != nil {
		return ids{}, err
	}
	return parseIDs(b)
}

// pinExecutable records and holds what the process runs. What may not be read
// stays unknown; it is not an error.
func (p *Process) pinExecutable() error {
	pin, err := unix.Openat(p.dir, "exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if gone(err) {
		return p.reading("exe", err)
	}
	if err != nil {
		return nil
	}
	p.pin = pin
	id, err := statFD(pin)
	p.exe, p.exeKnown = id, err == nil
	return nil
}

func statExecutable(dir int) (fileID, error) { return statx(dir, "exe", 0) }
func statFD(fd int) (fileID, error)          { return statx(fd, "", unix.AT_EMPTY_PATH) }

// statx doesn't ask a remote or user-space file system afresh: its server is
// the caller's to stall, and device and inode don't change.
func statx(fd int, name string, flags int) (fileID, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, name, flags|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st); err != nil {
		return fileID{}, err
	}
	return fileID{st.Dev_major, st.Dev_minor, st.Ino}, nil
}

func (p *Process) scratch() []byte {
	if p.buf == nil {
		p.buf = make([]byte, unix.PathMax)
	}
	return p.buf
}

func (p *Process) readExecutable() (string, error) {
	buf := p.scratch()
	n, err := unix.Readlinkat(p.dir, "exe", buf)
	if err == nil && n == len(buf) {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// parseStartTime reads field 22 of /proc/PID/stat (proc_pid_stat(5)): the start
// time in ticks since boot. The second field is the program's name in
// parentheses, which the process chooses: it may hold spaces and parentheses.
func parseStartTime(stat []byte) (uint64, error) {
	_, rest, ok := cutLast(stat, ')')
	fields := bytes.Fields(rest) // from field 3 on
	if !ok || len(fields) < 20 {
		return 0, errors.New("reading a process's start time: not the form of /proc/PID/stat")
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading a process's start time: %w", err)
	}
	return start, nil
}

func cutLast(b []byte, sep byte) (before, after []byte, ok bool) {
	i := bytes.LastIndexByte(b, sep)
	if i < 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
}

// parseIDs reads Uid, Gid and Groups of /proc/PID/status (proc_pid_status(5)).
// The process's name stands there too, its line breaks escaped by the kernel.
func parseIDs(status []byte) (ids, error) {
	uid, err := effective(status, "Uid:")
	if err != nil {
		return ids{}, err
	}
	gid, err := effective(status, "Gid:")
	if err != nil {
		return ids{}, err
	}
	list, ok := statusField(status, "Groups:")
	if !ok {
		return ids{}, errors.New("reading a process's status: no line Groups")
	}
	groups := make([]uint32, 0, len(list))
	for _, s := range list {
		g, err := parseID(s)
		if err != nil {
			return ids{}, err
		}
		groups = append(groups, g)
	}
	return ids{uid, gid, groups}, nil
}

func effective(status []byte, name string) (uint32, error) {
	f, ok := statusField(status, name)
	if !ok || len(f) != 4 { // real, effective, saved, file system
		return 0, fmt.Errorf("reading a process's status: no line %s with four ids", strings.TrimSuffix(name, ":"))
	}
	return parseID(f[1])
}

// parseID refuses the id -1, which stands for none.
func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 32)
	if err != nil || id == math.MaxUint32 {
		return 0, fmt.Errorf("reading a process's status: %q is no id", s)
	}
	return uint32(id), nil
}

func statusField(status []byte, name string) ([]string, bool) {
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			return strings.Fields(string(rest)), true
		}
	}
	return nil, false
}
