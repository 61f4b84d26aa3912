package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

var overloadBenchmark = benchmark{
	name:  "overload",
	short: "What callers who wait two seconds get when more is offered than Jelou takes",
	long: `
Callers come at random (Poisson), 1.1 and then 2 times as many as the companies' allowances, over the internet profile, each with a
deadline of 2 s. Goodput is what was answered within the deadline, as a share of the allowance. A ghost send is one that
Jelou accepted although its caller did not get the answer. One caller in five is a pair of calls with one request_id: the
first queues the send and is promised a time, the second waits; the promise's error is how far the request left from it.

Beside it, at 2 times, a plain FIFO in front of the same simulator: the same callers, the same pace, nobody is refused, and what
was queued is sent.

One process on SQLite, and (not --quick) three replicas on PostgreSQL; fields hold the worst of all lines.

Fields: goodput, ghost_sends, refusal_p99_ms, promise_error_p95_ms, fifo_goodput, fifo_ghost_sends, refused, broken_promises (of
those who were promised a time: not answered in time), violations.`,
	run: overload,
}

const (
	patience = 2 * time.Second
	// answerTakes is how long before the end of his patience a caller who queues wants his send to have left, so that its
	// answer still finds him.
	answerTakes = 300 * time.Millisecond
)

func overload(b *bench) error {
	var p *postgres
	if !b.quick {
		var err error
		if p, err = b.startPostgres(); err != nil {
			return err
		}
	}
	t := b.found.table("Callers who wait 2 s", "server", "offered", "calls", "answered", "refused", "otherwise", "goodput", "ghosts", "refusal p99 ms", "promises", "promise error p95 ms", "broken")
	worst := &crowd{}
	goodput, refusals, promises := 1.0, 0.0, 0.0
	for _, replicas := range pick(b, []int{1, 3}, []int{1}) {
		for _, factor := range []float64{1.1, 2} {
			o, err := b.overloadWith(p, replicas, factor)
			if err != nil {
				return err
			}
			t.add(map[int]string{1: "1, SQLite", 3: "3, PostgreSQL"}[replicas], factor, o.calls, o.answered, len(o.refusals), o.others(), o.goodput, o.ghosts,
				percentile(o.refusals, 99), len(o.errors), percentile(o.errors, 95), o.broken)
			goodput = min(goodput, o.goodput)
			refusals = max(refusals, percentile(o.refusals, 99))
			promises = max(promises, percentile(o.errors, 95))
			worst.ghosts += o.ghosts
			worst.broken += o.broken
			worst.violations += o.violations
			worst.refusals = append(worst.refusals, o.refusals...)
			for reason, n := range o.reasons {
				b.progress("%d calls ended with %s", n, reason)
			}
		}
	}
	b.found.set("goodput", rounded(goodput, 3))
	b.found.atLeast("goodput", 0.95)
	b.found.set("ghost_sends", worst.ghosts)
	b.found.mustBe("ghost_sends", 0)
	b.found.set("refusal_p99_ms", rounded(refusals, 2))
	b.found.atMost("refusal_p99_ms", 5)
	b.found.set("promise_error_p95_ms", rounded(promises, 1))
	b.found.atMost("promise_error_p95_ms", 250)
	b.found.set("broken_promises", worst.broken)
	b.found.set("refused", len(worst.refusals))
	b.found.set("violations", worst.violations)
	b.found.mustBe("violations", 0)
	return b.overloadFIFO()
}

// crowd is what became of many callers.
type crowd struct {
	mu         sync.Mutex
	measured   bool // calls count from now on
	calls      int
	answered   int       // in time
	allOK      int       // also of the calls before the measurement, and late ones
	refusals   []float64 // ms until WOULD_MISS_DEADLINE
	errors     []float64 // ms between promised and real time
	broken     int
	reasons    map[string]int
	goodput    float64
	ghosts     int
	violations int
}

func (o *crowd) others() int {
	n := 0
	for _, count := range o.reasons {
		n += count
	}
	return n
}

// offer has callers come at random until ctx ends, and waits for the last of them.
func offer(ctx context.Context, rng *rand.Rand, perSecond float64, call func()) {
	var calls sync.WaitGroup
	for sleep(ctx, time.Duration(rng.ExpFloat64()/perSecond*float64(time.Second))) == nil {
		calls.Go(call)
	}
	calls.Wait()
}

// overloadLoad runs a call for each caller of each tenant: first while the network is learned, then for a time that counts.
func (b *bench) overloadLoad(o *crowd, factor float64, learn, long time.Duration, all []*tenant, call func(*tenant)) {
	ctx, cancel := context.WithTimeout(b.ctx, learn+long)
	defer cancel()
	counting := time.AfterFunc(learn, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.measured = true
	})
	defer counting.Stop()
	var companies sync.WaitGroup
	for _, t := range all {
		rng := rand.New(rand.NewPCG(b.rng.Uint64(), 3))
		companies.Go(func() {
			offer(ctx, rng, factor*float64(t.allowed())/t.every().Seconds(), func() { call(t) })
		})
	}
	companies.Wait()
}

func (b *bench) overloadWith(p *postgres, replicas int, factor float64) (*crowd, error) {
	long := pick(b, 60*time.Second, 8*time.Second)
	all := tenants("shop", pick(b, 8, 6))
	sim, err := b.startSimulatorFor(jelousim.Config{Network: jelousim.Network{Profile: jelousim.NetworkInternet}}, all...)
	if err != nil {
		return nil, err
	}
	defer sim.kill()
	url := ""
	if replicas > 1 {
		if url, err = p.database(); err != nil {
			return nil, err
		}
	}
	c, err := b.startFacades(replicas, url, all...)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	b.progress("%d replicas, %.1f times the capacity for %v", replicas, factor, long)
	o := &crowd{reasons: map[string]int{}}
	b.overloadLoad(o, factor, learning, long, all, func(t *tenant) { o.call(b.ctx, c.any(), t) })
	if err := b.sleep(patience); err != nil { // a send that nobody waits for would arrive now
		return nil, err
	}
	counts, err := b.count(sim, 0, long, all)
	if err != nil {
		return nil, err
	}
	b.explain(counts)
	sends, err := sim.sends(b.ctx)
	if err != nil {
		return nil, err
	}
	o.violations = counts.violations
	o.ghosts = len(sends) - o.allOK
	o.goodput = float64(o.answered) / (long.Seconds() * 5 * float64(len(all)))
	return o, nil
}

// call is one caller.
func (o *crowd) call(ctx context.Context, f *facade, t *tenant) {
	called := time.Now()
	ctx, cancel := context.WithDeadline(ctx, called.Add(patience))
	defer cancel()
	r := t.message(t.bot(), facadev1.SendOptions_NORMAL)
	o.mu.Lock()
	counts, number := o.measured, o.calls
	o.calls++
	o.mu.Unlock()
	var promised time.Time
	if number%5 == 0 {
		r.RequestId = "promise-" + r.UserId
		r.Options.ExpireTime = timestamppb.New(called.Add(patience - answerTakes))
		r.Mode = facadev1.SendOptions_QUEUE
		answer, err := f.messages.SendMessage(ctx, r)
		if err != nil {
			o.ended(counts, called, promised, nil, err)
			return
		}
		promised = answer.Send.EstimatedSendTime.AsTime()
		r.Mode = facadev1.SendOptions_WAIT
	}
	answer, err := f.messages.SendMessage(ctx, r)
	o.ended(counts, called, promised, answer, err)
}

// ended notes what a caller got.
func (o *crowd) ended(counts bool, called, promised time.Time, answer *facadev1.SendMessageResponse, err error) {
	took := time.Since(called)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.allOK++
	}
	switch {
	case !counts:
		o.calls--
		return
	case err == nil && took <= patience:
		o.answered++
	case err == nil:
		o.reasons["an answer that came late"]++
	case reasonOf(err) == facadev1.ErrorReason_WOULD_MISS_DEADLINE.String():
		o.refusals = append(o.refusals, ms(took))
	default:
		o.reasons[fmt.Sprintf("%s %s", status.Code(err), reasonOf(err))]++
	}
	if promised.Unix() > 0 {
		if err != nil {
			o.broken++
			return
		}
		o.errors = append(o.errors, ms(answer.Send.SendTime.AsTime().Sub(promised).Abs()))
	}
}

// reasonOf is the reason that an error of the facade carries.
func reasonOf(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.Reason
		}
	}
	return ""
}

// overloadFIFO is the same crowd in front of a plain queue.
func (b *bench) overloadFIFO() error {
	long := pick(b, 60*time.Second, 8*time.Second)
	all := tenants("fifo", pick(b, 8, 6))
	sim, err := b.startSimulatorFor(jelousim.Config{Network: jelousim.Network{Profile: jelousim.NetworkInternet}}, all...)
	if err != nil {
		return err
	}
	defer sim.kill()
	b.progress("a plain FIFO, 2 times the capacity for %v", long)
	ctx, stop := context.WithCancel(b.ctx)
	defer stop()
	lines := map[*tenant]*fifo{}
	for _, t := range all {
		lines[t] = newFIFO(ctx, newDirect(t))
	}
	o := &crowd{measured: true, reasons: map[string]int{}}
	b.overloadLoad(o, 2, 0, long, all, func(t *tenant) {
		select {
		case ok := <-lines[t].send():
			o.mu.Lock()
			defer o.mu.Unlock()
			if ok {
				o.answered++
			}
		case <-time.After(patience):
		}
	})
	sends, err := sim.sends(b.ctx)
	if err != nil {
		return err
	}
	b.found.set("fifo_goodput", rounded(float64(o.answered)/(long.Seconds()*5*float64(len(all))), 3))
	b.found.set("fifo_ghost_sends", len(sends)-o.answered)
	return nil
}

// fifo is a queue in front of a client that keeps the limit: five under way or answered less than a second ago.
type fifo struct {
	waiting chan chan bool
}

func newFIFO(ctx context.Context, d *direct) *fifo {
	q := &fifo{waiting: make(chan chan bool, 100_000)}
	for range d.t.allowed() {
		go func() {
			for {
				select {
				case answered := <-q.waiting:
					answered <- d.mustSend(ctx) == nil
				case <-ctx.Done():
					return
				}
				if sleep(ctx, d.t.every()+5*time.Millisecond) != nil {
					return
				}
			}
		}()
	}
	return q
}

// send queues a send and gives where its answer will come.
func (q *fifo) send() <-chan bool {
	answered := make(chan bool, 1)
	q.waiting <- answered
	return answered
}
