// Command bench measures what the server's binary costs and how fast it is, against
// a floor: the least that any server could do. It runs both in turn, on this
// machine's loopback, and prints the medians.
//
//	go run ./internal/bench                 # all rows, about six minutes
//	go run ./internal/bench -short          # smaller loads, about a minute
//	go run ./internal/bench -rows idle,churn -server ./eventsource
//	go run ./internal/bench floor 127.0.0.1:9000
//
// CPU is that of the server's process, user and system, in hundredths of a
// second. On loopback the sender also pays for the receiver's half of TCP, so that
// a ratio to the floor says more than a figure. A delivery is one event read by one
// consumer; latency is from when the event was due until it was read.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usageText = `usage: bench [flags]            measure the server against the floor
       bench floor ADDR         serve as the floor: one write for each event and consumer
       bench floor-batch ADDR   serve as the floor that sends all that is pending at once

flags:
`

func main() {
	if done, status := floorCommand(os.Args[1:]); done {
		os.Exit(status)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// floorCommand serves as a floor, if that is asked for.
func floorCommand(args []string) (asked bool, status int) {
	if len(args) == 3 && args[0] == profiledServer {
		if err := serveProfiled(args[1], args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return true, 1
		}
		return true, 0
	}
	if len(args) == 0 || args[0] != theFloor && args[0] != theBatchFloor {
		return false, 0
	}
	if len(args) != 2 {
		fmt.Fprint(os.Stderr, usageText)
		return true, 2
	}
	err := serveFloor(args[1], args[0] == theBatchFloor)
	fmt.Fprintln(os.Stderr, "bench:", err)
	return true, 1
}

// run returns the exit status: 0 if all was measured, whatever came of it, 1 if a
// load failed or lost events, 2 for wrong arguments.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	b := bench{out: stdout, log: stderr}
	err := b.parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// A bench is what is to be measured, and how.
type bench struct {
	server string // a binary; empty: build it
	rows   []row
	repeat int
	json   bool
	scale  scale

	profile string // where a profile of the server is to be written

	out, log io.Writer
	self     string // this program, which is the floor as well
	folder   string // for files of this run
	profiles []string
	empty    string // a configuration file without anything
}

// parse sets what the arguments ask for.
func (b *bench) parse(args []string) error {
	all := rows()
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].name
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(b.log)
	f.Usage = func() {
		fmt.Fprint(b.log, usageText)
		f.PrintDefaults()
	}
	chosen := f.String("rows", strings.Join(names, ","), "the rows to measure")
	short := f.Bool("short", false, "smaller and shorter loads, and one run of each")
	f.StringVar(&b.server, "server", "", "the server's `binary`; without one it is built")
	f.IntVar(&b.repeat, "repeat", 0, "runs of each load, of which the median counts (default 3)")
	f.StringVar(&b.profile, "profile", "", "write a CPU profile of the server under all loads to this `file`, for the compiler")
	f.BoolVar(&b.json, "json", false, "print an object a line, not a table")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%q is no flag, nor floor or floor-batch", f.Arg(0))
	}
	for name := range strings.SplitSeq(*chosen, ",") {
		i := slices.Index(names, name)
		if i < 0 {
			return fmt.Errorf("there is no row %q; the rows are %s", name, strings.Join(names, ", "))
		}
		b.rows = append(b.rows, all[i])
	}
	b.scale = scale{part: 1, load: 4 * time.Second, warmup: time.Second, settle: 2 * time.Second}
	repeat := 3
	if *short {
		b.scale = scale{part: 4, load: 1500 * time.Millisecond, warmup: 300 * time.Millisecond, settle: 600 * time.Millisecond}
		repeat = 1
	}
	if b.repeat == 0 {
		b.repeat = repeat
	}
	if b.repeat < 0 {
		return errors.New("-repeat must be at least 1")
	}
	return nil
}

// disturbance is how many processors other programs may keep busy without a warning.
const disturbance = 0.2

// run measures all rows and prints each as soon as it is done.
func (b *bench) run(ctx context.Context) error {
	descriptors, err := raiseDescriptors()
	if err != nil {
		return err
	}
	b.scale.capacity = descriptors - 500 // the rest is for files and publishers, here and in the server
	if b.scale.capacity < 100 {
		return fmt.Errorf("the limit of descriptors is only %d; 20000 are enough", descriptors)
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	folder, err := os.MkdirTemp("", "eventsource-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	b.folder = folder
	b.empty = filepath.Join(folder, "empty.yml")
	if err := os.WriteFile(b.empty, nil, 0o600); err != nil {
		return err
	}
	if b.server == "" && b.profile == "" {
		b.server = filepath.Join(folder, "eventsource")
		if err := build(ctx, b.server); err != nil {
			return err
		}
	}
	if !b.json {
		printHeading(b.out)
	}
	var failed []error
	for _, r := range b.rows {
		began := time.Now()
		before, err := cpuOfOthers()
		if err != nil {
			return err
		}
		if err := b.measure(ctx, r); err != nil {
			err = fmt.Errorf("%s: %w", r.name, err)
			fmt.Fprintln(b.log, err)
			failed = append(failed, err)
		}
		after, err := cpuOfOthers()
		if err != nil {
			return err
		}
		if busy := (after - before).Seconds() / time.Since(began).Seconds(); busy > disturbance {
			fmt.Fprintf(b.log, "%s: other programs kept %.1f processors busy meanwhile; latencies and rates are not to be trusted\n", r.name, busy)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if b.profile != "" {
		if err := mergeProfiles(ctx, b.profile, b.profiles); err != nil {
			failed = append(failed, err)
			fmt.Fprintln(b.log, err)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d of %d rows failed", len(failed), len(b.rows))
	}
	return nil
}

// build makes the server's binary from the module in or above the working folder.
func build(ctx context.Context, to string, flags ...string) error {
	args := append([]string{"build", "-o", to}, flags...)
	out, err := exec.CommandContext(ctx, "go", append(args, "github.com/railsmechanic/eventsource/cmd/eventsource")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the server (run this in its repository, or give -server): %w: %s", err, out)
	}
	return nil
}

// measure runs a row's loads in turn and prints its figures.
func (b *bench) measure(ctx context.Context, r row) error {
	var ours, floor []sample
	lost := 0.0
	for range b.repeat {
		s, err := b.load(ctx, r.ours)
		if err != nil {
			return err
		}
		ours, lost = append(ours, s), lost+s[lostKey]
		if r.floor == nil {
			continue
		}
		if s, err = b.load(ctx, *r.floor); err != nil {
			return fmt.Errorf("what it is compared with: %w", err)
		}
		floor, lost = append(floor, s), lost+s[lostKey]
	}
	for _, f := range r.figures {
		compare(r, f, ours, floor).print(b.out, b.json)
	}
	if lost != 0 {
		return fmt.Errorf("%.0f deliveries were lost, or came twice or out of order", lost)
	}
	return nil
}

// load runs a load once.
func (b *bench) load(ctx context.Context, l load) (sample, error) {
	args := []string{"--config", b.empty}
	if l.server == theFile {
		folder, err := os.MkdirTemp(b.folder, "")
		if err != nil {
			return nil, err
		}
		args = append(args, "--backend", "sqlite:"+filepath.Join(folder, "events.db"))
	}
	return l.run(&bed{scale: b.scale, start: func() (*child, error) {
		if l.server != theServer && l.server != theFile {
			return startChild(ctx, b.self, func(addr string) []string { return []string{l.server, addr} })
		}
		if b.profile != "" && l.server == theServer {
			file := filepath.Join(b.folder, fmt.Sprintf("profile.%d", len(b.profiles)))
			b.profiles = append(b.profiles, file)
			return startChild(ctx, b.self, func(addr string) []string { return []string{profiledServer, addr, file} })
		}
		return startChild(ctx, b.server, func(addr string) []string {
			_, port, _ := net.SplitHostPort(addr)
			return append([]string{"serve", "--port", port}, args...)
		})
	}})
}
