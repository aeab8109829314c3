package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/nl/ruleset"
	"github.com/terok-ai/terok-box/wire/bundle"
)

const (
	runs    = 30
	holdArg = "--hold"
	build   = "build"
)

// held is a process that does nothing but hold a network namespace open, as a
// container that was created and not started.
type held struct {
	pid int
	end func()
}

func hold() (held, error) {
	cmd := exec.Command("/proc/self/exe", holdArg)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return held{}, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return held{}, fmt.Errorf("make a network namespace: %w", err)
	}
	return held{cmd.Process.Pid, func() { stdin.Close(); cmd.Wait() }}, nil
}

// prepared is a bundle with n allowed hosts, far apart from each other.
type prepared struct {
	dir, text string
	params    ruleset.Params
}

func prepare(dir string, n int) (prepared, error) {
	p := prepared{dir: filepath.Join(dir, fmt.Sprintf("hosts-%d", n))}
	p.params.DNS = netip.MustParseAddr("169.254.1.1")
	for i := range n {
		a := netip.AddrFrom4([4]byte{byte(11 + i>>15), byte(i >> 7), byte(i << 1), 1})
		p.params.Allow = append(p.params.Allow, netip.PrefixFrom(a, 32))
	}
	t, err := ruleset.Build(ruleset.Up, p.params)
	if err != nil {
		return p, err
	}
	p.text = t.String()
	b, err := bundle.Create(p.dir)
	if err != nil {
		return p, err
	}
	defer b.Close()
	for _, err := range []error{
		b.SetRuleset(p.text), b.SetUpstreamDNS(p.params.DNS), b.SetLoopbackPorts(nil), b.SetTier(bundle.Static),
		b.SetProfileAllowed(p.params.Allow),
	} {
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p prepared) state(pid int) ([]byte, error) {
	return json.Marshal(map[string]any{
		"ociVersion": "1.0.2", "id": strings.Repeat("ab", 32), "pid": pid, "status": "created",
		"annotations": map[string]string{
			"terok.shield.profiles": "bench", "terok.shield.name": "bench",
			"terok.shield.state_dir": p.dir, "terok.shield.version": fmt.Sprint(bundle.Version),
		},
	})
}

// timed runs a command from exec to exit. Its input and output are files: a
// pipe would add the time in which this process serves it.
func timed(dir string, stdin []byte, argv ...string) (time.Duration, error) {
	return timedIn(dir, nil, stdin, argv...)
}

// timedIn is timed with an environment; nil is this process's.
func timedIn(dir string, env []string, stdin []byte, argv ...string) (time.Duration, error) {
	in, out := filepath.Join(dir, "stdin"), filepath.Join(dir, "output")
	if err := os.WriteFile(in, stdin, 0o600); err != nil {
		return 0, err
	}
	r, err := os.Open(in)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	w, err := os.Create(out)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, w, w
	start := time.Now()
	err = cmd.Run()
	d := time.Since(start)
	if err != nil {
		text, _ := os.ReadFile(out)
		err = fmt.Errorf("%s: %w: %.300s", strings.Join(argv, " "), err, text)
	}
	return d, err
}

// times are the medians of alternating runs of the hook, of nft, of a static
// hello world and of the same commit inside this process.
type times struct{ hook, nft, hello, commit time.Duration }

func measure(n int) (times, error) {
	dir, err := os.MkdirTemp("", "terok-bench-")
	if err != nil {
		return times{}, err
	}
	defer os.RemoveAll(dir)
	p, err := prepare(dir, n)
	if err != nil {
		return times{}, err
	}
	hello, err := buildHello(dir)
	if err != nil {
		return times{}, err
	}
	var got [4][]time.Duration
	for range runs {
		for i, run := range []func(held) (time.Duration, error){
			func(h held) (time.Duration, error) {
				st, err := p.state(h.pid)
				if err != nil {
					return 0, err
				}
				return timed(dir, st, filepath.Join(build, "nft-hook"), "createRuntime")
			},
			func(h held) (time.Duration, error) {
				return timed(dir, []byte(p.text), "nsenter", "-t", fmt.Sprint(h.pid), "-n", "nft", "-f", "-")
			},
			func(held) (time.Duration, error) { return timed(dir, nil, hello) },
			func(h held) (time.Duration, error) { return commit(h, p.params) },
		} {
			h, err := hold()
			if err != nil {
				return times{}, err
			}
			d, err := run(h)
			h.end()
			if err != nil {
				return times{}, err
			}
			got[i] = append(got[i], d)
		}
	}
	return times{median(got[0]), median(got[1]), median(got[2]), median(got[3])}, nil
}

// commit is what a hook cannot do without: connect, build, commit.
func commit(h held, params ruleset.Params) (time.Duration, error) {
	ns, err := netns.Open(h.pid)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	var d time.Duration
	err = ns.Do(func() error {
		start := time.Now()
		t, err := ruleset.Build(ruleset.Up, params)
		if err != nil {
			return err
		}
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		err = conn.Apply(t)
		d = time.Since(start)
		return err
	})
	return d, err
}

func buildHello(dir string) (string, error) {
	src, bin := filepath.Join(dir, "hello.go"), filepath.Join(dir, "hello")
	if err := os.WriteFile(src, []byte("package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(\"hello\\n\") }\n"), 0o600); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build hello world: %w: %s", err, out)
	}
	return bin, nil
}

func benchHook() ([]row, error) {
	t, err := measure(100)
	if err != nil {
		return nil, err
	}
	return []row{
		faster("nft-hook, 100 addresses, exec to exit", t.hook, "nsenter -n nft -f -", t.nft, 1),
		within("nft-hook, 100 addresses, exec to exit", t.hook, "static hello world + in-process commit", t.hello+t.commit, 1.6),
	}, nil
}

func benchAddresses() ([]row, error) {
	t, err := measure(10_000)
	if err != nil {
		return nil, err
	}
	return []row{
		within("nft-hook, 10,000 addresses, exec to exit", t.hook, "nsenter -n nft -f - of the same text", t.nft, 1),
	}, nil
}

func benchSize() ([]row, error) {
	st, err := os.Stat(filepath.Join(build, "terok-box"))
	if err != nil {
		return nil, err
	}
	const goal = 10e6
	r := row{Name: "stripped binary", Unit: "MB", Ours: float64(st.Size()) / 1e6, Against: "goal", Other: goal / 1e6, Goal: "≤ 10 MB"}
	r.Ratio = r.Other / r.Ours
	r.Met = r.Ratio >= 1
	return []row{r}, nil
}
