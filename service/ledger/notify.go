package ledger

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// Notifications are merged for so long. They never stand inside the ledger's transactions: PostgreSQL
	// serialises the commits of transactions that notify.
	notifyEvery = 5 * time.Millisecond
	// Without LISTEN the database is asked so often.
	pollEvery = 50 * time.Millisecond
	// What was settled so long ago is read again by each poll, for commits that took their time.
	pollOverlap = time.Second
	// A test notification has to come back within this time.
	helloTimeout = 2 * time.Second
	// PostgreSQL takes payloads below 8,000 bytes; base64 makes four of three.
	payloadBytes = 5500

	notifyChannel = "jelou_ledger"
	reconnectWait = 200 * time.Millisecond
)

// notifier tells the other replicas what this one committed, and hears it from them.
type notifier struct {
	l      *Ledger
	config *pgx.ConnConfig
	name   string // of this replica in payloads

	mu     sync.Mutex
	news   map[item]struct{}
	all    bool // news were lost: the others have to look for themselves
	signal chan struct{}

	listening atomic.Bool
}

// item is a send that was settled or, when Queue is zero, a company with due work: Pos is then its LaneSet.
type item = ID

// Beyond so many items that wait to be told, the others are told to look for themselves.
const maxNews = 20_000

func newNotifier(l *Ledger, config *pgx.ConnConfig) *notifier {
	return &notifier{
		l: l, config: config, name: base64.RawURLEncoding.EncodeToString([]byte(l.replica)),
		news: map[item]struct{}{}, signal: make(chan struct{}, 1),
	}
}

func (n *notifier) woken(woken []Wake) {
	items := make([]item, len(woken))
	for i, w := range woken {
		items[i] = item{Company: w.Company, Pos: int64(w.Lanes)}
	}
	n.add(items...)
}

func (n *notifier) settled(id ID) { n.add(id) }

func (n *notifier) add(items ...item) {
	n.mu.Lock()
	for _, i := range items {
		n.news[i] = struct{}{}
	}
	if len(n.news) > maxNews {
		n.news, n.all = map[item]struct{}{}, true
	}
	n.mu.Unlock()
	select {
	case n.signal <- struct{}{}:
	default:
	}
}

// take gives the payloads for what is new.
func (n *notifier) take() []string {
	n.mu.Lock()
	news, all := n.news, n.all
	n.news, n.all = map[item]struct{}{}, false
	n.mu.Unlock()
	var payloads []string
	var buf []byte
	pack := func() {
		if len(buf) > 0 {
			payloads = append(payloads, n.name+" "+base64.RawURLEncoding.EncodeToString(buf))
			buf = buf[:0]
		}
	}
	for i := range news {
		for _, v := range []int64{i.Company, i.Queue, i.Pos} {
			buf = binary.AppendUvarint(buf, uint64(v))
		}
		if len(buf) > payloadBytes-3*binary.MaxVarintLen64 {
			pack()
		}
	}
	pack()
	if all {
		payloads = append(payloads, n.name+" "+everything)
	}
	return payloads
}

const (
	everything = "all"
	hello      = "hello"
)

// send tells the others, on a connection of its own, until ctx ends.
func (n *notifier) send(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := pgx.ConnectConfig(ctx, n.config)
		if err == nil {
			err = n.sendOn(ctx, conn)
			closeConn(conn)
		}
		n.l.report(ctx, "send notifications", err)
		n.mu.Lock()
		n.all = true
		n.mu.Unlock()
		pause(ctx, reconnectWait)
	}
}

func (n *notifier) sendOn(ctx context.Context, conn *pgx.Conn) error {
	for {
		n.l.report(ctx, "send notifications", nil)
		select {
		case <-n.signal:
		case <-ctx.Done():
			return nil
		}
		pause(ctx, notifyEvery)
		var batch pgx.Batch
		for _, payload := range n.take() {
			batch.Queue(`SELECT pg_notify($1, $2)`, notifyChannel, payload)
		}
		if batch.Len() == 0 {
			continue
		}
		sending, cancel := context.WithTimeout(ctx, transactionTimeout)
		err := conn.SendBatch(sending, &batch).Close()
		cancel()
		if err != nil {
			return err
		}
	}
}

// listen hears the others, on a connection of its own, until ctx ends. Whenever it begins to listen everybody who waits
// looks again: what happened before was not heard.
func (n *notifier) listen(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := n.beginListening(ctx)
		if err == nil {
			n.listening.Store(true)
			n.l.report(ctx, "listen for notifications", nil)
			n.lookForYourself(ctx)
			for err == nil {
				err = n.hear(ctx, conn)
			}
			n.listening.Store(false)
			closeConn(conn)
		}
		n.l.report(ctx, "listen for notifications", err)
		pause(ctx, reconnectWait)
	}
}

// beginListening tries the whole way once: a pooler may take LISTEN and never deliver anything.
func (n *notifier) beginListening(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, n.config)
	if err != nil {
		return nil, err
	}
	if err := n.helloTo(ctx, conn); err != nil {
		closeConn(conn)
		return nil, err
	}
	return conn, nil
}

func (n *notifier) helloTo(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "LISTEN "+notifyChannel); err != nil {
		return err
	}
	// From another connection: what a connection says to itself a pooler may hand back by chance.
	other, err := pgx.ConnectConfig(ctx, n.config)
	if err != nil {
		return err
	}
	defer closeConn(other)
	if _, err := other.Exec(ctx, `SELECT pg_notify($1, $2)`, notifyChannel, n.name+" "+hello); err != nil {
		return err
	}
	for {
		got, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("a test notification did not come back, so new work is looked for every %v; give a listen URL that leads to PostgreSQL itself: %w", pollEvery, err)
		}
		if got.Payload == n.name+" "+hello {
			return nil
		}
	}
}

// hear takes one notification.
func (n *notifier) hear(ctx context.Context, conn *pgx.Conn) error {
	got, err := conn.WaitForNotification(ctx)
	if err != nil {
		return err
	}
	name, text, _ := strings.Cut(got.Payload, " ")
	switch {
	case name == n.name, text == hello:
	case text == everything:
		n.lookForYourself(ctx)
	default:
		n.pass(text)
	}
	return nil
}

// pass gives what another replica said to those who wait here.
func (n *notifier) pass(text string) {
	buf, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return // a newer version's, or a stranger's
	}
	var woken []Wake
	for len(buf) > 0 {
		var v [3]uint64
		for i := range v {
			var size int
			if v[i], size = binary.Uvarint(buf); size <= 0 {
				return
			}
			buf = buf[size:]
		}
		if v[1] == 0 {
			woken = append(woken, Wake{Company: int64(v[0]), Lanes: LaneSet(v[2])})
		} else {
			n.l.hub.settled(ID{int64(v[0]), int64(v[1]), int64(v[2])})
		}
	}
	if len(woken) > 0 {
		n.l.hub.wake(woken)
	}
}

// lookForYourself signals everybody who waits, and wakes all companies that may have due work.
func (n *notifier) lookForYourself(ctx context.Context) {
	n.l.hub.everything()
	if ready, err := n.l.Ready(ctx); err == nil && len(ready) > 0 {
		n.l.hub.wake(ready)
	}
}

// poll asks the database while nothing is heard.
func (n *notifier) poll(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if !n.listening.Load() {
				n.pollOnce(ctx)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (n *notifier) pollOnce(ctx context.Context) {
	if ready, err := n.l.Ready(ctx); err != nil {
		pause(ctx, time.Second)
		return
	} else if len(ready) > 0 {
		n.l.hub.wake(ready)
	}
	if !n.l.hub.waiting() {
		return
	}
	// An error is the next poll's to meet; whoever waits reads again by himself after a while.
	_ = n.l.query(ctx, `SELECT company, queue, pos FROM send WHERE settled_at IS NOT NULL AND settled_at > $1 ORDER BY settled_at DESC LIMIT 5000`,
		func(scan scanFunc) error {
			var id ID
			err := scan(&id.Company, &id.Queue, &id.Pos)
			n.l.hub.settled(id)
			return err
		}, n.l.aboutNow()-micros(pollOverlap))
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
