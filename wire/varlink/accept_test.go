package varlink

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What speaks something else than varlink is under the same bounds.
func TestAccept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "test.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	log := new(syncBuffer)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	ended := make(chan Peer, 10)
	go func() {
		done <- Accept(ctx, l, 2, slog.New(slog.NewTextHandler(log, nil)), func(_ context.Context, conn *net.UnixConn, peer Peer) {
			conn.Write([]byte("hello"))
			io.Copy(io.Discard, conn)
			ended <- peer
		})
	}()
	dial := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c
	}
	greeted := func(c net.Conn) string {
		b := make([]byte, 5)
		n, _ := io.ReadFull(c, b)
		return string(b[:n])
	}
	first, second := dial(), dial()
	if a, b := greeted(first), greeted(second); a != "hello" || b != "hello" {
		t.Fatalf("%q, %q", a, b)
	}
	if s := greeted(dial()); s != "" {
		t.Errorf("the third of two was served: %q", s)
	}
	if !strings.Contains(log.String(), "too many") {
		t.Errorf("log:\n%s", log)
	}
	first.Close()
	if p := get(t, ended); p.PID == 0 {
		t.Errorf("peer %+v", p)
	}
	cancel() // which also ends the second
	if err := get(t, done); err != nil {
		t.Error(err)
	}
	get(t, ended)
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("still listens")
	}
}
