package ledgertest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// Proxy stands between the ledger and PostgreSQL and sees every message of the server.
type Proxy struct {
	URL string // of the database through it

	server string

	mu       sync.Mutex
	judge    func(kind byte, payload []byte) Verdict
	clients  map[net.Conn]bool // those that are not stranded
	stranded bool
}

// A Verdict is what happens to a message of the server.
type Verdict int

// The verdicts.
const (
	Forward Verdict = iota
	Swallow         // the client never sees the message
	Cut             // the connection ends instead of the message
)

// NewProxy starts a proxy before the database at a URL. It ends with the test.
func NewProxy(t testing.TB, dsn string) *Proxy {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{server: u.Host, clients: map[net.Conn]bool{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	u.Host = listener.Addr().String()
	p.URL = u.String()
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

// Set changes what happens to messages from now on.
func (p *Proxy) Set(judge func(kind byte, payload []byte) Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judge = judge
}

// Strand ends all clients' connections as a network that breaks does: the server does not notice, and finishes what it was asked for.
// New connections are served, but none that asks to cancel something.
func (p *Proxy) Strand() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stranded = true
	for client := range p.clients {
		client.Close()
	}
	clear(p.clients)
}

func (p *Proxy) serve(client net.Conn) {
	p.mu.Lock()
	p.clients[client] = true
	p.mu.Unlock()
	defer client.Close()
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		if p.greet(server, client) {
			_, _ = io.Copy(server, client)
		}
		if p.forget(client) {
			server.Close()
		}
	}()
	for {
		head := make([]byte, 5)
		if _, err := io.ReadFull(server, head); err != nil {
			return
		}
		payload := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(server, payload); err != nil {
			return
		}
		p.mu.Lock()
		v := Forward
		if p.judge != nil {
			v = p.judge(head[0], payload)
		}
		p.mu.Unlock()
		switch v {
		case Cut:
			return
		case Forward:
			if _, err := client.Write(append(head, payload...)); err != nil {
				return
			}
		}
	}
}

// cancelRequest stands in the place of the version where a connection only cancels what another one does.
const cancelRequest = 80877102

// greet passes on how a connection begins, and says whether it goes on.
func (p *Proxy) greet(server io.Writer, client io.Reader) bool {
	start := make([]byte, 8)
	if _, err := io.ReadFull(client, start); err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stranded && binary.BigEndian.Uint32(start[4:]) == cancelRequest {
		return false
	}
	_, err := server.Write(start)
	return err == nil
}

// forget reports whether the client has left by itself.
func (p *Proxy) forget(client net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.clients[client]
	delete(p.clients, client)
	return left
}

// Committed reports whether the message says that a transaction was committed.
func Committed(kind byte, payload []byte) bool {
	return kind == 'C' && bytes.HasPrefix(payload, []byte("COMMIT"))
}

// CutCommits ends the connection instead of passing on the next n answers to a commit.
func (p *Proxy) CutCommits(n int) {
	p.Set(func(kind byte, payload []byte) Verdict {
		if n > 0 && Committed(kind, payload) {
			n--
			return Cut
		}
		return Forward
	})
}
