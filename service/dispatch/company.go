package dispatch

import (
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jelou-facade/jelou-facade/service/ledger"
	"github.com/jelou-facade/jelou-facade/service/pace"
)

// turn is a look at a company with the settings that it had when the look began: they hold for what comes of it.
type turn struct {
	*company
	settings *Company
}

// company is what a Dispatcher knows of a company beside the ledger. All of it may be out of date, for other replicas
// claim too: it decides when to look, and never what leaves.
type company struct {
	ID          int64
	Name        string
	settings    atomic.Pointer[Company]
	clock       *clock
	log         *slog.Logger
	appointment appointment // the agenda's

	// jumps of the database's clock that the stored state has been told of. Only one claim of a company runs at a time,
	// and only claims use it.
	jumps int64

	counting sync.Mutex // held by who counts the line

	mu        sync.Mutex
	rule      pace.Config
	rank      int
	alive     int         // replicas
	budget    pace.Budget // as last seen
	claimNo   int64       // of the latest claim seen
	waits     pace.Lanes  // in which something waits, as far as is known
	news      pace.Lanes  // and what was heard since the look that is under way began
	newsHere  bool        // from this process
	glancedAt time.Time
	flying    int // own requests on their way
	busy      int // looks in a row that found the company locked
	reads     []*read

	unreachable int               // failures to reach Jelou in a row
	failedAt    time.Time         // the last of them
	quietUntil  time.Time         // this process does not try to reach Jelou before
	repeatAt    time.Time         // when the next repeated attempt fits into its share of the allowance
	sealedUntil time.Time         // this process stands behind the others, for it has not got a key
	sealed      map[ledger.ID]int // how often this process has not got the key of a send

	pause   pace.Pause // as last logged
	halted  halt       // why the ledger gives nothing
	refused [32]byte   // fingerprint of the credential that Jelou refused
	unacked int        // replies without the transport's acknowledgement that was asked for

	trips    []time.Duration // from claim to answer, a ring
	nextTrip int
	line     line
	promised map[ledger.ID]time.Time
	use      []usage // samples of the last minute
}

// halt is why the ledger gives nothing though something may wait.
type halt int8

// The reasons.
const (
	notHalted     halt = iota
	haltedRewound      // the ledger went back in time
	haltedHeld         // the ledger is held until a person releases it
)

func newCompany(co *Company, clock *clock, log *slog.Logger) *company {
	c := &company{ID: co.ID, Name: co.Name, clock: clock, log: log.With(slog.String("company", co.Name)), appointment: appointment{index: -1}, promised: map[ledger.ID]time.Time{}, sealed: map[ledger.ID]int{}}
	c.set(co)
	return c
}

// set puts settings in force, from the next look on.
func (c *company) set(co *Company) {
	c.settings.Store(co)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rule = co.Pace
}

// attemptTimeout is AttemptTimeout or its default.
func (c *Company) attemptTimeout() time.Duration {
	if c.AttemptTimeout == 0 {
		return DefaultAttemptTimeout
	}
	return c.AttemptTimeout
}

// decision is what was decided in a claim. It is computed again when the ledger repeats its transaction, so it has no
// effect before the claim is committed.
type decision struct {
	choice    ledger.Choice
	budget    pace.Budget
	waits     pace.Lanes
	claimNo   int64 // before the claim
	jumps     int64
	at        pace.Time // when the turn was; later than now where nothing could be taken
	now       pace.Time
	read      *read
	readClaim int64
}

// decide runs the rule of package pace under the company's lock.
func (c turn) decide(v ledger.View, jumps int64) *decision {
	c.mu.Lock()
	rule, read := c.settings.Pace, c.firstRead()
	c.mu.Unlock()
	now := pace.Time(v.Now)
	d := &decision{now: now, claimNo: v.ClaimNo - 1, jumps: jumps}
	// A state that cannot be read is as good as none: it begins with a silent window.
	if d.budget.UnmarshalBinary(v.Pace) != nil {
		d.budget = pace.Budget{}
	}
	if jumps != c.jumps {
		d.budget.Silence(rule, now)
	}
	heads := map[pace.Lane]ledger.Head{}
	for _, h := range v.Heads {
		d.waits[h.Send.Lane] = true
		heads[pace.Lane(h.Send.Lane)] = h
	}
	waiting := d.waits
	waiting[pace.Read] = read != nil
	turn := d.budget.Next(rule, now, waiting)
	d.at = turn.At
	claim := v.ClaimNo
	if turn.Lane == pace.Read {
		claim = readClaim()
	}
	// The slot's lease is counted from a later moment than the attempt's deadline, so by its end the attempt is over.
	if turn.Lane == 0 || turn.At > now || !d.budget.Take(rule, now, turn, claim, now.Add(c.settings.attemptTimeout())) {
		if turn.Save || jumps != c.jumps {
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
	d.choice.RecipientGap = c.settings.RecipientInterval
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

// begin notes that a look begins: what is heard from now on it may have missed.
func (c *company) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.news, c.newsHere = pace.Lanes{}, false
}

// learn takes in what a claim showed, and says when to look next.
func (c *company) learn(now time.Time, cl ledger.Claim, d *decision) (time.Time, look) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setHalt(cl)
	switch {
	case c.halted != notHalted:
		return now.Add(lookAgain), glanceLook
	case cl.Busy && c.place(now) == 0:
		c.busy = min(c.busy+1, busyMost)
		return now.Add(busyWait << (c.busy - 1)), claimLook
	case cl.Busy:
		return now.Add(rankDelay), glanceLook
	case d.choice.Lane != 0 && cl.Send == nil:
		// The answer to the commit was lost, and it has not happened.
		return now.Add(busyWait), glanceLook
	}
	c.busy = 0
	c.jumps = d.jumps
	c.budget, c.claimNo, c.waits = d.budget, d.claimNo, d.waits
	if cl.Send != nil {
		c.claimNo = cl.Send.Claim
		c.waits[cl.Send.Lane] = !cl.Emptied
		c.flying++
		c.line.take(*cl.Send)
	} else if d.read != nil {
		c.flying++
	}
	c.logPause()
	if cl.More {
		return now, claimLook
	}
	return c.after(now, false)
}

// glanced takes in what a look without a lock showed, and says when to look next.
func (c *company) glanced(now time.Time, g ledger.Glance) (time.Time, look) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.budget.UnmarshalBinary(g.Pace) != nil {
		c.budget = pace.Budget{}
	}
	idle := g.ClaimNo == c.claimNo
	c.claimNo, c.glancedAt = g.ClaimNo, now
	c.logPause()
	switch {
	case !g.Ready:
		c.waits = pace.Lanes{}
	case c.waits == pace.Lanes{}:
		c.waits = pace.Lanes{pace.Urgent: true, pace.Normal: true, pace.Bulk: true}
	}
	return c.after(now, idle)
}

// after is when and how to look next after a look: at once where something has come up meanwhile, or where others
// should have claimed and did not.
func (c *company) after(now time.Time, idle bool) (time.Time, look) {
	for lane, news := range c.news {
		c.waits[lane] = c.waits[lane] || news
	}
	at, ok := c.open(now)
	if ok && due(now, at) && (idle || c.newsHere) {
		return at, claimLook
	}
	return c.ranked(now, at, ok)
}

// due reports whether a time has come, but for what a timer cannot tell apart.
func due(now, at time.Time) bool { return !at.After(now.Add(time.Millisecond)) }

// plan is when and how to look at the company next.
func (c *company) plan(now time.Time) (time.Time, look) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.open(now)
	return c.ranked(now, at, ok)
}

// woken takes in that there is new work, and says when to look. Whoever stored it claims it at once, when it is of a lane
// in which nothing waited; the others see to it only where that one does not.
func (c *company) woken(now time.Time, w ledger.Wake) (time.Time, look) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := false
	for lane := ledger.Urgent; lane <= ledger.Bulk; lane++ {
		if w.Lanes.Has(lane) {
			fresh = fresh || !c.waits[lane]
			c.waits[lane], c.news[lane] = true, true
		}
	}
	c.newsHere = c.newsHere || w.Here && fresh
	at, ok := c.open(now)
	switch {
	case !ok || !due(now, at):
		return c.ranked(now, at, ok)
	case w.Here && fresh:
		return at, claimLook
	case !w.Here:
		return now.Add(rankDelay * time.Duration(1+c.place(now))), glanceLook
	}
	return c.ranked(now, at, ok)
}

const (
	// openSoon is how far away a slot may be before the requests of other replicas matter, which may free one sooner.
	openSoon = 300 * time.Millisecond
	// openGlance is then when to look how they are getting on.
	openGlance = 100 * time.Millisecond
)

// open is when something may leave, by what is known; false when nothing waits or nobody can say. A company whose
// stored state cannot be trusted is due at once: its silent window begins when a claim finds that.
func (c *company) open(now time.Time) (time.Time, bool) {
	if !c.budget.Begun() || c.jumps != c.clock.jumped() {
		return now, true
	}
	waits := c.waits
	waits[pace.Read] = len(c.reads) > 0
	if waits == (pace.Lanes{}) || c.unreachable > 0 && c.flying > 0 {
		return now, false
	}
	b := c.budget.Clone()
	turn := b.Next(c.rule, c.clock.now(), waits)
	if turn.At == pace.Never {
		return now, false
	}
	return later(c.clock.local(turn.At), c.quietUntil), true
}

// ranked is when and how this replica looks at a company from which something may leave at a time.
func (c *company) ranked(now, at time.Time, ok bool) (time.Time, look) {
	how := claimLook
	switch {
	case !ok:
		// Spread, so that a thousand idle companies are not looked at together.
		return now.Add(lookAgain - rand.N(lookAgain/4)), glanceLook
	case at.After(now.Add(openSoon)) && c.budget.Open() > c.flying:
		at, how = now.Add(openGlance), glanceLook
	case c.place(now) > 0 && len(c.reads) == 0:
		at = later(at.Add(rankDelay*time.Duration(c.place(now))), c.glancedAt.Add(rankDelay))
		how = glanceLook
	}
	if again := now.Add(lookAgain); at.After(again) {
		return again, glanceLook
	}
	return at, how
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (c *company) setRank(rank, alive int) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed = c.rank != rank
	c.rank, c.alive = rank, alive
	return changed
}

// place is the rank, behind all other replicas while this one lacks a key that they may have.
func (c *company) place(now time.Time) int {
	if c.alive > 1 && now.Before(c.sealedUntil) {
		return c.rank + c.alive
	}
	return c.rank
}

func (c *company) currentRule() pace.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rule
}

// Backoff from a Jelou that this process cannot reach.
const (
	unreachableFirst = 250 * time.Millisecond
	unreachableMost  = 15 * time.Second
)

// landed notes that one of this process's requests is over, and whether Jelou could be reached. While it cannot, this
// process tries with one request at a time and ever less often, so that an outage costs a few attempts and not
// every waiting send's.
func (c *company) landed(now, began time.Time, reached bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying--
	switch {
	case reached:
		c.unreachable, c.quietUntil = 0, time.Time{}
	case began.After(c.failedAt):
		c.quietUntil = now.Add(halfJitter(min(unreachableFirst<<min(c.unreachable, 10), unreachableMost)))
		c.unreachable++
		c.failedAt = now
	}
}

const (
	// After a send whose key it has not got this process leaves the company alone for sealedQuiet, and stands behind other replicas for
	// sealedFor, which is longer than the send's backoff: so another one takes it.
	sealedQuiet = 250 * time.Millisecond
	sealedFor   = 2 * time.Minute
	// Backoff of such a send. When nobody has the key it becomes longer, so that the sends behind it have their turn.
	sealedFirst = 100 * time.Millisecond
	sealedMost  = time.Minute
	// sealedKnown is how many such sends are remembered.
	sealedKnown = 10_000
)

// unopened is how long a send waits whose key this process has not got, and whether it is the first of the company.
func (c *company) unopened(id ledger.ID, now time.Time) (wait time.Duration, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, first := c.sealed[id], len(c.sealed) == 0
	if len(c.sealed) >= sealedKnown {
		clear(c.sealed)
	}
	c.sealed[id] = n + 1
	c.quietUntil, c.sealedUntil = later(c.quietUntil, now.Add(halfJitter(sealedQuiet))), now.Add(sealedFor)
	return halfJitter(min(sealedFirst<<min(2*n, 20), sealedMost)), first
}

// gaveBack notes that a turn was not used.
func (c *company) gaveBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flying--
}

// halfJitter is between half of a wait and the whole.
func halfJitter(wait time.Duration) time.Duration { return wait/2 + rand.N(wait/2+1) }

// saw keeps a pacing state that a settle has written.
func (c *company) saw(b pace.Budget) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.budget = b
	c.logPause()
}

// logPause logs when the company stops or goes on.
func (c *company) logPause() {
	st := c.status()
	if st.Pause == c.pause {
		return
	}
	c.pause = st.Pause
	if st.Pause == pace.NotPaused {
		c.log.Info("company sends again")
		return
	}
	attrs := []any{slog.String("reason", pauseReasons[st.Pause])}
	if st.PauseUntil != pace.Never {
		attrs = append(attrs, slog.Duration("for", st.PauseUntil.Sub(c.clock.now())))
	}
	c.log.Warn("company paused", attrs...)
}

var pauseReasons = map[pace.Pause]string{
	pace.PausedThrottled:     "Jelou answered 429",
	pace.PausedRejected:      "Jelou refuses the credential: check client_id_file and client_secret_file",
	pace.PausedMisconfigured: "Jelou says that the credential has no company: ask Jelou",
	pace.PausedHeld:          "held",
}

var haltReasons = map[halt]string{
	haltedRewound: "the ledger went back in time",
	haltedHeld:    "the ledger is held until a person releases it",
}

// setHalt notes, and logs, when the ledger gives nothing for the company though something may wait.
func (c *company) setHalt(cl ledger.Claim) {
	halted := notHalted
	switch {
	case cl.Busy:
		return // nobody looked
	case cl.Rewound:
		halted = haltedRewound
	case cl.Held:
		halted = haltedHeld
	}
	if halted != c.halted && halted != notHalted {
		c.log.Error("nothing is sent", slog.String("why", haltReasons[halted]))
	}
	c.halted = halted
}

// status is the pacing state now, as far as this process has seen it. c.mu is held.
func (c *company) status() pace.Status {
	b := c.budget.Clone()
	return b.Status(c.rule, c.clock.now())
}
