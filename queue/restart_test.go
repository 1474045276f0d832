//go:build unix

package queue_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/queue"
)

// What was published and confirmed is in its queue after the broker was killed, and comes
// to the consumers once more connected; what was acknowledged may come again, and nothing
// is missing or out of order.
func TestABrokerThatIsKilledLosesNothing(t *testing.T) {
	t.Parallel()
	if testing.Short() { // it takes a broker of its own, which is slow to start
		return
	}
	r := brokertest.OwnRabbitMQ(t)
	b := &broker{t: t, url: r.URL, prefix: "test-"}
	if err := b.connect(); err != nil {
		t.Fatal(err)
	}
	t.Run("a user who may only read", func(t *testing.T) { mayOnlyRead(t, r) })
	s := serving(t, b, queue.Config{Expires: -1})
	c := s.consume(t, "A")
	b.publish("A", "0", "1")
	c.gets("0", "1")
	eventually(t, "both are acknowledged", func() bool { return s.queues.Stats().Events == 2 })
	c.leave() // whoever leaves before may get the last one again

	if err := b.channel.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for i := 2; i < 50; i++ {
		confirm, err := b.channel.PublishWithDeferredConfirm("", b.prefix+"A", true, false,
			amqp.Publishing{Body: fmt.Append(nil, i), DeliveryMode: amqp.Persistent})
		if err != nil || !confirm.Wait() {
			t.Fatal("not confirmed", err)
		}
	}
	c = s.consume(t, "A")
	c.gets("2")
	r.Kill()
	seen := 2
	for block := c.block(); block != ""; block = c.block() {
		if strings.Contains(block, "eventsource.end") {
			break
		}
		fmt.Sscanf(block, "data: %d\n", &seen)
	}
	ask(t, s.url+"?id=A").refusedWith(503, "no broker is connected")

	r.Start()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 600 { // the pauses grow up to 30 s
		if s.queues.Stats().Nodes[0].Connected {
			break
		}
		<-tick.C
	}
	c = s.consume(t, "A")
	next := func() (n int) {
		t.Helper()
		if _, err := fmt.Sscanf(c.block(), "data: %d\n", &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := next()
	for want := first + 1; want < 50; want++ {
		if got := next(); got != want {
			t.Fatalf("%d comes where %d should", got, want)
		}
	}
	t.Logf("%d had come when it was killed, and %d was the first to come afterwards", seen, first)
	if first > seen+1 {
		t.Errorf("%d had come, and then %d", seen, first)
	}
}

// Who may declare nothing gets the queues that are there, and is told of others.
func mayOnlyRead(t *testing.T, r *brokertest.Broker) {
	r.Ctl("eval", `rabbit_auth_backend_internal:add_user(<<"reader">>, <<"geheim">>, <<"test">>),
		rabbit_auth_backend_internal:set_permissions(<<"reader">>, <<"/">>, <<>>, <<>>, <<"^only-(known|missing)$">>, <<"test">>).`)
	b := &broker{t: t, url: r.URL, prefix: "only-"}
	if err := b.connect(); err != nil {
		t.Fatal(err)
	}
	defer b.conn.Close()
	b.declare("known", nil)
	b.declare("secret", nil)
	b.publish("known", "there")
	s := serving(t, b, queue.Config{Nodes: []string{strings.Replace(r.URL, "guest:guest", "reader:geheim", 1)}})
	s.consume(t, "known").gets("there")
	for _, id := range []string{"secret", "missing"} {
		ask(t, s.url+"?id="+id).refusedWith(502, "the broker does not let this server have the queue")
	}
	if n := s.queues.Stats().Turned[queue.TurnedDenied]; n != 2 || !strings.Contains(s.log.String(), "reason=denied") {
		t.Errorf("%d are counted, and logged is %s", n, s.log)
	}
}
