package jelousim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestProfiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for profile, want := range map[NetworkProfile]struct {
		least, usual, most time.Duration
		spikes             float64
	}{
		NetworkNone:     {0, 0, 0, 0},
		NetworkNear:     {5 * time.Millisecond, 6 * time.Millisecond, 6 * time.Millisecond, 0},
		NetworkInternet: {60 * time.Millisecond, 64 * time.Millisecond, 464 * time.Millisecond, 0.01},
		NetworkLossy:    {60 * time.Millisecond, 64 * time.Millisecond, 864 * time.Millisecond, 0.005},
	} {
		n, spikes := Network{Profile: profile}.withDefaults(), 0
		const trips = 100_000
		for range trips {
			trip := n.leg(rng, 0) + n.leg(rng, 0)
			if trip < want.least || trip > want.most {
				t.Fatalf("%s: a trip of %v", profile, trip)
			}
			if trip > want.usual {
				spikes++
			}
		}
		if share := float64(spikes) / trips; share < 0.9*want.spikes || share > 1.1*want.spikes {
			t.Errorf("%s: %.4f of the trips are slow, want %.4f", profile, share, want.spikes)
		}
	}
}

// TestWayOfARequest: half of the trip before it arrives, half after it was answered, and faster after a while.
func TestWayOfARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Processing = Processing{Min: ms(80)}
		cfg.Network = Network{RoundTrip: ms(60), FasterBy: ms(40), FasterAfter: Duration(time.Minute)}
		s := New(cfg)
		for _, tc := range []struct{ arrives, replied time.Duration }{
			{30 * time.Millisecond, 140 * time.Millisecond},
			{10 * time.Millisecond, 100 * time.Millisecond},
		} {
			sent := time.Now()
			do(s, "POST", sendPath, hello)
			if replied := time.Since(sent); replied != tc.replied {
				t.Errorf("replied after %v, want %v", replied, tc.replied)
			}
			if arrives := s.Requests(1)[0].Arrived.Sub(sent); arrives != tc.arrives {
				t.Errorf("arrived after %v, want %v", arrives, tc.arrives)
			}
			time.Sleep(time.Minute)
		}
	})
}

// pipes is a listener of connections in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestBytesTakeTheWay: over HTTP/2 both ways of a request, and the acknowledgement of a PING, take the trip.
func TestBytesTakeTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := world()
		cfg.Processing = Processing{Min: ms(80)}
		cfg.Network = Network{RoundTrip: ms(60), Carry: CarryBytes}
		s, l := New(cfg), make(pipes)
		server := HTTPServer(s)
		go server.Serve(s.Listener(l))
		client := newClient(t, true)
		client.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			l <- there
			return here, nil
		}
		sent := time.Now()
		if _, body, err := post(t.Context(), client, "http://sim"+sendPath, hello); err != nil || !strings.Contains(body, "messageId") {
			t.Fatalf("%s, %v", body, err)
		}
		if trip := time.Since(sent); trip != 140*time.Millisecond {
			t.Errorf("replied after %v, want 140ms", trip)
		}
		if arrives := s.Requests(1)[0].Arrived.Sub(sent); arrives != 30*time.Millisecond {
			t.Errorf("arrived after %v, want 30ms", arrives)
		}
		client.CloseIdleConnections()
		checkPing(t, l)
		close(l)
		server.Close()
		time.Sleep(time.Second) // the ends of the connections take the way, too
	})
}

// checkPing speaks just enough HTTP/2 to send a PING and see its acknowledgement.
func checkPing(t *testing.T, l pipes) {
	t.Helper()
	here, there := net.Pipe()
	l <- there
	defer here.Close()
	settings := []byte{0, 0, 0, 4, 0, 0, 0, 0, 0}
	ping := append([]byte{0, 0, 8, 6, 0, 0, 0, 0, 0}, "12345678"...)
	sent := time.Now()
	go here.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), append(settings, ping...)...))
	for {
		header := make([]byte, 9)
		if _, err := io.ReadFull(here, header); err != nil {
			t.Fatal(err)
		}
		payload := make([]byte, int(header[0])<<16|int(header[1])<<8|int(header[2]))
		if _, err := io.ReadFull(here, payload); err != nil {
			t.Fatal(err)
		}
		if header[3] == 6 && header[4] == 1 && bytes.Equal(payload, ping[9:]) {
			break
		}
	}
	if trip := time.Since(sent); trip != 60*time.Millisecond {
		t.Errorf("a PING came back after %v, want 60ms", trip)
	}
}

// TestResetOnTheWay: a reset reaches the client as one, through the way and without it.
func TestResetOnTheWay(t *testing.T) {
	cfg := world()
	cfg.Network = Network{RoundTrip: ms(2), Carry: CarryBytes}
	cfg.Faults = []Fault{{Kind: FaultReset, Accepted: true}}
	s := New(cfg)
	_, _, err := post(t.Context(), newClient(t, false), "http://"+listen(t, s)+sendPath, hello)
	if !errors.Is(err, syscall.ECONNRESET) || len(s.Sends(0)) != 1 {
		t.Errorf("got %v and %d sends, want a reset after one", err, len(s.Sends(0)))
	}
}
