package jelousim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"strings"
	"time"
)

// Endpoint names a route.
type Endpoint string

// The endpoints.
const (
	Messages              Endpoint = "messages"
	WhatsAppMessages      Endpoint = "whatsapp_messages"
	FlowMessage           Endpoint = "flow_message"
	HSM                   Endpoint = "hsm"
	Notifications         Endpoint = "notifications"
	Notification          Endpoint = "notification"
	ExternalNotifications Endpoint = "external_notifications"
	ExternalNotification  Endpoint = "external_notification"
	Templates             Endpoint = "templates"
	ApprovedTemplates     Endpoint = "approved_templates"
	UnknownEndpoint       Endpoint = "unknown"
)

// Outcome is what became of a request, whatever its client was told.
type Outcome string

// The outcomes.
const (
	Pending   Outcome = "pending"   // being worked on
	Accepted  Outcome = "accepted"  // a send was accepted, even where a fault spoiled the answer
	Answered  Outcome = "answered"  // a read was answered
	Refused   Outcome = "refused"   // against the rules
	Throttled Outcome = "throttled" // 429
	Lost      Outcome = "lost"      // a fault hit it before it was looked at
)

// Request is one request that arrived.
type Request struct {
	// Arrived is the moment that the limiter goes by; arrivals never go back in time.
	Arrived  time.Time `json:"arrived"`
	Endpoint Endpoint  `json:"endpoint"`
	// Credential is the client id, or "unknown".
	Credential string  `json:"credential"`
	Outcome    Outcome `json:"outcome"`
	// Status that was answered; 0 while pending, or when the connection was cut instead.
	Status int `json:"status"`
	// Fault that was played on it; empty: none.
	Fault FaultKind `json:"fault,omitzero"`
}

// record is a Request as it is kept.
type record struct {
	at         time.Duration // since the server's start
	credential *credential
	endpoint   Endpoint
	outcome    Outcome
	fault      FaultKind
	status     int
}

// Send is one message, or one notification to one destination, that was accepted.
type Send struct {
	ID         string    `json:"id"`
	At         time.Time `json:"at"`
	Endpoint   Endpoint  `json:"endpoint"`
	Credential string    `json:"credential"`
	Bot        string    `json:"bot"`
	// Kind is the message's type, or the template's elementName.
	Kind string `json:"kind"`
	// Fingerprint is the same for two sends of the same content to the same recipient by the same bot.
	Fingerprint Fingerprint `json:"fingerprint"`
	// Text is TextFingerprint of a message's text, or of a notification's parameters, joined by a space.
	Text Fingerprint `json:"text"`
	// Status is how far it had come when it was asked for.
	Status string `json:"status"`
	// Recipient is told in process only.
	Recipient string `json:"-"`

	failure  string // why it will fail; empty: it will not
	campaign string
}

// Fingerprint stands for a content that is not kept.
type Fingerprint [16]byte

// String is lower-case hexadecimal.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText is String.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote, for programs that read a report.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(f) {
		return fmt.Errorf("fingerprint: must be %d hexadecimal digits", 2*len(f))
	}
	copy(f[:], b)
	return nil
}

func hash(parts ...string) Fingerprint {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return Fingerprint(sum[:16])
}

// TextFingerprint is what stands for a text in Send.Text.
func TextFingerprint(text string) Fingerprint { return hash(text) }

// fingerprint is over the content without the members that say whom it is for.
func fingerprint(bot, recipient string, body map[string]any, without ...string) Fingerprint {
	content := maps.Clone(body)
	for _, name := range without {
		delete(content, name)
	}
	canonical, _ := json.Marshal(content) // keys are sorted; what was parsed from JSON can be written
	return hash(bot, recipient, string(canonical))
}

// ring keeps the newest items. They are numbered, and no number is given twice.
type ring[T any] struct {
	items []T
	limit int
	base  uint64 // number of the first that was ever in it
	first uint64 // number of the oldest
	next  uint64 // number of the next
}

// newRing numbers its items from base.
func newRing[T any](limit int, base uint64) ring[T] {
	return ring[T]{limit: limit, base: base, first: base, next: base}
}

// push adds an item; old is the one that it pushed out, if any.
func (r *ring[T]) push(item T) (number uint64, old *T) {
	if len(r.items) < r.limit {
		r.items = append(r.items, item)
	} else {
		i := r.index(r.first)
		gone := r.items[i]
		r.items[i], old = item, &gone
		r.first++
	}
	r.next++
	return r.next - 1, old
}

// at is nil for an item that is not kept.
func (r *ring[T]) at(number uint64) *T {
	if number < r.first || number >= r.next {
		return nil
	}
	return &r.items[r.index(number)]
}

func (r *ring[T]) index(number uint64) int { return int((number - r.base) % uint64(r.limit)) }

func (r *ring[T]) len() int { return int(r.next - r.first) }

func (r *ring[T]) oldestFirst() iter.Seq[*T] { return r.newest(r.len()) }

// newest gives the n newest, oldest first.
func (r *ring[T]) newest(n int) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for i := r.next - uint64(min(n, r.len())); i < r.next; i++ {
			if !yield(r.at(i)) {
				return
			}
		}
	}
}

func (r *ring[T]) newestFirst() iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for i := r.next; i > r.first; i-- {
			if !yield(r.at(i - 1)) {
				return
			}
		}
	}
}
