package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// disk is a writer that may be full: then it takes the beginning of a line.
type disk struct {
	text bytes.Buffer
	full bool
}

func (d *disk) Write(p []byte) (int, error) {
	if d.full {
		n, _ := d.text.Write(p[:min(5, len(p))])
		return n, errors.New("no space left on device")
	}
	return d.text.Write(p)
}

// codes are the codes of the whole lines of a text, in their order, and how many lines are torn.
func codes(t *testing.T, text string) (found []string, torn int) {
	t.Helper()
	for line := range strings.Lines(text) {
		var l Line
		if json.Unmarshal([]byte(line), &l) != nil || !strings.HasSuffix(line, "\n") {
			torn++
			continue
		}
		found = append(found, l.Code)
	}
	return found, torn
}

func write(l *Log, codes ...string) {
	for _, code := range codes {
		l.Write(Line{Time: time.Now(), Event: Change, Code: code})
	}
}

// TestRotate: lines go on in the renamed file until the log is opened again, nothing is written over, and only its user reads it.
func TestRotate(t *testing.T) {
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(name, []byte(`{"code":"before"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(Config{File: name})
	if err != nil {
		t.Fatal(err)
	}
	write(l, "1")
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	write(l, "2")
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	write(l, "3")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string][]string{name + ".1": {"before", "1", "2"}, name: {"3"}} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, torn := codes(t, string(text))
		if diff := cmp.Diff(want, got); diff != "" || torn != 0 {
			t.Errorf("%s: %d torn\n%s", file, torn, diff)
		}
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

// TestFull: lines that cannot be written wait, in bounds, and are written whole when it is possible again; meanwhile a required
// log is not ready.
func TestFull(t *testing.T) {
	d := &disk{}
	l, err := Open(Config{Writer: d, Required: true})
	if err != nil {
		t.Fatal(err)
	}
	write(l, "1")
	d.full = true
	write(l, "2", "3")
	if waiting, lost := l.Waiting(); waiting != 2 || lost != 0 || l.Ready() == nil {
		t.Errorf("%d wait, %d are lost, ready: %v", waiting, lost, l.Ready())
	}
	d.full = false
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	if got, _ := codes(t, d.text.String()); !cmp.Equal(got, []string{"1", "2", "3"}) {
		t.Errorf("%s", d.text.String())
	}
	d.full = true
	for range MaxWaiting + 3 {
		write(l, "4")
	}
	if waiting, lost := l.Waiting(); waiting != MaxWaiting || lost != 3 {
		t.Errorf("%d wait, %d are lost", waiting, lost)
	}
	if err := l.Close(); err == nil || !strings.Contains(err.Error(), "10003 lines are lost") {
		t.Error(err)
	}
}

// TestRefusals: whoever calls in vain as often as he likes has few lines written, and their sum is right.
func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l, err := Open(Config{Writer: &out})
		if err != nil {
			t.Fatal(err)
		}
		r := NewRefusals(l)
		ctx, stop := context.WithCancel(t.Context())
		go r.Run(ctx)
		for i := range 10_000 {
			peer := "10.0." + string(rune('0'+i%10)) + "." + string(rune('0'+i/10%10))
			r.Note(Line{Time: time.Now(), Code: "UNAUTHENTICATED", Credential: "unknown", Peer: peer})
		}
		time.Sleep(every + time.Second)
		r.Note(Line{Time: time.Now(), Code: "UNAUTHENTICATED", Credential: "unknown", Peer: "10.0.0.0"})
		stop()
		synctest.Wait()
		lines, sum := 0, int64(0)
		for d := json.NewDecoder(&out); ; lines++ {
			var line Line
			if err := d.Decode(&line); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			sum += line.Count
		}
		if sum != 10_001 || lines != 2*(maxOrigin+1)+1 {
			t.Errorf("%d lines about %d calls", lines, sum)
		}
	})
}

// TestNone: without a log nothing is written, and nothing refused.
func TestNone(t *testing.T) {
	var l *Log
	write(l, "1")
	NewRefusals(l).Note(Line{})
	if waiting, lost := l.Waiting(); waiting+lost != 0 || l.Ready() != nil || l.Reopen() != nil || l.Close() != nil {
		t.Error("a nil log does something")
	}
}

// BenchmarkWrite is what the log costs a call.
func BenchmarkWrite(b *testing.B) {
	l, err := Open(Config{File: filepath.Join(b.TempDir(), "audit.jsonl")})
	if err != nil {
		b.Fatal(err)
	}
	line := Line{
		Event: Change, Caller: "orders", Authentication: "key", RPC: "jelou.facade.v1.MessageService/SendMessage", Transport: "grpc",
		Company: "tienda", Resources: []string{"sends/s06fv52pxzy6dx81m0d84v6r"}, Code: "OK", RequestID: "69726e96b3647ff027838ef8", Peer: "10.1.2.3",
	}
	for b.Loop() {
		line.Time = time.Now()
		l.Write(line)
	}
	if err := l.Close(); err != nil {
		b.Error(err)
	}
}
