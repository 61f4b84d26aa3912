package jelousim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
)

// answer is what the client will see. Its zero value is 200 without a body.
type answer struct {
	status      int
	header      http.Header
	value       any // JSON
	raw         []byte
	contentType string // of raw
	truncated   bool
	cut         cut
}

func (a *answer) set(name, value string) {
	if a.header == nil {
		a.header = http.Header{}
	}
	a.header.Set(name, value)
}

// deliver writes the answer, or cuts the connection.
func (a answer) deliver(w http.ResponseWriter) {
	if a.cut != uncut {
		cutConnection(w, a.cut)
		return
	}
	body, header := a.raw, w.Header()
	maps.Copy(header, a.header)
	if a.contentType != "" {
		header.Set("Content-Type", a.contentType)
	}
	if a.value != nil {
		body = encode(a.value)
		header.Set("Content-Type", "application/json; charset=utf-8")
	}
	header.Set("Content-Length", fmt.Sprint(len(body)))
	if a.truncated {
		body = body[:len(body)/2] // net/http cuts the connection, or the stream, when less comes than was said
	}
	w.WriteHeader(or(a.status, http.StatusOK))
	_, _ = w.Write(body) // a client that has left misses its answer; nothing depends on it
}

func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // maps, slices, strings and numbers: it cannot fail
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// cutConnection ends an HTTP/1.1 connection by FIN or RST. An HTTP/2 stream, and a call without a connection, end
// by http.ErrAbortHandler.
func cutConnection(w http.ResponseWriter, how cut) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if how == reset {
		abort(conn)
	}
	conn.Close()
}

// abort makes the close of a connection an RST, also below TLS.
func abort(conn net.Conn) {
	for conn != nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // fails only on a connection that is gone already
			return
		}
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		conn = inner.NetConn()
	}
}
