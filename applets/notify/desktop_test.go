package notify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/terok-ai/terok-box/applets/internal/cmdenv"
)

func TestNotify(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	n := b.open(Config{AppName: "program"})
	p := Popup{
		Summary: "a <b> & c", Body: "1 < 2 &\n\"3\"", Actions: []Action{{Key: "allow", Label: "Allow & go"}, {Key: "deny", Label: "Deny"}},
		Unable: "not seen", Urgency: Critical, Resident: true, Timeout: Never, Icon: "face",
	}
	id := mustShow(t, n, p)
	p.Replaces, p.Urgency, p.Resident, p.Transient, p.Timeout, p.Actions, p.Icon = id, Normal, false, true, AsIsCustomary, nil, ""
	if again := mustShow(t, n, p); again != id {
		t.Errorf("id %d, then %d", id, again)
	}
	mustShow(t, n, Popup{Summary: "s", Timeout: 1500 * time.Millisecond, Replaces: 77, Icon: "face"}) // which is nobody's
	got := d.was("Notify")
	logo := "file://" + b.dir + "/terok/terok.svg"
	want := []call{
		{Member: "Notify", Signature: "susssasa{sv}i", Body: []any{
			"program", uint32(0), "face", "a ‹b› & c", "1 &lt; 2 &amp;\n\"3\"", []string{"allow", "Allow & go", "deny", "Deny"},
			map[string]dbus.Variant{"urgency": dbus.MakeVariant(byte(2)), "resident": dbus.MakeVariant(true)}, int32(0),
		}},
		{Member: "Notify", Signature: "susssasa{sv}i", Body: []any{
			"program", id, logo, "a ‹b› & c", "1 &lt; 2 &amp;\n\"3\"", []string{},
			map[string]dbus.Variant{"urgency": dbus.MakeVariant(byte(1)), "transient": dbus.MakeVariant(true)}, int32(-1),
		}},
		{Member: "Notify", Signature: "susssasa{sv}i", Body: []any{
			"program", uint32(0), "face", "s", "", []string{}, map[string]dbus.Variant{"urgency": dbus.MakeVariant(byte(0))}, int32(1500),
		}},
	}
	same := cmp.Options{
		cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".sender" || p.Last().String() == ".serial" }, cmp.Ignore()),
		cmp.AllowUnexported(call{}), cmp.Comparer(func(a, b dbus.Variant) bool { return a.String() == b.String() }),
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Error(diff)
	}
	if text, err := os.ReadFile(strings.TrimPrefix(logo, "file://")); err != nil || !bytes.Contains(text, []byte("<svg")) {
		t.Errorf("logo: %v", err)
	}
	if err := n.Close(t.Context(), id); err != nil {
		t.Error(err)
	}
	if err := n.Close(t.Context(), id); err != nil {
		t.Error(err)
	}
	eventually(t, "closed", func() bool { return len(d.was("CloseNotification")) > 0 })
	if got := d.was("CloseNotification"); len(got) != 1 || got[0].Body[0] != id || got[0].Signature != "u" {
		t.Errorf("%v", got)
	}
	if n := len(d.was("Introspect")); n != 0 {
		t.Errorf("introspected %d times", n)
	}
}

func TestAbilities(t *testing.T) {
	p := Popup{Summary: "<s>", Body: "a & b", Unable: "do < this", Actions: []Action{{Key: "k", Label: "L"}}}
	for name, tt := range map[string]struct {
		can  []string
		body string
		acts int
	}{
		"all":        {usual, "a &amp; b", 2},
		"no markup":  {[]string{"body", "actions"}, "a & b", 2},
		"no actions": {[]string{"body", "body-markup"}, "a &amp; b\ndo &lt; this", 0},
		"only body":  {[]string{"body"}, "a & b\ndo < this", 0},
		"nothing":    {[]string{}, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := startBus(t)
			d := b.show(notificationsName, tt.can...)
			mustShow(t, b.open(Config{}), p)
			got := d.was("Notify")[0].Body
			if got[3] != "‹s›" || got[4] != tt.body || len(got[5].([]string)) != tt.acts {
				t.Errorf("%q", got)
			}
		})
	}
	t.Run("does not know", func(t *testing.T) {
		b := startBus(t)
		d := b.show(notificationsName)
		d.does("GetCapabilities", nil)
		mustShow(t, b.open(Config{}), p)
		if got := d.was("Notify")[0].Body; got[4] != "a & b" || len(got[5].([]string)) != 2 {
			t.Errorf("%q", got)
		}
	})
	t.Run("says something else", func(t *testing.T) {
		b := startBus(t)
		d := b.show(notificationsName)
		d.does("GetCapabilities", func(call) []any { return []any{uint32(7)} })
		mustShow(t, b.open(Config{}), p)
		if got := d.was("Notify")[0].Body; got[4] != "a & b" {
			t.Errorf("%q", got)
		}
	})
}

func TestSignals(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	var log syncBuffer
	n := b.open(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	p, what := heard(Popup{Summary: "s", Actions: []Action{{Key: "k", Label: "L"}}})
	id := mustShow(t, n, p)

	// Somebody else, in all ways that there are.
	other := b.connect()
	emit(other, "ActionInvoked", id, "k")
	emit(other, "NotificationClosed", id, uint32(2))
	other.Send(&dbus.Message{Type: dbus.TypeSignal, Body: []any{id, "k"}, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/Notifications")), dbus.FieldInterface: dbus.MakeVariant(notificationsName),
		dbus.FieldMember: dbus.MakeVariant("ActionInvoked"), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(id, "k")),
		dbus.FieldDestination: dbus.MakeVariant(d.was("Notify")[0].sender),
	}}, nil)
	if err := other.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil { // they have arrived
		t.Fatal(err)
	}
	quiet(t, what)

	// The right one, with what makes no sense.
	d.choose(id+1, "k")
	d.closes(id+1, Dismissed)
	emit(d.conn, "ActionInvoked", "k", id)
	emit(d.conn, "ActionInvoked", id)
	emit(d.conn, "ActionInvoked")
	emit(d.conn, "NotificationClosed", id)
	emit(d.conn, "NotificationClosed", int32(id), uint32(2))
	emit(d.conn, "ActivationToken", id, "token")
	d.conn.Emit("/another/path", notificationsName+".ActionInvoked", id, "k")
	d.choose(id, "k")
	if got := receive(t, "action", what); got != "chosen k" {
		t.Error(got)
	}
	d.choose(id, "another") // what that means is the popup's business
	if got := receive(t, "action", what); got != "chosen another" {
		t.Error(got)
	}
	d.closes(id, 99)
	if got := receive(t, "close", what); got != "closed undefined" {
		t.Error(got)
	}
	d.choose(id, "k")
	d.closes(id, Dismissed)
	quiet(t, what)
	for _, want := range []string{"not from who shows popups", "not as it should be"} {
		if n := strings.Count(log.String(), want); n != 1 { // although there were several
			t.Errorf("%d times %q in %s", n, want, log.String())
		}
	}
	if id2 := mustShow(t, n, Popup{Replaces: id}); id2 == id {
		t.Error("a closed popup was replaced")
	}
}

// A bus that lets nobody hear signals: a button would do nothing.
func TestDeaf(t *testing.T) {
	b := newDaemon(t)
	file := filepath.Join(b.dir, "bus.conf")
	config, err := os.ReadFile(file)
	if err == nil {
		denied := bytes.Replace(config, []byte("</policy>"), []byte(`<deny send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus" send_member="AddMatch"/></policy>`), 1)
		err = os.WriteFile(file, denied, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.start()
	d := b.show(notificationsName, usual...)
	var log syncBuffer
	n := b.open(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	mustShow(t, n, Popup{Body: "b", Unable: "u", Actions: []Action{{Key: "k", Label: "L"}}})
	if got := d.was("Notify")[0].Body; got[4] != "b\nu" || len(got[5].([]string)) != 0 {
		t.Errorf("%q", got)
	}
	if n := strings.Count(log.String(), "does not let us hear"); n != 1 { // although there are several rules
		t.Errorf("%d times in %s", n, log.String())
	}
}

// A desktop that closes everything at once, and speaks before it answers.
func TestHasty(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	n := b.open(Config{})
	mustShow(t, n, Popup{})
	d.does("Notify", func(c call) []any {
		d.last++
		id := d.last
		d.choose(id, "early") // is dropped: nothing has that id
		d.replies(c, id)
		d.choose(id, "k")
		d.closes(id, Dismissed)
		return nil
	})
	for range 200 {
		p, what := heard(Popup{})
		mustShow(t, n, p)
		for _, want := range []string{"chosen k", "closed dismissed"} {
			if got := receive(t, want, what); got != want {
				t.Fatal(got)
			}
		}
	}
}

// An id that is used again: what was said of it before is about another popup.
func TestSequence(t *testing.T) {
	var told []string
	b := newBus(&Desktop{events: make(chan func(), 10), Config: Config{Log: slog.New(slog.DiscardHandler)}})
	s := b.services[0]
	s.owned(":1.5", 1)
	popup := func(name string) Popup {
		return Popup{
			Chosen: func(key string) { told = append(told, name+" chosen "+key) },
			Closed: func(r Reason) { told = append(told, name+" "+r.String()) },
		}
	}
	heard := func(member string, seq dbus.Sequence, body ...any) {
		b.DeliverSignal(notificationsName, member, &dbus.Signal{
			Sender: ":1.5", Path: "/org/freedesktop/Notifications", Name: notificationsName + "." + member, Body: body, Sequence: seq,
		})
	}
	answer := func(seq dbus.Sequence, id uint32, p Popup, old uint32) {
		if _, err := s.answered(&dbus.Call{Body: []any{id}, ResponseSequence: seq}, p, old, ":1.5"); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want ...string) {
		t.Helper()
		for len(b.desktop.events) > 0 {
			(<-b.desktop.events)()
		}
		if d := cmp.Diff(want, told); d != "" {
			t.Error(d)
		}
		told = nil
	}
	s.waiting++
	answer(2, 7, popup("a"), 0)
	// It is clicked on and closed, then a replacement takes the same id.
	s.waiting++
	heard("ActionInvoked", 3, uint32(7), "k")
	heard("NotificationClosed", 4, uint32(7), uint32(2))
	answer(5, 7, popup("b"), 7)
	check("a chosen k", "a dismissed")
	if len(s.popups) != 1 {
		t.Error(s.popups)
	}
	// It is replaced, and what is said of the replacement is heard before the answer.
	s.waiting++
	heard("ActionInvoked", 7, uint32(7), "k")
	heard("NotificationClosed", 8, uint32(7), uint32(1))
	answer(6, 7, popup("c"), 7)
	check("b chosen k", "b expired", "c expired")
	if len(s.popups) != 0 || s.aside != nil {
		t.Error(s.popups, s.aside)
	}
	// A new one, of which something is heard before the answer.
	s.waiting += 2
	heard("ActionInvoked", 10, uint32(9), "k")
	answer(9, 9, popup("d"), 0)
	check("d chosen k")
	for i := range 2 * maxAside {
		heard("ActionInvoked", dbus.Sequence(11+i), uint32(1000+i), "k")
	}
	if len(s.aside) != maxAside {
		t.Error(len(s.aside))
	}
	// Names change in order, whatever comes first.
	s.owned(":1.6", 2000)
	s.owned(":1.5", 1000)
	check("d vanished")
	if s.owner != ":1.6" {
		t.Error(s.owner)
	}
}

func TestSilentDesktop(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	n := b.open(Config{})
	id := mustShow(t, n, Popup{Summary: "first"})
	var late []call
	d.does("Notify", func(c call) []any { late = append(late, c); return nil })
	short := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(t.Context(), 20*time.Millisecond)
	}
	for i := range maxCalls + 5 { // more than are left waiting
		ctx, cancel := short()
		got, err := n.Notify(ctx, Popup{Summary: fmt.Sprint(i)})
		cancel()
		if got != 0 || !errors.Is(err, errSilent) {
			t.Fatalf("%d: id %d, %v", i, got, err)
		}
	}
	if err := n.Close(t.Context(), id); err != nil { // does not wait for anybody
		t.Error(err)
	}
	d.mu.Lock()
	waiting := late
	d.mu.Unlock()
	if len(waiting) != maxCalls {
		t.Errorf("%d calls are waiting", len(waiting))
	}
	for i, c := range waiting {
		d.replies(c, uint32(100+i))
	}
	// Nobody knows the late ones, so they are taken away.
	eventually(t, "closed", func() bool { return len(d.was("CloseNotification")) == 1+maxCalls })

	// What a popup was replaced with late stays.
	d.does("Notify", func(c call) []any { return []any{uint32(500)} })
	p, what := heard(Popup{})
	if id = mustShow(t, n, p); id != 500 {
		t.Fatal(id)
	}
	again := make(chan call, 1)
	d.does("Notify", func(c call) []any { again <- c; return nil })
	ctx, cancel := short()
	defer cancel()
	p2, what2 := heard(Popup{Replaces: id})
	if _, err := n.Notify(ctx, p2); !errors.Is(err, errSilent) {
		t.Error(err)
	}
	d.replies(<-again, id)
	eventually(t, "answer", func() bool { b := n.bus; b.mu.Lock(); defer b.mu.Unlock(); return b.services[0].waiting == 0 })
	d.choose(id, "k")
	if got := receive(t, "action", what2); got != "chosen k" {
		t.Error(got)
	}
	quiet(t, what)
}

func TestStrangeAnswers(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	n := b.open(Config{})
	mustShow(t, n, Popup{})
	for name, answer := range map[string][]any{
		"nothing": {}, "zero": {uint32(0)}, "text": {"7"}, "two": {uint32(7), uint32(8)},
		"large": {uint32(7), strings.Repeat("x", maxMessage)},
	} {
		t.Run(name, func(t *testing.T) {
			d.does("Notify", func(call) []any { return answer })
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			if id, err := n.Notify(ctx, Popup{}); err == nil || id != 0 {
				t.Errorf("id %d, %v", id, err)
			}
		})
	}
	d.does("Notify", func(call) []any { return []any{uint32(7)} })
	if id := mustShow(t, n, Popup{}); id != 7 {
		t.Error(id)
	}
}

// The desktop ends and another one comes, at once or later.
func TestDesktopReturns(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	back := make(chan string, 100)
	n := b.open(Config{})
	n.OnAvailable(func() { back <- "" })
	p, what := heard(Popup{Summary: "a"})
	mustShow(t, n, p)
	receive(t, "available", back)
	d.conn.Close()
	if got := receive(t, "close", what); got != "closed vanished" {
		t.Error(got)
	}
	eventually(t, "nobody", func() bool { // it may have said so already, twice
		for len(back) > 0 {
			<-back
		}
		id, err := n.Notify(t.Context(), p)
		return id == 0 && err == nil
	})
	d2 := b.show(notificationsName, "body")
	receive(t, "available", back)
	p.Replaces, p.Unable = 1, "u"
	mustShow(t, n, p)
	if got := d2.was("Notify")[0].Body; got[1] != uint32(0) || got[4] != "u" {
		t.Errorf("%v", got)
	}
	// A third one takes the name while the second lives.
	d3 := b.show(notificationsName, usual...)
	d2.disown(notificationsName)
	if got := receive(t, "close", what); got != "closed vanished" {
		t.Error(got)
	}
	id := mustShow(t, n, p)
	d2.choose(id, "k") // too late
	d3.choose(id, "k2")
	if got := receive(t, "action", what); got != "chosen k2" {
		t.Error(got)
	}
}

func TestBusReturns(t *testing.T) {
	b := newDaemon(t)
	back := make(chan string, 100)
	began := time.Now()
	n := b.open(Config{})
	n.OnAvailable(func() { back <- "" })
	if id, err := n.Notify(t.Context(), Popup{}); id != 0 || err != nil {
		t.Errorf("id %d, %v", id, err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("no bus was noticed in %v", d)
	}
	quiet(t, back)
	b.start()
	b.show(notificationsName, usual...)
	receive(t, "available", back)
	p, what := heard(Popup{})
	mustShow(t, n, p)
	b.stop()
	if got := receive(t, "close", what); got != "closed vanished" {
		t.Error(got)
	}
	for len(back) > 0 {
		<-back
	}
	b.start()
	b.show(notificationsName, usual...)
	receive(t, "available", back)
	id := mustShow(t, n, p)

	n.bus.conn.Close()
	if got := receive(t, "close", what); got != "closed vanished" {
		t.Error(got)
	}
	eventually(t, "again", func() bool { i, err := n.Notify(t.Context(), p); return err == nil && i > id })
}

func TestStaleAreClosed(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	n := b.open(Config{})
	id := mustShow(t, n, Popup{})
	n.bus.conn.Close()
	eventually(t, "closed", func() bool { return len(d.was("CloseNotification")) == 1 })
	if got := d.was("CloseNotification")[0].Body[0]; got != id {
		t.Errorf("%v", got)
	}
}

func TestName(t *testing.T) {
	b := startBus(t)
	d := b.show(notificationsName, usual...)
	taken := make(chan string, 10)
	first := b.open(Config{Name: "org.example.One"})
	mustShow(t, first, Popup{Summary: "first"})
	second := b.open(Config{Name: "org.example.One", Taken: func() { taken <- "" }})
	receive(t, "taken", taken)
	if id, err := second.Notify(t.Context(), Popup{}); id != 0 || err != nil {
		t.Errorf("id %d, %v", id, err)
	}
	first.Disconnect()
	eventually(t, "its turn", func() bool {
		id, err := second.Notify(t.Context(), Popup{Summary: "second"})
		return err == nil && id != 0
	})
	if got := d.was("Notify"); len(got) != 2 {
		t.Errorf("%v", got)
	}
}

func TestPortal(t *testing.T) {
	b := startBus(t)
	d := b.show("org.freedesktop.portal.Desktop")
	n := b.open(Config{})
	icon := filepath.Join(b.dir, "icons/hicolor/symbolic/apps/terok-symbolic.svg")
	if err := errors.Join(os.MkdirAll(filepath.Dir(icon), 0o755), os.WriteFile(icon, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	p, what := heard(Popup{Summary: "s", Body: "1 < 2", Urgency: Critical, Actions: []Action{{Key: "allow", Label: "Allow"}}})
	id := mustShow(t, n, p)
	p.Replaces, p.Actions = id, nil
	if again := mustShow(t, n, p); again != id {
		t.Error(again)
	}
	got := d.was("AddNotification")
	word := fmt.Sprintf("terok-%d", id)
	if len(got) != 2 || got[0].Body[0] != word || got[1].Body[0] != word || got[0].Signature != "sa{sv}" {
		t.Fatalf("%v", got)
	}
	members := got[0].Body[1].(map[string]dbus.Variant)
	for key, want := range map[string]string{
		"title": `"s"`, "body": `"1 < 2"`, "priority": `"urgent"`, "icon": `["themed", <["terok-symbolic"]>]`,
		"buttons": `[{"action": <"allow">, "label": <"Allow">}]`,
	} {
		if v := members[key].String(); v != want {
			t.Errorf("%s: %s", key, v)
		}
	}
	if s := members["buttons"].Signature().String() + members["icon"].Signature().String(); s != "aa{sv}(sv)" {
		t.Error(s)
	}
	invoked := func(conn *dbus.Conn, body ...any) {
		conn.Emit("/org/freedesktop/portal/desktop", portalFace+".ActionInvoked", body...)
	}
	invoked(b.connect(), word, "allow", []dbus.Variant{})
	invoked(d.conn, "somebody's", "allow", []dbus.Variant{})
	invoked(d.conn, word)
	invoked(d.conn, uint32(1), "allow", []dbus.Variant{})
	invoked(d.conn, word, "deny", []dbus.Variant{})
	if got := receive(t, "action", what); got != "chosen deny" {
		t.Error(got)
	}
	if err := n.Close(t.Context(), id); err != nil {
		t.Error(err)
	}
	eventually(t, "removed", func() bool { return len(d.was("RemoveNotification")) == 1 })
	if got := d.was("RemoveNotification")[0]; got.Body[0] != word || got.Signature != "s" {
		t.Errorf("%v", got)
	}

	// A real desktop is preferred as soon as it is there.
	real := b.show(notificationsName, usual...)
	eventually(t, "desktop", func() bool { return mustShow(t, n, Popup{}) < firstPortalID })
	if len(real.was("Notify")) != 1 {
		t.Error("not shown there")
	}
}

func TestAbsentIsAskedSeldom(t *testing.T) {
	b := startBus(t)
	starts := filepath.Join(b.dir, "starts")
	script := filepath.Join(b.dir, "daemon")
	if err := errors.Join(
		os.WriteFile(script, []byte("#!/bin/sh\necho x >>"+starts+"\nexit 1\n"), 0o755),
		os.WriteFile(filepath.Join(b.dir, "n.service"), []byte("[D-BUS Service]\nName="+notificationsName+"\nExec="+script+"\n"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	b.stop()
	b.start() // it reads the file
	n := b.open(Config{})
	for range 10 {
		if id, err := n.Notify(t.Context(), Popup{}); id != 0 || err != nil {
			t.Fatalf("id %d, %v", id, err)
		}
	}
	if text, err := os.ReadFile(starts); err != nil || string(text) != "x\n" {
		t.Errorf("%q %v", text, err)
	}
	b.show(notificationsName, usual...)
	eventually(t, "noticed", func() bool { id, err := n.Notify(t.Context(), Popup{}); return err == nil && id != 0 })
}

// A user namespace in which we are root is somebody else to the bus.
func TestUserNamespace(t *testing.T) {
	if os.Getenv("NOTIFY_TEST_BUS") != "" {
		n := New(Config{})
		defer n.Disconnect()
		mustShow(t, n, Popup{Summary: "from inside"})
		return
	}
	b := newDaemon(t)
	uid := os.Geteuid()
	if uid == 0 {
		uid = 65534 // nobody: the bus looks users up
		if err := errors.Join(os.Chown(b.dir, uid, uid), os.Chmod(b.dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		b.uid = uid
	}
	b.start()
	d := b.show(notificationsName, usual...) // root may connect to anybody's bus
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestUserNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), "NOTIFY_TEST_BUS=1", addressVar+"=unix:path="+b.socket())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
		Credential: &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: os.Geteuid() != 0},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || len(d.was("Notify")) != 1 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSockets(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	env := &cmdenv.Env{Vars: map[string]string{"XDG_RUNTIME_DIR": dir}, EUID: os.Geteuid()}
	for address, want := range map[string][]string{
		"":                                  {dir + "/bus"},
		"autolaunch:":                       {dir + "/bus"},
		"unix:path=/a/b":                    {"/a/b"},
		"unix:path=/a%20b,guid=1234":        {"/a b"},
		"unix:guid=1234,abstract=/tmp/x%2c": {"@/tmp/x,"},
		"unix:runtime=yes":                  {dir + "/bus"},
		"tcp:host=localhost,port=1;unix:path=/a;unix:path=/b": {"/a", "/b"},
		"unix:path=relative":  nil,
		"unix:path=/a%zz":     nil,
		"unix:path=/a%00":     nil,
		"unix:runtime=no":     nil,
		"unix:":               nil,
		"unixexec:path=/bin/": nil,
		"tcp:host=x":          nil,
		";;":                  nil,
		"disabled:":           nil,
	} {
		env.Vars[addressVar] = address
		got, err := sockets(env)
		if d := cmp.Diff(want, got); d != "" || (err == nil) != (want != nil) || err != nil && !errors.Is(err, errNoBus) {
			t.Errorf("%q: %v %v", address, got, err)
		}
	}
	env.Vars = map[string]string{"XDG_RUNTIME_DIR": filepath.Join(dir, "none")}
	if got, err := sockets(env); !errors.Is(err, errNoBus) {
		t.Errorf("%v %v", got, err)
	}
}

// message is one of D-Bus with so many bytes of fields and body.
func message(order binary.AppendByteOrder, first byte, fields, body int) []byte {
	m := []byte{first, 1, 0, 1}
	m = order.AppendUint32(m, uint32(body))
	m = order.AppendUint32(m, 1)
	m = order.AppendUint32(m, uint32(fields))
	return append(m, make([]byte, (fields+7)/8*8+body)...)
}

func TestStream(t *testing.T) {
	small := message(binary.LittleEndian, 'l', 13, 100)
	big := message(binary.BigEndian, 'B', 9, 33)
	large := message(binary.LittleEndian, 'l', 16, maxMessage+1)
	for name, tt := range map[string]struct {
		in, want []byte
		err      error
	}{
		"messages": {bytes.Join([][]byte{small, big, small}, nil), bytes.Join([][]byte{small, big, small}, nil), io.EOF},
		"large":    {bytes.Join([][]byte{small, large, large, big}, nil), bytes.Join([][]byte{small, big}, nil), io.EOF},
		"cut":      {small[:50], small[:50], io.EOF},
		"cut head": {small[:10], nil, io.ErrUnexpectedEOF},
		"no D-Bus": {bytes.Join([][]byte{small, []byte("HTTP/1.1 400 Bad Request\r\n")}, nil), small, errNotDBus},
		"absurd":   {message(binary.LittleEndian, 'l', 16, 0)[:4:4], nil, io.ErrUnexpectedEOF},
		"endless":  {append([]byte{'l', 1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, small...), nil, errNotDBus},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStream(incoming{r: bytes.NewReader(tt.in)})
			s.begun.Store(true)
			got, err := readAll(s)
			if !bytes.Equal(got, tt.want) || !errors.Is(err, tt.err) {
				t.Errorf("%d bytes, want %d: %v", len(got), len(tt.want), err)
			}
		})
	}
}

// incoming is a connection that is only read.
type incoming struct {
	net.Conn
	r io.Reader
}

func (i incoming) Read(b []byte) (int, error) { return i.r.Read(b) }

func readAll(r io.Reader) (all []byte, err error) {
	for buf := make([]byte, 7); err == nil; {
		var n int
		n, err = r.Read(buf)
		all = append(all, buf[:n]...)
	}
	return all, err
}

// Whatever a bus sends, nothing larger than allowed is handed on, and what is
// handed on begins as a message.
func FuzzStream(f *testing.F) {
	f.Add(message(binary.LittleEndian, 'l', 13, 100))
	f.Add(append(message(binary.LittleEndian, 'l', 16, maxMessage+1), message(binary.BigEndian, 'B', 1, 1)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newStream(incoming{r: bytes.NewReader(in)})
		s.begun.Store(true)
		for {
			head := make([]byte, 16)
			if _, err := io.ReadFull(s, head); err != nil {
				return
			}
			if head[0] != 'l' && head[0] != 'B' || s.ahead != 0 || s.left > maxMessage {
				t.Fatalf("%q, %d bytes more", head, s.left)
			}
			if _, err := io.CopyN(io.Discard, s, int64(s.left)); err != nil {
				return
			}
		}
	})
}

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"plain · ä":               "plain · ä",
		"a\nb\tc\x00d\x1b[0m":     "a\nb c d [0m",
		"\xff\xfe":                "�",
		"\u202eevil\u2028":        " evil ",
		strings.Repeat("ä", 5000): strings.Repeat("ä", maxBody-1) + "…",
	} {
		if got := text(in, maxBody, true); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	if got := text("a\nb", 10, false); got != "a b" {
		t.Errorf("%q", got)
	}
	p := Popup{Actions: make([]Action, 50)}.bounded()
	if len(p.Actions) != maxActions {
		t.Error(len(p.Actions))
	}
}
