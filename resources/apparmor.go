package resources

import _ "embed" // for the directive

//go:embed apparmor/usr.sbin.dnsmasq
var apparmorDnsmasq string

// AppArmorDnsmasq is an addendum to AppArmor's profile of dnsmasq, for
// /etc/apparmor.d/local/usr.sbin.dnsmasq, that lets it work on our state
// directories.
func AppArmorDnsmasq() string { return apparmorDnsmasq }
