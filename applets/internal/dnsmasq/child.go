package dnsmasq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// child is a running dnsmasq.
type child struct {
	cmd  *exec.Cmd
	born time.Time
	done chan struct{} // it has ended and was waited for
	err  error         // how, after done
	out  head          // what it said before it opened its log, after done
	log  string        // that
}

// spawn starts the bundle's dnsmasq as a child, in ns, and returns when it
// answers there. After an error the child is not left running.
func spawn(ctx context.Context, b *bundle.Bundle, ns *netns.NS, program string, conf []byte, args []string) (*child, error) {
	listen, err := listenAddress(conf, b.Path())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("start dnsmasq: %w", context.Cause(ctx))
	}
	c := &child{done: make(chan struct{}), log: filepath.Join(b.Path(), fileLog)}
	c.cmd = exec.Command(program, append([]string{confArg(b), "--keep-in-foreground"}, args...)...)
	c.cmd.Env = []string{"PATH=" + path}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	c.cmd.WaitDelay = pipeTimeout
	if err := ns.Do(func() error { // a child is born into its thread's namespace
		// The runtime brings it up only later.
		if err := netns.LoopbackUp(); err != nil {
			return err
		}
		if !listen.IsLoopback() {
			if err := netns.AddLoopbackAddr(listen); err != nil {
				return err
			}
		}
		return c.cmd.Start()
	}); err != nil {
		return nil, fmt.Errorf("start dnsmasq: %w", err)
	}
	c.born = time.Now()
	go func() {
		defer close(c.done)
		c.err = c.cmd.Wait()
	}()
	for pause := time.Millisecond; ; pause = min(2*pause, poll) {
		// The file is written when its sockets are open, but before it becomes
		// another user, which may fail.
		pid, err := b.DnsmasqPID()
		ok := false
		if err == nil && pid == c.cmd.Process.Pid {
			if ok, err = answers(b, ns); ok {
				ok = replies(ctx, ns, listen)
			}
		}
		switch {
		case ok:
			return c, nil
		case err != nil:
			c.stop()
			return nil, fmt.Errorf("start dnsmasq: %w", err)
		}
		select {
		case <-c.done:
			return nil, fmt.Errorf("start dnsmasq: %w", c.failure())
		case <-ctx.Done():
			c.stop()
			return nil, fmt.Errorf("start dnsmasq: %w: %w", context.Cause(ctx), c.failure())
		case <-time.After(pause):
		}
	}
}

// probeName is a name that dnsmasq knows by itself (class CHAOS, type TXT).
const probeName = "version.bind"

// replies reports whether somebody answers at listen.
func replies(ctx context.Context, ns *netns.NS, listen netip.Addr) bool {
	c, err := dial(ctx, ns, netip.AddrPortFrom(listen, dnsPort))
	if err != nil {
		return false
	}
	defer c.Close()
	// RFC 1035 §4.1: an id, no flags, one question.
	q := []byte("\x74\x6b\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07version\x04bind\x00\x00\x10\x00\x03")
	answer := make([]byte, len(q))
	c.SetDeadline(time.Now().Add(probeTimeout))
	if _, err := c.Write(q); err != nil {
		return false
	}
	n, err := c.Read(answer)
	return err == nil && n >= 12 && answer[0] == q[0] && answer[1] == q[1] && answer[2]&0x80 != 0
}

// dial connects to a UDP port in a namespace.
func dial(ctx context.Context, ns *netns.NS, to netip.AddrPort) (c net.Conn, err error) {
	err = ns.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "udp", to.String())
		return err
	})
	return c, err
}

// failure is how it ended, what it said and what an operator can do about it.
// It has ended.
func (c *child) failure() error {
	err := c.err
	if err == nil {
		err = errors.New("it ended by itself")
	}
	said := strings.Join(strings.Fields(c.out.String()), " ")
	if said == "" {
		said = c.lastWord()
	}
	if said != "" {
		err = fmt.Errorf("%w: %s%s", err, said, hint(said))
	}
	return err
}

// lastWord is the line that it logged when it gave up starting; "" if none.
func (c *child) lastWord() string {
	f, err := os.OpenFile(c.log, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return ""
	}
	tail := make([]byte, maxOutput)
	n, _ := f.ReadAt(tail, max(0, fi.Size()-maxOutput))
	its := fmt.Sprintf(" dnsmasq[%d]: ", c.cmd.Process.Pid)
	said := ""
	for line := range strings.Lines(string(tail[:n])) {
		_, text, ok := strings.Cut(line, its)
		text = strings.TrimSpace(text)
		// These words are in no line about a question.
		if ok && (strings.HasPrefix(text, "failed to ") || strings.HasPrefix(text, "cannot ")) {
			said = text
		}
	}
	return said
}

// stop ends it and waits until it has ended.
func (c *child) stop() {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err == nil {
		select {
		case <-c.done:
		case <-time.After(stopTimeout):
			c.cmd.Process.Kill()
		}
	}
	<-c.done
}
