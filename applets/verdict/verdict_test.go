package verdict

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/nl/kerneltest"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/varlink"
	"github.com/terok-ai/terok-box/wire/verdict"
)

// patience bounds what a test waits for and that has to come.
const patience = time.Minute

func TestMain(m *testing.M) { kerneltest.Main(m) }

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// over serves an executor at a real socket and is a connection to it.
type over struct {
	t *testing.T
	net.Conn
	in  *bufio.Reader
	log *syncBuffer
}

func serveOver(t *testing.T, execute Executor) *over {
	t.Helper()
	log := new(syncBuffer)
	logger := slog.New(slog.NewTextHandler(log, nil))
	srv, err := varlink.NewServer(varlink.Config{
		Info:       verdict.Info("1.2.3"),
		Interfaces: []varlink.Interface{verdict.Interface(Service(execute, logger), resources.Varlink(verdict.InterfaceName))},
		Log:        logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s", "verdict.sock")
	l, err := varlink.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("Serve does not end")
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Error("its socket is left")
		}
	})
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return &over{t, c, bufio.NewReader(c), log}
}

func (o *over) apply(container, dest, action string) string {
	o.t.Helper()
	p, err := json.Marshal(map[string]string{"container": container, "dest": dest, "action": action})
	if err != nil {
		o.t.Fatal(err)
	}
	return o.call(fmt.Sprintf(`{"method":"org.terok.ClearanceVerdict1.Apply","parameters":%s}`, p))
}

func (o *over) call(message string) string {
	o.t.Helper()
	if _, err := o.Write([]byte(message + "\x00")); err != nil {
		o.t.Fatal(err)
	}
	s, err := o.in.ReadString(0)
	if err != nil {
		o.t.Fatal(err)
	}
	return strings.TrimSuffix(s, "\x00")
}

func reply(ok bool, stderr string) string {
	return fmt.Sprintf(`{"parameters":{"ok":%v,"stderr":"%s"}}`, ok, stderr)
}

// Whatever happens is a reply, to the byte.
func TestReplies(t *testing.T) {
	var warning string
	var fails error
	var panics any
	var asked []string
	o := serveOver(t, func(_ context.Context, container, dest, action string) (string, error) {
		asked = []string{container, dest, action}
		if panics != nil {
			panic(panics)
		}
		return warning, fails
	})
	long := strings.Repeat("x", 600)
	for _, tt := range []struct {
		name    string
		warning string
		fails   error
		panics  any
		want    string
	}{
		{"done", "", nil, nil, reply(true, "")},
		{"done, with a warning", " a warning\n", nil, nil, reply(true, "a warning")},
		{"failed", "", errors.New("\n why \n"), nil, reply(false, "why")},
		{"failed, and a warning", "a warning", errors.New("why"), nil, reply(false, "why")},
		{"failed at length", "", errors.New(long), nil, reply(false, long[:512])},
		{"failed in words of several bytes", "", errors.New(long[:511] + "\u20ac"), nil, reply(false, long[:511]+" ")},
		{"failed in no words", "", errors.New("a\xffb\x1b[31m"), nil, reply(false, "a b [31m")},
		{"broke", "", nil, "it broke", reply(false, "internal verdict helper error: it broke")},
		{"broke with an error", "", nil, errors.New("it broke"), reply(false, "internal verdict helper error: it broke")},
	} {
		warning, fails, panics = tt.warning, tt.fails, tt.panics
		if d := cmp.Diff(tt.want, o.apply("demo", "203.0.113.9", "allow")); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
	warning, fails, panics = "", nil, nil
	o.apply("0123456789ab", "example.com", "deny")
	if d := cmp.Diff([]string{"0123456789ab", "example.com", "deny"}, asked); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, tt := range []struct{ call, want string }{
		{`{"method":"org.terok.ClearanceVerdict1.Apply"}`, `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"container"}}`},
		{`{"method":"org.terok.ClearanceVerdict1.Apply","parameters":{"container":"c","dest":"x","action":"allow","force":true}}`, `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"force"}}`},
		{`{"method":"org.terok.ClearanceVerdict1.Apply","parameters":{"container":"c","dest":["x"],"action":"allow"}}`, `{"error":"org.varlink.service.InvalidParameter","parameters":{"parameter":"dest"}}`},
		{`{"method":"org.terok.ClearanceVerdict1.Nope"}`, `{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"Nope"}}`},
		{`{"method":"org.varlink.service.GetInfo"}`, `{"parameters":{"vendor":"terok","product":"terok-clearance-verdict","version":"1.2.3","url":"https://github.com/terok-ai/terok-clearance","interfaces":["org.terok.ClearanceVerdict1","org.varlink.service"]}}`},
	} {
		if d := cmp.Diff(tt.want, o.call(tt.call)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.call, d)
		}
	}
}

// Nothing that is not a container, an address or a name, and one of two
// words gets to the executor.
func TestRefused(t *testing.T) {
	o := serveOver(t, func(_ context.Context, container, dest, action string) (string, error) {
		return "", fmt.Errorf("%q %q %q got through", container, dest, action)
	})
	for _, in := range [][3]string{
		{"demo", "203.0.113.9", ""}, {"demo", "203.0.113.9", "Allow"}, {"demo", "203.0.113.9", "allow "}, {"demo", "203.0.113.9", "down"}, {"demo", "203.0.113.9", strings.Repeat("x", 10000)},
		{"", "203.0.113.9", "allow"}, {"-demo", "203.0.113.9", "allow"}, {"--all", "203.0.113.9", "allow"}, {"../demo", "203.0.113.9", "allow"}, {"a b", "203.0.113.9", "allow"},
		{"demo\n", "203.0.113.9", "allow"}, {"demo\x00", "203.0.113.9", "allow"}, {strings.Repeat("x", 10000), "203.0.113.9", "allow"},
		{"demo", "", "allow"}, {"demo", " ", "allow"}, {"demo", "-v", "allow"}, {"demo", "--help", "allow"}, {"demo", "-v.example.com", "allow"}, {"demo", "a.-b.com", "allow"},
		{"demo", "example.com\n", "allow"}, {"demo", " example.com", "allow"}, {"demo", "\x1b[31mexample.com", "allow"}, {"demo", "example.com\x00.org", "allow"},
		{"demo", "203.0.113.9 ", "allow"}, {"demo", "0.0.0.0/0", "allow"}, {"demo", "203.0.113.9/32", "allow"}, {"demo", "::/0", "deny"}, {"demo", "2001:db8::1/128", "allow"},
		{"demo", "*.example.com", "allow"}, {"demo", "=example.com", "allow"}, {"demo", "*", "allow"}, {"demo", "com", "allow"}, {"demo", "localhost", "allow"},
		{"demo", "example.com:443", "allow"}, {"demo", "https://example.com/", "allow"}, {"demo", "fe80::1%eth0", "allow"}, {"demo", "[2001:db8::1]", "allow"},
		{"demo", "ex\u00e4mple.com", "allow"}, {"demo", "203.0.113", "allow"}, {"demo", "0x7f000001", "allow"}, {"demo", "$(reboot).example.com", "allow"}, {"demo", "a;b.example.com", "allow"},
		{"demo", strings.Repeat("a.", 5000) + "com", "allow"},
	} {
		got := o.apply(in[0], in[1], in[2])
		if !strings.HasPrefix(got, `{"parameters":{"ok":false,"stderr":"`) || strings.Contains(got, "got through") || len(got) > 700 {
			t.Errorf("%.100q: %s", in, got)
		}
	}
	if strings.Contains(o.log.String(), "\x1b") {
		t.Error("the log has escape sequences")
	}
}

// What looks odd and is nevertheless an address or a name.
func TestAccepted(t *testing.T) {
	for _, in := range [][3]string{
		{"demo", "203.0.113.9", "allow"}, {"demo", "2001:DB8::1", "deny"}, {"_x.y-z", "_dmarc.example.com", "allow"}, {"0123456789ab", "EXAMPLE.com.", "allow"},
		{"demo", "xn--e1afmkfd.xn--p1ai", "allow"}, {"demo", "a--b.example.com", "allow"},
	} {
		if err := Check(in[0], in[1], in[2]); err != nil {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// It takes 10 seconds at the most, and what then hangs is not any number.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		var heedless atomic.Bool
		s := Service(func(ctx context.Context, _, _, _ string) (string, error) {
			if !heedless.Load() {
				<-ctx.Done()
				return "", fmt.Errorf("look up: %w", ctx.Err())
			}
			<-hang
			return "", nil
		}, slog.New(slog.DiscardHandler))
		for i := range maxAttempts + 1 {
			began := time.Now()
			ok, stderr := s.Apply(t.Context(), "demo", "203.0.113.9", "allow")
			if ok || stderr != "timed out after 10.0s" || time.Since(began) != 10*time.Second {
				t.Fatalf("%d: %v, %q after %v", i, ok, stderr, time.Since(began))
			}
			heedless.Store(true)
		}
		if ok, stderr := s.Apply(t.Context(), "demo", "203.0.113.9", "allow"); ok || !strings.Contains(stderr, "too much") {
			t.Errorf("%v, %q", ok, stderr)
		}
		close(hang)
		synctest.Wait()
		if ok, stderr := s.Apply(t.Context(), "demo", "203.0.113.9", "allow"); !ok || stderr != "" {
			t.Errorf("%v, %q", ok, stderr)
		}
	})
}

// Whatever is asked for, what gets through is a container, and one address or
// the name of one host.
func FuzzCheck(f *testing.F) {
	f.Add("demo", "203.0.113.9", "allow", "why")
	f.Add("-x", "*.example.com", "deny", "\xff")
	f.Add("demo", "=a.b", "allow", strings.Repeat("\u20ac", 300))
	f.Fuzz(func(t *testing.T, container, dest, action, text string) {
		if err := Check(container, dest, action); err == nil {
			if strings.ContainsAny(container+dest, " \t\r\n\x00/*=;$'\"`\\") || strings.HasPrefix(container, "-") || strings.HasPrefix(dest, "-") || action != "allow" && action != "deny" {
				t.Errorf("%q, %q, %q got through", container, dest, action)
			}
		}
		if s := shorten(text); !utf8.ValidString(s) || len([]rune(s)) > maxStderr || s != strings.TrimSpace(s) {
			t.Errorf("%q became %q", text, s)
		}
	})
}
