package service

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/keyring"
)

// sealedFor is how long a missing key is shown after it was missed: longer than the sends that wait for it wait at once.
const sealedFor = 2 * time.Minute

// unopened are the stored values that this process could not open for want of their key.
type unopened struct{ count, last atomic.Int64 }

// open reads a stored value that may be sealed, and takes note of a key that is missing.
func (s *core) open(purpose keyring.Purpose, value []byte) ([]byte, error) {
	opened, err := s.keys.Open(purpose, value)
	if errors.Is(err, keyring.ErrKeyMissing) {
		s.unopened.count.Add(1)
		s.unopened.last.Store(time.Now().UnixNano())
	}
	return opened, err
}

// openBody reads a send's content for the dispatcher.
func (s *core) openBody(body []byte) ([]byte, error) {
	opened, err := s.open(keyring.Body, body)
	if errors.Is(err, keyring.ErrKeyMissing) {
		err = dispatch.ErrKeyMissing
	}
	return opened, err
}

// keyMissing reports whether a key was missed a moment ago that has not been read since.
func (s *core) keyMissing() bool {
	last := time.Unix(0, s.unopened.last.Load())
	return time.Since(last) < sealedFor && last.After(s.keys.ReadAt())
}
