package ledger

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// campaign is a company's batches, which anything may happen to in any order, beside what they have to be.
type campaign struct {
	*rapid.T
	l       *Ledger
	company int64
	batches []*modelBatch
	flying  []*Send
}

// modelBatch is what a batch has to be.
type modelBatch struct {
	id        QueueID
	uploader  int64
	states    []State // of its items, as they read
	replayed  []bool
	paused    bool
	sealed    bool
	cancelled bool
	replay    bool
	cursor    int64          // how far its results were read
	results   map[int64]bool // whose items' results were read
}

func (m *modelBatch) count() Counts {
	c := Counts{Accepted: int64(len(m.states))}
	for _, s := range m.states {
		*map[State]*int64{Scheduled: &c.Scheduled, Pending: &c.Pending, Sending: &c.Sending, Sent: &c.Sent, Failed: &c.Failed,
			Unknown: &c.Unknown, Cancelled: &c.Cancelled, Expired: &c.Expired}[s]++
	}
	return c
}

func (m *modelBatch) ended() bool {
	for _, s := range m.states {
		if !s.Final() {
			return false
		}
	}
	return m.sealed || m.cancelled
}

func (m *modelBatch) state() BatchState {
	switch {
	case m.cancelled:
		return BatchCancelled
	case m.ended():
		return BatchCompleted
	case m.sealed:
		return BatchRunning
	}
	return BatchOpen
}

func (c *campaign) create(t *rapid.T) {
	if len(c.batches) == 6 {
		return
	}
	n := newBatch(c.company)
	n.Paused = rapid.Bool().Draw(t, "paused")
	b := mustCreate(c, c.l, n)
	c.batches = append(c.batches, &modelBatch{id: b.ID, paused: n.Paused, results: map[int64]bool{}})
}

func (c *campaign) draw(t *rapid.T) *modelBatch {
	if len(c.batches) == 0 {
		t.Skip("no batch yet")
	}
	return rapid.SampledFrom(c.batches).Draw(t, "batch")
}

func (c *campaign) open(t *rapid.T) {
	m := c.draw(t)
	b, uploader, err := c.l.OpenBatch(c.Context(), m.id, "")
	if err != nil || uploader <= m.uploader || b.NextPos != int64(len(m.states)+1) {
		c.Fatalf("opened %+v as %d, %v", b, uploader, err)
	}
	m.uploader = uploader
}

// add sends again some items that are there, some that follow, and perhaps one that leaves a gap.
func (c *campaign) add(t *rapid.T) {
	m := c.draw(t)
	have := len(m.states)
	from := have
	if !m.replay {
		from = rapid.IntRange(max(0, have-2), have).Draw(t, "from")
	}
	n := rapid.IntRange(1, 5).Draw(t, "items")
	sends := items(c.company, m.id.Queue, from, n)
	if rapid.IntRange(0, 9).Draw(t, "leaves a gap") == 0 {
		sends[n-1] = items(c.company, m.id.Queue, from+n, 1)[0]
	}
	for i := range sends {
		// Few recipients, so that items wait for each other.
		sends[i].Recipient = []string{"a", "b", ""}[sends[i].Pos%3]
		sends[i].Uploader = m.uploader
		if sends[i].Pos%5 == 0 {
			sends[i].Final = &Final{Reason: "INVALID_FIELD"}
		}
		if sends[i].Pos%4 == 0 {
			sends[i].DueAt = time.Now().Add(time.Hour).UnixMicro()
		}
	}
	out, err := c.l.Add(c.Context(), sends)
	if err != nil {
		c.Fatal(err)
	}
	for i, a := range out {
		c.checkAdded(m, sends[i], a)
	}
}

func (c *campaign) checkAdded(m *modelBatch, s NewSend, a Added) {
	next := int64(len(m.states) + 1)
	var want error
	switch {
	case s.Pos < next:
	case m.sealed || m.cancelled:
		want = ErrSealed
	case s.Pos > next:
		want = ErrSequenceMismatch
	case s.Final != nil:
		m.states = append(m.states, Failed)
	case s.DueAt != 0:
		m.states = append(m.states, Scheduled)
	default:
		m.states = append(m.states, Pending)
	}
	if int(next) == len(m.states) {
		m.replayed = append(m.replayed, s.Final != nil && s.Body == nil)
	}
	if !errors.Is(a.Err, want) || a.Joined != (s.Pos < next) {
		c.Fatalf("item %d of %d: %+v, want %v", s.Pos, next, a, want)
	}
}

func (c *campaign) seal(t *rapid.T) {
	m := c.draw(t)
	count := int64(len(m.states)) + rapid.SampledFrom([]int64{0, 0, 1}).Draw(t, "too many")
	_, err := c.l.Seal(c.Context(), m.id, count, m.uploader)
	if count != int64(len(m.states)) {
		if !errors.Is(err, ErrSequenceMismatch) {
			c.Fatalf("sealed with %d of %d: %v", count, len(m.states), err)
		}
		return
	}
	if err != nil {
		c.Fatal(err)
	}
	m.sealed = true
}

func (c *campaign) change(t *rapid.T) {
	m := c.draw(t)
	over := m.cancelled || m.ended()
	var err error
	what := rapid.SampledFrom([]string{"pause", "resume", "cancel"}).Draw(t, "change")
	switch what {
	case "pause":
		_, err = c.l.PauseBatch(c.Context(), m.id)
		m.paused = m.paused || !over
	case "resume":
		_, err = c.l.ResumeBatch(c.Context(), m.id)
		m.paused = m.paused && over
	case "cancel":
		_, err = c.l.CancelBatch(c.Context(), m.id)
		over = over && !m.cancelled
		if !over && !m.cancelled {
			c.cancelled(m)
		}
	}
	if errors.Is(err, ErrBatchEnded) != over || err != nil && !over {
		c.Fatalf("%s of %+v: %v", what, m, err)
	}
}

func (c *campaign) cancelled(m *modelBatch) {
	m.cancelled = true
	for i, s := range m.states {
		if s == Pending || s == Scheduled {
			m.states[i] = Cancelled
		}
	}
}

func (c *campaign) batch(id QueueID) *modelBatch {
	for _, m := range c.batches {
		if m.id == id {
			return m
		}
	}
	c.Fatalf("no batch %v", id)
	return nil
}

func (c *campaign) claim(t *rapid.T) {
	s := mustClaim(c, c.l, c.company, chooseFirst)
	if s == nil {
		return
	}
	m := c.batch(QueueID{s.ID.Company, s.ID.Queue})
	if m.states[s.ID.Pos-1] != Pending || m.paused {
		c.Fatalf("claimed %+v of %+v", s, m)
	}
	m.states[s.ID.Pos-1] = Sending
	c.flying = append(c.flying, s)
}

func (c *campaign) settle(t *rapid.T) {
	if len(c.flying) == 0 {
		t.Skip("nothing is under way")
	}
	i := rapid.IntRange(0, len(c.flying)-1).Draw(t, "in flight")
	s := c.flying[i]
	c.flying = append(c.flying[:i], c.flying[i+1:]...)
	outcome := rapid.SampledFrom([]State{Sent, Sent, Failed, Unknown, Pending}).Draw(t, "outcome")
	got := mustSettle(c, c.l, Settlement{ID: s.ID, Claim: s.Claim, State: outcome})
	m := c.batch(QueueID{s.ID.Company, s.ID.Queue})
	if outcome == Pending && m.cancelled {
		outcome = Cancelled
	}
	if m.states[s.ID.Pos-1] = outcome; got.State != outcome {
		c.Fatalf("settled %v as %s, want %s", s.ID, got.State, outcome)
	}
}

func (c *campaign) end(t *rapid.T) {
	m := c.draw(t)
	if len(m.states) == 0 {
		t.Skip("no item yet")
	}
	i := rapid.IntRange(0, len(m.states)-1).Draw(t, "item")
	_, ok, err := c.l.Expire(c.Context(), ID{m.id.Company, m.id.Queue, int64(i + 1)})
	could := m.states[i] == Pending || m.states[i] == Scheduled
	if err != nil || ok != (could || m.states[i] == Expired) {
		c.Fatalf("expired a %s item: %v, %v", m.states[i], ok, err)
	}
	if could {
		m.states[i] = Expired
	}
}

func (c *campaign) sweep(*rapid.T) {
	if err := c.l.rewriteCancelled(c.Context()); err != nil {
		c.Fatal(err)
	}
}

func (c *campaign) replay(t *rapid.T) {
	m := c.draw(t)
	if len(c.batches) > 8 {
		t.Skip("enough of them")
	}
	mustExec(c, c.l, `UPDATE send SET late_until = 1 WHERE late_until IS NOT NULL`)
	source := Batch{ID: m.id}
	b, _, err := c.l.Replay(c.Context(), newReplay(source, Failed, Unknown, Expired))
	replay := &modelBatch{id: b.ID, sealed: true, replay: true, results: map[int64]bool{}}
	for i, s := range m.states {
		if !m.replayed[i] && (s == Failed || s == Unknown || s == Expired) {
			m.replayed[i] = true
			replay.states, replay.replayed = append(replay.states, Pending), append(replay.replayed, false)
		}
	}
	switch {
	case len(replay.states) == 0 && !errors.Is(err, ErrNothingToReplay), len(replay.states) > 0 && err != nil:
		c.Fatalf("replayed %d items: %v", len(replay.states), err)
	case err == nil:
		c.batches = append(c.batches, replay)
	}
}

// read reads the next results: each item's once, in the order of their numbers.
func (c *campaign) read(t *rapid.T) {
	m := c.draw(t)
	c.readResults(m, rapid.IntRange(1, 4).Draw(t, "limit"))
}

func (c *campaign) readResults(m *modelBatch, limit int) int {
	page, ended, err := c.l.Results(c.Context(), m.id, m.cursor, limit)
	if err != nil {
		c.Fatal(err)
	}
	if ended && !m.ended() {
		c.Fatalf("after %d the batch has ended, and it has not: %+v", m.cursor, m)
	}
	for _, s := range page {
		if s.ResultNo <= m.cursor || m.results[s.ID.Pos] || s.State != m.states[s.ID.Pos-1] {
			c.Fatalf("after %d comes %+v, which is %s", m.cursor, s, m.states[s.ID.Pos-1])
		}
		m.cursor, m.results[s.ID.Pos] = s.ResultNo, true
	}
	return len(page)
}

// agree checks every batch against what it has to be.
func (c *campaign) agree(*rapid.T) {
	for _, m := range c.batches {
		b := mustRead(c, c.l, m.id)
		// The items of a cancelled batch end with the sweep.
		if b.Counts != m.count() || b.State != m.state() || b.NextPos != int64(len(m.states)+1) ||
			(b.EndedAt != 0) != m.ended() && !m.cancelled || b.EndedAt != 0 && !m.ended() || b.Paused != (m.paused && !m.cancelled && !m.ended()) {
			c.Fatalf("%+v\nwant %s %+v, %+v", b, m.state(), m.count(), m)
		}
	}
	if err := c.l.CheckInvariant(c.Context()); err != nil {
		c.Fatal(err)
	}
}

// finish brings everything to its end and reads all results.
func (c *campaign) finish() {
	for _, m := range c.batches {
		if !m.ended() && !m.cancelled {
			if _, err := c.l.CancelBatch(c.Context(), m.id); err != nil {
				c.Fatal(err)
			}
			c.cancelled(m)
		}
	}
	for _, s := range c.flying {
		mustSettle(c, c.l, Settlement{ID: s.ID, Claim: s.Claim, State: Sent})
		c.batch(QueueID{s.ID.Company, s.ID.Queue}).states[s.ID.Pos-1] = Sent
	}
	c.sweep(nil)
	c.agree(nil)
	for _, m := range c.batches {
		for c.readResults(m, 3) > 0 {
		}
		if b := mustRead(c, c.l, m.id); b.EndedAt == 0 || len(m.results) != len(m.states) {
			c.Fatalf("%d results of %d items, %+v", len(m.results), len(m.states), b)
		}
	}
}

func TestAnythingMayHappenToBatches(t *testing.T) {
	eachBackend(t, func(t *testing.T, c Config) {
		l := mustOpen(t, c)
		run := 0
		rapid.Check(t, func(rt *rapid.T) {
			run++
			w := &campaign{T: rt, l: l, company: mustCompany(rt, l, fmt.Sprint("company ", run))}
			rt.Repeat(map[string]func(*rapid.T){
				"create": w.create, "open": w.open, "add": w.add, "add more": w.add, "seal": w.seal, "change": w.change,
				"claim": w.claim, "claim more": w.claim, "settle": w.settle, "end": w.end, "sweep": w.sweep,
				"replay": w.replay, "read": w.read, "": w.agree,
			})
			w.finish()
		})
	})
}
