package shield_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/terok-ai/terok-box/applets/shield"
)

// An orchestrator has containers started under the firewall, and decides for
// them while they run.
func Example() {
	s, err := shield.New(shield.Config{
		StateRoot: "/var/lib/orchestrator/shield",
		Program:   "/usr/bin/terok-box",
		Vars:      map[string]string{"PATH": "/usr/bin", "HOME": "/home/agents", "XDG_RUNTIME_DIR": "/run/user/1000"},
		Audit:     true,
		Warn:      func(text string) { log.Print(text) },
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	if e := s.Check(ctx); e.NeedsSetup {
		log.Fatalf("run terok-shield setup first: %v", e.Issues)
	}
	flags, err := s.Prepare(ctx, "agent-1", []string{"base"}, "")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("podman create --name agent-1", strings.Join(flags, " "), "IMAGE")
	// Later, while it runs:
	if _, err := s.Allow(ctx, "agent-1", "example.com"); err != nil {
		log.Fatal(err)
	}
	if err := s.Quarantine(ctx, "agent-1"); err != nil {
		log.Fatal(err)
	}
}

// What a container in quarantine is held to, as text for nft.
func ExampleShield_Preview() {
	s, err := shield.New(shield.Config{StateRoot: os.TempDir(), Program: "/usr/bin/terok-box"})
	if err != nil {
		log.Fatal(err)
	}
	text, err := s.Preview(shield.StateQuarantine)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(text)
	// Output:
	// table inet terok_shield {
	// 	chain output {
	// 		type filter hook output priority filter; policy drop;
	// 		oifname "lo" accept
	// 		limit rate over 100/second burst 200 packets counter drop
	// 		log prefix "TEROK_SHIELD_QUARANTINE: " group 100 counter drop
	// 	}
	//
	// 	chain input {
	// 		type filter hook input priority filter; policy drop;
	// 		iifname "lo" accept
	// 		drop
	// 	}
	// }
}
