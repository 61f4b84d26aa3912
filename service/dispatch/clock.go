package dispatch

import (
	"sync"
	"time"

	"github.com/jelou-facade/jelou-facade/service/pace"
)

// clock is this process's, which never jumps, beside the database's, which may.
type clock struct {
	base time.Time // this process's clock counts from here

	mu    sync.Mutex
	db    pace.Clock
	jumps int64 // of the database's clock, as far as was seen
}

func newClock() *clock { return &clock{base: time.Now()} }

// read takes in the database's time, which was read since sent, and returns how often its clock has jumped.
func (c *clock) read(sent time.Time, now pace.Time) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.db.Jumped(sent.Sub(c.base), time.Since(c.base), now) {
		c.jumps++
	}
	return c.jumps
}

// jumped is how often the database's clock has jumped.
func (c *clock) jumped() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jumps
}

// distrust counts a jump that nobody saw: the clock was not watched for a while.
func (c *clock) distrust() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jumps++
}

// now is the database's time, or a moment before it. Until it was read for the first time it is this process's.
func (c *clock) now() pace.Time { return c.at(time.Now()) }

// at is the database's time at a moment of this process's.
func (c *clock) at(t time.Time) pace.Time { return pace.Time(0).Add(t.Sub(c.base) + c.behind()) }

// ago is how long before now, which was read from the database since sent, something was seen here: rather too short than
// too long. The database's clock is read before its answer comes here, so counting from here to now would make
// evidence too old by that, and a slot free too early.
func (c *clock) ago(sent time.Time, now pace.Time, seen time.Time) time.Duration {
	c.read(sent, now)
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Sub(pace.Time(0).Add(seen.Sub(c.base)+c.db.BehindMost()) + 1) // rounded up
}

// local is when now will be at.
func (c *clock) local(at pace.Time) time.Time { return c.base.Add(at.Sub(0) - c.behind()) }

func (c *clock) behind() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if behind := c.db.Behind(); behind != 0 {
		return behind
	}
	return time.Duration(c.base.UnixMicro()) * time.Microsecond
}
