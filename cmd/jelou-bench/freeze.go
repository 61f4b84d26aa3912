package main

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/jelousim"
)

// freezes are the moments at which a replica is stopped in the middle of one send, and what must have become of that
// send when it goes on after three leases.
var freezes = []struct {
	name     string
	at       func(round) bool // of the facade's rounds to the database; nil: when its request reaches Jelou
	messages int              // at Jelou of the frozen one's send
	answered bool             // Jelou's 200 is there when it is stopped, and has to be written when it goes on
	states   []resultState
}{
	{name: "inside the claim's transaction", messages: 1, states: []resultState{facadev1.Send_SENT},
		at: func(r round) bool { return r.answered && r.has("FOR NO KEY UPDATE SKIP LOCKED") }},
	{name: "after the claim, before the request", messages: 0, states: []resultState{facadev1.Send_UNKNOWN},
		at: func(r round) bool { return r.answered && r.commits("SET state = 'sending'") }},
	{name: "while Jelou answers", messages: 1, states: []resultState{facadev1.Send_SENT, facadev1.Send_UNKNOWN}},
	{name: "after the answer, before it is written", messages: 1, answered: true, states: []resultState{facadev1.Send_SENT},
		at: func(r round) bool { return !r.answered && r.has("UPDATE send SET state = $6") }},
}

// lease of a campaign's sends.
const lease = attemptTimeout + 5*time.Second

// jelouTime is how long Jelou takes to answer.
const jelouTime = 200 * time.Millisecond

// freezing is a replica that is stopped, and another one.
type freezing struct {
	b           *bench
	shop        *tenant
	sim         *simulator
	wire        *wire
	gate        *gate
	frozen, one *fleet
}

func (b *bench) freezeTrials(p *postgres) ([]*trial, error) {
	b.found.set("others_ms", 0.0)
	b.found.set("late_200_recorded", false)
	var trials []*trial
	for i, at := range freezes {
		f := &freezing{b: b}
		all := tenants("freezing", 1)
		f.shop = all[0]
		var err error
		if f.sim, err = b.startSimulatorFor(jelousim.Config{Processing: jelousim.Processing{Min: jelousim.Duration(jelouTime)}}, all...); err != nil {
			return nil, err
		}
		if f.gate, err = b.gateBefore(f.shop); err != nil {
			return nil, err
		}
		database, err := p.database()
		if err != nil {
			return nil, err
		}
		if f.wire, err = b.startWire(database); err != nil {
			return nil, err
		}
		if f.frozen, err = b.startFleet(1, f.wire.url, shortAttempts, all...); err != nil {
			return nil, err
		}
		if f.one, err = b.startFleet(1, database, shortAttempts, all...); err != nil {
			return nil, err
		}
		trials = append(trials, &trial{name: "a replica frozen for three leases " + at.name, run: func(ctx context.Context, t *trial) error { return f.run(ctx, t, i) }})
	}
	return trials, nil
}

func signalTo(f *fleet, s syscall.Signal) error { return f.any().cmd.Process.Signal(s) }

// answerTime is what a facade has for answering that it has taken a send, before it may be stopped in the middle of that send.
const answerTime = 300 * time.Millisecond

// queue has a facade take a send that is due after a time.
func (f *freezing) queue(ctx context.Context, through *fleet, due time.Duration) (string, error) {
	r := f.shop.message(f.shop.bot(), facadev1.SendOptions_NORMAL)
	r.Mode = facadev1.SendOptions_QUEUE
	if due > 0 {
		r.Options.ScheduleTime = timestamppb.New(time.Now().Add(due))
	}
	answer, err := through.any().messages.SendMessage(ctx, r)
	return answer.GetSend().GetSendId(), err
}

// freeze stops the first replica at the moment, in the middle of a send of its own.
func (f *freezing) freeze(ctx context.Context, at func(round) bool) (id string, since time.Time, release func(), err error) {
	reached, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	stop := func() {
		once.Do(func() {
			err = signalTo(f.frozen, syscall.SIGSTOP)
			close(reached)
		})
	}
	// The other one takes no part until then, so that it is the first one's send.
	if err := signalTo(f.one, syscall.SIGSTOP); err != nil {
		return "", since, nil, err
	}
	if at == nil {
		// Jelou takes twice as long to answer; the request may come in pieces.
		f.gate.watch(func() { time.AfterFunc(jelouTime/2, stop) })
	} else {
		f.wire.watch(func(r round) verdict {
			if at(r) {
				stop()
				<-held // it stays on its way until the replica goes on
			}
			return pass
		})
	}
	queueing, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if id, err = f.queue(queueing, f.frozen, answerTime); err != nil {
		return "", since, nil, err
	}
	select {
	case <-reached:
		since = time.Now()
	case <-time.After(10 * time.Second):
		return "", since, nil, fmt.Errorf("the moment did not come")
	case <-ctx.Done():
		return "", since, nil, context.Cause(ctx)
	}
	return id, since, func() {
		f.wire.watch(nil)
		f.gate.watch(nil)
		close(held)
	}, signalTo(f.one, syscall.SIGCONT)
}

func (f *freezing) run(ctx context.Context, t *trial, i int) error {
	at := freezes[i]
	id, since, release, err := f.freeze(ctx, at.at)
	if err != nil {
		return err
	}
	others, err := f.others(ctx, since)
	if err != nil {
		return err
	}
	t.say("others sent after %.0f ms", ms(others))
	t.must(others <= 3*time.Second, "others sent only after %v", others)
	if err := sleep(ctx, time.Until(since.Add(3*lease))); err != nil {
		return err
	}
	meanwhile, err := f.state(ctx, id)
	if err != nil {
		return err
	}
	release()
	if err := signalTo(f.frozen, syscall.SIGCONT); err != nil {
		return err
	}
	now, err := f.settled(ctx, id, at.states[0])
	if err != nil {
		return err
	}
	sent, err := f.sim.sends(ctx)
	if err != nil {
		return err
	}
	messages := len(sent) - othersSent
	t.say("its send %v, then %v, %d at Jelou", meanwhile, now, messages)
	right := false
	for _, s := range at.states {
		right = right || s == now
	}
	t.must(right, "its send is %v, want one of %v", now, at.states)
	t.must(messages == at.messages, "%d of it at Jelou, want %d", messages, at.messages)
	f.note(others, at.answered && now == facadev1.Send_SENT)
	return t.once(ctx, f.sim)
}

func (f *freezing) note(others time.Duration, recorded bool) {
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	f.b.found.set("others_ms", max(f.b.found.number("others_ms"), rounded(ms(others), 0)))
	if recorded {
		f.b.found.set("late_200_recorded", true)
	}
}

// othersSent is how many sends the other replica gets while the first one is frozen.
const othersSent = 3

// others is how long after the freeze the other replica has sent one, and waits until it has sent all.
func (f *freezing) others(ctx context.Context, since time.Time) (first time.Duration, err error) {
	var ids []string
	for range othersSent {
		id, err := f.queue(ctx, f.one, 0)
		if err != nil {
			return 0, err
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		if s, err := f.settled(ctx, id, facadev1.Send_SENT); err != nil || s != facadev1.Send_SENT {
			return 0, fmt.Errorf("another replica's send is %v: %w", s, err)
		}
		if first == 0 {
			first = time.Since(since)
		}
	}
	return first, nil
}

func (f *freezing) state(ctx context.Context, id string) (resultState, error) {
	r, err := facadev1.NewSendServiceClient(f.one.any().conn).GetSend(ctx, &facadev1.GetSendRequest{SendId: id})
	return r.GetSend().GetState(), err
}

// settled waits until a send is in a state, or for as long as it may take to come there.
func (f *freezing) settled(ctx context.Context, id string, want resultState) (resultState, error) {
	for end := time.Now().Add(4 * time.Second); ; {
		s, err := f.state(ctx, id)
		if err != nil || s == want || time.Now().After(end) {
			return s, err
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return s, err
		}
	}
}
