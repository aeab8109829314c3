package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
)

const (
	image     = "localhost/terok-demo"
	demoName  = "terok-demo"
	tool      = "/demo" // this program inside the image
	slirpHost = "10.0.2.2"
	pastaHost = "169.254.1.2"
)

// unsuited says why there is no real container to be had.
type unsuited struct{ reason string }

func (u *unsuited) Error() string { return u.reason }

// podmanDemo runs the tour with a real rootless container. What it makes in
// Podman it removes, and the hooks too unless they were installed before.
func podmanDemo() error {
	podman, err := exec.LookPath("podman")
	if err != nil {
		return &unsuited{"no podman"}
	}
	if os.Geteuid() == 0 {
		return &unsuited{"root's containers are not what this shows; run it as an ordinary user"}
	}
	quiet := func(stdin []byte, argv ...string) (string, error) {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = bytes.NewReader(stdin)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		if err := cmd.Run(); err != nil {
			text := strings.TrimSpace(errOut.String())
			return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv[:min(3, len(argv))], " "), err, text[strings.LastIndexByte(text, '\n')+1:])
		}
		return out.String(), nil
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	layer, err := layerOf(self)
	if err != nil {
		return err
	}
	if _, err := quiet(layer, podman, "import", "-", image); err != nil {
		return &unsuited{err.Error()}
	}
	defer quiet(nil, podman, "rmi", "--force", image)
	if _, err := quiet(nil, podman, "run", "--rm", image, tool, wordConnect, "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "refused") {
		return &unsuited{fmt.Sprintf("podman cannot run a container here: %v", err)}
	}

	shield := program("terok-shield")
	before, err := quiet(nil, shield, "check-environment")
	if err != nil {
		return err
	}
	if !strings.Contains(before, "hooks=global") {
		fmt.Println("\n$ terok-shield setup      (taken back at the end)")
		if _, err := quiet(nil, shield, "setup"); err != nil {
			return err
		}
		defer quiet(nil, shield, "uninstall")
	}
	dir, err := os.MkdirTemp("", "terok-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	l, err := serve("127.0.0.1:0") // the host's loopback stands for the internet
	if err != nil {
		return err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	s := &stage{container: demoName, args: []string{"--state-dir", dir}, reach: func(to string) error {
		_, err := quiet(nil, podman, "exec", demoName, tool, wordConnect, to)
		return err
	}}
	fmt.Printf("\n$ terok-shield run %s -- -d IMAGE CMD\n", demoName)
	defer quiet(nil, podman, "rm", "--force", "--time", "0", demoName)
	if _, err := quiet(nil, shield, "--state-dir", dir, "run", demoName, "--profiles", "base", "--", "-d", image, tool, wordHold); err != nil {
		return err
	}
	addr := slirpHost
	if mode, err := os.ReadFile(dir + "/containers/" + demoName + "/network.mode"); err == nil && strings.HasPrefix(string(mode), "pasta") {
		addr = pastaHost
	}
	s.expect(false, addr+":"+port)
	return s.tour(addr, port)
}

// layerOf is a root file system that holds one program.
func layerOf(program []byte) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(tool, "/"), Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	err := w.Close()
	return buf.Bytes(), err
}
