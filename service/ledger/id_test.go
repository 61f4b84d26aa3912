package ledger

import (
	"math"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestIDsReadBack(t *testing.T) {
	pattern := regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.Int64Range(0, math.MaxInt64)
		id := ID{number.Draw(t, "company"), number.Draw(t, "queue"), number.Draw(t, "pos")}
		text := id.String()
		if !pattern.MatchString(text) {
			t.Errorf("%+v is written %q", id, text)
		}
		if got, err := ParseID(text); err != nil || got != id {
			t.Errorf("%q is read as %+v, %v; want %+v", text, got, err, id)
		}
		queue := QueueID{id.Company, id.Queue}
		if got, err := ParseQueueID(queue.String()); err != nil || got != queue {
			t.Errorf("%q is read as %+v, %v; want %+v", queue, got, err, queue)
		}
	})
}

func TestTypingErrorsNameNothing(t *testing.T) {
	const alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
	id := ID{12, newQueueID(), 345_678}
	text := id.String()
	wrong := []string{"", "s", text[1:], text[:len(text)-1], text + "0", strings.ToUpper(text), "b" + text[1:], text + "\n", QueueID{1, 2}.String()}
	for i := 1; i < len(text); i++ {
		for _, c := range alphabet {
			if byte(c) != text[i] {
				wrong = append(wrong, text[:i]+string(c)+text[i+1:])
			}
		}
		if i > 1 && text[i] != text[i-1] {
			wrong = append(wrong, text[:i-1]+string(text[i])+string(text[i-1])+text[i+1:])
		}
	}
	for _, w := range wrong {
		if got, err := ParseID(w); err == nil {
			t.Errorf("%q is read as %+v", w, got)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(ID{1, 2, 3}.String())
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := ParseID(text); err == nil && id.String() != text {
			t.Errorf("%q is read as %+v, which is written %q", text, id, id)
		}
	})
}
