package resources

import _ "embed" // for the directive

//go:embed apparmor/usr.sbin.dnsmasq
var apparmorDnsmasq string

// AppArmorDnsmasq is an addendum to AppArmor's profile of dnsmasq, for
// /etc/apparmor.d/local/usr.sbin.dnsmasq, that lets it work on our state
// directories.
func AppArmorDnsmasq() string { return apparmorDnsmasq }

//go:embed apparmor/terok-box
var apparmorUserNS string

// AppArmorUserNS is a profile, for /etc/apparmor.d/terok-box, that lets this
// program make user namespaces where AppArmor keeps others from it.
func AppArmorUserNS() string { return apparmorUserNS }

//go:embed selinux/notes.txt
var selinuxNotes string

// SELinuxNotes is what to look at where SELinux enforces, for people.
func SELinuxNotes() string { return selinuxNotes }
