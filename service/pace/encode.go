package pace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrEncoding says that stored state cannot be read. The Budget is then the zero
// value, which begins with a silent window, so going on with it is safe.
var ErrEncoding = errors.New("pacing state cannot be read")

// version of the encoding. Fields may be added at the end under the same version,
// because readers ignore what follows the fields they know.
const version = 1

// The version's byte and a checksum come first. A row that somebody has edited
// must not pass for one that says when the last requests arrived.
const headerSize = 1 + crc32.Size

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// maxSlots bounds what is read: a smaller allowance may leave slots over.
const maxSlots = 2 * MaxRequests

// AppendBinary appends the state to buf.
func (b *Budget) AppendBinary(buf []byte) ([]byte, error) {
	start := len(buf)
	w := walk{mode: writing, buf: append(buf, version, 0, 0, 0, 0)}
	b.walk(&w)
	seal(w.buf[start:])
	return w.buf, nil
}

func seal(data []byte) {
	binary.LittleEndian.PutUint32(data[1:], crc32.Checksum(data[headerSize:], castagnoli))
}

// MarshalBinary returns the state, about 70 bytes and 20 for each slot.
func (b *Budget) MarshalBinary() ([]byte, error) {
	return b.AppendBinary(make([]byte, 0, 128+32*len(b.slots)))
}

// UnmarshalBinary reads what MarshalBinary wrote; nothing at all is the zero value.
// The error is ErrEncoding.
func (b *Budget) UnmarshalBinary(data []byte) error {
	*b = Budget{}
	if len(data) == 0 {
		return nil
	}
	if data[0] != version {
		return fmt.Errorf("%w: version %d, this program knows %d", ErrEncoding, data[0], version)
	}
	if len(data) < headerSize || binary.LittleEndian.Uint32(data[1:]) != crc32.Checksum(data[headerSize:], castagnoli) {
		return fmt.Errorf("%w: it is cut or damaged", ErrEncoding)
	}
	r := walk{mode: reading, buf: data[headerSize:]}
	b.walk(&r)
	if r.short {
		*b = Budget{}
		return fmt.Errorf("%w: fields are missing", ErrEncoding)
	}
	return nil
}

// shift moves every stored time by d.
func (b *Budget) shift(d Time) {
	b.walk(&walk{mode: shifting, by: d})
	b.seen += d
}

// walk visits every stored field in one order, for writing, reading and moving
// times alike, so that no field can be forgotten in one of them.
func (b *Budget) walk(w *walk) {
	w.base = number(w, &b.seen)
	w.time(&b.quiet)
	for i := range w.slots(b) {
		s := &b.slots[i]
		w.time(&s.anchor)
		w.flag(&s.onAck)
		w.flag(&s.refused)
		number(w, &s.claim)
		w.time(&s.taken)
		w.time(&s.lease)
	}
	w.trips(&b.reply)
	w.trips(&b.ack)
	number(w, &b.late)
	w.flag(&b.onAck)
	number(w, &b.cost)
	number(w, &b.costs)
	w.time(&b.replyUntil)
	w.pause(&b.pause)
	w.time(&b.spread)
	for l := range lanes {
		number(w, &b.passed[l])
		number(w, &b.virtual[l])
	}
}

func (w *walk) trips(t *trips) {
	w.time(&t.since)
	number(w, &t.fastest)
	number(w, &t.before)
	number(w, &t.count)
	number(w, &t.counted)
	number(w, &t.mean)
}

func (w *walk) pause(p *pause) {
	w.flag(&p.held)
	number(w, &p.reason)
	w.time(&p.until)
	number(w, &p.strikes)
	number(w, &p.probe)
	number(w, &p.claim)
	w.time(&p.eased)
	number(w, &p.wide)
	w.time(&p.wideAt)
	number(w, &p.limit)
	w.flag(&p.spaced)
	w.time(&p.raiseAt)
	number(w, &p.raiseStep)
	w.time(&p.limitedAt)
}

type walk struct {
	mode  walkMode
	buf   []byte
	base  Time // times are stored as distances from it, which are short
	by    Time
	short bool
}

type walkMode int8

const (
	writing walkMode = iota
	reading
	shifting
)

func (w *walk) slots(b *Budget) int {
	n := int64(len(b.slots))
	number(w, &n)
	if w.mode == reading {
		if n < 0 || n > maxSlots || n > int64(len(w.buf)) {
			w.short = true
			return 0
		}
		b.slots = make([]slot, n)
	}
	return int(n)
}

// number visits what is not a time.
func number[T ~int64 | ~int8](w *walk, v *T) T {
	switch w.mode {
	case writing:
		w.buf = binary.AppendVarint(w.buf, int64(*v))
	case reading:
		n, size := binary.Varint(w.buf)
		if size <= 0 {
			w.short = true
			return 0
		}
		*v, w.buf = T(n), w.buf[size:]
	}
	return *v
}

func (w *walk) flag(v *bool) {
	var n int64
	if *v {
		n = 1
	}
	number(w, &n)
	*v = n != 0
}

func (w *walk) time(v *Time) {
	if w.mode == shifting {
		*v += w.by
		return
	}
	d := *v - w.base
	number(w, &d)
	*v = w.base + d
}
