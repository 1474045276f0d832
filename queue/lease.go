package queue

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/railsmechanic/eventsource"
)

// Why a queue can't be had.
var (
	errBusy   = errors.New("it has a consumer already")
	errFull   = errors.New("every connection to a broker has as many consumers as it can have")
	errAway   = errors.New("no broker is connected")
	errDenied = errors.New("the broker does not allow it")
)

// A lease is a queue that a consumer has, on an AMQP channel of its own.
type lease struct {
	queues     *Queues
	link       *link
	channel    *amqp.Channel
	deliveries <-chan amqp.Delivery
	free       func() // lets the next consumer have the queue
}

// answering is how long a broker may take to give a queue.
const answering = 5 * time.Second

// lease has a queue consumed, by the first node that can. It waits no longer than ctx and
// answering.
func (q *Queues) lease(ctx context.Context, name string) (*lease, error) {
	wait, cancel := context.WithTimeout(ctx, answering)
	defer cancel()
	type result struct {
		lease *lease
		err   error
	}
	results := make(chan result)
	// AMQP's calls know of no context, and a broker may take its time.
	begun := q.begin(func() {
		l, err := q.open(name)
		select {
		case results <- result{l, err}:
		case <-wait.Done():
			if err == nil {
				l.close()
			}
		}
	})
	if !begun {
		return nil, errAway
	}
	select {
	case res := <-results:
		return res.lease, res.err
	case <-wait.Done():
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, errAway
	}
}

// open has a queue consumed. A connection that is lost meanwhile is left for the next.
func (q *Queues) open(name string) (*lease, error) {
	for range q.nodes {
		link, err := q.pick()
		if err != nil {
			return nil, err
		}
		l := &lease{queues: q, link: link}
		if err = l.consume(name, q.arguments); err == nil {
			return l, nil
		}
		l.close()
		if !errors.Is(err, amqp.ErrClosed) && !link.conn.IsClosed() {
			return nil, err
		}
	}
	return nil, errAway
}

// consume declares the queue and consumes it. One that is there with other properties, or
// that may not be declared, is consumed as it is.
func (l *lease) consume(name string, arguments amqp.Table) error {
	if err := l.openChannel(); err != nil {
		return err
	}
	_, undeclared := l.channel.QueueDeclare(name, true, false, false, false, arguments)
	if undeclared != nil {
		// The broker has closed the channel over it (AMQP 0-9-1, 1.1).
		if err := l.openChannel(); err != nil {
			return err
		}
	}
	if err := l.channel.Qos(1, 0, false); err != nil {
		return err
	}
	deliveries, err := l.channel.Consume(name, "eventsource", false, true, false, false, nil)
	if e, ok := errors.AsType[*amqp.Error](err); ok && e.Code == amqp.NotFound && undeclared != nil {
		err = undeclared // why it isn't there
	}
	l.deliveries = deliveries
	return classified(err)
}

func (l *lease) openChannel() (err error) {
	l.channel, err = l.link.conn.Channel()
	if errors.Is(err, amqp.ErrChannelMax) {
		return errFull
	}
	return err
}

// classified has an error say which kind of refusal it is. RabbitMQ refuses what another
// consumer has with 403, as it does what its user may not have, and what another
// connection has for itself with 405.
func classified(err error) error {
	e, ok := errors.AsType[*amqp.Error](err)
	switch {
	case !ok:
		return err
	case e.Code == amqp.ResourceLocked, e.Code == amqp.AccessRefused && strings.Contains(e.Reason, "in exclusive use"):
		return errors.Join(errBusy, err)
	case e.Code == amqp.AccessRefused:
		return errors.Join(errDenied, err)
	}
	return err
}

// end returns why there are no more deliveries.
func (l *lease) end() string {
	if l.channel.IsClosed() {
		return EndLost
	}
	return EndDeleted
}

// leave gives the queue back, with what was not acknowledged, without waiting for the
// broker to say so.
func (l *lease) leave() {
	done := func() {
		l.close()
		l.free()
	}
	if !l.queues.begin(done) {
		done() // the connection is on its end
	}
}

// close closes the AMQP channel, which makes what was not acknowledged the queue's again.
func (l *lease) close() {
	if l.channel != nil {
		l.channel.Close() // one that is closed already is as good
	}
	l.queues.release(l.link)
}

// turnAway returns the refusal of a request whose queue can't be had, counts it, and logs
// what only an operator can mend, once a minute for each reason.
func (q *Queues) turnAway(err error) *eventsource.Problem {
	reason, p := TurnedFailed, problem(http.StatusServiceUnavailable, "the broker can't give the queue at present: come back later")
	switch {
	case errors.Is(err, errBusy):
		reason, p = TurnedBusy, problem(http.StatusServiceUnavailable, "the queue has a consumer already, and can have one at a time: come back when it has left")
	case errors.Is(err, errFull):
		reason, p = TurnedFull, problem(http.StatusServiceUnavailable, "every connection to a broker has as many consumers as it can have: come back later")
	case errors.Is(err, errAway), errors.Is(err, amqp.ErrClosed):
		reason, p = TurnedAway, problem(http.StatusServiceUnavailable, "no broker is connected: come back later")
	case errors.Is(err, errDenied):
		reason, p = TurnedDenied, problem(http.StatusBadGateway, "the broker does not let this server have the queue: its user needs permission to configure and to read it")
	}
	n, due := q.counts.refuseRequest(reason)
	if due && reason != TurnedBusy && reason != TurnedAway {
		q.log.Warn("queues are not served", "reason", reason, "refused", n, "last", err.Error())
	}
	return p
}
