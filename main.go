// Command terok-box is the egress firewall for containers: one static binary
// that acts as the program it is called as. See README.md.
package main

import (
	"os"
	"runtime"

	"github.com/terok-ai/terok-box/applets"
)

// The main goroutine keeps the main thread for itself: /proc/self describes
// the main thread, and a goroutine that enters a container's namespaces on
// it would make /proc/self/ns/net the container's.
func init() { runtime.LockOSThread() }

func main() { os.Exit(applets.Main(os.Args)) }
