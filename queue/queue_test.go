package queue_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
	"github.com/railsmechanic/eventsource/internal/brokertest"
	"github.com/railsmechanic/eventsource/queue"
)

func TestEachConsumerGetsItsOwnQueueInOrder(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{})
	b.queue("A")
	b.queue("B")
	one, two := s.consume(t, "A"), s.consume(t, "B")
	var as, bs []string
	for i := range 100 {
		as, bs = append(as, fmt.Sprint("a", i)), append(bs, fmt.Sprint("b", i))
		b.publish("A", as[i])
		b.publish("B", bs[i])
	}
	one.gets(as...)
	two.gets(bs...)
	eventually(t, "everything is acknowledged", func() bool { return s.queues.Stats().Events == 200 })
	st := s.queues.Stats()
	if st.Bytes != 2*(10*2+90*3) || st.Redelivered != 0 || st.Nodes[0].Consumers != 2 || st.Nodes[0].Room != 2047 || s.Stats().Relayed != 2 {
		t.Errorf("the stats are %+v", st)
	}
	for _, id := range []string{"A", "B"} {
		if waiting, consumers := b.depth(id); waiting != 0 || consumers != 1 {
			t.Errorf("%d wait in the queue of %s, which has %d consumers", waiting, id, consumers)
		}
	}
}

func TestAQueueThatIsMissingIsDeclaredAndExpires(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{Expires: 300 * time.Millisecond})
	b.queue("A")
	c := s.consume(t, "A")
	// As it is declared by others who use the same expiry.
	if _, err := b.channel.QueueDeclare(b.prefix+"A", true, false, false, false, amqp.Table{"x-expires": 300}); err != nil {
		t.Fatal(err)
	}
	b.publish("A", "kept")
	c.gets("kept")
	c.leave()
	// To look whether it is there is to use it, so that it is looked at seldom.
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range 10 {
		<-tick.C
		if waiting, _ := b.depth("A"); waiting < 0 {
			return
		}
	}
	t.Error("the queue does not expire")
}

func TestWhatWaitsIsThereForWhoComes(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{})
	// A queue of another's making is taken as it is.
	b.declare("A", amqp.Table{"x-max-length": 5})
	b.publish("A", "one", "two\nlines", `{"three": 3}`)
	c := s.consume(t, "A")
	c.gets("one", "two\ndata: lines", `{"three": 3}`)
}

func TestPartsOfAPatternNameTheQueue(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	for _, test := range []struct{ pattern, query, cookie, id string }{
		{"${query:id}", "id=PREFIXq", "", "q"},
		{"${cookie:sid}", "", "sid=PREFIXc", "c"},
		{"PREFIX${query:id}-${cookie:sid}-name", "id=a%20b&x=y", "x=y; sid=s", "a b-s-name"},
		{"PREFIX${query:id}${query:id}$", "id=ä/{}", "", "ä/{}ä/{}$"},
	} {
		t.Run(test.pattern, func(t *testing.T) {
			with := strings.NewReplacer("PREFIX", b.prefix)
			s := serving(t, b, queue.Config{Pattern: with.Replace(test.pattern)})
			b.queue(test.id)
			c := ask(t, s.url+"?"+with.Replace(test.query), "Cookie", with.Replace(test.cookie))
			c.block()
			b.publish(test.id, "found")
			c.gets("found")
		})
	}
}

func TestARequestThatNamesNoQueueIsToldWhatIsMissing(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{Pattern: "${query:id}${cookie:sid}"})
	for _, test := range []struct{ query, cookie, want string }{
		{"", "sid=1", "the query has no id, which names the queue: ask with ?id="},
		{"id=", "sid=1", "the query has no id"},
		{"id=1", "", "there is no cookie sid, which names the queue"},
		{"id=1", "sid=", "there is no cookie sid"},
		{"id=%zz", "sid=1", "the query can't be read"},
		{"id=amq.gen", "sid=1", "begins with amq., which is the broker's own"},
		{"id=" + strings.Repeat("x", 255), "sid=1", "would have 256 bytes: at most 255 are possible"},
		{"id=a%00", "sid=1", "it has control characters"},
		{"id=%ff", "sid=1", "it is not valid UTF-8"},
	} {
		// A browser is told in the same way: it would ask in vain for ever.
		ask(t, s.url+"?"+test.query, "Cookie", test.cookie, "Accept", "text/event-stream").refusedWith(http.StatusBadRequest, test.want)
	}
	if n := s.queues.Stats().Turned[queue.TurnedName]; n != 9 {
		t.Errorf("%d are counted", n)
	}
}

func TestASecondConsumerIsRefusedUntilTheFirstHasLeft(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	nodes := []string{b.url, b.url}
	s := serving(t, b, queue.Config{Nodes: nodes})
	other := serving(t, b, queue.Config{Nodes: nodes})
	b.queue("A")
	first := s.consume(t, "A")
	const detail = "the queue has a consumer already"
	for _, at := range []*served{s, other} { // on this node, and on another
		start := time.Now()
		ask(t, at.url+"?id=A").refusedWith(http.StatusServiceUnavailable, detail)
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("the refusal took %v", took)
		}
		// A browser would not come back after any status but 200.
		c := ask(t, at.url+"?id=A", "Accept", "text/event-stream")
		if text := c.rest(); c.res.StatusCode != http.StatusOK || !strings.HasPrefix(text, "retry: ") || !strings.Contains(text, "\n: "+detail) {
			t.Errorf("a browser got %s %q", c.res.Status, text)
		}
		if n := at.queues.Stats().Turned[queue.TurnedBusy]; n != 2 {
			t.Errorf("%d are counted", n)
		}
	}
	b.publish("A", "one")
	first.gets("one")
	eventually(t, "it is acknowledged", func() bool { return s.queues.Stats().Events == 1 })
	first.leave()
	last := other.consume(t, "A")
	b.publish("A", "two")
	last.gets("two")
}

// Another program's consumer, which has it exclusively or not, and a queue that belongs to
// another's connection.
func TestAQueueThatAnotherProgramHasIsRefused(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{})
	for id, exclusive := range map[string]bool{"exclusive": true, "shared": false} {
		name := b.declare(id, nil)
		if _, err := b.channel.Consume(name, "", false, exclusive, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.channel.QueueDeclare(b.queue("locked"), false, false, true, false, nil); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"exclusive", "shared", "locked"} {
		ask(t, s.url+"?id="+id).refusedWith(http.StatusServiceUnavailable, "the queue has a consumer already")
	}
}

// RabbitMQ lets a quorum queue have several consumers, exclusive or not.
func TestAQuorumQueueHasOneConsumerOfANode(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{})
	b.declare("A", amqp.Table{"x-queue-type": "quorum"})
	c := s.consume(t, "A")
	ask(t, s.url+"?id=A").refusedWith(http.StatusServiceUnavailable, "the queue has a consumer already")
	b.publish("A", "one")
	c.gets("one")
}

// Whoever reconnects is not refused because of the connection that it has just closed.
func TestWhoComesBackAtOnceGetsItsQueue(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{Nodes: []string{b.url, b.url}})
	other := serving(t, b, queue.Config{})
	b.queue("A")
	c := s.consume(t, "A")
	var longest time.Duration
	for i := range 40 {
		c.leave()
		start := time.Now()
		at := s
		if i%2 == 0 {
			at = other
		}
		c = at.consume(t, "A")
		longest = max(longest, time.Since(start))
		b.publish("A", fmt.Sprint(i))
		c.gets(fmt.Sprint(i))
		eventually(t, "it is acknowledged", func() bool {
			return s.queues.Stats().Events+other.queues.Stats().Events == uint64(i+1)
		})
	}
	t.Logf("the longest of 40 took %v", longest)
	if s.queues.Stats().Turned[queue.TurnedBusy]+other.queues.Stats().Turned[queue.TurnedBusy] != 0 {
		t.Error("it was refused")
	}
}

func TestWhoWaitsForAMomentGetsWhatTheOtherLeaves(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	b.queue("A")
	s, other := serving(t, b, queue.Config{}), serving(t, b, queue.Config{})
	for _, at := range []*served{s, other} { // on this node, and on another
		first := s.consume(t, "A")
		waiting := at.Stats().Relayed
		var asking sync.WaitGroup
		asking.Go(func() {
			c := ask(t, at.url+"?id=A")
			if c.res.StatusCode != http.StatusOK {
				t.Errorf("it got %s %s", c.res.Status, c.rest())
			}
			c.leave()
		})
		eventually(t, "it waits", func() bool { return at.Stats().Relayed == waiting+1 })
		first.leave()
		asking.Wait()
		eventually(t, "both have left", func() bool { return s.consumers()+other.consumers() == 0 })
	}
}

func TestPayloadsThatMakeNoEventAreDeadLettered(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serve(t, &eventsource.Settings{Limits: eventsource.Limits{Body: 100}},
		queue.Config{Nodes: []string{b.url}, Pattern: b.pattern(), Event: "{type}"})
	s.connected(t, 1)
	b.declare("dead", nil)
	b.declare("A", amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": b.prefix + "dead"})
	for range 3 {
		b.publish("A", "", strings.Repeat("x", 101), "\xff")
		b.publishing("A", amqp.Publishing{Type: "eventsource.end", Body: []byte("forged")})
	}
	b.publish("A", "good")
	c := s.consume(t, "A")
	c.gets("good")
	eventually(t, "they are dead letters", func() bool { waiting, _ := b.depth("dead"); return waiting == 12 })
	if waiting, _ := b.depth("A"); waiting != 0 {
		t.Errorf("%d wait", waiting)
	}
	for reason, n := range s.queues.Stats().Refused {
		if n != 3 {
			t.Errorf("%d are counted as %s", n, reason)
		}
		if n := strings.Count(s.log.String(), "reason="+reason+" "); n != 1 {
			t.Errorf("%s is logged %d times", reason, n)
		}
	}
}

func TestAMessageIDIsTheIDAndATemplateTheType(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{Event: "{app_id}.{type}.{header:kind}.{routing_key}"})
	b.queue("A")
	c := s.consume(t, "A")
	for _, test := range []struct {
		p    amqp.Publishing
		want string
	}{
		{amqp.Publishing{MessageId: "m 1", AppId: "shop", Type: "order", Headers: amqp.Table{"kind": int32(7)}},
			"id: m 1\nevent: shop.order.7.PREFIXA\ndata: x\n"},
		{amqp.Publishing{MessageId: " m"}, "event: ...PREFIXA\ndata: x\n"},
		{amqp.Publishing{MessageId: "m\nid: forged"}, "event: ...PREFIXA\ndata: x\n"},
		{amqp.Publishing{MessageId: "\xff"}, "event: ...PREFIXA\ndata: x\n"},
	} {
		test.p.Body = []byte("x")
		b.publishing("A", test.p)
		if got := c.block(); got != strings.ReplaceAll(test.want, "PREFIX", b.prefix) {
			t.Errorf("%+v is %q", test.p, got)
		}
	}
}

func TestConfiguredHeadersWin(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{Header: http.Header{
		"Content-Type": {"text/event-stream; charset=utf-8"}, "Access-Control-Allow-Origin": {"*"}, "X-A": {"b"}}})
	b.queue("A")
	h := s.consume(t, "A").res.Header
	for k, want := range map[string]string{"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache",
		"X-Accel-Buffering": "no", "Access-Control-Allow-Origin": "*", "X-A": "b"} {
		if got := h[k]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q", k, got)
		}
	}
}

func TestGrantsNameAQueueAsAChannel(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	one, two, three, four := b.queue("A"), b.queue("no name/"), b.queue("x.y"), b.queue("x.no name")
	s := serve(t, &eventsource.Settings{AuthToken: "boss", Public: []string{}, Keys: []eventsource.Key{
		{Token: "one", Subscribe: []string{"queue." + one}}, {Token: "all", Subscribe: []string{"queue.*"}},
		{Token: "below", Subscribe: []string{"queue." + b.prefix + "x.*"}}}},
		queue.Config{Nodes: []string{b.url}, Pattern: b.pattern(), Expires: time.Minute})
	s.connected(t, 1)
	for _, test := range []struct {
		token, queue string
		status       int
	}{
		{"", one, 401}, {"wrong", one, 401}, {"one", one, 200}, {"one", two, 403}, {"all", one, 200}, {"all", two, 200}, {"boss", two, 200},
		{"below", three, 200}, {"below", four, 403}, {"all", four, 200},
	} {
		c := ask(t, s.url+"?access_token="+test.token+"&id="+strings.ReplaceAll(strings.TrimPrefix(test.queue, b.prefix), " ", "%20"))
		if c.res.StatusCode != test.status {
			t.Errorf("%q for %s: %s %s", test.token, test.queue, c.res.Status, c.rest())
		}
		c.leave()
	}
}

// hangs is a consumer that reads nothing.
func hangs(t *testing.T, s *served, id string) net.Conn {
	t.Helper()
	address, _, _ := strings.Cut(strings.TrimPrefix(s.url, "http://"), "/")
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).SetReadBuffer(4 << 10)
	fmt.Fprintf(c, "GET /queue?id=%s HTTP/1.1\r\nHost: localhost\r\n\r\n", id)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestWhatASlowConsumerDidNotTakeComesAgain(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{})
	b.queue("A")
	hangs(t, s, "A")
	eventually(t, "it has its queue", func() bool { return s.consumers() == 1 })
	var sent []string
	for i := range 20 {
		sent = append(sent, fmt.Sprint(i, strings.Repeat("x", 900<<10)))
	}
	b.publish("A", sent...)
	eventually(t, "it is cut off", func() bool { return s.queues.Stats().Ended[queue.EndSlow] == 1 })
	taken := int(s.queues.Stats().Events)
	if taken == len(sent) {
		t.Fatal("the system has taken all of it")
	}
	c := s.consume(t, "A")
	c.gets(sent[taken:]...)
	if n := s.queues.Stats().Redelivered; n != 1 {
		t.Errorf("%d are counted as redelivered", n)
	}
}

// Nothing is acknowledged that its consumer did not take, nothing skipped, and the order
// is kept, whenever consumers are killed.
func TestAConsumerThatIsKilledLeavesTheRestToTheNext(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{})
	b.queue("A")
	c := s.consume(t, "A")
	var publishing sync.WaitGroup
	defer publishing.Wait()
	publishing.Go(func() {
		for i := range 2000 {
			b.channel.PublishWithContext(t.Context(), "", b.prefix+"A", false, false, amqp.Publishing{Body: fmt.Append(nil, i)})
		}
	})
	// What a connection has taken when its consumer is killed is that consumer's: how far
	// it came is known by what comes next.
	last := -1
	for kills := 0; last < 1999; {
		got := c.block()
		if got == "" {
			t.Fatal("the stream has ended")
		}
		var n int
		if _, err := fmt.Sscanf(got, "data: %d\n", &n); err != nil {
			t.Fatal(err, got)
		}
		if n != last+1 {
			t.Fatalf("%d comes after %d", n, last)
		}
		last = n
		if kills < 10 && n%150 == 149 {
			kills++
			c.leave()
			eventually(t, "its end is noticed", func() bool { return s.queues.Stats().Ended[queue.EndGone] == uint64(kills) })
			acknowledged := int(s.queues.Stats().Events)
			if acknowledged < last {
				t.Fatalf("%d came, and %d were acknowledged", last+1, acknowledged)
			}
			c = s.consume(t, "A")
			last = acknowledged - 1 // all up to it was taken by some connection
		}
	}
}

func TestADeletedQueueEndsItsStream(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{})
	name := b.queue("A")
	c := s.consume(t, "A")
	b.publish("A", "one")
	c.gets("one")
	if _, err := b.channel.QueueDelete(name, false, false, false); err != nil {
		t.Fatal(err)
	}
	if end := c.rest(); !strings.Contains(end, "event: eventsource.end\n") || !strings.Contains(end, `data: {"reason":"closed"}`) {
		t.Errorf("it ends with %q", end)
	}
	again := s.consume(t, "A")
	b.publish("A", "two")
	again.gets("two")
	if n := s.queues.Stats().Ended[queue.EndDeleted]; n != 1 {
		t.Errorf("%d are counted", n)
	}
}

func TestConsumersAreSharedOutAndRefusedWhenAllIsFull(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	few := b.url + "?channel_max=2"
	s := serving(t, b, queue.Config{Nodes: []string{few, few}})
	var all []*stream
	for i := range 4 {
		id := fmt.Sprint(i)
		b.queue(id)
		all = append(all, s.consume(t, id))
		if i == 1 {
			if nodes := s.queues.Stats().Nodes; nodes[0].Consumers != 1 || nodes[1].Consumers != 1 {
				t.Errorf("they are not shared out: %+v", nodes)
			}
		}
	}
	ask(t, s.url+"?id=more").refusedWith(http.StatusServiceUnavailable, "as many consumers as it can have")
	for i, c := range all {
		b.publish(fmt.Sprint(i), "still there")
		c.gets("still there")
	}
	all[2].leave()
	b.queue("more")
	eventually(t, "there is room again", func() bool { return s.consumers() == 3 })
	s.consume(t, "more")
	if st := s.queues.Stats(); st.Turned[queue.TurnedFull] != 1 || st.Nodes[0].Room != 2 {
		t.Errorf("the stats are %+v", st)
	}
}

func TestABrokerThatIsLostLosesNothing(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	p, through := brokertest.Through(t, b.url)
	s := serving(t, b, queue.Config{Nodes: []string{through}})
	b.queue("A")
	c := s.consume(t, "A")
	b.publish("A", "one")
	c.gets("one")
	eventually(t, "it is acknowledged", func() bool { return s.queues.Stats().Events == 1 })
	p.Shut()
	if end := c.rest(); !strings.Contains(end, `data: {"reason":"closed"}`) {
		t.Errorf("it ends with %q", end)
	}
	ask(t, s.url+"?id=A").refusedWith(http.StatusServiceUnavailable, "no broker is connected")
	b.publish("A", "two", "three")
	p.Open()
	s.connected(t, 1)
	// The broker may not have noticed yet that the first is gone.
	s.consume(t, "A").gets("two", "three")
	log := s.log.String()
	if strings.Count(log, "level=ERROR msg=\"a broker of queues is not connected\"") < 1 || strings.Count(log, "a broker of queues is connected") != 2 {
		t.Errorf("it logged %s", log)
	}
	if st := s.queues.Stats(); st.Ended[queue.EndLost] != 1 || st.Turned[queue.TurnedAway] != 1 {
		t.Errorf("the stats are %+v", st)
	}
}

// A broker that hangs has nobody wait for a queue until its heartbeat is missed.
func TestARequestDoesNotWaitLongForABrokerThatHangs(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	p, through := brokertest.Through(t, b.url)
	s := serving(t, b, queue.Config{Nodes: []string{through}})
	s.connected(t, 1)
	p.Pause()
	began := time.Now()
	ask(t, s.url+"?id=A").refusedWith(http.StatusServiceUnavailable, "no broker is connected")
	if took := time.Since(began); took < 4*time.Second || took > 8*time.Second {
		t.Errorf("it took %v", took)
	}
	p.Resume()
	b.queue("A")
	c := s.consume(t, "A")
	b.publish("A", "here")
	c.gets("here")
}

func TestTheOtherBrokersServeWhileOneIsAway(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	p, through := brokertest.Through(t, b.url)
	s := serving(t, b, queue.Config{Nodes: []string{through, b.url}})
	p.Shut()
	s.connected(t, 1)
	for i := range 3 {
		id := fmt.Sprint(i)
		b.queue(id)
		c := s.consume(t, id)
		b.publish(id, "here")
		c.gets("here")
	}
	if nodes := s.queues.Stats().Nodes; nodes[0].Connected || nodes[0].Reason == "" || nodes[1].Consumers != 3 {
		t.Errorf("the nodes are %+v", nodes)
	}
}

func TestNoPasswordIsLoggedOrShown(t *testing.T) {
	t.Parallel()
	s := serve(t, &eventsource.Settings{}, queue.Config{Nodes: []string{"amqp://joe:geheim@127.0.0.1:1/vhost?heartbeat=7"}})
	eventually(t, "it is logged that none is connected", func() bool { return strings.Contains(s.log.String(), "level=ERROR") })
	ask(t, s.url+"?id=A").refusedWith(http.StatusServiceUnavailable, "no broker is connected")
	shown, err := json.Marshal(s.queues.Stats())
	if err != nil || !strings.Contains(string(shown), `"url":"amqp://127.0.0.1:1/vhost"`) {
		t.Errorf("the stats are %s %v", shown, err)
	}
	b := openBroker(t)
	wrong := serve(t, &eventsource.Settings{}, queue.Config{Nodes: []string{strings.Replace(b.url, "guest:guest", "guest:geheim", 1)}})
	eventually(t, "it is logged that it is refused", func() bool { return strings.Contains(wrong.log.String(), "not allowed") })
	if strings.Contains(s.log.String()+string(shown)+wrong.log.String(), "geheim") {
		t.Error("a password is shown")
	}
}

func TestShutdownTellsConsumersAndLosesNothing(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	b.queue("A")
	var c *stream
	var s *served
	t.Run("a server", func(t *testing.T) {
		s = serving(t, b, queue.Config{})
		c = ask(b.t, s.url+"?id=A")
		c.block()
		b.publish("A", "one")
		c.gets("one")
		eventually(t, "it is acknowledged", func() bool { return s.queues.Stats().Events == 1 })
	})
	if end := c.rest(); !strings.Contains(end, `data: {"reason":"draining"}`) {
		t.Errorf("it ends with %q", end)
	}
	if n := s.queues.Stats().Ended[queue.EndServer]; n != 1 {
		t.Errorf("%d are counted", n)
	}
	b.publish("A", "two")
	serving(t, b, queue.Config{}).consume(t, "A").gets("two")
}

// A token that is revoked, or a server that shuts down, while a consumer waits for its queue.
func TestWhoWaitsIsToldWhatItWaitsForNoMore(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	b.queue("A")
	settings := eventsource.Settings{AuthToken: "boss", Keys: []eventsource.Key{{Token: "one", Subscribe: []string{"queue.*"}}}, Public: []string{}}
	for detail, end := range map[string]func(s *served){
		"the token came to its end before the stream began": func(s *served) {
			without := settings
			without.Keys = nil
			if err := s.Reload(&without); err != nil {
				t.Error(err)
			}
		},
		"the server is shutting down": func(s *served) {
			if err := s.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(detail, func(t *testing.T) {
			with := settings
			s := serve(t, &with, queue.Config{Nodes: []string{b.url}, Pattern: b.pattern(), Expires: time.Minute})
			s.connected(t, 1)
			first := s.consume(t, "A", "Auth-Token", "boss")
			defer first.leave()
			var asking sync.WaitGroup
			asking.Go(func() {
				c := ask(t, s.url+"?id=A", "Auth-Token", "one")
				if body := c.rest(); !strings.Contains(body, detail) {
					t.Errorf("it got %s %s", c.res.Status, body)
				}
			})
			eventually(t, "it waits", func() bool { return s.Stats().Relayed == 2 })
			end(s)
			asking.Wait()
		})
	}
}

func TestWhatIsClosedServesNobody(t *testing.T) {
	t.Parallel()
	b := openBroker(t)
	s := serving(t, b, queue.Config{})
	b.queue("A")
	c := s.consume(t, "A")
	s.queues.Close()
	if end := c.rest(); !strings.Contains(end, `data: {"reason":"closed"}`) {
		t.Errorf("it ends with %q", end)
	}
	ask(t, s.url+"?id=A").refusedWith(http.StatusServiceUnavailable, "no broker is connected")
}

// A broker that accepts and says nothing holds up neither a consumer nor the end.
func TestASilentBrokerHoldsUpNobody(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	q, err := queue.Open(queue.Config{Nodes: []string{"amqp://" + l.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	c := <-accepted
	defer c.Close()
	start := time.Now()
	q.Close()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the end took %v", took)
	}
	io.Copy(io.Discard, c)
}

func TestWhatIsWrongIsToldWithWhatWouldBeRight(t *testing.T) {
	t.Parallel()
	ok := []string{"amqp://localhost"}
	for _, test := range []struct {
		c    queue.Config
		want string
	}{
		{queue.Config{}, "nodes: none is given; give a broker's URL such as amqp://guest:guest@localhost:5672/"},
		{queue.Config{Nodes: []string{"amqp://localhost", "redis://u:geheim@h"}}, "nodes[1]: is no URL of a broker"},
		{queue.Config{Nodes: []string{"amqp://u:geheim%zz@h"}}, "nodes[0]: is no URL of a broker"},
		{queue.Config{Nodes: []string{"amqp://u:geheim@h?heartbeat=x"}}, "nodes[0]: is no URL of a broker"},
		{queue.Config{Nodes: ok, Pattern: "queue"}, `pattern: "queue" names one queue for everybody`},
		{queue.Config{Nodes: ok, Pattern: "${query:id"}, "pattern: ${query:id has no closing brace"},
		{queue.Config{Nodes: ok, Pattern: "${id}"}, "pattern: ${id} is neither ${query:NAME} nor ${cookie:NAME}"},
		{queue.Config{Nodes: ok, Pattern: "${query:}"}, "pattern: ${query:} has no name"},
		{queue.Config{Nodes: ok, Pattern: "${cookie:a b}"}, `pattern: ${cookie:a b}: "a b" is no name of a cookie`},
		{queue.Config{Nodes: ok, Pattern: "amq.${query:id}"}, "pattern: names that begin with amq. are the broker's own"},
		{queue.Config{Nodes: ok, Pattern: "a\n${query:id}"}, "pattern: it has control characters"},
		{queue.Config{Nodes: ok, Pattern: strings.Repeat("x", 256) + "${query:id}"}, "pattern: its text is longer than 255 bytes"},
		{queue.Config{Nodes: ok, Expires: -2}, "expires: -2ns is not between 1ms and"},
		{queue.Config{Nodes: ok, Expires: time.Millisecond + 1}, "expires: 1.000001ms is not in whole milliseconds"},
		{queue.Config{Nodes: ok, Expires: 1200 * time.Hour}, "expires: 1200h0m0s is not between"},
		{queue.Config{Nodes: ok, Header: http.Header{"transfer-encoding": {"identity"}}}, "headers: transfer-encoding is the server's to set"},
		{queue.Config{Nodes: ok, Header: http.Header{"Content-Type": {"text/html"}}}, `headers: Content-Type: "text/html" is no stream of events`},
		{queue.Config{Nodes: ok, Header: http.Header{"A b": {""}}}, `headers: "A b" is no name of a header`},
		{queue.Config{Nodes: ok, Header: http.Header{"A": {"b\nc"}}}, `headers: A: "b\nc" has control characters`},
		{queue.Config{Nodes: ok, Event: "{kind}"}, `event: "{kind}": there is no {kind} here; there are {type}, {routing_key}, {app_id}, {header:NAME}`},
		{queue.Config{Nodes: ok, Event: "{type"}, `event: "{type": {type is not closed; write {{ for one {`},
		{queue.Config{Nodes: ok, Event: "eventsource.{type}"}, "event: \"eventsource.x\" begins with \"eventsource.\", which is kept for the server's own; choose another"},
	} {
		_, err := queue.Open(test.c)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}
