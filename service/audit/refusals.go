package audit

import (
	"context"
	"sync"
	"time"
)

// Bounds of the lines about refused calls, which whoever reaches the port can have written: of each kind the first one in a minute
// has its line, and the others are one line at the minute's end. That is at most some 100 MB a day.
const (
	every     = time.Minute
	maxOrigin = 20 // addresses that are told apart in a minute; all others are one
)

// Refusals writes bounded lines about refused calls.
type Refusals struct {
	log *Log

	mu      sync.Mutex
	origins map[string]bool
	further map[kind]int64 // of this minute, without the first one
}

// kind is what refused calls are counted by.
type kind struct{ caller, code, reason, credential, peer string }

// NewRefusals makes Refusals. Run has to run.
func NewRefusals(l *Log) *Refusals {
	return &Refusals{log: l, origins: map[string]bool{}, further: map[kind]int64{}}
}

// Note takes the line of a refused call, and writes it when it is the first one of its kind. A known caller's are of one kind,
// wherever they come from.
func (r *Refusals) Note(line Line) {
	if r.log == nil {
		return
	}
	line.Event, line.Count = Refused, 1
	r.mu.Lock()
	defer r.mu.Unlock()
	k := kind{line.Caller, line.Code, line.Reason, line.Credential, line.Peer}
	switch {
	case k.caller != "" || !r.origins[k.peer] && len(r.origins) == maxOrigin:
		k.peer = ""
	default:
		r.origins[k.peer] = true
	}
	if _, known := r.further[k]; known {
		r.further[k]++
		return
	}
	r.further[k] = 0
	r.log.Write(line)
}

// Run writes at the end of each minute how many there were, until ctx ends.
func (r *Refusals) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			r.flush(time.Now())
			return
		case now := <-tick.C:
			r.flush(now)
		}
	}
}

func (r *Refusals) flush(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, n := range r.further {
		if n > 0 {
			r.log.Write(Line{Time: now, Event: Refused, Caller: k.caller, Code: k.code, Reason: k.reason, Credential: k.credential, Peer: k.peer, Count: n})
		}
	}
	clear(r.origins)
	clear(r.further)
}
