package ledger

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// proxy stands between the ledger and PostgreSQL and sees every message of the server.
type proxy struct {
	server string
	url    string

	mu    sync.Mutex
	judge func(kind byte, payload []byte) verdict
}

type verdict int

const (
	forward verdict = iota
	swallow         // the client never sees the message
	cut             // the connection ends instead of the message
)

func newProxy(t *testing.T, dsn string) *proxy {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{server: u.Host}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	u.Host = listener.Addr().String()
	p.url = u.String()
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

// set changes what happens to messages from now on.
func (p *proxy) set(judge func(kind byte, payload []byte) verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judge = judge
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.server)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		server.Close()
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
		v := forward
		if p.judge != nil {
			v = p.judge(head[0], payload)
		}
		p.mu.Unlock()
		switch v {
		case cut:
			return
		case forward:
			if _, err := client.Write(append(head, payload...)); err != nil {
				return
			}
		}
	}
}

// committed reports whether the message says that a transaction was committed.
func committed(kind byte, payload []byte) bool {
	return kind == 'C' && bytes.HasPrefix(payload, []byte("COMMIT"))
}

// cutCommits ends the connection instead of passing on the next n answers to a commit.
func (p *proxy) cutCommits(n int) {
	p.set(func(kind byte, payload []byte) verdict {
		if n > 0 && committed(kind, payload) {
			n--
			return cut
		}
		return forward
	})
}
