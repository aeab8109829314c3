// Command bench measures this project against the real alternatives, both in
// one run, and prints ratios; absolute times on a shared machine mean little.
//
// It must be started by scripts/bench, which builds what it measures.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

func init() { runtime.LockOSThread() } // see main.go of the project

// row is one comparison. Ratio is Against/Ours: how many times better we are.
type row struct {
	Name    string  `json:"name"`
	Unit    string  `json:"unit"`
	Ours    float64 `json:"ours"`
	Against string  `json:"against"`
	Other   float64 `json:"other"`
	Ratio   float64 `json:"ratio"`
	Goal    string  `json:"goal"`
	Met     bool    `json:"met"`
}

// faster is a row whose goal is that other takes at least goal times as long.
func faster(name string, ours time.Duration, against string, other time.Duration, goal float64) row {
	r := row{Name: name, Unit: "ms", Ours: ms(ours), Against: against, Other: ms(other), Goal: fmt.Sprintf("≥ %.4g× as fast", goal)}
	r.Ratio = float64(other) / float64(ours)
	r.Met = r.Ratio >= goal
	return r
}

// within is a row whose goal is that ours takes at most goal times other.
func within(name string, ours time.Duration, against string, other time.Duration, goal float64) row {
	r := faster(name, ours, against, other, 1/goal)
	r.Goal = fmt.Sprintf("≤ %.4g× its time", goal)
	return r
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func main() {
	if len(os.Args) > 1 && os.Args[1] == holdArg { // see hold
		io.Copy(io.Discard, os.Stdin)
		return
	}
	benches := map[string]func() ([]row, error){"hook": benchHook, "addresses": benchAddresses, "dns": benchDNS, "clearance": benchClearance, "allow": benchAllow, "size": benchSize}
	names := slices.Sorted(maps.Keys(benches))
	asJSON := flag.Bool("json", false, "print a JSON list")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: scripts/bench NAME [--json]\nNAME is all, or one of: %v\n", names)
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(s string) bool { return s == "--json" || s == "-json" })
	if len(args)+1 < len(os.Args) {
		*asJSON = true
	}
	if len(args) != 1 || args[0] != "all" && benches[args[0]] == nil {
		flag.Usage()
		os.Exit(2)
	}
	if err := ownNamespace(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if args[0] != "all" {
		names = args
	}
	rows := []row{}
	for _, n := range names {
		got, err := benches[n]()
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", n, err)
			os.Exit(1)
		}
		rows = append(rows, got...)
	}
	if *asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(rows); err != nil {
			os.Exit(1)
		}
		return
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tours\tagainst\tits\tratio\tgoal\tmet")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%.2f %s\t%s\t%.2f %s\t%.2f\t%s\t%v\n", r.Name, r.Ours, r.Unit, r.Against, r.Other, r.Unit, r.Ratio, r.Goal, r.Met)
	}
	w.Flush()
}

// ownNamespace starts this program again in network and mount namespaces of its own, as
// root of a user namespace unless it is root already: an ordinary user's nft
// cannot load 10,000 addresses (its message exceeds net.core.wmem_max).
func ownNamespace() error {
	const mark = "TEROK_BENCH_NAMESPACE"
	if os.Getenv(mark) != "" {
		return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		if x, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(x.ExitCode())
		}
		return err
	}
	os.Exit(0)
	return nil
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}
