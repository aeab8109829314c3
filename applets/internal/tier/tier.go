// Package tier is what the three ways in which a container's names become
// addresses have in common: an engine that does it, made of what the process
// around it has opened.
//
// It must never import an engine.
package tier

import (
	"context"
	"log/slog"
	"net"

	"github.com/terok-ai/terok-box/nl/conntrack"
	"github.com/terok-ai/terok-box/nl/netns"
	"github.com/terok-ai/terok-box/nl/nft"
	"github.com/terok-ai/terok-box/wire/bundle"
	"github.com/terok-ai/terok-box/wire/names"
)

// Engine finds the addresses of one container's names.
type Engine interface {
	names.Service
	// Start returns as soon as the container's questions are answered (or, in
	// tiers without a name server of their own, the engine works). The engine
	// then works until ctx ends; failed is called at most once, if it cannot
	// go on.
	Start(ctx context.Context, failed func(error)) error
}

// Resources is what an engine works with. They are the process's, which
// closes them after the engine's end. The process lives in the host's
// network namespace.
type Resources struct {
	Spec   names.Spec
	Bundle *bundle.Bundle
	NetNS  *netns.NS       // the container's
	NFT    *nft.Conn       // its nf_tables
	Track  *conntrack.Conn // its connection tracking
	UDP    *net.UDPConn    // port 53 in it; nil in tiers that do not listen
	TCP    *net.TCPListener
	Log    *slog.Logger
}
