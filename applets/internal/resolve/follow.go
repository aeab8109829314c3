package resolve

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// pollInterval is how old what is known of the file may be. Reading it costs
// some 20 µs: looking at it so seldom and only when somebody asks is cheaper
// than being told, and misses no kind of replacement.
const pollInterval = time.Second

// Follower knows what a resolv.conf file says now, also after it was changed
// or replaced, or the symbolic link that it is. It is safe for concurrent use.
type Follower struct {
	path string
	port uint16
	log  *slog.Logger

	mu   sync.Mutex
	next time.Time // when the file is to be read again
	text []byte    // what conf is made of
	conf Config
	good bool   // conf is one
	said string // the last warning
}

// Follow is a Follower of the file at a path, which is read when somebody asks
// for it. The servers are asked at a port of theirs, 0 for the usual one:
// tests have servers of their own.
func Follow(path string, serverPort uint16, log *slog.Logger) *Follower {
	if serverPort == 0 {
		serverPort = port
	}
	return &Follower{path: path, port: serverPort, log: log}
}

// Config is what the file says, or said a second ago. When it cannot be read,
// or names no servers any more, that is what it said before; an error means
// that it never said anything yet.
func (f *Follower) Config() (Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if f.good && now.Before(f.next) {
		return f.conf, nil
	}
	f.next = now.Add(pollInterval)
	text, err := readResolvConf(f.path)
	if err == nil && f.good && bytes.Equal(text, f.text) {
		f.said = ""
		return f.conf, nil
	}
	var conf Config
	var lines int
	if err == nil {
		conf, lines, err = parseConfig(text)
	}
	// A file that is being written, or that a service empties while it stops.
	if err == nil && f.good && lines == 0 {
		err = fmt.Errorf("%s names no servers any more", f.path)
	}
	if err != nil {
		if f.good {
			f.warn(err)
			return f.conf, nil
		}
		return Config{}, fmt.Errorf("no name servers known: %w; write \"nameserver ADDRESS\" into %s on this host", err, f.path)
	}
	for i, s := range conf.Servers {
		conf.Servers[i] = netip.AddrPortFrom(s.Addr(), f.port)
	}
	if f.good && !slices.Equal(conf.Servers, f.conf.Servers) {
		f.log.Info("other name servers from now on", "file", f.path, "servers", conf.Servers)
	}
	f.text, f.conf, f.good, f.said = text, conf, true, ""
	return conf, nil
}

// warn says why the file is of no use, once until another reason comes up.
func (f *Follower) warn(err error) {
	if text := err.Error(); text != f.said {
		f.said = text
		f.log.Warn("the name servers known so far are kept", "file", f.path, "err", err)
	}
}
