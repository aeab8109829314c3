package notify_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/terok-ai/terok-box/applets/hub"
	"github.com/terok-ai/terok-box/applets/notify"
	"github.com/terok-ai/terok-box/wire/clearance"
	"github.com/terok-ai/terok-box/wire/event"
	"github.com/terok-ai/terok-box/wire/varlink"
)

// A popup with two buttons, and what became of it.
func ExampleNew() {
	vars, end := notify.Session("delete") // of somebody who clicks on Delete
	defer end()

	desktop := notify.New(notify.Config{AppName: "backup", Vars: vars}) // without Vars: our own session
	defer desktop.Disconnect()
	became := make(chan string, 1)
	id, err := desktop.Notify(context.Background(), notify.Popup{
		Summary: "The disk is almost full",
		Body:    "Backups of last year take 12 GB.",
		Actions: []notify.Action{{Key: "delete", Label: "Delete"}, {Key: "keep", Label: "Keep"}},
		Urgency: notify.Critical,
		Chosen:  func(key string) { became <- key },
		Closed:  func(why notify.Reason) { became <- why.String() },
	})
	switch {
	case err != nil:
		fmt.Println(err)
	case id == 0:
		fmt.Println("nobody can see it")
	default:
		fmt.Println("answer:", <-became)
	}
	// Output: answer: delete
}

// Every question of every container of a user, answered by a program.
func ExampleWatch() {
	runtimeDir, end := containers() // really: os.Getenv("XDG_RUNTIME_DIR")
	defer end()

	ctx, cancel := context.WithCancel(context.Background())
	var answers *notify.Callback
	answers = notify.NewCallback(func(id uint32, p notify.Popup) {
		fmt.Printf("%s (%s)\n", p.Summary, p.Identity.ContainerName)
		if len(p.Actions) > 0 {
			answers.Invoke(id, "allow")
		} else {
			cancel()
		}
	})
	err := notify.Watch(ctx, notify.WatchConfig{
		PopupsConfig: notify.PopupsConfig{Notifier: answers},
		Hubs:         notify.Hubs{RuntimeDir: runtimeDir},
		Categories:   notify.Questions,
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// Blocked: example.com:443 (demo)
	// the firewall of 0123456789ab: allow example.com
	// Allowed: example.com (demo)
}

// The same below popups: questions as values.
func ExampleNewSubscriber() {
	runtimeDir, end := containers()
	defer end()

	ctx, cancel := context.WithCancel(context.Background())
	p := &policy{done: cancel}
	p.subscriber = notify.NewSubscriber(notify.SubscriberConfig{Notifier: p, Categories: notify.Questions, Log: slog.New(slog.DiscardHandler)})
	defer p.subscriber.Close()
	if err := p.subscriber.Follow(ctx, notify.Hubs{RuntimeDir: runtimeDir}); err != nil {
		fmt.Println(err)
	}
	// Output:
	// the firewall of 0123456789ab: deny example.com
	// Answered
}

// policy answers questions: it allows nothing but one address.
type policy struct {
	subscriber *notify.Subscriber
	done       func()
}

func (p *policy) Notify(_ context.Context, n notify.Notification) error {
	switch n.State {
	case notify.Asking, notify.Repeated:
		action := "deny"
		if n.Prompt.Dest == "192.0.2.1" {
			action = "allow"
		}
		return p.subscriber.Act(n.ID, action)
	case notify.Answered:
		fmt.Println("Answered")
		p.done()
	}
	return nil
}

func (*policy) Close(context.Context, uint64, string) error { return nil }

// containers is a user's runtime directory with the hub of one container, which
// asks a question.
func containers() (runtimeDir string, end func()) {
	const id = "0123456789ab"
	runtimeDir, err := os.MkdirTemp("", "rt")
	must(err)
	h, err := hub.New(hub.Config{
		Container: id, Log: slog.New(slog.DiscardHandler),
		Verdict: func(_ context.Context, container, dest, action string) (bool, string) {
			fmt.Printf("the firewall of %s: %s %s\n", container, action, dest)
			return true, ""
		},
	})
	must(err)
	sockets := []string{event.SocketPath(runtimeDir, id), clearance.SocketPath(runtimeDir, id)}
	var listeners []*varlink.Listener
	for _, path := range sockets {
		must(os.MkdirAll(filepath.Dir(path), 0o700))
		l, err := varlink.Listen(path)
		must(err)
		listeners = append(listeners, l)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, listeners[0], listeners[1]) }()
	must(h.Ingest(event.Event{
		Type: event.Blocked, Container: id, ID: id + ":1", Dest: "198.51.100.7", Port: 443, Proto: 6, Domain: "example.com",
		Dossier: map[string]string{"name": "demo"},
	}))
	return runtimeDir, func() {
		cancel()
		must(<-done)
		h.Close()
		must(os.RemoveAll(runtimeDir))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
