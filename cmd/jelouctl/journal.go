package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/uuid"
)

// journal is how far the sending of one file has come. It is written before anything is sent, so that the next run of the
// same command goes on with the same batch, whatever ended this one.
type journal struct {
	path string

	File      string         `json:"file"`
	Hash      string         `json:"hash"` // of the items
	Server    string         `json:"server"`
	Bot       string         `json:"bot"`
	RequestID string         `json:"request_id"` // of the batch: opening it again finds it
	BatchID   string         `json:"batch_id,omitempty"`
	Items     int            `json:"items"`
	Uploaded  int            `json:"uploaded"`         // items that are durable at the server
	Cursor    string         `json:"cursor,omitempty"` // of the last result seen
	Results   int            `json:"results"`          // seen up to the cursor
	Tally     map[string]int `json:"tally,omitempty"`  // of those, by state and reason
	Begun     time.Time      `json:"begun"`
	Ended     time.Time      `json:"ended,omitzero"`
}

// journalKept is how long the journal of an ended batch keeps its file from being sent again by mistake.
const journalKept = 30 * 24 * time.Hour

// stateFolder is where journals are: $XDG_STATE_HOME/jelouctl, or what the system has in its place.
func stateFolder() (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("where the state of uploads is kept: %w", err)
		}
		switch runtime.GOOS {
		case "windows":
			base = first(os.Getenv("LOCALAPPDATA"), home)
		case "darwin":
			base = filepath.Join(home, "Library", "Application Support")
		default:
			base = filepath.Join(home, ".local", "state")
		}
	}
	return filepath.Join(base, "jelouctl", "batches"), nil
}

// openJournal finds the journal of a file, or makes one. The name is a hash: it has nothing of the file's name or content.
//
// The batch's request_id follows from its items, so that the server knows a file that was sent from elsewhere, or whose journal is
// gone. With again it follows from that of the batch that has ended: until the new one has ended too, another run goes on with it.
func openJournal(j journal, again bool) (_ *journal, found bool, err error) {
	folder, err := stateFolder()
	if err != nil {
		return nil, false, err
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, false, err
	}
	given := j.RequestID
	j.path = filepath.Join(folder, hashOf(j.Server, j.Bot, j.Hash, given)+".json")
	if err := j.others(folder, again); err != nil {
		return nil, false, err
	}
	j.Tally = map[string]int{}
	j.Begun = time.Now().UTC()
	switch known, err := readJournal(j.path); {
	case err == nil && again && !known.Ended.IsZero() && given != "":
		return nil, false, usage("--again: a new batch needs a new --request-id")
	case err == nil && again && !known.Ended.IsZero():
		j.RequestID = requestID(known.RequestID) // two runs at once find the same one
		return &j, false, j.write()
	case !errors.Is(err, fs.ErrNotExist):
		return known, true, err
	}
	switch {
	case given == "" && again:
		j.RequestID = requestID(uuid.NewString()) // whatever other machines have sent
	case given == "":
		j.RequestID = requestID(j.Bot, j.Hash)
	}
	err = j.create()
	if errors.Is(err, fs.ErrExist) {
		known, err := readJournal(j.path)
		return known, true, err
	}
	return &j, false, err
}

func requestID(of ...string) string { return "jelouctl-" + hashOf(of...) }

// others looks at the other journals: long ended ones go, and one of the same file with other content is in the way, for
// sending both would send twice what they have in common.
func (j *journal) others(folder string, again bool) error {
	paths, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		other, err := readJournal(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // another run has removed it
		case err != nil:
			return err
		case other.BatchID == "" && time.Since(other.Begun) > journalKept, !other.Ended.IsZero() && time.Since(other.Ended) > journalKept:
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		case path == j.path || other.File != j.File || other.Server != j.Server || other.Bot != j.Bot || other.BatchID == "" || !other.Ended.IsZero():
		case again:
			other.Ended = time.Now().UTC() // given up by the one who asked for a new batch
			if err := other.write(); err != nil {
				return err
			}
		default:
			return other.inTheWay()
		}
	}
	return nil
}

func (j *journal) inTheWay() error {
	f := invalid("%s: the file, or how its columns are mapped, has changed since it was sent in part: batch %s has %d of %d items, %d results",
		j.File, j.BatchID, j.Uploaded, j.Items, j.Results)
	f.next = "run it with the old file and mapping to go on; or end that batch by `jelouctl batch cancel " + j.BatchID +
		"` and send this file as a new one with --again, without the lines that went already"
	return f
}

func readJournal(path string) (*journal, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, Tally: map[string]int{}}
	if err := json.Unmarshal(data, j); err != nil {
		return nil, invalid("%s: %v; remove it if it is of no use", path, err)
	}
	return j, nil
}

// create writes a journal that must not be there yet: two runs at once find the same batch.
func (j *journal) create() error {
	whole := *j
	whole.path += "." + uuid.NewString()
	if err := whole.write(); err != nil {
		return err
	}
	defer os.Remove(whole.path)
	return os.Link(whole.path, j.path)
}

// write replaces the journal. A crash before it leaves an older state: what is then seen or uploaded again is known by its
// cursor and its sequence.
func (j *journal) write() error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return writeWhole(j.path, append(data, '\n'))
}

func hashOf(texts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(texts, "\x00")))
	return hex.EncodeToString(sum[:16])
}
