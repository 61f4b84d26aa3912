package ledger

import (
	"encoding/base32"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// ErrBadID is returned for a string that is not an id, or is one with a typing error in it.
var ErrBadID = errors.New("not a valid id: copy it whole, as it was answered")

// ID names a send.
type ID struct {
	Company, Queue, Pos int64
}

// IsZero reports whether the id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// String writes the id in letters and digits only, with check digits, so that a typing error does not name another send.
func (id ID) String() string {
	return encodeID('s', id.Company, id.Queue, id.Pos)
}

// ParseID reads what String wrote.
func ParseID(s string) (ID, error) {
	var id ID
	err := decodeID('s', s, &id.Company, &id.Queue, &id.Pos)
	return id, err
}

// QueueID names a queue: a batch, or a caller's loose sends in a lane.
type QueueID struct {
	Company, Queue int64
}

// String writes the id as ID.String does; a queue's id is never a send's.
func (id QueueID) String() string {
	return encodeID('b', id.Company, id.Queue)
}

// ParseQueueID reads what String wrote.
func ParseQueueID(s string) (QueueID, error) {
	var id QueueID
	err := decodeID('b', s, &id.Company, &id.Queue)
	return id, err
}

// Lower-case letters and digits survive being read aloud, double-clicked and put on a command line.
var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

const checkBytes = 3

func encodeID(kind byte, parts ...int64) string {
	buf := make([]byte, 0, 40)
	for _, p := range parts {
		buf = binary.AppendUvarint(buf, uint64(p))
	}
	buf = append(buf, idCheck(kind, buf)...)
	return string(kind) + idEncoding.EncodeToString(buf)
}

func decodeID(kind byte, s string, parts ...*int64) error {
	if len(s) < 2 || len(s) > 64 || s[0] != kind {
		return ErrBadID
	}
	buf, err := idEncoding.DecodeString(s[1:])
	if err != nil || len(buf) <= checkBytes {
		return ErrBadID
	}
	rest := buf[:len(buf)-checkBytes]
	values := make([]int64, len(parts))
	for i := range parts {
		v, n := binary.Uvarint(rest)
		if n <= 0 || int64(v) < 0 {
			return ErrBadID
		}
		values[i], rest = int64(v), rest[n:]
	}
	// Writing it again settles the check digits, trailing bytes and every second spelling of the same number.
	if len(rest) != 0 || encodeID(kind, values...) != s {
		return ErrBadID
	}
	for i, p := range parts {
		*p = values[i]
	}
	return nil
}

// idCheck is 24 bits of CRC-32, which finds every wrong or swapped pair of neighbouring letters.
func idCheck(kind byte, payload []byte) []byte {
	sum := crc32.Update(crc32.ChecksumIEEE([]byte{kind}), crc32.IEEETable, payload)
	return []byte{byte(sum >> 16), byte(sum >> 8), byte(sum)}
}
