package bundle

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"1.2.3.4":                 "1.2.3.4",
		"1.2.3.4/24":              "1.2.3.0/24",
		"1.2.3.4/08":              "1.0.0.0/8",
		"1.2.3.4/32":              "1.2.3.4", // other programs keep the suffix and then miss the equal address
		"2001:db8::1/128":         "2001:db8::1",
		"10.0.0.0/255.255.0.0":    "10.0.0.0/16",
		"10.0.0.0/0.0.255.255":    "10.0.0.0/16",
		"1.2.3.4/255.255.255.255": "1.2.3.4",
		"1.2.3.4/255.255.255.254": "1.2.3.4/31",
		"1.2.3.4/0.0.0.1":         "1.2.3.4/31",
		"1.2.3.4/127.255.255.255": "0.0.0.0/1",
		"1.2.3.4/0.0.0.0":         "0.0.0.0/0", // a netmask, not a hostmask
		"0.0.0.0/0":               "0.0.0.0/0",
		"::/0":                    "::/0",
		"2001:DB8:0:0:0:0:0:1":    "2001:db8::1",
		"2001:db8::ff/112":        "2001:db8::/112",
		"2001:db8:0:1:1:1:1:1":    "2001:db8:0:1:1:1:1:1",
		"::ffff:1.2.3.4":          "::ffff:102:304",
		"::FFFF:102:304":          "::ffff:102:304",
		"::ffff:1.2.3.4/128":      "::ffff:102:304",
		"::ffff:1.2.3.4/112":      "::ffff:102:0/112",
		"::ffff:1.2.3.4/96":       "::ffff:0:0/96",
		"::ffff:1.2.3.4/95":       "::fffe:0:0/95",
		"::1.2.3.4":               "::102:304",

		"": "", " 1.2.3.4": "", "1.2.3.4 ": "", "1.2.3.4\n": "", "1.2.3.4\x00": "",
		"01.2.3.4": "", "1.2.3": "", "127.1": "", "0x7f.1": "", "0x7f000001": "", "2130706433": "", "0177.0.0.1": "",
		"1.2.3.4/": "", "1.2.3.4/33": "", "1.2.3.4/-1": "", "1.2.3.4/+8": "", "1.2.3.4/ 8": "", "1.2.3.4/8/8": "", "/8": "",
		"1.2.3.4/65544": "", "1.2.3.4/99999999999999999999": "", "1.2.3.4/٢٤": "",
		"1.2.3.4/255.0.255.0": "", "1.2.3.4/0.255.0.255": "", "1.2.3.4/255.255.0": "", "1.2.3.4/ffff::": "", "1.2.3.4/255.0.0.255": "",
		"::1/129": "", "::1/ffff::": "", "::1/255.0.0.0": "", "[::1]": "", "1.2.3.4:443": "", "::ffff:01.2.3.4": "", "00000::1": "",
		"1.2.3.4-1.2.3.9": "", "1.2.3.4,1.2.3.5": "", "１.2.3.4": "", "example.org": "", "*": "",
		// Other programs accept a zone and paste it into the ruleset.
		"fe80::1%eth0": "", "fe80::1%eth0/64": "", "fe80::1%": "", "fe80::1/64%eth0": "", "fe80::1%a } ; b": "", "1.2.3.4%eth0": "", "::ffff:1.2.3.4%a": "",
	} {
		p, err := ParsePrefix(in)
		if (err == nil) != (want != "") {
			t.Errorf("ParsePrefix(%q) = %v, %v", in, p, err)
			continue
		}
		if err == nil && FormatPrefix(p) != want {
			t.Errorf("ParsePrefix(%q) is %q, want %q", in, FormatPrefix(p), want)
		}
	}
	_, err := ParsePrefix(strings.Repeat("1", 1<<20) + "\n")
	if err == nil || len(err.Error()) > 300 || strings.Contains(err.Error(), "\n") {
		t.Errorf("message is not fit for one line: %.400q", err)
	}
}

func FuzzParsePrefix(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "1.2.3.4/24", "10.0.0.0/0.0.255.255", "::ffff:1.2.3.4/100", "fe80::1%eth0/64", "2001:db8::/32", "1.2.3.4/255.0.255.0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePrefix(s)
		if err != nil {
			if p.IsValid() {
				t.Fatal("an error and a network")
			}
			return
		}
		if !p.IsValid() || p != p.Masked() || p.Addr().Zone() != "" {
			t.Fatalf("%q is %v", s, p)
		}
		text := FormatPrefix(p)
		if strings.Trim(text, "0123456789abcdef:./") != "" {
			t.Fatalf("%q is written %q", s, text)
		}
		again, err := ParsePrefix(text)
		if err != nil || again != p || FormatPrefix(again) != text {
			t.Fatalf("%q is %v, written %q, which is %v, %v", s, p, text, again, err)
		}
		// Where the standard library understands it, it means the same.
		if q, err := netip.ParsePrefix(s); err == nil && q.Masked() != p {
			t.Fatalf("%q is %v and %v", s, p, q)
		}
	})
}

func TestEffective(t *testing.T) {
	for _, tt := range []struct {
		name                             string
		profile, live, deny, want, wantD []string
	}{
		{"nothing", nil, nil, nil, nil, nil},
		{"profile, then live, in order", []string{"192.0.2.9", "192.0.2.1"}, []string{"10.0.0.0/8", "192.0.2.3"}, nil,
			[]string{"192.0.2.9", "192.0.2.1", "10.0.0.0/8", "192.0.2.3"}, nil},
		{"the first of equals", []string{"192.0.2.1", "192.0.2.1"}, []string{"192.0.2.2", "192.0.2.1"}, nil, []string{"192.0.2.1", "192.0.2.2"}, nil},
		{"denied", []string{"192.0.2.1"}, []string{"192.0.2.2"}, []string{"192.0.2.2", "192.0.2.1", "192.0.2.2"}, nil, []string{"192.0.2.2", "192.0.2.1"}},
		// Other programs compare text, in which these differ.
		{"by value", []string{"192.0.2.1/32", "2001:DB8::1"}, []string{"192.0.2.1"}, []string{"192.0.2.1", "2001:db8::1/128"}, nil, []string{"192.0.2.1", "2001:db8::1"}},
		{"networks that overlap stay", []string{"192.0.2.0/24", "192.0.2.1"}, nil, []string{"192.0.2.1", "192.0.2.0/25"}, []string{"192.0.2.0/24"}, []string{"192.0.2.1", "192.0.2.0/25"}},
		{"families differ", []string{"::ffff:1.2.3.4"}, nil, []string{"1.2.3.4"}, []string{"::ffff:1.2.3.4"}, []string{"1.2.3.4"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			allow, deny := Effective(prefixes(tt.profile...), prefixes(tt.live...), prefixes(tt.deny...))
			if d := cmp.Diff(prefixes(tt.want...), allow, netipCmp, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("allow (-want +got)\n%s", d)
			}
			if d := cmp.Diff(prefixes(tt.wantD...), deny, netipCmp, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("deny (-want +got)\n%s", d)
			}
		})
	}
	// Host bits in the arguments make no difference.
	odd := []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}
	if allow, _ := Effective(odd, nil, prefixes("192.0.2.0/24")); len(allow) > 0 {
		t.Errorf("allow %v", allow)
	}
}
