package dnsmasq

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// What the addendum to AppArmor's profile names is what dnsmasq needs.
func TestAddendum(t *testing.T) {
	var rules []string
	for line := range strings.Lines(resources.AppArmorDnsmasq()) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			rules = append(rules, line)
		}
	}
	var want []string
	for _, root := range []string{"@{HOME}/.local/state/terok/shield/**/", "/var/lib/terok/shield/**/"} {
		want = append(want, "owner "+root+bundle.FileDnsmasqConf+" r,", root+bundle.FileDnsmasqPID+" w,", root+fileLog+" w,")
	}
	if strings.Join(rules, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", rules)
	}
}

func TestDetect(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Join(dir, "not", "there")} {
		if err := Detect(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Detect(ctx, dir); err == nil {
		t.Error("too late, and no error")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A profile that keeps dnsmasq from its log or pid file is found out as well
// as one that keeps it from its configuration.
func TestDetectFails(t *testing.T) {
	const version = "echo 'Compile time options: IPv6 nftset auth'\n"
	const args = `for a; do case $a in --version) ` + "V" + ` exit;; --conf-file=*) conf=${a#*=};; esac; done
`
	for name, tt := range map[string]struct {
		script string
		want   error
		text   string
	}{
		"without nftset": {"echo 'Compile time options: IPv6 no-nftset auth'\n", ErrNoNftset, "2.87"},
		"configuration": {strings.Replace(args, "V", version, 1) + `echo "dnsmasq: cannot read $conf: Permission denied" >&2; exit 1`,
			ErrConfined, "check-environment --apparmor"},
		"pid file": {strings.Replace(args, "V", version, 1) + `echo "dnsmasq: cannot open or create PID file ${conf%conf}pid: Permission denied" >&2; exit 5`,
			ErrConfined, "dnsmasq.pid"},
		"something else": {strings.Replace(args, "V", version, 1) + `echo "dnsmasq: bad option" >&2; exit 1`, nil, "bad option"},
		"no version":     {"exit 3", nil, "exit status 3"},
	} {
		t.Run(name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "dnsmasq")
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+tt.script), 0o700); err != nil {
				t.Fatal(err)
			}
			err := detect(t.Context(), program, t.TempDir())
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%v", err)
			}
			for _, other := range []error{ErrNoNftset, ErrConfined, ErrMissing} {
				if other != tt.want && errors.Is(err, other) {
					t.Errorf("%v", err)
				}
			}
		})
	}
}
