package notify

import (
	"context"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// notifications is org.freedesktop.Notifications, of the Desktop Notifications
// Specification. The object is not introspected: some services do not tell of
// their signals.
type notifications struct{}

const notificationsName = "org.freedesktop.Notifications"

func (notifications) name() string { return notificationsName }
func (notifications) path() string { return "/org/freedesktop/Notifications" }
func (notifications) face() string { return notificationsName }

func (n notifications) probe(ctx context.Context, b *bus) (abilities, error) {
	var list []string
	call := b.call(ctx, n.name(), n.path(), n.face()+".GetCapabilities")
	if call.Err != nil && !ignorant(call.Err) {
		return abilities{}, call.Err
	}
	if call.Store(&list) != nil { // it does not know the question, or no answer
		return abilities{actions: true, body: true}, nil
	}
	return abilities{
		actions: slices.Contains(list, "actions"),
		body:    slices.Contains(list, "body"),
		markup:  slices.Contains(list, "body-markup"),
	}, nil
}

func (n notifications) notify(ctx context.Context, s *service, can abilities, p Popup, old uint32) (<-chan *dbus.Call, error) {
	d := s.bus.desktop
	actions := make([]string, 0, 2*len(p.Actions))
	if can.actions {
		for _, a := range p.Actions {
			actions = append(actions, a.Key, a.Label)
		}
	}
	hints := map[string]dbus.Variant{"urgency": dbus.MakeVariant(byte(min(p.Urgency, Critical)))}
	if p.Resident {
		hints["resident"] = dbus.MakeVariant(true)
	}
	if p.Transient {
		hints["transient"] = dbus.MakeVariant(true)
	}
	summary, body := p.written(can)
	return s.bus.start(ctx, n.name(), n.path(), n.face()+".Notify",
		d.AppName, old, d.icons.of(p), summary, body, actions, hints, milliseconds(p.Timeout))
}

// milliseconds is a timeout as D-Bus has it.
func milliseconds(d time.Duration) int32 {
	switch {
	case d == Never:
		return 0
	case d < 0:
		return -1
	}
	return int32(min(max(d.Milliseconds(), 1), math.MaxInt32))
}

// written are the texts as a service takes them. The specification has a
// summary without markup, and a body with it only where the service says so;
// escaped text elsewhere shows as "&lt;". Services that take a summary for
// markup all the same must not find any: angle brackets there are other ones.
func (p Popup) written(can abilities) (summary, body string) {
	summary = strings.NewReplacer("<", "‹", ">", "›").Replace(p.Summary)
	if !can.body {
		return summary, ""
	}
	body = p.Body
	if !can.actions && p.Unable != "" {
		body = strings.TrimPrefix(body+"\n"+p.Unable, "\n")
	}
	if can.markup {
		body = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(body)
	}
	return summary, body
}

func (notifications) id(c *dbus.Call) (uint32, error) {
	var id uint32
	if err := c.Store(&id); err != nil {
		return 0, err
	}
	if id == 0 {
		return 0, errAnswer
	}
	return id, nil
}

func (n notifications) close(b *bus, id uint32) error {
	return b.send(n.name(), n.path(), n.face()+".CloseNotification", id)
}

func (notifications) signal(member string, body []any) (*outcome, bool) {
	switch member {
	case "ActionInvoked":
		if len(body) == 2 {
			id, ok1 := body[0].(uint32)
			key, ok2 := body[1].(string)
			if ok1 && ok2 {
				return &outcome{id: id, key: key}, true
			}
		}
		return nil, false
	case "NotificationClosed":
		if len(body) == 2 {
			id, ok1 := body[0].(uint32)
			reason, ok2 := body[1].(uint32)
			if ok1 && ok2 {
				if reason == 0 || Reason(reason) > Undefined {
					reason = uint32(Undefined)
				}
				return &outcome{id: id, closed: Reason(reason)}, true
			}
		}
		return nil, false
	}
	return nil, true
}

// portal is org.freedesktop.portal.Notification: it has no capabilities, takes
// ids from us, and does not tell when a popup is closed.
type portal struct{}

const portalFace = "org.freedesktop.portal.Notification"

// firstPortalID keeps the portal's ids apart from others.
const firstPortalID = 1 << 31

func (portal) name() string { return "org.freedesktop.portal.Desktop" }
func (portal) path() string { return "/org/freedesktop/portal/desktop" }
func (portal) face() string { return portalFace }

func (p portal) probe(ctx context.Context, b *bus) (abilities, error) {
	can := abilities{actions: true, body: true}
	err := b.call(ctx, p.name(), p.path(), "org.freedesktop.DBus.Properties.Get", p.face(), "version").Err
	if ignorant(err) { // a portal without this interface
		err = dbus.Error{Name: serviceUnknown}
	}
	return can, err
}

func (portal) word(id uint32) string { return "terok-" + strconv.FormatUint(uint64(id), 10) }

func (w portal) notify(ctx context.Context, s *service, can abilities, p Popup, old uint32) (<-chan *dbus.Call, error) {
	d := s.bus.desktop
	summary, body := p.written(can)
	v := map[string]dbus.Variant{
		"title":    dbus.MakeVariant(summary),
		"body":     dbus.MakeVariant(body),
		"priority": dbus.MakeVariant([]string{"low", "normal", "urgent"}[min(p.Urgency, Critical)]),
	}
	if name := d.icons.of(p); name != "" && !strings.Contains(name, ":") {
		v["icon"] = dbus.MakeVariant(struct {
			Kind  string
			Value dbus.Variant
		}{"themed", dbus.MakeVariant([]string{name})})
	}
	if len(p.Actions) > 0 {
		var buttons []map[string]dbus.Variant
		for _, a := range p.Actions {
			buttons = append(buttons, map[string]dbus.Variant{"label": dbus.MakeVariant(a.Label), "action": dbus.MakeVariant(a.Key)})
		}
		v["buttons"] = dbus.MakeVariant(buttons)
	}
	if old == 0 {
		old = d.portalIDs.Add(1) | firstPortalID
	}
	return s.bus.start(ctx, w.name(), w.path(), w.face()+".AddNotification", w.word(old), v)
}

func (w portal) id(c *dbus.Call) (uint32, error) {
	if c.Err != nil {
		return 0, c.Err
	}
	word, _ := c.Args[0].(string)
	id, ok := w.number(word)
	if !ok {
		return 0, errAnswer
	}
	return id, nil
}

func (w portal) number(word string) (uint32, bool) {
	id, err := strconv.ParseUint(strings.TrimPrefix(word, "terok-"), 10, 32)
	return uint32(id), err == nil && w.word(uint32(id)) == word
}

func (w portal) close(b *bus, id uint32) error {
	return b.send(w.name(), w.path(), w.face()+".RemoveNotification", w.word(id))
}

func (w portal) signal(member string, body []any) (*outcome, bool) {
	if member != "ActionInvoked" {
		return nil, true
	}
	if len(body) < 2 {
		return nil, false
	}
	word, ok1 := body[0].(string)
	key, ok2 := body[1].(string)
	if !ok1 || !ok2 {
		return nil, false
	}
	id, ours := w.number(word)
	if !ours { // of another program: they are told to all
		return nil, true
	}
	return &outcome{id: id, key: key}, true
}
