package notify

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/confined"
	"github.com/terok-ai/terok-box/applets/internal/reach"
)

// OpenerName is the private program that opens terminals for --watch.
const OpenerName = "terminal-opener"

const (
	// openerVar tells the program's second life which descriptor leads to its
	// opener.
	openerVar = "TEROK_TERMINAL_OPENER"
	// openerFile is the opener's own end.
	openerFile = 3
	// opened is its reply that is no error, and maxReply bounds one in bytes.
	opened   = "\x00"
	maxReply = 512
	// openPause is the least time from when a terminal was opened to the next.
	openPause = 5 * time.Second
	// maxOpen bounds the terminals that are open, and still the opener's children.
	maxOpen = 8
	// partTime is for the opener to end.
	partTime = time.Second
)

var (
	errOpener   = errors.New("the process that opens terminals has ended")
	errManyOpen = fmt.Errorf("open a terminal: %d are open already", maxOpen)
)

// opener is the process that opens terminals for this one, which is confined
// and cannot: a terminal, and all that is done there, would be as well. What it
// is sent has no content, so that whatever this process becomes it can have one
// program started, at its pace:
//
//	--watch, confined                        terminal-opener
//	hubs, bus ──► popups ── any packet ────► opens a terminal
//	                     ◄── "\x00", error ──
//
// Each of them ends when the other does.
type opener struct {
	conn    *net.UnixConn
	replies chan string   // closed when it has ended
	parted  atomic.Bool   // it was told to end
	gone    chan struct{} // closed when it has ended by itself
}

// confine confines the program, before anything is opened, and returns in its
// second life, with an opener if there are terminals. A program that is not
// the process's own it leaves alone.
func (o options) confine(env *cmdenv.Env, log *slog.Logger) (*opener, error) {
	if env.Again == nil {
		return nil, nil
	}
	dir, err := o.runtimeDir(env)
	if err != nil {
		return nil, err
	}
	if !confined.Again(env) {
		delete(env.Vars, openerVar)
		(&icons{env: env}).of(Popup{}) // it can be read later, and not written
		if err := startOpener(env); err != nil {
			log.Warn("the list of questions cannot be shown", "err", err)
		}
	}
	busAt, _ := sockets(env) // there may be none that we know
	abstract := slices.ContainsFunc(busAt, func(s string) bool { return strings.HasPrefix(s, "@") })
	if err := confined.Program(env, Name, reach.Watcher(dir, logoFile(env), abstract), log); err != nil {
		return nil, err
	}
	number := env.Get(openerVar)
	delete(env.Vars, openerVar)
	if number == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", openerVar, err)
	}
	conn, err := packets(fd)
	if err != nil {
		return nil, err
	}
	return newOpener(conn), nil
}

// startOpener starts the opener, if there are terminals, and notes how it is
// reached.
func startOpener(env *cmdenv.Env) error {
	if _, ok := findTerminal(env); !ok {
		return nil
	}
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	defer syscall.Close(pair[1])
	// In a session of its own, so that Ctrl-C is not for it.
	_, err = child.Start(child.Command{Args: []string{OpenerName}, Env: env.Environ(), Dir: ".", Files: []int{pair[1]}, Session: true})
	if err == nil {
		err = child.Hand(pair[0])
	}
	if err != nil {
		syscall.Close(pair[0])
		return err
	}
	env.Vars[openerVar] = strconv.Itoa(pair[0])
	return nil
}

// packets takes over an inherited socket.
func packets(fd int) (*net.UnixConn, error) {
	syscall.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "socket of "+OpenerName)
	defer f.Close() // the connection has one of its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("file descriptor %d: %w", fd, err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("file descriptor %d is no Unix socket", fd)
	}
	return conn, nil
}

func newOpener(conn *net.UnixConn) *opener {
	o := &opener{conn: conn, replies: make(chan string), gone: make(chan struct{})}
	go o.listen()
	return o
}

// listen hands replies on until the opener has ended.
func (o *opener) listen() {
	defer close(o.replies)
	var reply [maxReply]byte
	for {
		n, err := o.conn.Read(reply[:])
		if err != nil || n == 0 {
			break
		}
		o.replies <- string(reply[:n])
	}
	if !o.parted.Load() {
		close(o.gone)
	}
}

// list opens a terminal with all questions. It is called again only when it
// has returned.
func (o *opener) list() error {
	_, err := o.conn.Write([]byte{1})
	if err == nil {
		reply, ok := <-o.replies
		switch {
		case !ok:
			err = errOpener
		case reply != opened:
			err = errors.New(reply)
		}
	}
	if o.parted.Load() { // nobody wants to know any more
		return nil
	}
	return err
}

// part has the opener end. What it has opened stays.
func (o *opener) part() {
	if o == nil {
		return
	}
	o.parted.Store(true)
	_ = o.conn.CloseWrite() // an error says that it has ended
	for late := time.After(partTime); ; {
		select {
		case _, ok := <-o.replies:
			if ok {
				continue
			}
		case <-late:
		}
		o.conn.Close()
		return
	}
}

// RunOpener opens terminals as long as there is somebody to ask for them.
func RunOpener(env *cmdenv.Env, _ []string) int {
	cmdenv.Entitle(OpenerName)
	cmdenv.Persist() // until the one that asks has ended, which gets the same signals
	if err := child.CloseOnExec(); err != nil {
		return env.Fail(OpenerName+": ", err)
	}
	conn, err := packets(openerFile)
	if err != nil {
		return env.Fail(OpenerName+": ", err)
	}
	defer conn.Close()
	child.Trim()
	serveOpener(conn, bounded(func(ended func()) error {
		t, ok := findTerminal(env)
		if !ok {
			ended()
			return errors.New("there is no terminal")
		}
		return t.list(ended)
	}), openPause)
	return cmdenv.ExitOK
}

// bounded is open, but for those that would be one too many. open calls its
// argument when what it has opened has ended.
func bounded(open func(ended func()) error) func() error {
	var now atomic.Int32
	return func() error {
		if now.Load() >= maxOpen {
			return errManyOpen
		}
		now.Add(1)
		return open(sync.OnceFunc(func() { now.Add(-1) }))
	}
}

// serveOpener calls open for each packet, at most once in a pause, and replies,
// until the other end is closed. Of packets that come meanwhile one counts.
func serveOpener(conn *net.UnixConn, open func() error, pause time.Duration) {
	asked := make(chan struct{}, 1)
	defer close(asked)
	go func() {
		for range asked {
			reply := opened
			if err := open(); err != nil {
				reply = err.Error()
				reply = strings.ToValidUTF8(reply[:min(len(reply), maxReply)], "")
			}
			if _, err := conn.Write([]byte(reply)); err != nil {
				return // nobody is there
			}
			time.Sleep(pause)
		}
	}()
	for {
		var packet [1]byte
		if n, err := conn.Read(packet[:]); err != nil || n == 0 {
			return
		}
		select {
		case asked <- struct{}{}:
		default:
		}
	}
}
