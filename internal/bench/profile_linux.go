package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"github.com/railsmechanic/eventsource"
)

// profiledServer is the argument that makes this program the server.
const profiledServer = "profiled"

// serveProfiled serves with the default settings until SIGTERM and writes a CPU
// profile of that to a file.
func serveProfiled(addr, file string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server, err := eventsource.Open(nil)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case <-ctx.Done():
	case err := <-served:
		return err
	}
	pprof.StopCPUProfile()
	server.Stop()
	return nil
}

// mergeProfiles writes one profile of several, as the compiler takes it.
func mergeProfiles(ctx context.Context, to string, from []string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "pprof", "-proto"}, from...)...)
	cmd.Stderr = &said
	merged, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("merge the profiles: %w: %s", err, said.Bytes())
	}
	return os.WriteFile(to, merged, 0o644)
}
