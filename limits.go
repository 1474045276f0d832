package eventsource

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"
)

// The limits that requests and consumers are refused for, as the metrics say them.
const (
	limitConsumers           = "consumers"
	limitConsumersPerChannel = "consumers_per_channel"
	limitConsumersPerAddress = "consumers_per_address"
	limitPublishes           = "publishes_per_second"
	limitConnects            = "connects_per_second"
)

// mostCounted is how many keys, subjects and addresses a rate is remembered of, at
// least. An address that is forgotten begins anew: it takes more of them than this
// at once.
const mostCounted = 32 << 10

// A party is whom a rate is counted for: a key or a subject, or else an address.
type party struct {
	who     string
	address netip.Addr
}

// rates bound how often each party may do something. Safe for concurrent use; nil
// bounds nothing.
type rates struct {
	// Set when made.
	name    string
	limit   rate.Limit
	burst   int
	parties *recent[party, *rate.Limiter]
}

// newRates returns nil where a second has no limit.
func newRates(second float64, name string) *rates {
	if second == 0 {
		return nil
	}
	return &rates{name: name, limit: rate.Limit(second), burst: int(max(1, math.Ceil(second))),
		parties: newRecent[party, *rate.Limiter](mostCounted)}
}

// or returns the rates of before where they are the same, with what they remember.
func (r *rates) or(before *rates) *rates {
	if r != nil && before != nil && r.limit == before.limit {
		return before
	}
	return r
}

// take counts n for a visitor, or refuses it. undo takes it back, where nothing came
// of it.
func (p *policy) take(r *rates, v visitor, req *http.Request, n int) (undo func(), refused *Problem) {
	if r == nil {
		return nothing, nil
	}
	return r.take(p.party(v, req), n)
}

func nothing() {}

// wait counts n for a visitor, and waits until it may do so much.
func (p *policy) wait(ctx context.Context, r *rates, v visitor, req *http.Request, n int) error {
	if r == nil {
		return nil
	}
	return r.wait(ctx, p.party(v, req), n)
}

func (r *rates) take(p party, n int) (undo func(), refused *Problem) {
	if p == (party{}) {
		return nothing, nil
	}
	now := time.Now()
	limiter := r.of(p)
	first := limiter.ReserveN(now, min(n, r.burst))
	if wait := first.DelayFrom(now); wait > 0 {
		first.CancelAt(now)
		return nil, r.refusal(wait)
	}
	if n <= r.burst {
		// Later than now there would be nothing left to take back.
		return func() { first.CancelAt(now) }, nil
	}
	// The rest of a batch is owed: it puts off what comes next.
	reserved := []*rate.Reservation{first}
	for n -= r.burst; n > 0; n -= r.burst {
		reserved = append(reserved, limiter.ReserveN(now, min(n, r.burst)))
	}
	return func() {
		for _, one := range slices.Backward(reserved) {
			one.CancelAt(now)
		}
	}, nil
}

func (r *rates) wait(ctx context.Context, p party, n int) error {
	if p == (party{}) {
		return nil
	}
	limiter := r.of(p)
	for ; n > 0; n -= r.burst {
		if err := limiter.WaitN(ctx, min(n, r.burst)); err != nil {
			return err
		}
	}
	return nil
}

// of returns what is remembered of a party.
func (r *rates) of(p party) *rate.Limiter {
	return r.parties.orMake(p, func() *rate.Limiter { return rate.NewLimiter(r.limit, r.burst) })
}

func (r *rates) refusal(wait time.Duration) *Problem {
	what := "publishes"
	if r.name == limitConnects {
		what = "connects"
	}
	return newProblem(http.StatusTooManyRequests,
		fmt.Sprintf("more than %v %s a second: send them more slowly", float64(r.limit), what)).after(wait).limitedBy(r.name)
}

// party returns whom what a visitor does is counted for; the zero one, which nothing
// bounds, where the address can't be read, as of a program's own listener.
func (p *policy) party(v visitor, r *http.Request) party {
	if v.known() {
		return party{who: v.who}
	}
	return party{address: p.address(r)}
}
