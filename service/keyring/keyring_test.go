package keyring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, lines ...string) *Keyring {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	write(t, path, lines...)
	k, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestSeal: what was sealed is read back, by the same purpose alone, and shows nothing of itself.
func TestSeal(t *testing.T) {
	k := load(t, New())
	rapid.Check(t, func(t *rapid.T) {
		value := append([]byte{10}, rapid.SliceOf(rapid.Byte()).Draw(t, "value")...)
		value = append(value, "canary-593991234567"...)
		box := k.Seal(Body, value)
		if bytes.Contains(box, []byte("canary")) {
			t.Fatal("the value stands in what was sealed")
		}
		if opened, err := k.Open(Body, box); err != nil || !bytes.Equal(opened, value) {
			t.Fatalf("opened %d bytes (%v), want the value", len(opened), err)
		}
		if _, err := k.Open(Result, box); err == nil {
			t.Fatal("opened for another purpose")
		}
		at := rapid.IntRange(0, len(box)-1).Draw(t, "at")
		bent := bytes.Clone(box)
		bent[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if at == 0 {
			return // then it is not marked as sealed, and no message either
		}
		if _, err := k.Open(Body, bent); err == nil {
			t.Fatalf("opened although byte %d was changed", at)
		}
	})
}

// TestRotation: a new first key seals, old values are read for as long as their key is in the file.
func TestRotation(t *testing.T) {
	before, after := New(), New()
	path := filepath.Join(t.TempDir(), "keys")
	write(t, path, "# the first one", before)
	k, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	value := []byte("\x0atext")
	old := k.Seal(Body, value)
	who := k.Pseudonym("593991234567")
	hash, version := k.Digest(1, []byte("hash"))

	write(t, path, after, "", before)
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if opened, err := k.Open(Body, old); err != nil || !bytes.Equal(opened, value) {
		t.Errorf("an old value: %q, %v", opened, err)
	}
	if k.Pseudonym("593991234567") == who {
		t.Error("a new key gives the same pseudonym")
	}
	if again, of := k.Digest(1, []byte("hash")); bytes.Equal(again, hash) || of == version {
		t.Error("a new key gives a digest that would be compared with the old one's")
	}
	fresh := k.Seal(Body, value)

	write(t, path, "not a key")
	if err := k.Reload(); err == nil || !strings.Contains(err.Error(), "line 1") || strings.Contains(err.Error(), "not a key") {
		t.Errorf("a bad file: %v, want its line and not its text", err)
	}
	if opened, err := k.Open(Body, fresh); err != nil || !bytes.Equal(opened, value) {
		t.Errorf("after a bad file: %q, %v; want the old keys", opened, err)
	}

	write(t, path, after)
	if err := k.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(Body, old); !errors.Is(err, ErrKeyMissing) {
		t.Errorf("without its key: %v, want ErrKeyMissing", err)
	}
}

// TestWithoutKeys: all stays as it is, and what was stored so is still read once there are keys.
func TestWithoutKeys(t *testing.T) {
	var none *Keyring
	value := []byte("\x0atext")
	if got := none.Seal(Body, value); !bytes.Equal(got, value) {
		t.Errorf("sealed as %q", got)
	}
	if got := none.Pseudonym("593991234567"); got != "593991234567" {
		t.Errorf("pseudonym %q", got)
	}
	if got, version := none.Digest(1, []byte("hash")); string(got) != "hash" || version != 1 {
		t.Errorf("digest %q, version %d", got, version)
	}
	k := load(t, New())
	for _, ring := range []*Keyring{none, k} {
		if got, err := ring.Open(Body, value); err != nil || !bytes.Equal(got, value) {
			t.Errorf("opened %q, %v", got, err)
		}
	}
	if _, err := none.Open(Body, k.Seal(Body, value)); !errors.Is(err, ErrKeyMissing) {
		t.Errorf("a sealed value without keys: %v, want ErrKeyMissing", err)
	}
	if len(k.Seal(Body, nil)) != 0 {
		t.Error("an empty value did not stay empty")
	}
	if _, version := k.Digest(1, nil); version <= 1<<14-1 {
		t.Errorf("version %d may be one of a hash without key", version)
	}
}

func BenchmarkSeal(b *testing.B) {
	path := filepath.Join(b.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(New()), 0o600); err != nil {
		b.Fatal(err)
	}
	k, err := Load(path)
	if err != nil {
		b.Fatal(err)
	}
	value := bytes.Repeat([]byte{7}, 300)
	for b.Loop() {
		if _, err := k.Open(Body, k.Seal(Body, value)); err != nil {
			b.Fatal(err)
		}
	}
}
