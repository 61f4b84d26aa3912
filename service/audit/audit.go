// Package audit writes who did what, when, and with what result: one line of JSON for each deed, at the end of a file that is
// only ever appended to. A line has names of the configuration, ids and codes, and nothing of what was sent or to whom.
//
// A line is in the file, not only in a buffer of this process, when Write returns; it is not fsynced, so a crash of the machine
// may take the last ones along, and a crash of the process those of calls that had not ended. Lines that cannot be written
// are kept and written as soon as it is possible, at most MaxWaiting of them; the rest is lost, and counted.
package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// MaxWaiting is how many lines are kept while they cannot be written: some megabytes.
const MaxWaiting = 10_000

// What a line is about.
const (
	Change  = "change"  // a call that changes something, or tries to
	Read    = "read"    // an admin's call that read what is other callers'
	Refused = "refused" // calls of strangers, or over a caller's rate; Count of them
	Start   = "start"   // of the server, with the version of its configuration
	Reload  = "reload"  // a part of the configuration was replaced, or its files were refused
	Command = "command" // of an operator on the machine
)

// Line is one deed. What is empty is not written.
type Line struct {
	Log            string    `json:"log"` // "audit": tells the line from others on standard error; Write fills it in
	Time           time.Time `json:"time"`
	Event          string    `json:"event"`
	Caller         string    `json:"caller,omitempty"`         // a name of the configuration; of a command the user of the system
	Authentication string    `json:"authentication,omitempty"` // key, token, certificate or none; of a command os
	RPC            string    `json:"rpc,omitempty"`            // of a command its words
	Transport      string    `json:"transport,omitempty"`      // grpc or rest
	Company        string    `json:"company,omitempty"`
	Resources      []string  `json:"resources,omitempty"` // sends/ID and batches/ID
	Part           string    `json:"part,omitempty"`      // of the configuration
	Before         string    `json:"before,omitempty"`    // the part's version; secrets have none
	After          string    `json:"after,omitempty"`     // also of one that was refused
	Code           string    `json:"code"`
	Reason         string    `json:"reason,omitempty"`
	Credential     string    `json:"credential,omitempty"` // why it was refused
	Count          int64     `json:"count,omitempty"`      // of the deeds that the line stands for, where it is not one
	RequestID      string    `json:"request_id,omitempty"`
	TraceID        string    `json:"trace_id,omitempty"`
	Peer           string    `json:"peer,omitempty"` // address of the connection, without its port
}

// Config is where the lines go.
type Config struct {
	// File is appended to, and made with mode 0600 where there is none. Empty: Writer.
	File   string
	Writer io.Writer
	// Required has Ready tell when lines cannot be written.
	Required bool
}

// Log writes the lines. A nil Log writes none.
type Log struct {
	config Config

	mu      sync.Mutex
	file    *os.File // nil with a Writer
	waiting [][]byte
	torn    bool // the last line is there in part
	lost    int64
	err     error // of the last attempt
}

// Open begins; a file that cannot be opened is an error. Close it.
func Open(c Config) (*Log, error) {
	l := &Log{config: c}
	return l, l.Reopen()
}

// Reopen goes on in the file of the configured name, after it was renamed. Where it cannot be opened the lines go on where they went.
func (l *Log) Reopen() error {
	if l == nil || l.config.File == "" {
		return nil
	}
	next, err := os.OpenFile(l.config.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.file
	l.file, l.torn = next, false
	if before != nil {
		_ = before.Close() // what was written is with the system
	}
	_ = l.flush() // Ready and Waiting tell
	return nil
}

// Write writes a line, or keeps it.
func (l *Log) Write(line Line) {
	if l == nil {
		return
	}
	line.Log, line.Time = "audit", line.Time.UTC()
	text, err := json.Marshal(line)
	if err != nil {
		panic(err) // strings and numbers only
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == MaxWaiting {
		_ = l.flush() // Ready and Waiting tell
	}
	if len(l.waiting) == MaxWaiting {
		l.lost++
		return
	}
	l.waiting = append(l.waiting, append(text, '\n'))
	_ = l.flush() // Ready and Waiting tell
}

// flush writes what waits, as far as it goes. l.mu is held.
func (l *Log) flush() error {
	out := l.config.Writer
	if l.file != nil {
		out = l.file
	}
	l.err = nil
	for len(l.waiting) > 0 {
		text := l.waiting[0]
		if l.torn {
			text = append([]byte{'\n'}, text...) // so that only the torn line is unreadable; it is written again whole
		}
		n, err := out.Write(text)
		if err != nil {
			l.torn = l.torn || n > 0
			l.err = err
			return err
		}
		l.torn = false
		l.waiting = l.waiting[1:]
	}
	l.waiting = nil
	return nil
}

// Ready is why nothing may be changed now: the log is required, and the lines before cannot be written.
func (l *Log) Ready() error {
	if l == nil || !l.config.Required {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return nil
	}
	return l.flush()
}

// Waiting is how many lines could not be written yet, and how many are lost.
func (l *Log) Waiting() (waiting, lost int64) {
	if l == nil {
		return 0, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.waiting)), l.lost
}

// Close ends it. The error says how many lines were never written.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	if err := l.flush(); err != nil || l.lost > 0 {
		errs = append(errs, fmt.Errorf("audit log: %d lines are lost: %w", l.lost+int64(len(l.waiting)), err))
	}
	if l.file != nil {
		errs = append(errs, l.file.Close())
	}
	return errors.Join(errs...)
}
