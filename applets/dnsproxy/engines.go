package dnsproxy

import (
	"github.com/terok-ai/terok-box/applets/dnsproxy/proxy"
	"github.com/terok-ai/terok-box/applets/internal/tier"
	"github.com/terok-ai/terok-box/wire/bundle"
)

// engines are the tiers that need a process, and what they need it for.
func engines() map[bundle.Tier]func(tier.Resources) (tier.Engine, error) {
	return map[bundle.Tier]func(tier.Resources) (tier.Engine, error){
		bundle.Proxy: proxy.New,
	}
}
