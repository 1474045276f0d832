package amqp_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/source/amqp"
)

// with returns a URL with another user, password and path.
func with(t *testing.T, broker string, user *url.Userinfo, path string) string {
	t.Helper()
	u, err := url.Parse(broker)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.Path = user, path
	return u.String()
}

func TestWhatCannotConnectSaysWhyAndNoPassword(t *testing.T) {
	t.Parallel() // the broker takes three seconds to refuse a password
	b := shared(t)
	q := b.queue(rabbit.Table{})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	secret := url.UserPassword("nobody", "GEHEIM")
	host := strings.TrimPrefix(with(t, b.url, nil, ""), "amqp://")
	exclusive, err := b.channel.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		config amqp.Config
		want   string
	}{
		{"a wrong password", amqp.Config{URLs: []string{with(t, b.url, secret, "")}, Queue: q}, "can't connect to " + host + ": username or password not allowed"},
		{"a wrong vhost", amqp.Config{URLs: []string{b.url + "/none"}, Queue: q}, "can't connect to " + host + ": NOT_ALLOWED - vhost none not found"},
		{"nobody there", amqp.Config{URLs: []string{"amqp://nobody:GEHEIM@" + closed.Addr().String()}, Queue: q}, "can't connect to " + closed.Addr().String() + ": "},
		{"no TLS there", amqp.Config{URLs: []string{"amqps://nobody:GEHEIM@" + host}, Queue: q}, "can't connect to " + host + ": tls: "},
		{"no such file", amqp.Config{URLs: []string{"amqps://nobody:GEHEIM@" + host + "?cacertfile=/none"}, Queue: q}, "/none: no such file"},
		{"no exchange", amqp.Config{URLs: []string{b.url}, Queue: q, Exchange: name()}, "there is no exchange"},
		{"another's queue", amqp.Config{URLs: []string{b.url}, Queue: exclusive.Name}, "can't look for the queue"},
		{"a reserved name", amqp.Config{URLs: []string{b.url}, Queue: "amq." + name()}, "can't declare the queue"},
		{"an offset of what is no stream", amqp.Config{URLs: []string{b.url}, Queue: q, QueueType: amqp.Stream, Offset: "first"}, "can't consume the queue"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.config.Channel = "a"
			n := run(t, nil, test.config)
			n.until("failing", 0)
			if got := n.stats(); !strings.Contains(got.Reason, test.want) || got.Connects != 0 {
				t.Errorf("the source is %+v, and not for %q", got, test.want)
			}
			if strings.Contains(n.log.String()+n.stats().Reason, "GEHEIM") {
				t.Errorf("the password is in the log:\n%s", n.log)
			}
		})
	}
}

func TestAnExchangeThatComesLaterIsFound(t *testing.T) {
	b := shared(t)
	x := name()
	n := run(t, nil, amqp.Config{URLs: []string{b.url}, Exchange: x, Channel: "a"})
	n.until("failing", 0)
	b.declareExchange(x, "fanout")
	n.until("ok", 1)
	b.publish(x, "", "x")
	n.follow("a").expect("x")
}

func TestAQueueThatIsDeletedIsNoticedAndDeclaredAnew(t *testing.T) {
	b := shared(t)
	q := b.queue(nil)
	n := ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a"})
	if _, err := b.channel.QueueDelete(q, false, false, false); err != nil {
		t.Fatal(err)
	}
	n.until("ok", 2)
	if want := "the broker delivers nothing from the queue"; !strings.Contains(n.log.String(), want) {
		t.Errorf("%q is not in the log:\n%s", want, n.log)
	}
	b.publish("", q, "x")
	n.follow("a").expect("x")
}

func TestTheNodesOfAClusterAreTriedInTurn(t *testing.T) {
	b := shared(t)
	q := b.queue(nil)
	one, first := brokertest.Through(t, b.url)
	two, second := brokertest.Through(t, b.url)
	one.Shut()
	n := ready(t, nil, amqp.Config{URLs: []string{first, second}, Queue: q, Channel: "a"})
	one.Open()
	two.Shut()
	n.until("ok", 2)
	b.publish("", q, "x")
	n.follow("a").expect("x")
}

func TestACertificateThatIsTrustedIsConnectedTo(t *testing.T) {
	b := shared(t)
	q := b.queue(nil)
	file, key := brokertest.Certificate(t)
	_, through := brokertest.ThroughTLS(t, b.url, file, key)
	through = strings.Replace(through, "amqp:", "amqps:", 1)
	n := run(t, nil, amqp.Config{URLs: []string{through}, Queue: q, Channel: "a"})
	n.until("failing", 0)
	if got := n.stats().Reason; !strings.Contains(got, "certificate") {
		t.Errorf("a certificate that nobody vouches for: %s", got)
	}
	n.end()
	n = ready(t, nil, amqp.Config{URLs: []string{through + "?heartbeat=5&cacertfile=" + file}, Queue: q, Channel: "a"})
	b.publish("", q, "x")
	n.follow("a").expect("x")
}

// storm publishes so many payloads, numbered, each with an id, and each again when it was
// not confirmed. It calls at, if there is one, before each.
func (b *broker) storm(exchange, key string, n int, at func(i int)) {
	b.t.Helper()
	if err := b.channel.Confirm(false); err != nil {
		b.t.Fatal(err)
	}
	var open []*rabbit.DeferredConfirmation
	for i := range n {
		if at != nil {
			at(i)
		}
		c, err := b.channel.PublishWithDeferredConfirm(exchange, key, false, false,
			rabbit.Publishing{Body: fmt.Append(nil, "e", i), MessageId: fmt.Sprint(i), DeliveryMode: rabbit.Persistent})
		if err != nil {
			b.t.Fatal(err)
		}
		if open = append(open, c); len(open) == 100 || i == n-1 {
			for _, c := range open {
				c.Wait()
			}
			open = open[:0]
		}
	}
}

func TestConnectionsThatAreCutInAStormLoseNothingAndRepeatNothing(t *testing.T) {
	const count = 5000
	b := shared(t)
	for what, c := range map[string]amqp.Config{
		"classic": {QueueType: amqp.Classic}, "quorum": {QueueType: amqp.Quorum}, "stream": {QueueType: amqp.Stream},
	} {
		t.Run(what, func(t *testing.T) {
			p, through := brokertest.Through(t, b.url)
			c.URLs, c.Queue, c.Channel = []string{through}, b.queue(nil), "a"
			n := ready(t, nil, c)
			b.open()
			b.storm("", c.Queue, count, func(i int) {
				if i%500 == 250 {
					p.Cut()
				}
			})
			n.follow("a").expect(numbered("e", 0, count)...)
			connects := n.stats().Connects
			n.end()
			if got := n.stats(); got.Published != count || connects < 2 {
				t.Errorf("the source is %+v", got)
			}
			if left := b.left(c.Queue); left != 0 && what != "stream" {
				t.Errorf("%d are left", left)
			}
		})
	}
}

func TestWhatIsCountedWhileConnectionsAreCutIsExact(t *testing.T) {
	const count = 5000
	b := shared(t)
	p, through := brokertest.Through(t, b.url)
	q := b.queue(rabbit.Table{})
	n := ready(t, nil, amqp.Config{URLs: []string{through}, Queue: q, Channel: "a", Rollup: 17 * time.Millisecond})
	b.storm("", q, count, func(i int) {
		if i%500 == 250 {
			p.Cut()
		}
	})
	f := n.follow("a")
	sums := map[string]int{}
	for len(sums) < count {
		for payload, k := range decode(t, f.next().data) {
			if sums[payload] += k; sums[payload] > 1 {
				t.Fatalf("%s was counted twice", payload)
			}
		}
	}
	n.end()
	if left := b.left(q); left != 0 {
		t.Errorf("%d are left", left)
	}
}

func TestASourceEndsAtOnceWhateverTheBrokerDoes(t *testing.T) {
	b := shared(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	q := b.queue(rabbit.Table{})
	ends := func(t *testing.T, n *node, within time.Duration) {
		t.Helper()
		began := time.Now()
		n.end()
		if took := time.Since(began); took > within {
			t.Errorf("the end took %v", took)
		}
	}
	t.Run("idle", func(t *testing.T) {
		ends(t, ready(t, nil, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a"}), 200*time.Millisecond)
	})
	t.Run("it does not answer", func(t *testing.T) {
		n := run(t, nil, amqp.Config{URLs: []string{"amqp://" + silent.Addr().String()}, Queue: q, Channel: "a"})
		if c, err := silent.Accept(); err == nil {
			defer c.Close()
		}
		ends(t, n, 200*time.Millisecond)
	})
	t.Run("it hangs", func(t *testing.T) {
		p, through := brokertest.Through(t, b.url)
		n := ready(t, nil, amqp.Config{URLs: []string{through}, Queue: q, Channel: "a"})
		p.Pause()
		ends(t, n, time.Second)
	})
	t.Run("events are refused", func(t *testing.T) {
		v := newValve(t)
		n := ready(t, &eventsource.Settings{Backend: v}, amqp.Config{URLs: []string{b.url}, Queue: q, Channel: "a", Prefetch: 10})
		v.shut.Store(true)
		for _, data := range numbered("e", 0, 50) {
			b.publish("", q, data)
		}
		eventually(t, "40 that are left", func() bool { return b.left(q) == 40 })
		ends(t, n, time.Second)
		eventually(t, "all 50 back in the queue", func() bool { return b.left(q) == 50 })
	})
}

func TestABrokerThatIsRestartedInAStormLosesNothing(t *testing.T) {
	if testing.Short() { // it takes a broker of its own, which is slow to start
		return
	}
	const count = 3000
	t.Parallel()
	own := brokertest.OwnRabbitMQ(t)
	kinds := []string{amqp.Classic, amqp.Quorum, amqp.Stream}
	// What is declared is on the disk for certain once the broker was stopped.
	admin := at(t, own.URL)
	for _, kind := range kinds {
		admin.declare(kind, rabbit.Table{"x-queue-type": kind})
	}
	admin.conn.Close()
	own.Stop()
	own.Start()
	var nodes []*node
	for _, kind := range kinds {
		nodes = append(nodes, ready(t, nil, amqp.Config{URLs: []string{own.URL}, Queue: kind, QueueType: kind, Channel: "a"}))
	}
	published := make(chan int)
	go func() {
		defer close(published)
		publishConfirmed(t.Context(), own.URL, kinds, count, published)
	}()
	kills := 0
	for n := range published {
		if n == count/3 {
			own.Kill()
			own.Start()
			kills++
		}
	}
	defer func() {
		if t.Failed() {
			t.Logf("the stream has %d different payloads", different(t, own.URL, amqp.Stream))
			for i, n := range nodes {
				t.Logf("%s: %+v\n%s", kinds[i], n.stats(), n.log)
			}
		}
	}()
	// The pauses between the tries have grown meanwhile, and a stream is back last.
	for i, n := range nodes {
		n.until("ok", 2)
		got := map[string]int{}
		f := n.follow("a")
		for len(got) < count {
			e := f.next()
			if got[e.data]++; got[e.data] > 1 {
				t.Fatalf("%s: %s came twice", kinds[i], e.data)
			}
		}
		n.end() // what is delivered is counted after that
		stats := n.stats()
		t.Logf("%s: %+v", kinds[i], stats)
		if stats.Connects < 2 || stats.Published != count {
			t.Errorf("%s: %+v", kinds[i], stats)
		}
	}
	if kills != 1 {
		t.Errorf("the broker was restarted %d times", kills)
	}
}

// different returns how many different payloads a stream has, as the client library alone
// reads it.
func different(t *testing.T, url, stream string) int {
	b := at(t, url)
	if err := b.channel.Qos(1000, 0, false); err != nil {
		t.Error(err)
		return -1
	}
	deliveries, err := b.channel.Consume(stream, "", false, false, false, false, rabbit.Table{"x-stream-offset": "first"})
	if err != nil {
		t.Error(err)
		return -1
	}
	bodies := map[string]bool{}
	for {
		select {
		case d := <-deliveries:
			bodies[string(d.Body)] = true
			d.Ack(false)
		case <-time.After(2 * time.Second):
			return len(bodies)
		}
	}
}

// publishConfirmed publishes numbered payloads to each of some queues, again from a new
// connection until they are confirmed. It says how many are.
func publishConfirmed(ctx context.Context, url string, queues []string, count int, published chan<- int) {
	const batch = 50
	for done := 0; done < count && ctx.Err() == nil; {
		conn, err := rabbit.Dial(url)
		if err != nil {
			continue // it is starting
		}
		// RabbitMQ 3.10 confirms, and drops, what comes to a stream that has no leader yet.
		if !present(conn, queues) {
			conn.Close()
			continue
		}
		for done < count && publishBatch(conn, queues, done, batch) == nil {
			done += batch
			select {
			case published <- done:
			case <-ctx.Done():
			}
		}
		conn.Close()
	}
}

// present reports whether there are queues, with a leader where they need one.
func present(conn *rabbit.Connection, queues []string) bool {
	ch, err := conn.Channel()
	if err != nil {
		return false
	}
	for _, q := range queues {
		if _, err := ch.QueueDeclarePassive(q, true, false, false, false, nil); err != nil {
			return false // and the channel is closed
		}
	}
	return ch.Close() == nil
}

func publishBatch(conn *rabbit.Connection, queues []string, from, n int) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		return err
	}
	var open []*rabbit.DeferredConfirmation
	for i := from; i < from+n; i++ {
		for _, q := range queues {
			c, err := ch.PublishWithDeferredConfirm("", q, false, false,
				rabbit.Publishing{Body: fmt.Append(nil, "e", i), MessageId: fmt.Sprint(i), DeliveryMode: rabbit.Persistent})
			if err != nil {
				return err
			}
			open = append(open, c)
		}
	}
	for _, c := range open {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		ok, err := c.WaitContext(ctx)
		cancel()
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("it was not confirmed")
		}
	}
	return nil
}
