package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/backend/sqlite"
)

const (
	// childFile is the environment variable that makes the test binary a program that
	// publishes to this file until it is killed.
	childFile = "EVENTSOURCE_TEST_SQLITE_FILE"
	// kills is the environment variable that says how often it is killed.
	kills = "EVENTSOURCE_TEST_KILLS"
)

// A quiet node has nothing to do.
type quiet struct{}

func (quiet) Deliver(...*eventsource.Record)         {}
func (quiet) Lost(eventsource.Order)                 {}
func (quiet) Available(error)                        {}
func (quiet) Retention(string) eventsource.Retention { return eventsource.Retention{} }
func (quiet) Limits() eventsource.Limits {
	return eventsource.Limits{IdempotencyKeys: 1000, Channels: 1000}
}

// publishUntilKilled publishes batches of three from 16 goroutines, and prints the Seq
// and the data of each that is acknowledged.
func publishUntilKilled(file string) {
	b, err := sqlite.New(file, nil)
	if err == nil {
		_, err = b.Start(quiet{})
	}
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	fmt.Println("started", "x")
	for p := range 16 {
		go func() {
			for n := 0; ; n++ {
				text := fmt.Sprintf("%d-%d-%d", os.Getpid(), p, n)
				r := &eventsource.Record{Channels: []string{fmt.Sprintf("a.%d", p), "b"},
					Events: []eventsource.Event{{Data: text + "-0"}, {Data: text + "-1"}, {Data: text + "-2"}}}
				kept, err := b.Publish(context.Background(), r)
				mu.Lock()
				if err != nil {
					fmt.Println("failed", err)
					os.Exit(1)
				}
				fmt.Println(kept.Seq, text)
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestWhatIsAcknowledgedOutlivesAKill(t *testing.T) {
	rounds := 5
	if s := os.Getenv(kills); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(kills, err)
		}
	}
	file := filepath.Join(t.TempDir(), "events.db")
	acknowledged := map[uint64]string{}
	for range rounds {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childFile+"="+file)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var killer *time.Timer
		for in := bufio.NewReader(out); ; {
			line, err := in.ReadString('\n')
			if err == io.EOF {
				break // the last line may be half there
			}
			seq, text, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch seq {
			case "failed":
				t.Errorf("the program: %s", text)
			case "started":
				killer = time.AfterFunc(time.Duration(rand.IntN(300))*time.Millisecond, func() { child.Process.Kill() })
			default:
				n, err := strconv.ParseUint(seq, 10, 64)
				if err != nil {
					t.Errorf("the program printed %q", line)
				}
				if before := acknowledged[n]; before != "" {
					t.Errorf("%d was given to %s and to %s", n, before, text)
				}
				acknowledged[n] = text
			}
		}
		child.Wait()
		if killer == nil {
			t.Fatal("the program did not start")
		}
		killer.Stop()
	}
	b := backendOf(t, file)
	order, err := b.Start(quiet{})
	if err != nil {
		t.Fatal("after the kills:", err)
	}
	defer b.Close()
	if len(order.Earlier) != rounds {
		t.Errorf("%d lives have ended, not %d", len(order.Earlier), rounds)
	}
	found := 0
	query := eventsource.Query{Channel: "b", Limit: 4096 * 3}
	var text string
	for more := true; more; {
		page, err := b.Read(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			query.After = e.Seq
			place := (found) % 3
			found++
			if place == 0 {
				text = strings.TrimSuffix(e.Data, "-0")
				if want := acknowledged[e.Seq]; want != "" && want != text {
					t.Errorf("at %d is %s, and %s was acknowledged", e.Seq, text, want)
				}
				delete(acknowledged, e.Seq)
			}
			if want := fmt.Sprintf("%s-%d", text, place); e.Data != want {
				t.Fatalf("at %d is %s, not %s: a batch is half there", e.Seq, e.Data, want)
			}
		}
		more = page.More
	}
	for seq, text := range acknowledged {
		t.Errorf("%s was acknowledged at %d, and is lost", text, seq)
	}
	if found == 0 || found%3 != 0 {
		t.Errorf("%d events were found", found)
	}
	if n, err := b.Count(t.Context(), eventsource.Query{Channel: "a.*"}); err != nil || n != found {
		t.Errorf("the wildcard has %d of %d events, %v", n, found, err)
	}
	t.Logf("%d events outlived %d kills", found, rounds)
}
