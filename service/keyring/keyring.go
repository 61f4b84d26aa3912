// Package keyring encrypts what the ledger stores of a send's content, so that the database, its backups and its
// replicas hold no phone number and no text. Keys are a file: the first one seals, all of them open.
//
// A sealed value is a zero byte, the key's fingerprint, a nonce, and AES-256-GCM's output with the value's purpose as additional
// data. No Protocol Buffers message begins with a zero byte, so values stored before there were keys
// are told apart and still read.
package keyring

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// A Keyring seals and opens. A nil one leaves everything as it is.
type Keyring struct {
	path string
	keys atomic.Pointer[keys]
}

// keys are what one reading of the file gave.
type keys struct {
	read  time.Time
	first *key
	all   map[print]*key
}

// print is a key's fingerprint: it says which key a value was sealed with, and nothing about it.
type print [8]byte

type key struct {
	print print
	seal  cipher.AEAD
	// pseudonyms stand for values that must be compared and not read.
	pseudonyms []byte
}

// Purpose is what a value is: one sealed for a purpose cannot be opened for another.
type Purpose string

// The purposes.
const (
	Body   Purpose = "send.body"   // recipient and content
	Result Purpose = "send.result" // what Jelou answered
	Spec   Purpose = "batch.spec"  // what a caller said about a batch
)

const (
	keyBytes = 32
	maxKeys  = 100
	sealed   = 0 // the first byte of a sealed value
	header   = 1 + len(print{})
)

// ErrKeyMissing says that a value was sealed with a key that is not in the file.
var ErrKeyMissing = errors.New("it was sealed with a key that the key file does not have")

// Load reads a key file: a line of 32 bytes in base64 for each key, as New makes them; empty lines and lines that begin with # are
// skipped. Errors name the line and never the key.
func Load(path string) (*Keyring, error) {
	k := &Keyring{path: path}
	return k, k.Reload()
}

// Reload reads the file again. What was read before stays when it cannot be.
func (k *Keyring) Reload() error {
	data, err := os.ReadFile(k.path)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	read, err := parse(data)
	if err != nil {
		return fmt.Errorf("key file %s: %w", k.path, err)
	}
	k.keys.Store(read)
	return nil
}

// ReadAt is when the keys in force were read; zero without any.
func (k *Keyring) ReadAt() time.Time {
	if k == nil {
		return time.Time{}
	}
	return k.keys.Load().read
}

func parse(data []byte) (*keys, error) {
	read := &keys{read: time.Now(), all: map[print]*key{}}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		secret, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(secret) != keyBytes {
			return nil, fmt.Errorf("line %d: must be %d bytes in base64, as `jelou-facade ledger key` prints them", number, keyBytes)
		}
		k, err := newKey(secret)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if read.first == nil {
			read.first = k
		}
		if read.all[k.print] = k; len(read.all) > maxKeys {
			return nil, fmt.Errorf("line %d: more than %d keys", number, maxKeys)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if read.first == nil {
		return nil, errors.New("it has no key: `jelou-facade ledger key` prints one")
	}
	return read, nil
}

// newKey derives what a key is used for, so that no use weakens another.
func newKey(secret []byte) (*key, error) {
	derive := func(use string, n int) ([]byte, error) {
		return hkdf.Key(sha256.New, secret, nil, "jelou-facade "+use, n)
	}
	fingerprint, err := derive("fingerprint", len(print{}))
	if err != nil {
		return nil, err
	}
	sealing, err := derive("seal", keyBytes)
	if err != nil {
		return nil, err
	}
	pseudonyms, err := derive("pseudonym", keyBytes)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(sealing)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &key{print: print(fingerprint), seal: gcm, pseudonyms: pseudonyms}, nil
}

// New is a new key's line.
func New() string {
	secret := make([]byte, keyBytes)
	_, _ = rand.Read(secret) // never fails
	return base64.StdEncoding.EncodeToString(secret)
}

// Seal encrypts a value. Empty values stay empty.
func (k *Keyring) Seal(purpose Purpose, value []byte) []byte {
	if k == nil || len(value) == 0 {
		return value
	}
	first := k.keys.Load().first
	out := make([]byte, 0, header+len(value)+first.seal.Overhead())
	out = append(append(out, sealed), first.print[:]...)
	return first.seal.Seal(out, nil, value, []byte(purpose))
}

// Open decrypts what Seal made; what was never sealed it returns as it is. ErrKeyMissing.
func (k *Keyring) Open(purpose Purpose, value []byte) ([]byte, error) {
	if len(value) == 0 || value[0] != sealed {
		return value, nil
	}
	if len(value) < header {
		return nil, errors.New("a sealed value is cut")
	}
	if k == nil {
		return nil, ErrKeyMissing
	}
	by := k.keys.Load().all[print(value[1:header])]
	if by == nil {
		return nil, ErrKeyMissing
	}
	opened, err := by.seal.Open(nil, nil, value[header:], []byte(purpose))
	if err != nil {
		return nil, errors.New("a sealed value is damaged")
	}
	return opened, nil
}

// Pseudonym stands for a recipient: the same one for the same value under the same first key. Without keys it is the value.
func (k *Keyring) Pseudonym(value string) string {
	if k == nil || value == "" {
		return value
	}
	return base64.RawURLEncoding.EncodeToString(k.keys.Load().first.mac("recipient", []byte(value))[:16])
}

// Digest makes a hash of content that nobody can compare with guessed contents without the key; and the version that says which
// hashes may be compared with it: those of the same form under the same first key.
func (k *Keyring) Digest(form int16, hash []byte) (digest []byte, version int16) {
	if k == nil {
		return hash, form
	}
	first := k.keys.Load().first
	family := first.mac("hash version", binary.BigEndian.AppendUint16(nil, uint16(form)))
	return first.mac("hash", hash), keyedVersion | int16(binary.BigEndian.Uint16(family)&(keyedVersion-1))
}

// keyedVersion is above all versions of hashes without a key.
const keyedVersion = 1 << 14

func (k *key) mac(use string, value []byte) []byte {
	h := hmac.New(sha256.New, k.pseudonyms)
	h.Write([]byte(use))
	h.Write([]byte{0})
	h.Write(value)
	return h.Sum(nil)
}
