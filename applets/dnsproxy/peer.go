package dnsproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/wire/names"
)

// peer is this process's end of a connection to the other one. Its other end
// is open as long as that one lives, and no longer.
type peer struct {
	f    *os.File
	born time.Time // when the other one was started; zero if it started this one
}

// errEnd is the reason to end for good, as the other process is to.
var errEnd = errors.New("the containers have ended")

// endByte tells the other process to end.
const endByte = 'e'

// wait returns errEnd if the other process says so, nil when it has died, and
// ctx's cause when that ends.
func (p *peer) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	n, _ := p.f.Read(b[:])
	switch {
	case n == 1 && b[0] == endByte:
		return errEnd
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return nil
}

// end tells the other process to end.
func (p *peer) end() {
	_ = p.f.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = p.f.Write([]byte{endByte}) // to one that has died already
}

func (p *peer) close() { p.f.Close() }

// start starts the other process in a role, with duplicates of the namespace
// and the sockets, of which child.None are missing.
func start(role names.Role, spec names.Spec, netns, udp, tcp int) (*peer, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to another process: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "peer"), fds[1]
	defer unix.Close(theirs)
	fd, err := specFile(spec)
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer unix.Close(fd)
	files := [names.NumFiles]int{}
	for n, file := range map[int]int{
		names.FileSpec: fd, names.FileReport: child.None, names.FileNetNS: netns,
		names.FilePeer: theirs, names.FileUDP: udp, names.FileTCP: tcp,
	} {
		files[n-names.FileSpec] = file
	}
	proc, err := child.Start(child.Command{Args: spec.Args(role), Files: files[:]})
	if err != nil {
		ours.Close()
		return nil, err
	}
	go func() { _, _ = proc.Wait() }() // no zombie is left of it
	return &peer{ours, time.Now()}, nil
}

// specFile is the spec as an open file. All of it is there before the process
// is, which thus needs nothing more of the one that starts it.
func specFile(spec names.Spec) (fd int, err error) {
	if fd, err = unix.MemfdCreate("spec", unix.MFD_CLOEXEC); err != nil {
		return child.None, fmt.Errorf("make a file without a name: %w", err)
	}
	var b bytes.Buffer
	err = errors.Join(names.WriteSpec(&b, spec), names.Proceed(&b))
	if err == nil {
		var n int
		if n, err = unix.Pwrite(fd, b.Bytes(), 0); err == nil && n < b.Len() {
			err = io.ErrShortWrite
		}
	}
	if err != nil {
		unix.Close(fd)
		return child.None, fmt.Errorf("write a file without a name: %w", err)
	}
	return fd, nil
}
