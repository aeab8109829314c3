package resources

import _ "embed" // for the directives

//go:embed icons/terok.svg
var logo []byte

//go:embed icons/terok-symbolic.svg
var symbolicIcon []byte

// Logo is our logo, SVG.
func Logo() []byte { return logo }

// SymbolicIcon is our icon in one colour, as desktops recolour it, SVG.
func SymbolicIcon() []byte { return symbolicIcon }
