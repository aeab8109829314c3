package shield

import (
	"os/exec"
	"testing"

	"github.com/terok-ai/terok-box/applets/internal/policy"
)

// What prepare prints comes back from a shell word for word.
func TestShellQuote(t *testing.T) {
	for _, s := range []string{
		"", "plain", "--annotation", "terok.shield.profiles=base:work", "a b", "it's", `"`, `\`, "$HOME", "`id`", "a\nb", "*", "~", "é", "a;b", "-", "{x,y}",
	} {
		out, err := exec.Command("sh", "-c", "printf %s "+shellQuote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q is quoted as %s and becomes %q, %v", s, shellQuote(s), out, err)
		}
	}
	if got := shellQuote("pasta:--map-host-loopback,169.254.1.2"); got != "pasta:--map-host-loopback,169.254.1.2" {
		t.Errorf("quoted without need: %s", got)
	}
}

// A changed profile is another policy; one that only says the same otherwise
// is not.
func TestCacheKey(t *testing.T) {
	key := func(text string) string {
		p, err := policy.ParseProfile("p", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return cacheKey(policy.Compose([]policy.Profile{p}))
	}
	base := key("example.com\n192.0.2.1\n")
	for text, same := range map[string]bool{
		"# comment\nexample.com\n192.0.2.1/32\n": true,
		"192.0.2.1\nexample.com\nexample.com\n":  true,
		"*.example.com\n192.0.2.1\n":             true, // looked up the same way
		"example.com\n192.0.2.2\n":               false,
		"example.org\n192.0.2.1\n":               false,
		"example.com\n":                          false,
		"":                                       false,
	} {
		if (key(text) == base) != same {
			t.Errorf("%q: same is %t", text, !same)
		}
	}
}
