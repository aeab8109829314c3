package pair

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
	"github.com/terok-ai/terok-box/wire/start"
)

// peer is this process's end of a connection to the other one. Its other end
// is open as long as that one lives, and no longer.
type peer struct {
	f    *os.File
	born time.Time // when the other one was started; zero if it started this one
}

// endByte tells the other process to end.
const endByte = 'e'

// wait returns ErrEnd if the other process says so, nil when it has died, and
// ctx's cause when that ends.
func (p *peer) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	n, _ := p.f.Read(b[:])
	switch {
	case n == 1 && b[0] == endByte:
		return ErrEnd
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
// and of the program's own files, of which child.None are missing.
func (p Pair) start(role start.Role, restarts int, own []int) (*peer, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to another process: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "peer"), fds[1]
	defer unix.Close(theirs)
	fd, err := specFile(p.Spec(restarts))
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer unix.Close(fd)
	files := make([]int, start.FileOwn-start.FileSpec, start.FileOwn-start.FileSpec+len(own))
	for n, file := range map[int]int{
		start.FileSpec: fd, start.FileReport: child.None, start.FileNetNS: start.FileNetNS, start.FilePeer: theirs,
	} {
		files[n-start.FileSpec] = file
	}
	proc, err := child.Start(child.Command{Args: p.Args(role), Files: append(files, own...)})
	if err != nil {
		ours.Close()
		return nil, err
	}
	go func() { _, _ = proc.Wait() }() // no zombie is left of it
	return &peer{ours, time.Now()}, nil
}

// specFile is a spec as an open file. All of it is there before the process
// is, which thus needs nothing more of the one that starts it.
func specFile(spec any) (fd int, err error) {
	if fd, err = unix.MemfdCreate("spec", unix.MFD_CLOEXEC); err != nil {
		return child.None, fmt.Errorf("make a file without a name: %w", err)
	}
	var b bytes.Buffer
	err = errors.Join(start.WriteSpec(&b, spec), start.Proceed(&b))
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
