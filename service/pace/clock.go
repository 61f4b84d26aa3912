package pace

import "time"

// Clock watches the database's clock from one replica, which has a clock of its
// own that never jumps. The zero value has seen nothing. It is not safe for
// concurrent use.
type Clock struct {
	at        time.Duration // the replica's clock when last looked
	low, high Time          // the database's clock less the replica's
	known     bool
}

// A clock that is being corrected without a jump runs this much faster or
// slower at most; a difference below clockSlack costs less than the margin.
const (
	clockDrift = 1000 // one part in
	clockSlack = 2 * time.Millisecond
)

// Jumped tells whether the database's clock has jumped since it was last looked
// at: it read db between two readings of the replica's own, counted
// from any fixed moment. The answer to true is Budget.Silence. The first look
// knows of no jump.
func (c *Clock) Jumped(sent, received time.Duration, db Time) bool {
	low, high := db-micros(received), db-micros(sent)
	drift := max(0, micros(received-c.at)) / clockDrift // readings may come out of order
	wasLow, wasHigh, known := c.low-drift, c.high+drift, c.known
	c.at, c.known = max(received, c.at), true
	c.low, c.high = max(low, wasLow), min(high, wasHigh)
	if known && c.low <= c.high {
		return false
	}
	c.low, c.high = low, high
	return known && (low > wasHigh+micros(clockSlack) || high < wasLow-micros(clockSlack))
}

// Behind is how far the replica's clock is behind the database's at least; zero
// before the first look. A replica that acts when its own clock plus this has
// reached a moment is not too early.
func (c *Clock) Behind() time.Duration { return span(c.low) }

// BehindMost is how far it is behind at most: what a replica saw at a moment of its
// own clock happened no later than that plus this.
func (c *Clock) BehindMost() time.Duration { return span(c.high) }
