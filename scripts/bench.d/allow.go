package main

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// allowScript prints, in microseconds, how long each command took: "ours N"
// and "nft N" in turn.
//
//go:embed allow.sh
var allowScript string

// benchAllow measures an allow as an operator types it, against what does the
// same to the kernel without it: both from the plain shell of an ordinary user,
// for a real rootless container of the lab.
func benchAllow() ([]row, error) {
	cmd := exec.Command("scripts/lab", "op", "bash", "-c", allowScript)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("in the lab: %w", err)
	}
	times := map[string][]time.Duration{}
	for line := range strings.Lines(string(out)) {
		name, n, _ := strings.Cut(strings.TrimSpace(line), " ")
		us, err := strconv.Atoi(n)
		if err != nil {
			return nil, fmt.Errorf("the lab said %q", line)
		}
		times[name] = append(times[name], time.Duration(us)*time.Microsecond)
	}
	if len(times["ours"]) == 0 || len(times["nft"]) == 0 {
		return nil, fmt.Errorf("the lab said %q", out)
	}
	return []row{
		faster("terok-shield allow, live container", median(times["ours"]), "podman unshare nsenter nft add element", median(times["nft"]), 10),
	}, nil
}
