package nft

import (
	"github.com/terok-ai/terok-box/nl/ruleset"
	"golang.org/x/sys/unix"
)

// Attributes and flags that x/sys does not name
// (linux/netfilter/nf_tables.h).
const (
	nftaTableHandle   = 4  // NFTA_TABLE_HANDLE
	nftaTablePad      = 5  // NFTA_TABLE_PAD
	nftaTableUserdata = 6  // NFTA_TABLE_USERDATA
	nftaChainFlags    = 10 // NFTA_CHAIN_FLAGS
	nftaChainUserdata = 12 // NFTA_CHAIN_USERDATA
	nftChainBase      = 1  // NFT_CHAIN_BASE
)

const chainType = "filter"

// hooks are the numbers of the two chains' hooks (enum nf_inet_hooks).
var hooks = map[string]uint32{
	ruleset.InputHook:  unix.NF_INET_LOCAL_IN,
	ruleset.OutputHook: unix.NF_INET_LOCAL_OUT,
}

// decodeTable reads how many chains, sets and other things a table has. Any
// flag is foreign: a dormant table enforces nothing.
func decodeTable(f *fields) (use uint32, err error) {
	use, ok := f.u32(unix.NFTA_TABLE_USE)
	if !ok || !f.only(unix.NFTA_TABLE_NAME, unix.NFTA_TABLE_USE, nftaTableHandle, nftaTablePad, nftaTableUserdata) {
		return 0, foreign("flags or an owner of the table")
	}
	return use, nil
}

// decodeChain reads a chain without its rules.
func decodeChain(f *fields) (name string, c ruleset.Chain, err error) {
	name = f.str(unix.NFTA_CHAIN_NAME)
	hooknum, ok := hooks[name]
	if !ok {
		return name, c, foreign("a chain %q", name)
	}
	hook, err := parseFields(f.v[unix.NFTA_CHAIN_HOOK])
	if err != nil {
		return name, c, err
	}
	policy, ok := f.u32(unix.NFTA_CHAIN_POLICY)
	c.Policy, _ = verdictOf(policy)
	switch {
	case !ok || policy != verdictCode(c.Policy) || c.Policy == ruleset.Continue:
		return name, c, foreign("chain %s without a policy", name)
	case !hook.is(unix.NFTA_HOOK_HOOKNUM, hooknum) || !hook.is(unix.NFTA_HOOK_PRIORITY, 0) ||
		!hook.only(unix.NFTA_HOOK_HOOKNUM, unix.NFTA_HOOK_PRIORITY) || f.str(unix.NFTA_CHAIN_TYPE) != chainType:
		return name, c, foreign("chain %s at another place", name)
	}
	if f.has(nftaChainFlags) && !f.is(nftaChainFlags, nftChainBase) ||
		!f.only(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_HOOK,
			unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_USE, unix.NFTA_CHAIN_TYPE, unix.NFTA_CHAIN_COUNTERS,
			unix.NFTA_CHAIN_PAD, nftaChainFlags, nftaChainUserdata) {
		return name, c, foreign("chain %s with flags", name)
	}
	return name, c, nil
}

// decodeRuleMessage reads a rule.
func decodeRuleMessage(f *fields) (ruleset.Rule, error) {
	if !f.only(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_HANDLE, unix.NFTA_RULE_EXPRESSIONS,
		unix.NFTA_RULE_POSITION, unix.NFTA_RULE_USERDATA, unix.NFTA_RULE_PAD) {
		return ruleset.Rule{}, foreign("attributes of unknown form")
	}
	return decodeRule(f.v[unix.NFTA_RULE_EXPRESSIONS])
}
