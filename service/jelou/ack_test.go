//go:build linux

package jelou

import (
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// The kernel acknowledges the request while the server has not answered yet: only then does it answer.
func TestAck(t *testing.T) {
	acked := make(chan struct{})
	servers := map[string]func() Config{
		"HTTP1": func() Config {
			return Config{BaseURL: newRawServer(t, func(c *net.TCPConn, next func() bool) {
				for next() {
					<-acked
					write(c, acceptedAnswer)
				}
			}).url}
		},
		"HTTP2": func() Config {
			s := newFrameServer(t, func(f *http2.Framer, stream uint32, number int) {
				<-acked
				accept("send")(f, stream, number)
			})
			return Config{BaseURL: s.url, RootCAs: s.roots}
		},
	}
	for name, config := range servers {
		acked = make(chan struct{})
		var reported time.Time
		var tripped time.Duration
		ctx := WithAck(t.Context(), func(at time.Time, trip time.Duration) {
			reported, tripped = at, trip
			close(acked)
		})
		result, err := newClient(t, config()).Send(ctx, "demo", mustItem(t, textItem))
		if err != nil {
			t.Error(name, err)
			continue
		}
		got := result.Timing
		if got.Acked != reported || got.AckTrip != tripped || tripped <= 0 || reported.Before(got.Started) || got.Seen.Before(reported) || tripped > got.Trip {
			t.Errorf("%s: %+v, reported %v %v", name, got, reported, tripped)
		}
	}
}

// Where the acknowledgement would prove nothing, there is none.
func TestNoAck(t *testing.T) {
	s := newRawServer(t, func(c *net.TCPConn, next func() bool) {
		for next() {
			write(c, acceptedAnswer)
		}
	})
	long := strings.Replace(textItem, "clave", strings.Repeat("x", 4000), 1)
	for name, c := range map[string]struct {
		config Config
		item   string
	}{"proxy": {Config{BaseURL: "http://api.jelou.invalid", ProxyURL: s.url}, textItem}, "two writes": {Config{BaseURL: s.url}, long}} {
		ctx := WithAck(t.Context(), func(time.Time, time.Duration) { t.Error(name) })
		result, err := newClient(t, c.config).Send(ctx, "demo", mustItem(t, c.item))
		if err != nil || !result.Timing.Acked.IsZero() {
			t.Error(name, result, err)
		}
	}
}
