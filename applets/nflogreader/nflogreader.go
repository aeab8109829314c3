// Package nflogreader is the private program nflog-reader: the reader of one
// container's blocked packets as a process of its own, with the command line
// of the program of that name that other systems have. It is for those who
// start such a one; containers of ours have a supervisor.
//
// Where it may not enter the container's namespaces it starts itself again in
// the user namespace that may, with the same arguments, Inside in its
// environment and a pipe as standard input: the end of that tells it to end.
//
// It must never import another applet.
package nflogreader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/dossier"
	"github.com/terok-ai/terok-box/applets/internal/firewall"
	"github.com/terok-ai/terok-box/applets/internal/hook"
	"github.com/terok-ai/terok-box/applets/internal/podman"
	"github.com/terok-ai/terok-box/applets/internal/reader"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/oci"
)

// Name is the program's name.
const Name = "nflog-reader"

// Inside is the variable that the process inside the user namespace has: the
// container's process as "PID START NETNS", see bundle.Process.
const Inside = "_TEROK_SHIELD_NFLOG_NSENTER"

const usage = `usage: nflog-reader STATE_DIR CONTAINER [--emit socket|json] [--annotations JSON]
                    [--container-id ID] [--hub-socket PATH]

Tells of what a container's firewall blocks until it is told to end or the
container ends: to the hub at PATH, or that of the container with the id, or
with --emit json on standard output.
`

// endTimeout is what the process inside gets to say that it ends.
const endTimeout = 5 * time.Second

// errUnavailable is why nothing can be read, which is a warning.
var errUnavailable = errors.New("blocked packets cannot be read")

// Run is the program.
func Run(env *cmdenv.Env, args []string) int {
	ctx, stop := cmdenv.Context()
	defer stop()
	o, err := parse(args)
	if err != nil {
		return env.Fail(Name+": ", err)
	}
	if o.help {
		fmt.Fprint(env.Stdout, usage)
		return cmdenv.ExitOK
	}
	p := program{env: env, options: o, log: slog.New(slog.NewTextHandler(env.Stderr, nil))}
	err = p.run(ctx)
	if errors.Is(err, errUnavailable) {
		fmt.Fprintf(env.Stderr, "%s: warning: %s\n", Name, cmdenv.Printable(err.Error()))
		return cmdenv.ExitOK
	}
	return env.Fail(Name+": ", err)
}

// options are the command line.
type options struct {
	stateDir, container string
	emit                string // "socket" or "json"
	annotations         string // a JSON object
	id                  string // "" or 12 to 64 hexadecimal digits
	hub                 string // path
	help                bool
}

// parse reads the command line, in which options may stand anywhere.
func parse(args []string) (options, error) {
	o := options{emit: "socket", annotations: "{}"}
	values := map[string]*string{"--emit": &o.emit, "--annotations": &o.annotations, "--container-id": &o.id, "--hub-socket": &o.hub}
	var words []string
	for rest := args; len(rest) > 0; {
		arg := rest[0]
		rest = rest[1:]
		if arg == "--" {
			words = append(words, rest...)
			break
		}
		if arg == "-h" || arg == "--help" {
			return options{help: true}, nil
		}
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			words = append(words, arg)
			continue
		}
		name, value, ok := strings.Cut(arg, "=")
		into := values[name]
		if into == nil {
			return o, cmdenv.Usagef("no option %q; see %s --help", name, Name)
		}
		if !ok {
			if len(rest) == 0 {
				return o, cmdenv.Usagef("%s takes a value", name)
			}
			value, rest = rest[0], rest[1:]
		}
		*into = value
	}
	if len(words) != 2 || words[0] == "" || words[1] == "" {
		return o, cmdenv.Usagef("it takes a state directory and a container; see %s --help", Name)
	}
	o.stateDir, o.container = words[0], words[1]
	switch {
	case o.emit != "socket" && o.emit != "json":
		return o, cmdenv.Usagef("--emit is socket or json, not %q", o.emit)
	case o.id != "" && !hexID(o.id):
		return o, cmdenv.Usagef("--container-id %q is not 12 to 64 hexadecimal digits", o.id)
	case o.emit == "socket" && o.id == "" && o.hub == "":
		return o, cmdenv.Usagef("--emit socket takes --hub-socket or --container-id")
	}
	return o, nil
}

func hexID(s string) bool {
	return len(s) >= shortID && len(s) <= 64 && strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// shortID is how many digits of an id name its sockets.
const shortID = 12

// annotations are a dossier: the text of a JSON object, whose keys may have
// the prefix that they have as annotations.
func annotations(text string) (map[string]string, error) {
	raw, err := dossier.Parse(text)
	pairs := make(map[string]string)
	for k, v := range raw {
		pairs[strings.TrimPrefix(k, oci.DossierPrefix)] = v
	}
	return pairs, err
}

// program is a run of it.
type program struct {
	options
	env *cmdenv.Env
	log *slog.Logger
}

func (p program) run(ctx context.Context) error {
	b, err := bundle.Open(p.stateDir)
	if err != nil {
		return err
	}
	defer b.Close()
	if inside := p.env.Get(Inside); inside != "" {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			_, _ = io.Copy(io.Discard, p.env.Stdin)
			cancel()
		}()
		process, err := parseProcess(inside)
		if err != nil {
			return err
		}
		ns, err := p.open(process)
		if err != nil {
			return err
		}
		defer ns.Close()
		return p.read(ctx, b, ns, process)
	}
	process, err := p.locate(ctx, b)
	if err != nil {
		return err
	}
	ns, err := p.open(process)
	if err != nil {
		return err
	}
	defer ns.Close()
	if !netns.NeedsEnter(ns) {
		return p.read(ctx, b, ns, process)
	}
	return p.enter(ctx, ns, process)
}

// locate finds the container's process: that which the hook has recorded, as
// long as it lives, else Podman knows.
func (p program) locate(ctx context.Context, b *bundle.Bundle) (bundle.Process, error) {
	if process, err := b.Process(); err == nil && process.PID != 0 && process.Alive() {
		return process, nil
	}
	client, err := podman.Find(p.env)
	if err != nil {
		return bundle.Process{}, err
	}
	c, err := client.Inspect(ctx, p.container)
	if err != nil {
		return bundle.Process{}, err
	}
	if c.PID == 0 {
		return bundle.Process{}, fmt.Errorf("container %s is not running", p.container)
	}
	ns, err := netns.Open(c.PID)
	if err != nil {
		return bundle.Process{}, err
	}
	defer ns.Close()
	id, err := ns.ID()
	if err != nil {
		return bundle.Process{}, err
	}
	return bundle.ProcessOf(c.PID, id.String())
}

// open opens the container's network namespace.
func (p program) open(process bundle.Process) (_ *netns.NS, err error) {
	ns, err := netns.Open(process.PID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ns.Close()
		}
	}()
	id, err := ns.ID()
	if err != nil {
		return nil, err
	}
	if id.String() != process.NetNS || !process.Alive() {
		return nil, fmt.Errorf("process %d is not the container's any more", process.PID)
	}
	return ns, firewall.NotHost(ns)
}

// format and parseProcess are how Inside says which process it is.
func format(process bundle.Process) string {
	return fmt.Sprintf("%d %d %s", process.PID, process.Start, process.NetNS)
}

func parseProcess(s string) (process bundle.Process, err error) {
	if _, err := fmt.Sscanf(s, "%d %d %s", &process.PID, &process.Start, &process.NetNS); err != nil || format(process) != s {
		return process, fmt.Errorf("%s says %.100q: only this program sets it", Inside, s)
	}
	return process, nil
}

// enter has the work done by a process in the user namespace that owns the
// container's.
func (p program) enter(ctx context.Context, ns *netns.NS, process bundle.Process) error {
	user, err := ns.UserNS()
	if err != nil {
		return err
	}
	defer user.Close()
	stdin, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	defer end.Close()
	env := *p.env
	env.Vars = maps.Clone(p.env.Vars)
	env.Vars[Inside] = format(process)
	if dir, err := hook.RuntimeDir(p.env); err == nil { // in there it is another user's
		env.Vars["XDG_RUNTIME_DIR"] = dir
	}
	cmd := netns.Cmd{
		Path: p.env.Self, Args: append([]string{child.Name, Name}, p.args()...), Env: env.Environ(),
		Stdin: stdin, Stdout: file(p.env.Stdout, os.Stdout), Stderr: file(p.env.Stderr, os.Stderr), UserNS: user,
	}
	kill, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if err := cmd.Start(kill); err != nil {
		return fmt.Errorf("enter the user namespace of the container: %w", err)
	}
	defer context.AfterFunc(ctx, func() {
		end.Close()
		time.AfterFunc(endTimeout, cancel)
	})()
	code, err := cmd.Wait()
	if err != nil {
		return err
	}
	if code != cmdenv.ExitOK {
		return &cmdenv.Exit{Code: code} // it has said why
	}
	return nil
}

// file is a stream as a file, to be given to another process.
func file(stream io.Writer, otherwise *os.File) *os.File {
	if f, ok := stream.(*os.File); ok {
		return f
	}
	return otherwise
}

// args are the command line again.
func (o options) args() []string {
	out := []string{"--emit=" + o.emit, "--annotations=" + o.annotations}
	if o.id != "" {
		out = append(out, "--container-id="+o.id)
	}
	if o.hub != "" {
		out = append(out, "--hub-socket="+o.hub)
	}
	return append(out, "--", o.stateDir, o.container)
}

// read does the work.
func (p program) read(ctx context.Context, b *bundle.Bundle, ns *netns.NS, process bundle.Process) error {
	pairs, err := annotations(p.annotations)
	if err != nil {
		p.log.Warn("--annotations are not used", "err", err)
	}
	emit, end := p.emitter()
	defer end()
	r, err := reader.New(reader.Config{
		Bundle: b, NetNS: ns, Container: p.container, Dossier: pairs, Audit: true, Log: p.log, Emit: emit, Sole: true,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	defer r.Close()
	first, err := child.Open(process.PID, process.Start)
	if err != nil {
		return err
	}
	defer first.Close()
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_ = first.Wait(work) // whatever it ends with
		cancel()
	}()
	err = r.Run(work)
	reason := "eof"
	if ctx.Err() != nil {
		reason = "poststop"
	}
	if exitErr := r.Exit(reason); exitErr != nil {
		p.log.Warn("the end is told nobody", "err", exitErr)
	}
	return err
}

// emitter is where events go; end closes it.
func (p program) emitter() (emit func(event.Event) error, end func()) {
	if p.emit == "json" {
		return func(e event.Event) error {
			line, err := e.Line()
			if err == nil {
				_, err = p.env.Stdout.Write(line)
			}
			return err
		}, func() {}
	}
	paths := []string{p.hub}
	if p.hub == "" {
		paths = nil
		if dir, err := hook.RuntimeDir(p.env); err == nil {
			paths = event.SocketPaths(dir, p.id[:shortID])
		}
		paths = append(paths, filepath.Join(p.stateDir, "run", "events.sock"))
	}
	e := event.NewEmitter(paths...)
	return e.Send, func() { e.Close() }
}
