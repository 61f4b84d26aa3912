package pace

// Lane is how urgent a request is. Lower numbers go first.
type Lane int8

const (
	// Urgent is for one-time codes and replies in a conversation.
	Urgent Lane = 1 + iota
	// Normal is for everything else that somebody waits for.
	Normal
	// Bulk is for batches.
	Bulk
	// Read is for reading notifications, which costs allowance like sending.
	Read

	lanes = Read + 1
)

// Lanes says which lanes have a request that may leave: index with a Lane.
type Lanes [lanes]bool

// below says whether a lane under l waits.
func (w *Lanes) below(l Lane) bool {
	for l++; l <= Read; l++ {
		if w[l] {
			return true
		}
	}
	return false
}

// lane chooses whose turn it is: the highest that waits, but for one turn in so
// many, which is that of the lanes below it. When those may not leave yet because
// they are spread, an urgent send goes meanwhile and their turn stays due.
func (b *Budget) lane(floor int64, waiting Lanes, lowerMay bool) Lane {
	for l := Urgent; l <= Read; l++ {
		if !waiting[l] {
			continue
		}
		if b.passed[l] < floor-1 || !waiting.below(l) || l == Urgent && !lowerMay {
			return l
		}
	}
	return 0
}

// turned counts a lane's turn. A lower lane's claim to a turn grows only while it
// waits and never beyond one, so it is passed on, not saved up.
func (b *Budget) turned(floor int64, l Lane, waiting Lanes) {
	for above := Urgent; above < l; above++ {
		b.passed[above] = 0
	}
	if waiting.below(l) {
		b.passed[l] = min(b.passed[l]+1, floor-1)
	}
}

// Tag is a moment in virtual time, in which each share of a lane is served in
// proportion to its weight. The share with the smallest tag goes first.
type Tag int64

// MaxWeight is the largest weight of a share.
const MaxWeight = 1000

// tagScale is one request at weight 1: fine enough for MaxWeight, coarse enough
// that a thousand requests a second take 17 years to overflow, and that only
// if nothing else has changed by then.
const tagScale = 1 << 24

func cost(weight int) Tag { return tagScale / Tag(min(max(weight, 1), MaxWeight)) }

// Join returns the tag of a share that begins to wait at virtual time v: its own,
// but no earlier than v. So what was idle, paused or cancelled holds no credit.
func (v Tag) Join(own Tag) Tag { return max(v, own) }

// Charge serves the share whose tag is own: virtual time moves to where the
// service starts, and the share's next tag is returned. A weight outside 1 to
// MaxWeight counts as the nearest.
func (v *Tag) Charge(own Tag, weight int) Tag {
	*v = v.Join(own)
	return *v + cost(weight)
}

// Virtual is the virtual time of a lane's shares. Queues inside a share have one
// of their own, stored with the share.
func (b *Budget) Virtual(l Lane) *Tag { return &b.virtual[l] }
