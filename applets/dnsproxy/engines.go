package dnsproxy

import (
	"github.com/terok-ai/terok-box/applets/dnsproxy/proxy"
	"github.com/terok-ai/terok-box/applets/internal/dnsmasq"
	"github.com/terok-ai/terok-box/applets/internal/static"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// engines are the tiers, all of which need a process.
func engines() map[bundle.Tier]func(tier.Resources) (tier.Engine, error) {
	return map[bundle.Tier]func(tier.Resources) (tier.Engine, error){
		bundle.Proxy:   proxy.New,
		bundle.Dnsmasq: dnsmasq.New,
		bundle.Static:  static.New,
	}
}
