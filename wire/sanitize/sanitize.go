// Package sanitize makes text that somebody else chose, a container first of
// all, fit to be shown and compared: one rule for all who write it and all who
// read it.
//
// It must never import anything but the standard library.
package sanitize

// Max is the usual bound, in characters.
const Max = 256

// String is s with a space for every code point that is not printable ASCII
// (space to tilde), and if it is longer than limit, cut to it with three dots
// at its end. Bytes that are not UTF-8 count as one code point each. Text that
// was sanitised stays as it is.
func String(s string, limit int) string {
	limit = max(limit, 0)
	good := 0
	for good < len(s) && good <= limit && s[good] >= ' ' && s[good] <= '~' {
		good++
	}
	if good == len(s) && good <= limit {
		return s
	}
	out := make([]byte, 0, min(len(s), limit))
	for _, r := range s {
		if len(out) == limit { // and this is one more
			const dots = "..."
			n := min(limit, len(dots))
			return string(append(out[:limit-n], dots[:n]...))
		}
		if r < ' ' || r > '~' {
			r = ' '
		}
		out = append(out, byte(r))
	}
	return string(out)
}

// Mapping is m with its values sanitised to Max. Keys stay as they are. It is
// never nil.
func Mapping(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = String(v, Max)
	}
	return out
}
