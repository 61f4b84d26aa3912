package ledger

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// hub is where callers wait for what is committed, here or by another replica.
type hub struct {
	mu     sync.Mutex
	sends  map[ID]map[chan struct{}]struct{}
	queues map[QueueID]map[chan struct{}]struct{}
	wakes  chan []Wake // holds one merged list while nobody reads
}

func newHub() *hub {
	return &hub{
		sends:  map[ID]map[chan struct{}]struct{}{},
		queues: map[QueueID]map[chan struct{}]struct{}{},
		wakes:  make(chan []Wake, 1),
	}
}

// listen registers a new channel under key until end is called.
func listen[K comparable](h *hub, in map[K]map[chan struct{}]struct{}, key K) (signal chan struct{}, end func()) {
	signal = make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if in[key] == nil {
		in[key] = map[chan struct{}]struct{}{}
	}
	in[key][signal] = struct{}{}
	return signal, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if delete(in[key], signal); len(in[key]) == 0 {
			delete(in, key)
		}
	}
}

func signalAll(signals map[chan struct{}]struct{}) {
	for s := range signals {
		select {
		case s <- struct{}{}:
		default: // it has a signal that was not taken yet
		}
	}
}

// settled signals whoever waits for the send or for results of its queue.
func (h *hub) settled(id ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	signalAll(h.sends[id])
	signalAll(h.queues[QueueID{id.Company, id.Queue}])
}

// everything signals all who wait: what they wait for may have happened unseen.
func (h *hub) everything() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, signals := range h.sends {
		signalAll(signals)
	}
	for _, signals := range h.queues {
		signalAll(signals)
	}
}

// waiting reports whether anybody waits for a send or a queue.
func (h *hub) waiting() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sends)+len(h.queues) > 0
}

// LaneSet is a set of lanes.
type LaneSet uint8

// Has reports whether the lane is in the set.
func (s LaneSet) Has(l Lane) bool { return s&l.only() != 0 }

func (l Lane) only() LaneSet { return 1 << l }

// Wake says that a company may have something to send that it did not have before.
type Wake struct {
	Company int64
	Lanes   LaneSet // in which there may be something
	Here    bool    // it came from this process: the others hear of it some milliseconds later
}

// wake adds companies to the list of those with due work.
func (h *hub) wake(news []Wake) {
	h.mu.Lock()
	defer h.mu.Unlock()
	woken := map[int64]Wake{}
	add := func(list []Wake) {
		for _, w := range list {
			known := woken[w.Company]
			woken[w.Company] = Wake{w.Company, known.Lanes | w.Lanes, known.Here || w.Here}
		}
	}
	add(news)
	select {
	case old := <-h.wakes:
		add(old)
	default:
	}
	h.wakes <- slices.Collect(maps.Values(woken)) // has room: only wake sends, one at a time
}

// Wakes gives the companies that may have something to send that they did not have before. Lists are merged while
// nobody reads. There is one channel, for one reader.
func (l *Ledger) Wakes() <-chan []Wake { return l.hub.wakes }

// wake says that companies have due work, here and to the other replicas.
func (l *Ledger) wake(woken ...Wake) {
	if len(woken) == 0 {
		return
	}
	for i := range woken {
		woken[i].Here = true
	}
	l.hub.wake(woken)
	if l.notify != nil {
		l.notify.woken(woken)
	}
}

// settled says that a send has its result, here and to the other replicas.
func (l *Ledger) settled(id ID) {
	l.hub.settled(id)
	if l.notify != nil {
		l.notify.settled(id)
	}
}

// Ready lists all companies that may have due work.
func (l *Ledger) Ready(ctx context.Context) ([]Wake, error) {
	var ready []Wake
	err := l.query(ctx, `SELECT DISTINCT company, lane FROM share WHERE ready = 1`, func(scan scanFunc) error {
		var w Wake
		var lane Lane
		err := scan(&w.Company, &lane)
		w.Lanes = lane.only()
		ready = append(ready, w)
		return err
	})
	return ready, err
}

// A wait reads its send again after so long, in case every signal failed.
const rereadAfter = 5 * time.Second

// Wait returns the send once it is final. While the database is away it goes on waiting.
func (l *Ledger) Wait(ctx context.Context, id ID) (Send, error) {
	signal, end := listen(l.hub, l.hub.sends, id)
	defer end()
	timer := time.NewTimer(rereadAfter)
	defer timer.Stop()
	for {
		s, err := l.Get(ctx, id)
		switch {
		case err == nil && s.State.Final(), isOwn(err) && !isUnavailable(err):
			return s, err
		case ctx.Err() != nil:
			return s, ctx.Err()
		}
		timer.Reset(rereadAfter)
		select {
		case <-signal:
		case <-timer.C:
		case <-ctx.Done():
			return s, ctx.Err()
		}
	}
}

// Subscribe gives a signal after results were added to a queue, here or by another replica, and now and then without
// a cause. End it.
func (l *Ledger) Subscribe(id QueueID) (signal <-chan struct{}, end func()) {
	return listen(l.hub, l.hub.queues, id)
}
