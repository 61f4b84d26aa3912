package caller

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

// keyPrefix makes keys recognisable: to people, and to tools that look for secrets in repositories.
const keyPrefix = "jelou-facade_"

// NewKey makes an API key: 256 random bits.
func NewKey() string {
	var b [32]byte
	rand.Read(b[:])
	return keyPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// HashKey is what a configuration keeps of a key. A slow hash, as passwords need, would add nothing: it makes guessing
// expensive, and 256 random bits cannot be guessed at any price. A fast one keeps every call cheap. That holds for keys that
// NewKey made; a word that a person thought of is no key.
func HashKey(key string) [sha256.Size]byte { return sha256.Sum256([]byte(key)) }

// IsKey reports whether a text has the form of a key that NewKey made.
func IsKey(text string) bool {
	random, ok := strings.CutPrefix(text, keyPrefix)
	b, err := base64.RawURLEncoding.DecodeString(random)
	return ok && err == nil && len(b) == sha256.Size
}
