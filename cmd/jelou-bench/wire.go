package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// What the proxy may do with a round.
type verdict int

const (
	pass verdict = iota
	drop         // both sides lose the connection in its place
)

// round is what a client sends to PostgreSQL until it waits for the answers: the statements of one trip.
type round struct {
	statements []string
	earlier    []string // of the same transaction, in the rounds before
	answered   bool     // it comes back: whatever it says has happened
}

// commits reports whether it ends a transaction that has the words, in this round or before.
func (r round) commits(words string) bool {
	return slices.Contains(r.statements, "COMMIT") && (r.has(words) || round{statements: r.earlier}.has(words))
}

// has reports whether one of its statements has the words.
func (r round) has(words string) bool {
	for _, s := range r.statements {
		if strings.Contains(s, words) {
			return true
		}
	}
	return false
}

// wire stands between one facade and PostgreSQL and shows every round to a judge, on its way there and back.
type wire struct {
	url    string // of the database, through the proxy
	server string

	mu    sync.Mutex
	judge func(round) verdict
}

// startWire begins to listen; it ends with the run.
func (b *bench) startWire(database string) (*wire, error) {
	u, err := url.Parse(database)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.atEnd(l.Close)
	w := &wire{server: u.Host}
	u.Host = l.Addr().String()
	w.url = u.String()
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(client)
		}
	}()
	return w, nil
}

// watch has every round judged from now on. A judge may wait; the round waits with it.
func (w *wire) watch(judge func(round) verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.judge = judge
}

func (w *wire) ask(r round) verdict {
	w.mu.Lock()
	judge := w.judge
	w.mu.Unlock()
	if judge == nil {
		return pass
	}
	return judge(r)
}

// session is one connection through the proxy.
type session struct {
	wire           *wire
	client, server net.Conn

	mu     sync.Mutex
	rounds []round // on their way
}

func (w *wire) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", w.server)
	if err != nil {
		return
	}
	defer server.Close()
	s := &session{wire: w, client: client, server: server}
	go func() {
		defer client.Close()
		defer server.Close()
		_ = s.ask() // ends with either side
	}()
	_ = s.answer()
}

var errDropped = errors.New("the round was dropped")

// ask passes on what the client sends, a round at a time.
func (s *session) ask() error {
	length := make([]byte, 4)
	if _, err := io.ReadFull(s.client, length); err != nil {
		return err
	}
	// The first message has no kind.
	if _, err := s.server.Write(length); err != nil {
		return err
	}
	if _, err := io.CopyN(s.server, s.client, int64(binary.BigEndian.Uint32(length))-4); err != nil {
		return err
	}
	prepared := map[string]string{}
	var waiting []byte
	var transaction []string
	var now round
	for {
		kind, message, err := readMessage(s.client)
		if err != nil {
			return err
		}
		waiting = append(waiting, message...)
		body := message[5:]
		switch kind {
		case 'P': // Parse: name, query
			name, rest := cutString(body)
			query, _ := cutString(rest)
			prepared[name] = query
		case 'B': // Bind: portal, name
			_, rest := cutString(body)
			name, _ := cutString(rest)
			now.statements = append(now.statements, prepared[name])
		case 'Q': // Query
			query, _ := cutString(body)
			now.statements = append(now.statements, query)
		}
		if kind != 'Q' && kind != 'S' && kind != 'X' && kind != 'p' { // up to here nobody waits
			continue
		}
		if kind == 'Q' || kind == 'S' {
			if s.wire.ask(now) == drop {
				return errDropped
			}
			s.mu.Lock()
			s.rounds = append(s.rounds, now)
			s.mu.Unlock()
		}
		if transaction = append(transaction, now.statements...); slices.Contains(transaction, "COMMIT") || slices.Contains(transaction, "ROLLBACK") {
			transaction = nil
		}
		now = round{earlier: transaction}
		if _, err := s.server.Write(waiting); err != nil {
			return err
		}
		waiting = waiting[:0]
	}
}

// answer passes on what the server says. The answers to a round go together; what comes on its own goes at once.
func (s *session) answer() error {
	var waiting []byte
	for {
		kind, message, err := readMessage(s.server)
		if err != nil {
			return err
		}
		waiting = append(waiting, message...)
		s.mu.Lock()
		var now *round
		if len(s.rounds) > 0 {
			now = &s.rounds[0]
		}
		s.mu.Unlock()
		if now != nil && kind != 'Z' && kind != 'A' && len(waiting) < 1<<20 {
			continue
		}
		if kind == 'Z' && now != nil { // ready for the next one
			if s.wire.ask(round{now.statements, now.earlier, true}) == drop {
				return errDropped
			}
			s.mu.Lock()
			s.rounds = s.rounds[1:]
			s.mu.Unlock()
		}
		if _, err := s.client.Write(waiting); err != nil {
			return err
		}
		waiting = waiting[:0]
	}
}

// readMessage reads one message with its kind and length.
func readMessage(from io.Reader) (kind byte, message []byte, err error) {
	message = make([]byte, 5)
	if _, err := io.ReadFull(from, message); err != nil {
		return 0, nil, err
	}
	size := int64(binary.BigEndian.Uint32(message[1:])) - 4
	if size < 0 || size > 1<<30 {
		return 0, nil, errors.New("not a message of PostgreSQL")
	}
	rest := make([]byte, size)
	_, err = io.ReadFull(from, rest)
	return message[0], append(message, rest...), err
}

func cutString(b []byte) (string, []byte) {
	text, rest, _ := bytes.Cut(b, []byte{0})
	return string(text), rest
}

// gate stands between a facade and Jelou. Shut, it refuses connections as a host where nothing listens.
type gate struct {
	address string
	to      string

	mu       sync.Mutex
	listener net.Listener
	open     map[net.Conn]struct{}
	seen     func() // called before the first bytes of a request go on; nil is nothing
}

// startGate opens one in front of an address.
func (b *bench) startGate(to string) (*gate, error) {
	g := &gate{address: "127.0.0.1:0", to: to, open: map[net.Conn]struct{}{}}
	if err := g.let(); err != nil {
		return nil, err
	}
	b.atEnd(func() error { g.shut(); return nil })
	return g, nil
}

// let opens the gate.
func (g *gate) let() error {
	l, err := net.Listen("tcp", g.address)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listener, g.address = l, l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.serve(c)
		}
	}()
	return nil
}

// shut closes it, and all connections through it.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = g.listener.Close()
	for c := range g.open {
		_ = c.Close()
	}
}

// watch has f called before every piece of a request goes on; nil ends that.
func (g *gate) watch(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen = f
}

func (g *gate) serve(client net.Conn) {
	server, err := net.Dial("tcp", g.to)
	if err != nil {
		_ = client.Close()
		return
	}
	g.mu.Lock()
	g.open[client], g.open[server] = struct{}{}, struct{}{}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.open, client)
		delete(g.open, server)
		_, _ = client.Close(), server.Close()
	}()
	go func() {
		_, _ = io.Copy(client, server)
		_, _ = client.Close(), server.Close()
	}()
	piece := make([]byte, 64<<10)
	for {
		n, err := client.Read(piece)
		if n > 0 {
			g.mu.Lock()
			seen := g.seen
			g.mu.Unlock()
			if seen != nil {
				seen()
			}
			if _, err := server.Write(piece[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
