package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// confine has a program run as a user, in a process group of its own that ends
// with it.
func confine(cmd *exec.Cmd, uid, gid uint32) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if uid != uint32(os.Geteuid()) || gid != uint32(os.Getegid()) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: gid}
	}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
}

// checkProgram refuses a program that somebody else could change: it would run
// as us.
func checkProgram(path string) error {
	for range maxLinks {
		next, err := checkProgramAt(path)
		if err != nil || next == "" {
			return err
		}
		path = next
	}
	return errLink
}

// checkProgramAt says where to look next if it is a link.
func checkProgramAt(path string) (next string, err error) {
	if err := CheckPath(path); err != nil {
		return "", err
	}
	dir, name := filepath.Dir(path), filepath.Base(path)
	d, err := OpenDir(dir)
	if err != nil {
		return "", err
	}
	defer d.Close()
	st, err := statAt(d.fd(), name)
	switch {
	case err != nil:
		return "", err
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return follow(d.f, d.path, name)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0:
		return "", errors.New("it is no program")
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return "", fmt.Errorf("it belongs to uid %d, who could change it", st.Uid)
	case st.Mode&unix.S_IWOTH != 0 || st.Mode&unix.S_IWGRP != 0 && st.Gid != 0:
		return "", fmt.Errorf("it can be written by others (its mode is %04o)", st.Mode&0o7777)
	}
	return "", nil
}

var signals = map[string]unix.Signal{"HUP": unix.SIGHUP, "USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2, "TERM": unix.SIGTERM}

// CheckSignal refuses a signal that no hook sends.
func CheckSignal(name string) error {
	if _, ok := signals[name]; !ok {
		return fmt.Errorf("%q: HUP, USR1, USR2 or TERM is wanted", name)
	}
	return nil
}

// Signal returns a hook that signals the process that a pid file names. The
// file must be one that only root, we or its owner can write; one that is not
// root's or ours names a process of its owner's. The process must have begun
// before the file was written: a number that was given away since is another's.
func Signal(pidFile, signal string) (Hook, error) {
	if err := CheckPath(pidFile); err != nil {
		return nil, err
	}
	if err := CheckSignal(signal); err != nil {
		return nil, err
	}
	return func(context.Context, Written) error {
		if err := sendSignal(pidFile, signals[signal]); err != nil {
			return fmt.Errorf("signalling the process of %s: %w", pidFile, err)
		}
		return nil
	}, nil
}

func sendSignal(pidFile string, signal unix.Signal) error {
	f, owner, err := openPIDFile(pidFile)
	if err != nil {
		return err
	}
	defer f.Close()
	pid, written, err := readPID(f)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// What is read by number from here on is the pidfd's if that still lives
	// afterwards: PidfdSendSignal says so.
	uid, began, err := readProcess(pid)
	if err != nil {
		return err
	}
	if owner != 0 && owner != uint32(os.Geteuid()) && uid != owner {
		return fmt.Errorf("process %d is uid %d's, and the file is uid %d's", pid, uid, owner)
	}
	if began.After(written.Add(startSlack)) {
		return fmt.Errorf("process %d began at %s, after the file was written at %s: it is another one, or the clock was set since", pid, began.Format(time.RFC3339), written.Format(time.RFC3339))
	}
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	return nil
}

// startSlack is how much later than its file a process may seem to have begun:
// the kernel tells that in ticks, and rounds.
const startSlack = 100 * time.Millisecond

// openPIDFile opens a file that is nobody else's than its owner's, in a
// directory that the same may change.
func openPIDFile(path string) (*os.File, uint32, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 || st.Nlink != 1 {
		return nil, 0, errors.Join(fmt.Errorf("it is no file of its owner's alone (its mode is %04o)", st.Mode&0o7777), f.Close())
	}
	d, err := OpenDir(filepath.Dir(path), st.Uid)
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	defer d.Close()
	if here, err := statAt(d.fd(), filepath.Base(path)); err != nil || here.Ino != st.Ino || here.Dev != st.Dev {
		return nil, 0, errors.Join(errors.New("it was replaced while it was read"), err, f.Close())
	}
	return f, st.Uid, nil
}

func readPID(f *os.File) (pid int, written time.Time, err error) {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, time.Time{}, err
	}
	first, _, _ := bytes.Cut(text, []byte("\n")) // PostgreSQL's has more lines
	pid, err = strconv.Atoi(strings.TrimSpace(string(first)))
	if err != nil || pid <= 1 {
		return 0, time.Time{}, fmt.Errorf("%q is no number of a process to signal", first)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, time.Time{}, err
	}
	return pid, info.ModTime(), nil
}

// readProcess is whose process has a number, and since when it runs.
func readProcess(pid int) (uid uint32, began time.Time, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	if uid, err = readUID(dir + "/status"); err != nil {
		return 0, time.Time{}, err
	}
	text, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, time.Time{}, err
	}
	// The name, in parentheses, may hold anything: fields are counted after it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 20 {
		return 0, time.Time{}, fmt.Errorf("%s/stat cannot be read", dir)
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("%s/stat cannot be read: %w", dir, err)
	}
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return 0, time.Time{}, err
	}
	up := time.Duration(boot.Nano()) - time.Duration(ticks)*(time.Second/userHZ)
	return uid, time.Now().Add(-up), nil
}

// readUID is the effective uid of a process.
func readUID(file string) (uint32, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok && len(strings.Fields(ids)) > 1 {
			uid, err := strconv.ParseUint(strings.Fields(ids)[1], 10, 32)
			return uint32(uid), err
		}
	}
	return 0, fmt.Errorf("%s cannot be read", file)
}

// userHZ is the unit of times in /proc, the same on all that Go runs on.
const userHZ = 100
