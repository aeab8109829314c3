package subscriber

import "container/list"

// maxNotices bounds what waits to be shown besides prompts.
const maxNotices = 256

// item is something that a notifier is to be told.
type item struct {
	id     uint64        // 0 for a Lifecycle
	notify *Notification // nil: close
	reason string        // of closing
	event  *Lifecycle
	final  bool // a notice, which nobody closes
}

// queue holds what a notifier was not told yet: of each notification only its
// newest state, in the order in which they first had news.
type queue struct {
	order   list.List // of *item
	waiting map[uint64]*list.Element
	shown   map[uint64]bool // told, and not closed
	notices int
	dropped int // notices
}

func newQueue() queue {
	return queue{waiting: make(map[uint64]*list.Element), shown: make(map[uint64]bool)}
}

// notify adds a notification; final says that it is not going to be closed.
func (q *queue) notify(n Notification, final bool) {
	if e, ok := q.waiting[n.ID]; ok {
		it := e.Value.(*item)
		if it.notify != nil && it.notify.State == Asking && n.State == Repeated && !q.shown[n.ID] {
			n.State = Asking // nobody saw the first
		}
		q.count(it, -1)
		it.notify, it.final = &n, final
		q.count(it, 1)
	} else {
		q.push(&item{id: n.ID, notify: &n, final: final})
	}
	q.bound()
}

// close adds that a notification is to be taken away, if anybody has seen it.
func (q *queue) close(id uint64, reason string) {
	e, waits := q.waiting[id]
	switch {
	case !q.shown[id]:
		q.drop(id)
	case waits:
		it := e.Value.(*item)
		q.count(it, -1)
		it.notify, it.reason, it.final = nil, reason, false
	default:
		q.push(&item{id: id, reason: reason})
	}
}

// observe adds an event.
func (q *queue) observe(l Lifecycle) {
	q.push(&item{event: &l, final: true})
	q.bound()
}

// forget says that somebody has taken the notification away.
func (q *queue) forget(id uint64) {
	delete(q.shown, id)
	if e, ok := q.waiting[id]; ok && e.Value.(*item).notify == nil {
		q.drop(id)
	}
}

// drop takes back what was to be told of a notification.
func (q *queue) drop(id uint64) {
	if e, ok := q.waiting[id]; ok {
		q.remove(e)
	}
}

// next takes the oldest item, or nil.
func (q *queue) next() *item {
	e := q.order.Front()
	if e == nil {
		return nil
	}
	it := e.Value.(*item)
	q.remove(e)
	if it.event != nil {
		return it
	}
	if it.notify != nil {
		it.notify.Replaces = q.shown[it.id]
	}
	if it.notify == nil || it.final {
		delete(q.shown, it.id)
	} else {
		q.shown[it.id] = true
	}
	return it
}

func (q *queue) push(it *item) {
	e := q.order.PushBack(it)
	if it.id != 0 {
		q.waiting[it.id] = e
	}
	q.count(it, 1)
}

func (q *queue) remove(e *list.Element) {
	it := q.order.Remove(e).(*item)
	if it.id != 0 {
		delete(q.waiting, it.id)
	}
	q.count(it, -1)
}

func (q *queue) count(it *item, n int) {
	if it.final {
		q.notices += n
	}
}

// bound drops the oldest notices when there are too many; what they would
// have replaced is closed.
func (q *queue) bound() {
	for e := q.order.Front(); e != nil && q.notices > maxNotices; {
		it, next := e.Value.(*item), e.Next()
		if it.final {
			q.dropped++
			if q.shown[it.id] {
				q.count(it, -1)
				it.notify, it.final = nil, false
			} else {
				q.remove(e)
			}
		}
		e = next
	}
}
