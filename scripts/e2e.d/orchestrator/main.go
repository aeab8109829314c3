// Command orchestrator does what its arguments say by the Go API of
// terok-shield, as a program that starts containers itself does: for scripts/e2e.
//
//	orchestrator STATE-ROOT PROFILES-DIR VERB NAME [TARGET]
//
// VERB is a method of shield.Shield in lower case; TARGET is what Allow and
// Deny decide about, the profile of Prepare, or "all" for Down. It prints what
// the method returns.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/shield"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "orchestrator: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 4 {
		return errors.New("usage: orchestrator STATE-ROOT PROFILES-DIR VERB NAME [TARGET]")
	}
	root, profiles, verb, name := args[0], args[1], args[2], args[3]
	target := strings.Join(args[4:], " ")
	program, err := exec.LookPath("terok-box")
	if err != nil {
		return err
	}
	if program, err = filepath.Abs(program); err != nil {
		return err
	}
	vars := map[string]string{}
	for _, k := range []string{"PATH", "HOME", "XDG_RUNTIME_DIR"} {
		vars[k] = os.Getenv(k)
	}
	s, err := shield.New(shield.Config{
		StateRoot: root, Program: program, Vars: vars, ProfilesDir: profiles, Audit: true,
		Warn: func(text string) { fmt.Fprintf(os.Stderr, "warning: %s\n", text) },
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	decided := func(d shield.Decision, err error) error {
		if err == nil {
			fmt.Println(d.Container, strings.Join(d.Addresses, " "))
		}
		return err
	}
	switch verb {
	case "check":
		e := s.Check(ctx)
		fmt.Printf("needs setup: %t\n", e.NeedsSetup)
	case "prepare":
		flags, err := s.Prepare(ctx, name, []string{target}, "")
		if err != nil {
			return err
		}
		for _, f := range flags {
			fmt.Println(f)
		}
	case "allow":
		return decided(s.Allow(ctx, name, target))
	case "deny":
		return decided(s.Deny(ctx, name, target))
	case "up":
		return s.Up(ctx, name)
	case "down":
		return s.Down(ctx, name, target == "all")
	case "quarantine":
		return s.Quarantine(ctx, name)
	case "state":
		st, err := s.State(ctx, name)
		if err != nil {
			return err
		}
		fmt.Println(st.Container, st.State)
	case "rules":
		st, err := s.Rules(ctx, name)
		if err != nil {
			return err
		}
		fmt.Print(st.Rules)
	default:
		return fmt.Errorf("no verb %q", verb)
	}
	return nil
}
