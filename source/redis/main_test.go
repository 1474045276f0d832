package redis_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	client "github.com/redis/go-redis/v9"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/internal/check"
	"github.com/railsmechanic/eventsource/internal/sourcetest"
	"github.com/railsmechanic/eventsource/source/redis"
)

// TestMain fails the package when goroutines or descriptors are left over.
func TestMain(m *testing.M) {
	client.SetLogger(silent{}) // what the tests' own clients have to say
	check.Main(m)
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// shared returns the URL of the Redis that tests share, and a client of it.
func shared(t testing.TB) (string, *client.Client) {
	t.Helper()
	url := brokertest.Redis(t)
	return url, dial(t, url)
}

// dial returns a client.
func dial(t testing.TB, url string) *client.Client {
	t.Helper()
	o, err := client.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	c := client.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

// unique returns a name that nobody else has, and has the key of the name removed.
func unique(t testing.TB, c *client.Client, what string) string {
	name := fmt.Sprintf("eventsource-test-%s-%d-%d", what, os.Getpid(), time.Now().UnixNano())
	t.Cleanup(func() { c.Del(context.Background(), name) })
	return name
}

// source returns a source that is fed as c says.
func source(t testing.TB, c redis.Config) *redis.Source {
	t.Helper()
	s, err := redis.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open returns a server that is fed by a source.
func open(t testing.TB, settings *eventsource.Settings, s *redis.Source) *eventsource.Server {
	t.Helper()
	if settings == nil {
		settings = &eventsource.Settings{}
	}
	settings.Sources = []eventsource.Source{s}
	if settings.History.Events == 0 {
		settings.History = eventsource.History{Events: 1 << 20, Bytes: 1 << 30}
	}
	srv, err := eventsource.Open(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, srv) })
	return srv
}

// connected waits until the source has been connected so often.
func connected(t testing.TB, srv *eventsource.Server, times int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the source is connected for the %d. time", times), func() bool {
		s := srv.Stats().Sources[0]
		return s.State == "ok" && s.Connects >= uint64(times)
	})
}

// What the tests of several packages share.
var eventually, follow, shutdown = check.Eventually, sourcetest.Follow, sourcetest.Shutdown
