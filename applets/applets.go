// Package applets is the table of programs in this binary and the choice
// among them by the name it was called as.
//
// It imports the applet packages and must never be imported by them.
package applets

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/terok-ai/terok-box/applets/dnsproxy"
	"github.com/terok-ai/terok-box/applets/hub"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/grammar"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/applets/nflogreader"
	"github.com/terok-ai/terok-box/applets/nfthook"
	"github.com/terok-ai/terok-box/applets/notify"
	"github.com/terok-ai/terok-box/applets/probe"
	"github.com/terok-ai/terok-box/applets/readerhook"
	"github.com/terok-ai/terok-box/applets/shield"
	"github.com/terok-ai/terok-box/applets/supervisor"
	"github.com/terok-ai/terok-box/applets/verdict"
)

// Name is the program's own name; under it the first argument chooses.
const Name = "terok-box"

// applet is a program: args are the arguments after its name.
type applet struct {
	name    string
	private bool // started by ourselves only: not listed, no symlink
	alias   []string
	about   string
	run     func(env *cmdenv.Env, args []string) int
	grammar func() (grammar.Program, error) // nil: what --help says
}

// table lists every program in the order people see.
func table() []applet {
	return []applet{
		{name: "nft-hook", alias: []string{"terok-shield-hook"}, about: "OCI hook: puts the firewall into a container before it starts", run: nfthook.Run},
		{name: "reader-hook", alias: []string{"terok-shield-bridge-hook"}, about: "OCI hook: starts the one who asks about blocked packets", run: readerhook.Run},
		{name: hub.Name, alias: []string{"terok-clearance-hub"}, about: "passes blocked packets to whoever can answer", run: runHub, grammar: hubGrammar},
		{name: verdict.Name, about: "carries out the answers", run: verdict.Run},
		{name: "terok-shield", about: "the command line: run, allow, deny, up, down, …", run: shield.Run, grammar: shield.Grammar},
		{name: notify.Name, about: "desktop notifications with Allow and Deny", run: notify.Run},
		{name: notify.OpenerName, private: true, run: notify.RunOpener},
		{name: shielded.InsideName, private: true, run: shield.RunInside},
		{name: dnsproxy.Name, private: true, run: dnsproxy.Run},
		{name: nflogreader.Name, private: true, run: nflogreader.Run},
		{name: supervisor.Name, private: true, run: supervisor.Run},
		{name: probe.Name, private: true, alias: []string{"shield_probe"}, run: probe.Run},
	}
}

// runHub is clearance-hub, of which two verbs of old are other programs.
func runHub(env *cmdenv.Env, args []string) int {
	if len(args) > 0 {
		switch args[0] {
		case "serve-verdict":
			return verdict.Run(env, append([]string{"serve"}, args[1:]...))
		case "notify":
			return notify.RunVerb(env, args[1:])
		}
	}
	return hub.Run(env, args)
}

// hubGrammar has the verbs of runHub, too.
func hubGrammar() (grammar.Program, error) {
	p, err := hub.Grammar()
	if err != nil {
		return p, err
	}
	for _, v := range []struct {
		name, about string
		run         func(env *cmdenv.Env, args []string) int
	}{
		{"notify", "Show a notification on the desktop: see terok-clearance-notify.", notify.RunVerb},
		{"serve-verdict", "Carry answers out: see clearance-verdict.", verdict.Run},
	} {
		flags := toldBy(v.name, v.run).Verbs[0].Flags
		flags = slices.DeleteFunc(flags, func(f grammar.Flag) bool { return slices.Contains(f.Names, "--help") })
		p.Verbs = append(p.Verbs, grammar.Verb{Name: v.name, Help: v.about, Flags: flags})
	}
	return p, nil
}

// describe is the command line of a program.
func (a applet) describe() (grammar.Program, error) {
	if a.grammar != nil {
		return a.grammar()
	}
	return toldBy(a.name, a.run), nil
}

// toldBy is the command line that a program's --help tells.
func toldBy(name string, run func(env *cmdenv.Env, args []string) int) grammar.Program {
	var out strings.Builder
	run(&cmdenv.Env{Stdout: &out, Stderr: io.Discard}, []string{"--help"})
	return grammar.FromUsage(name, out.String())
}

// completion prints what has a shell complete one of the programs.
func completion(env *cmdenv.Env, args []string) error {
	if len(args) != 2 {
		return cmdenv.Usagef("--completion takes a shell (%s) and a program", strings.Join(grammar.Shells(), ", "))
	}
	a, ok := find(args[1])
	if !ok || a.private {
		return cmdenv.Usagef("no program %q in here; see %s --list", args[1], Name)
	}
	p, err := a.describe()
	if err != nil {
		return err
	}
	text, _, ok := p.Completion(args[0])
	if !ok {
		return cmdenv.Usagef("no completions for %q, but for %s", args[0], strings.Join(grammar.Shells(), ", "))
	}
	fmt.Fprint(env.Stdout, text)
	return nil
}

// Main runs the program that argv[0] names and returns its exit code. Called
// as anything else, the first argument names it.
func Main(argv []string) int {
	if len(argv) == 0 {
		argv = []string{Name}
	}
	return dispatch(cmdenv.OS(), filepath.Base(argv[0]), argv[1:])
}

func dispatch(env *cmdenv.Env, name string, args []string) int {
	if a, ok := find(name); ok && !a.private {
		return a.run(env, args)
	}
	if len(args) == 0 {
		fmt.Fprint(env.Stdout, usage())
		return cmdenv.ExitOK
	}
	switch args[0] {
	case "-h", "--help":
		fmt.Fprint(env.Stdout, usage())
		return cmdenv.ExitOK
	case "--version":
		fmt.Fprintf(env.Stdout, "%s %s\n", Name, cmdenv.Version())
		return cmdenv.ExitOK
	case "--list":
		for _, a := range table() {
			if !a.private {
				fmt.Fprintln(env.Stdout, a.name)
			}
		}
		return cmdenv.ExitOK
	case "--install":
		if len(args) != 2 {
			return env.Fail(Name+": ", cmdenv.Usagef("--install takes one directory"))
		}
		return env.Fail(Name+": ", install(args[1]))
	case "--completion":
		return env.Fail(Name+": ", completion(env, args[1:]))
	}
	if a, ok := find(args[0]); ok {
		return a.run(env, args[1:])
	}
	return env.Fail(Name+": ", cmdenv.Usagef("no program %q in here; see %s --list", args[0], Name))
}

func find(name string) (applet, bool) {
	all := table()
	i := slices.IndexFunc(all, func(a applet) bool { return a.name == name || slices.Contains(a.alias, name) })
	if i < 0 {
		return applet{}, false
	}
	return all[i], true
}

func usage() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: an egress firewall for containers, in one program\n\n", Name)
	fmt.Fprintf(&b, "  %s APPLET [ARG…]   run one of the programs below\n", Name)
	fmt.Fprintf(&b, "  %s --install DIR   make symlinks to this file in DIR, one a program\n", Name)
	fmt.Fprintf(&b, "  %s --list          their names\n", Name)
	fmt.Fprintf(&b, "  %s --completion SHELL APPLET\n", Name)
	fmt.Fprintf(&b, "                       what has bash, zsh or fish complete its command line\n")
	fmt.Fprintf(&b, "  %s --version\n\n", Name)
	for _, a := range table() {
		if !a.private {
			fmt.Fprintf(&b, "  %-24s%s\n", a.name, a.about)
		}
	}
	fmt.Fprintf(&b, "\nStart with: terok-shield --help\n")
	return b.String()
}

// install makes a symlink to this executable for every program. What is
// there already is replaced if it is a symlink, and refused otherwise.
func install(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's own file: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	var errs []error
	for _, a := range table() {
		if a.private {
			continue
		}
		path := filepath.Join(dir, a.name)
		switch st, err := os.Lstat(path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
			continue
		case st.Mode()&fs.ModeSymlink == 0:
			errs = append(errs, fmt.Errorf("%s exists and is no symlink: move it away first", path))
			continue
		}
		target := self
		if filepath.Dir(self) == dir {
			target = filepath.Base(self)
		}
		tmp := path + ".new"
		if err := errors.Join(removeIfThere(tmp), os.Symlink(target, tmp)); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.Rename(tmp, path))
	}
	return errors.Join(errs...)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
