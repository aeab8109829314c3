package notify

import (
	"context"

	"github.com/terok-ai/terok-box/applets/internal/subscriber"
)

// What programs need that want to hear questions and answer them. The names
// are those of package subscriber, where each is described.
type (
	// Subscriber keeps the questions of any number of hubs: its method Follow
	// connects it with them, Act answers, Prompts lists.
	Subscriber = subscriber.Subscriber
	// SubscriberConfig is what a Subscriber is made of.
	SubscriberConfig = subscriber.Config
	// Presenter is what a Subscriber tells of everything that there is to be
	// shown. Popups is one, and programs can have their own.
	Presenter = subscriber.Notifier
	// Notification is what a Presenter is told.
	Notification = subscriber.Notification
	// Prompt is a question: may a container reach a target?
	Prompt = subscriber.Prompt
	// State is what a Notification is about.
	State = subscriber.State
	// Category is a kind of event, or several together.
	Category = subscriber.Category
	// Lifecycle is what becomes of a container or its shield.
	Lifecycle = subscriber.Lifecycle
	// Observer is a Presenter, or a Notifier, that wants to be told that.
	Observer = subscriber.Observer
	// Hubs are those that a Subscriber follows.
	Hubs = subscriber.Hubs
)

// States of a Notification.
const (
	Notice   = subscriber.Notice
	Asking   = subscriber.Asking
	Repeated = subscriber.Repeated
	Failed   = subscriber.Failed
	Answered = subscriber.Answered
)

// Categories that can be chosen together.
const (
	Questions = subscriber.Questions
	All       = subscriber.All
)

// NewSubscriber starts to tell a Presenter of what happens; Close ends that.
func NewSubscriber(c SubscriberConfig) *Subscriber { return subscriber.New(c) }

// WatchConfig is what is shown of which hubs.
type WatchConfig struct {
	PopupsConfig
	Hubs       Hubs
	Categories Category
}

// Watch shows what hubs ask and report, and has the answers carried out, until
// ctx ends, which is no error.
func Watch(ctx context.Context, c WatchConfig) error {
	p := NewPopups(c.PopupsConfig)
	if n, ok := c.Notifier.(interface{ OnAvailable(func()) }); ok {
		n.OnAvailable(p.Available)
		defer n.OnAvailable(func() {})
	}
	sub := NewSubscriber(SubscriberConfig{Notifier: p, Categories: c.Categories, Log: p.Log})
	defer sub.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		p.Run(ctx, sub)
	}()
	err := sub.Follow(ctx, c.Hubs)
	cancel()
	<-shown
	return err
}
