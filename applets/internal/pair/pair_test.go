package pair

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBackoff(t *testing.T) {
	b := Backoff{Pace: Usual()}
	for i, tt := range []struct{ lived, want time.Duration }{
		{0, 0}, {0, 100 * time.Millisecond}, {time.Second, 200 * time.Millisecond}, {0, 400 * time.Millisecond},
		{0, 800 * time.Millisecond}, {0, 1600 * time.Millisecond}, {0, 3200 * time.Millisecond}, {29 * time.Second, 5 * time.Second},
		{0, 5 * time.Second}, {30 * time.Second, 0}, {0, 100 * time.Millisecond}, {time.Hour, 0},
	} {
		if got := b.After(tt.lived); got != tt.want {
			t.Errorf("pause %d is %v, want %v", i, got, tt.want)
		}
	}
}

// What a process says about the end, and its own end, are told apart.
func TestPeer(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(other *peer, cancel context.CancelCauseFunc)
		want error
	}{
		"said":      {func(o *peer, _ context.CancelCauseFunc) { o.end() }, ErrEnd},
		"died":      {func(o *peer, _ context.CancelCauseFunc) { o.close() }, nil},
		"nonsense":  {func(o *peer, _ context.CancelCauseFunc) { o.f.Write([]byte("x")) }, nil},
		"cancelled": {func(_ *peer, cancel context.CancelCauseFunc) { cancel(errLeave) }, errLeave},
	} {
		t.Run(name, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours, other := &peer{f: os.NewFile(uintptr(fds[0]), "")}, &peer{f: os.NewFile(uintptr(fds[1]), "")}
			defer ours.close()
			defer other.close()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			got := make(chan error)
			go func() { got <- ours.wait(ctx) }()
			tt.do(other, cancel)
			if err := <-got; !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
}
