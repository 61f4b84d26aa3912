package jelousim

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// NetworkProfile is a way between client and server that was given a name.
type NetworkProfile string

// The profiles.
const (
	NetworkNone     NetworkProfile = "none"     // no way at all
	NetworkNear     NetworkProfile = "near"     // 5 ms, up to 1 ms of jitter
	NetworkInternet NetworkProfile = "internet" // 60 ms, up to 4 ms of jitter, 1% spikes of 20–200 ms
	NetworkLossy    NetworkProfile = "lossy"    // as internet, but 0.5% of +200–400 ms, as a lost packet costs
)

var profiles = map[NetworkProfile]Network{
	NetworkNone:     {},
	NetworkNear:     {RoundTrip: ms(5), Jitter: ms(1)},
	NetworkInternet: {RoundTrip: ms(60), Jitter: ms(4), Spikes: 0.01, SpikeMin: ms(20), SpikeMax: ms(200)},
	NetworkLossy:    {RoundTrip: ms(60), Jitter: ms(4), Spikes: 0.005, SpikeMin: ms(200), SpikeMax: ms(400)},
}

func ms(n int) Duration { return Duration(time.Duration(n) * time.Millisecond) }

// Carry is what the way is laid under.
type Carry string

// The two possibilities.
const (
	// CarryRequests delays each request before it arrives and each answer after it is made. It needs no
	// connection, so ServeHTTP can be called directly, but an HTTP/2 PING comes back sooner than a reply.
	CarryRequests Carry = "requests"
	// CarryBytes delays all bytes of the connections of [Server.Listener], so that a PING takes the way too.
	CarryBytes Carry = "bytes"
)

// Network is the way between client and server: half of it before a request arrives, half after it was answered.
type Network struct {
	// Profile replaces all of the five numbers below that follow. Empty: they are used as they stand.
	Profile NetworkProfile `json:"profile,omitzero"`
	// RoundTrip is the shortest round trip.
	RoundTrip Duration `json:"round_trip,omitzero"`
	// Jitter adds up to this to a round trip, each half on its own.
	Jitter Duration `json:"jitter,omitzero"`
	// Spikes is the share of the round trips, 0 to 1, that take SpikeMin to SpikeMax longer.
	Spikes   float64  `json:"spikes,omitzero"`
	SpikeMin Duration `json:"spike_min,omitzero"`
	SpikeMax Duration `json:"spike_max,omitzero"`
	// FasterBy is taken off the round trip from FasterAfter the start or the last reset on.
	FasterBy    Duration `json:"faster_by,omitzero"`
	FasterAfter Duration `json:"faster_after,omitzero"`
	// Carry; empty: [CarryRequests].
	Carry Carry `json:"carry,omitzero"`
}

func (n Network) withDefaults() Network {
	if p, ok := profiles[n.Profile]; ok {
		p.FasterBy, p.FasterAfter, p.Carry = n.FasterBy, n.FasterAfter, n.Carry
		n = p
	}
	n.Carry = or(n.Carry, CarryRequests)
	return n
}

func (n Network) validate() error {
	if n.Spikes < 0 || n.Spikes > 1 {
		return errors.New("network.spikes: must be 0 to 1")
	}
	for _, err := range []error{
		choice("network.profile", n.Profile, "", NetworkNone, NetworkNear, NetworkInternet, NetworkLossy),
		choice("network.carry", n.Carry, "", CarryRequests, CarryBytes),
		inOrder("network.round_trip", maxDelay, n.RoundTrip), inOrder("network.jitter", maxDelay, n.Jitter),
		inOrder("network.spike_min, spike_max", maxDelay, n.SpikeMin, n.SpikeMax),
		inOrder("network.faster_by", maxDelay, n.FasterBy), inOrder("network.faster_after", day, n.FasterAfter),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// leg is the time that one direction takes, when the way is so old.
func (n Network) leg(rng *rand.Rand, age time.Duration) time.Duration {
	d := time.Duration(n.RoundTrip)/2 + draw(rng, 0, n.Jitter/2)
	if age >= time.Duration(n.FasterAfter) {
		d -= time.Duration(n.FasterBy) / 2
	}
	if rng.Float64() < n.Spikes/2 {
		d += draw(rng, n.SpikeMin, n.SpikeMax)
	}
	return max(d, 0)
}

// draw is an even choice from [least, most].
func draw(rng *rand.Rand, least, most Duration) time.Duration {
	return time.Duration(least) + time.Duration(rng.Int64N(int64(most-least)+1))
}

func (s *Server) leg() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.Network.leg(s.rng, time.Since(s.began))
}

// Listener lays the way under the connections of l where Network.Carry is [CarryBytes]; else it is l.
func (s *Server) Listener(l net.Listener) net.Listener {
	if s.cfg.Network.Carry != CarryBytes {
		return l
	}
	return farListener{l, s.leg}
}

type farListener struct {
	net.Listener
	leg func() time.Duration
}

func (l farListener) Accept() (net.Conn, error) {
	near, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	served, end := net.Pipe()
	go carry(end, near, l.leg)
	go carry(near, end, l.leg)
	return &farConn{Conn: served, near: near}, nil
}

// farConn is a server's end of a connection whose bytes take their time.
type farConn struct {
	net.Conn
	near net.Conn
}

func (c *farConn) LocalAddr() net.Addr  { return c.near.LocalAddr() }
func (c *farConn) RemoteAddr() net.Addr { return c.near.RemoteAddr() }

// NetConn is the connection that the client sees.
func (c *farConn) NetConn() net.Conn { return c.near }

// parcel is some bytes on their way; nil bytes are the end.
type parcel struct {
	due   time.Time
	bytes []byte
}

// carry moves what from says to to, each parcel a leg later and none before an earlier one. It closes both.
func carry(to, from net.Conn, leg func() time.Duration) {
	way := make(chan parcel, 256) // about 4 MiB under way; then the sender waits, as for a full window
	var arrived sync.WaitGroup
	arrived.Go(func() {
		defer to.Close()
		for p := range way {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.bytes); err != nil {
				from.Close() // nobody listens any more: stop reading
				break
			}
		}
		for range way { // let the reader go
		}
	})
	var last time.Time
	for {
		buffer := make([]byte, 16<<10)
		n, err := from.Read(buffer)
		if due := time.Now().Add(leg()); due.After(last) {
			last = due
		}
		way <- parcel{last, buffer[:n]}
		if err != nil {
			break
		}
	}
	close(way)
	arrived.Wait()
	from.Close()
}
