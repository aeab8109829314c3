package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/terok-ai/terok-box/applets/internal/child"
	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
	"github.com/terok-ai/terok-box/applets/internal/shielded"
	"github.com/terok-ai/terok-box/resources"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/control"
	"github.com/terok-ai/terok-box/wire/varlink"
	"github.com/terok-ai/terok-box/wire/verdict"
)

// lockTimeout is how long an operation waits for another on the same container.
const lockTimeout = 15 * time.Second

// serveControl serves org.terok.ShieldControl1.
func (w *worker) serveControl(ctx context.Context, begun func()) error {
	return w.serveVarlink(ctx, w.paths.Control, begun,
		varlink.Info{Vendor: "terok-ai", Product: child.Name, Version: cmdenv.Version(), URL: "https://github.com/terok-ai/terok-box"},
		control.Interface(service{w}, resources.Varlink(control.InterfaceName)),
		func(r *bundle.Supervisor, path string) { r.Control = path },
	)
}

// serveVerdict serves org.terok.ClearanceVerdict1.
func (w *worker) serveVerdict(ctx context.Context, begun func()) error {
	return w.serveVarlink(ctx, w.paths.Verdict, begun,
		verdict.Info(cmdenv.Version()),
		verdict.Interface(w.verdicts, resources.Varlink(verdict.InterfaceName)),
		func(r *bundle.Supervisor, path string) { r.Verdict = path },
	)
}

// serveVarlink serves an interface at a path, which note writes down.
func (w *worker) serveVarlink(ctx context.Context, path string, begun func(), info varlink.Info, i varlink.Interface, note func(*bundle.Supervisor, string)) error {
	srv, err := varlink.NewServer(varlink.Config{Info: info, Interfaces: []varlink.Interface{i}, Log: w.log})
	if err != nil {
		return err
	}
	l, err := varlink.Listen(path)
	if err != nil {
		return err
	}
	w.serving(func(r *bundle.Supervisor) { note(r, path) })
	defer w.serving(func(r *bundle.Supervisor) { note(r, "") })
	begun()
	return srv.Serve(ctx, l)
}

// service is what commands can have done.
type service struct{ *worker }

// Perform carries out a request on this container.
func (s service) Perform(ctx context.Context, req control.Request) control.Response {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if !req.Until.IsZero() {
		ctx, cancel = context.WithDeadline(ctx, req.Until)
		defer cancel()
	}
	return s.perform(ctx, req)
}

// perform fills in which container is meant.
func (w *worker) perform(ctx context.Context, req control.Request) control.Response {
	w.activity.Add(1)
	alive := w.home.Living(nil)
	if len(alive) == 0 {
		return control.Response{Error: "the container has ended"}
	}
	dir, err := w.governing()
	if err != nil {
		return control.Response{Error: err.Error()}
	}
	req.StateDir, req.PID, req.NetNS = dir, alive[0].PID, w.spec.NetNS
	resp := w.firewall.Execute(ctx, req)
	if resp.Error == "" {
		w.outlet.decided(req)
	}
	return resp
}

// governing is the state directory whose lists govern the network. That of a
// container that shares it is known only after the hook that comes next.
func (w *worker) governing() (string, error) {
	owner, err := w.bundle.Owner()
	if err != nil || owner != "" {
		return owner, err
	}
	return w.lists.Path(), nil
}

// execute carries an answer out, of this process's hub or somebody else's.
func (w *worker) execute(ctx context.Context, container, dest, action string) (warning string, err error) {
	if !slices.Contains([]string{w.spec.Short(), w.spec.ID, w.spec.Container}, container) {
		return "", fmt.Errorf("container %s is not this one, which is %s", container, w.spec.Container)
	}
	op := control.OpDeny
	if action == clearance.Allow {
		op = control.OpAllow
	}
	dir, err := w.governing()
	if err != nil {
		return "", err
	}
	req, err := shielded.Container{Name: w.spec.Container, Dir: dir}.Request(ctx, op, dest, w.spec.Audit)
	if err != nil {
		return "", err
	}
	req.Container = w.spec.Container
	resp := w.perform(ctx, req)
	if resp.Error != "" {
		return "", errors.New(resp.Error)
	}
	return resp.Warning, nil
}

// Packets passes logged packets on.
func (s service) Packets(ctx context.Context, f func(control.Packet) error) error {
	return s.watchers.watch(ctx, f)
}

// Status is how things are.
func (s service) Status() control.Status {
	r := s.reader.Status()
	out := control.Status{
		Container: s.spec.Container, ID: s.spec.Short(), NetNS: s.spec.NetNS, PID: os.Getpid(), Uptime: int64(time.Since(s.born).Seconds()),
		Restarts: s.spec.Restarts, Packets: int64(r.Packets), Lost: int64(r.Lost), Asked: int64(r.Asked),
		Suppressed: int64(r.Repeated + r.Suppressed),
	}
	out.Hub, out.HubPID, out.Subscribers, out.Pending = s.outlet.status()
	lines := s.allTroubles()
	if r.Trouble != "" {
		lines = append(lines, r.Trouble)
	}
	out.Trouble = strings.Join(lines, "\n")
	return out
}
