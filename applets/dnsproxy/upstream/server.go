package upstream

import (
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	unknown  = 200 * time.Millisecond // what a server that was never asked is taken to need
	similar  = 16 * time.Millisecond  // times to answer up to which servers are the same
	remember = time.Hour              // for which time it is known what a server does not understand
	maxSoft  = 8                      // refusals in a row, after which a server is no better than a dead one

	// How often a server is asked that was found worse than one that the file
	// has after it, or dead.
	minProbe = 5 * time.Second
	maxProbe = time.Minute
)

// server is what is known of a name server.
type server struct {
	addr netip.AddrPort

	mu      sync.Mutex
	rtt     time.Duration // smoothed; 0: unknown
	failing bool          // the last thing it did was not to answer
	soft    int           // refusals in a row
	noEDNS  time.Time     // until then it is asked without
	noMix   time.Time     // until then names are asked for as they are: it does not preserve case
	probe   time.Time     // when to see how it is; zero if it needs not be seen
	wait    time.Duration // how long until then
	ports   []*port       // that get questions
}

// usual is how long it takes to answer.
func (s *server) usual() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rtt
}

// answered takes in the time of an answer.
func (s *server) answered(took time.Duration) {
	took = max(took, time.Microsecond) // 0 is unknown
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rtt == 0 || s.failing {
		s.rtt = took
	} else {
		s.rtt += (took - s.rtt) / 4
	}
	s.failing = false
}

// lost takes in that another server was faster.
func (s *server) lost(after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.rtt == 0:
		s.rtt = max(after, minRace)
	case after > s.rtt:
		s.rtt += (after - s.rtt) / 4
	}
}

// failed takes in that it did not answer.
func (s *server) failed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = true
}

// judged takes in what kind of an answer it gave.
func (s *server) judged(refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !refused {
		s.soft = 0
	} else if s.soft++; s.soft >= maxSoft {
		s.failing = true
	}
}

// manners says whether to ask it with EDNS, and whether to mix upper and lower
// case.
func (s *server) manners() (edns, mix bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	return now.After(s.noEDNS), now.After(s.noMix)
}

// without notes what it does not understand.
func (s *server) without(edns, mix bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	until := time.Now().Add(remember)
	if edns {
		s.noEDNS = until
	}
	if mix {
		s.noMix = until
	}
}

// class is how good a server is, 0 best. Servers that do not differ much are
// of one class: then it is the file's order that counts, because the first
// may know names that the others do not.
func (s *server) class(rotate bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.failing:
		return 64
	case rotate:
		return 0
	case s.rtt == 0:
		return bits.Len64(uint64(unknown / similar))
	}
	return bits.Len64(uint64(s.rtt / similar))
}

// rank is the servers, best first. With rotate those that answer take turns.
func rank(servers []*server, rotate bool, turn uint32) []*server {
	if len(servers) == 1 {
		return servers
	}
	order := make([]*server, 0, len(servers))
	k := 0
	if rotate {
		k = int(turn % uint32(len(servers)))
	}
	order = append(append(order, servers[k:]...), servers[:k]...)
	class := make(map[*server]int, len(servers)) // may change meanwhile
	for _, s := range servers {
		class[s] = s.class(rotate)
	}
	slices.SortStableFunc(order, func(a, b *server) int { return class[a] - class[b] })
	return order
}

// due is a server that is not asked first although the file has it before the
// one that is, or because it is failing, if it is time to see how it is now.
func due(servers []*server, first *server, now time.Time, least time.Duration) *server {
	var found *server
	before := true
	for _, s := range servers {
		if s == first {
			before = false
		}
		s.mu.Lock()
		switch {
		case s == first || !before && !s.failing:
			s.probe, s.wait = time.Time{}, 0
		case s.probe.IsZero():
			s.wait = least
			s.probe = now.Add(s.wait)
		case found == nil && !now.Before(s.probe):
			s.wait = min(2*s.wait, maxProbe)
			s.probe = now.Add(s.wait)
			found = s
		}
		s.mu.Unlock()
	}
	return found
}
