package resources

import _ "embed" // for the directives

var (
	//go:embed icons/terok.svg
	logo []byte
	//go:embed icons/terok-symbolic.svg
	symbolicIcon []byte
	//go:embed desktop/terok-clearance-notify.service
	unit string
	//go:embed desktop/graphical-session.conf
	unitWanted string
	//go:embed desktop/terok-clearance-notify.desktop
	autostart string
)

// Logo is our logo, SVG.
func Logo() []byte { return logo }

// SymbolicIcon is our icon in one colour, as desktops recolour it, SVG.
func SymbolicIcon() []byte { return symbolicIcon }

// Program stands in Unit and Autostart where the program's path is to be, as
// each of them writes it.
const Program = "@PROGRAM@"

// Unit is the systemd unit that shows a user's questions on the desktop, and
// UnitWanted what has it started with a graphical session.
func Unit() string { return unit }

// UnitWanted is a drop-in for graphical-session.target.
func UnitWanted() string { return unitWanted }

// Autostart is the XDG autostart entry that does the same without systemd.
func Autostart() string { return autostart }
