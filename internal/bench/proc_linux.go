package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A child is a server that this program has started.
type child struct {
	addr   string
	cmd    *exec.Cmd
	cancel context.CancelFunc
	said   bytes.Buffer // on standard error; read after Wait
}

// startChild runs a program with the arguments that args returns for a free
// address, and waits until that answers. The end of ctx ends it.
func startChild(ctx context.Context, program string, args func(addr string) []string) (*child, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &child{addr: l.Addr().String()}
	l.Close()

	ctx, c.cancel = context.WithCancel(ctx)
	c.cmd = exec.CommandContext(ctx, program, args(c.addr)...)
	c.cmd.Stderr = &c.said
	c.cmd.Cancel = func() error { return c.cmd.Process.Signal(syscall.SIGTERM) }
	c.cmd.WaitDelay = 10 * time.Second
	c.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "EVENTSOURCE_") // the server is to run as it comes
	})
	if err := c.cmd.Start(); err != nil {
		c.cancel()
		return nil, err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp4", c.addr)
		if err == nil {
			conn.Close()
			return c, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			c.stop()
			return nil, fmt.Errorf("%s does not answer: %w: %s", program, err, c.said.Bytes())
		}
	}
}

// stop ends the child with SIGTERM, and kills it after ten seconds.
func (c *child) stop() {
	c.cancel()
	c.cmd.Wait()
}

// kill ends the child with SIGKILL.
func (c *child) kill() {
	c.cmd.Process.Kill()
	c.stop()
}

// A usage is what a process has used up to now, in bytes where not said otherwise.
type usage struct {
	cpu     time.Duration // user and system
	private int64         // resident, and shared with no other process
	rss     int64         // resident
	peak    int64         // highest rss since forgetPeak
}

func (c *child) usage() (u usage, err error) {
	pid := c.cmd.Process.Pid
	if u.cpu, err = cpuOf(pid); err != nil {
		return u, err
	}
	memory, err := readSizes(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return u, err
	}
	status, err := readSizes(fmt.Sprintf("/proc/%d/status", pid))
	u.private = memory["Private_Clean"] + memory["Private_Dirty"]
	u.rss, u.peak = memory["Rss"], status["VmHWM"]
	return u, err
}

// forgetPeak starts the peak anew. Where the kernel does not permit it, the peak
// is that of the process's whole life.
func (c *child) forgetPeak() {
	os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.cmd.Process.Pid), []byte("5"), 0)
}

// cpuOf reads utime and stime of proc_pid_stat(5), which are in hundredths of a second.
func cpuOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // from the third on
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	user, err1 := strconv.ParseInt(string(fields[11]), 10, 64)
	system, err2 := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// readSizes reads the lines "Name: 12 kB" of a file in /proc, in bytes.
func readSizes(path string) (map[string]int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sizes := map[string]int64{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "kB" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			sizes[strings.TrimSuffix(f[0], ":")] = kb << 10
		}
	}
	return sizes, nil
}

// cpuOfOthers is the CPU time of all programs but this one and the children that it
// has waited for, since some moment in the past.
func cpuOfOthers() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	// proc_stat(5): cpu user nice system idle iowait irq softirq ...
	fields := strings.Fields(string(b))
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, errors.New("/proc/stat has no line of all processors")
	}
	busy := time.Duration(0)
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		busy += time.Duration(n) * 10 * time.Millisecond
	}
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if err := unix.Getrusage(who, &r); err != nil {
			return 0, os.NewSyscallError("getrusage", err)
		}
		busy -= time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return busy, nil
}
