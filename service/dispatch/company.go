package dispatch

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// company is what a Dispatcher knows of a company beside the ledger: when to look at it, reads that wait, and the
// pacing state as last seen.
type company struct {
	*Company

	mu     sync.Mutex
	due    time.Time // when to claim next
	reads  []*read
	budget pace.Budget // as last seen, for estimates and headers
	seenDB pace.Time   // the database's clock then
	seenAt time.Time   // ours then
	pause  pace.Pause  // as last logged
	halted string      // why the ledger gives nothing, as last logged

	unreachable int       // failures to reach Jelou in a row
	quietUntil  time.Time // this process does not try to reach Jelou before

	backlog   ledger.Line
	backlogAt time.Time
	added     [4]int64 // by lane, by this process since backlogAt
}

// decision is what was decided in a claim. It is computed again when the ledger repeats its transaction, so it has no
// effect before the claim is committed.
type decision struct {
	choice    ledger.Choice
	budget    pace.Budget
	now       pace.Time
	at        pace.Time // when the next request may leave; Never for none
	read      *read
	readClaim int64
}

// decide runs the rule of package pace under the company's lock.
func (c *company) decide(v ledger.View, lease time.Duration) decision {
	now := pace.Time(v.Now)
	d := decision{now: now}
	// A state that cannot be read is as good as none: it begins with a silent window.
	if d.budget.UnmarshalBinary(v.Pace) != nil {
		d.budget = pace.Budget{}
	}
	var waiting pace.Lanes
	heads := map[pace.Lane]ledger.Head{}
	for _, h := range v.Heads {
		waiting[pace.Lane(h.Send.Lane)] = true
		heads[pace.Lane(h.Send.Lane)] = h
	}
	read := c.firstRead()
	waiting[pace.Read] = read != nil
	turn := d.budget.Next(c.Pace, now, waiting)
	d.at = turn.At
	claim := v.ClaimNo
	if turn.Lane == pace.Read {
		claim = readClaim()
	}
	if turn.Lane == 0 || turn.At > now || !d.budget.Take(c.Pace, now, turn, claim, now.Add(lease)) {
		if turn.Save {
			d.choice.Pace = marshal(&d.budget)
		}
		return d
	}
	d.choice.Pace = marshal(&d.budget)
	if turn.Lane == pace.Read {
		d.read, d.readClaim = read, claim
		return d
	}
	h := heads[turn.Lane]
	d.choice.Lane = ledger.Lane(turn.Lane)
	d.choice.Share, d.choice.Queue = charge(h.Share), charge(h.Queue)
	return d
}

// charge is the tag of a share or queue once it has been served.
func charge(t ledger.Tag) ledger.Tag {
	virtual := pace.Tag(t.Virtual)
	start := virtual.Charge(pace.Tag(t.Start), t.Weight)
	return ledger.Tag{Start: int64(start), Virtual: int64(virtual), Weight: t.Weight}
}

// readClaim numbers a read's slot apart from the ledger's claims, which count from 1.
func readClaim() int64 { return 1<<62 | rand.Int64N(1<<62) }

// marshal writes a budget; its encoding has no error to give.
func marshal(b *pace.Budget) []byte {
	data, err := b.MarshalBinary()
	if err != nil {
		panic(err)
	}
	return data
}

// learn takes in what a claim showed, and says when to claim next.
func (c *company) learn(cl ledger.Claim, d decision, start time.Time, log *slog.Logger) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if d.now != 0 {
		c.budget, c.seenDB, c.seenAt = d.budget, d.now, now
		c.logPause(log)
	}
	switch {
	case cl.Held || cl.Rewound:
		c.due = now.Add(lookAgain)
	case cl.Busy:
		c.due = now.Add(busyWait)
	case cl.Send != nil, d.read != nil, cl.More:
		c.due = now
	case d.at == pace.Never:
		c.setDue(start, now.Add(lookAgain))
	default:
		// Rounded up to the millisecond: a timer that fires early would ask for nothing.
		c.due = now.Add(d.at.Sub(d.now)).Add(time.Millisecond)
	}
	c.due = later(c.due, c.quietUntil)
	c.logHalt(cl, log)
}

// setDue sets the next look, unless something has woken the company since the claim began.
func (c *company) setDue(start, due time.Time) {
	if !c.due.After(start) {
		c.due = due
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *company) dueAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.due
}

// wakeAt makes the company due at t if it is not due before.
func (c *company) wakeAt(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.Before(c.due) {
		c.due = later(t, c.quietUntil)
	}
}

// sleepUntil makes the company due no sooner than t.
func (c *company) sleepUntil(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due = later(c.due, t)
}

// Backoff from a Jelou that this process cannot reach.
const (
	unreachableFirst = 250 * time.Millisecond
	unreachableMost  = 15 * time.Second
)

// reached notes whether Jelou could be reached. While it cannot, this process tries ever less often, so that an outage
// costs a few attempts and not every waiting send's.
func (c *company) reached(ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok {
		c.unreachable, c.quietUntil = 0, time.Time{}
		return
	}
	wait := min(unreachableFirst<<min(c.unreachable, 10), unreachableMost)
	c.unreachable++
	c.quietUntil = time.Now().Add(wait/2 + rand.N(wait/2))
	c.due = later(c.due, c.quietUntil)
}

// saw keeps a pacing state that a settle has written.
func (c *company) saw(b pace.Budget, now pace.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now >= c.seenDB {
		c.budget, c.seenDB, c.seenAt = b, now, time.Now()
	}
}

// logPause logs when the company stops or goes on.
func (c *company) logPause(log *slog.Logger) {
	if log == nil {
		return
	}
	st := c.budget.Status(c.Pace, c.seenDB)
	if st.Pause == c.pause {
		return
	}
	c.pause = st.Pause
	if st.Pause == pace.NotPaused {
		log.Info("company sends again", slog.String("company", c.Name))
		return
	}
	log.Warn("company paused", slog.String("company", c.Name), slog.String("reason", pauseReasons[st.Pause]), slog.Duration("for", st.PauseUntil.Sub(c.seenDB)))
}

var pauseReasons = map[pace.Pause]string{
	pace.PausedThrottled: "Jelou answered 429",
	pace.PausedRejected:  "Jelou refuses the credential: check client_id_file and client_secret_file",
	pace.PausedHeld:      "held",
}

// logHalt logs when the ledger gives nothing for the company though something may wait.
func (c *company) logHalt(cl ledger.Claim, log *slog.Logger) {
	halted := ""
	switch {
	case cl.Rewound:
		halted = "the ledger went back in time"
	case cl.Held:
		halted = "the ledger is held until a person releases it"
	}
	if halted != c.halted && halted != "" {
		log.Error("nothing is sent", slog.String("company", c.Name), slog.String("why", halted))
	}
	c.halted = halted
}

// status is the pacing state now, as far as this process has seen it.
func (c *company) status() pace.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.budget
	return b.Status(c.Pace, c.nowDB())
}

// nowDB is about the database's time now. Before the first claim it is our own.
func (c *company) nowDB() pace.Time {
	if c.seenAt.IsZero() {
		return pace.Time(time.Now().UnixMicro())
	}
	return c.seenDB.Add(time.Since(c.seenAt))
}
