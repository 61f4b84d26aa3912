package jelou

import (
	"encoding/json"
	"regexp"
	"strings"
	"unicode"
)

// maxWords bounds what of Jelou's text is passed on, in characters.
const maxWords = 300

// removed stands for what was taken out.
const removed = "…"

// personal is what may identify somebody or be a part of a message, or is a credential: links, addresses, quotations, runs of five
// or more digits however they are grouped, and what an Authorization header has.
var personal = regexp.MustCompile(`(?i)\b(basic|bearer)\W+\S+|\b[a-z][a-z0-9+.-]*://\S+|\bwww\.\S+|\S+@\S+|"[^"]*"|“[^”]*”|«[^»]*»|` + "`[^`]*`" +
	`|(^|\W)'[^']*'|\+?\d([\s().-]{0,2}\d){4,}`)

// scrub makes Jelou's loose text fit to be passed on and logged. Fixed texts alone would hide the one thing that
// helps, such as which parameter is missing; but Jelou may repeat what it was sent. So nothing personal by form
// remains, and no word of three or more letters, nor any with a digit, that the caller's own content has.
func scrub(text string, own map[string]bool) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)
	text = personal.ReplaceAllString(text, " "+removed+" ")
	var out []string
	for _, field := range strings.Fields(text) {
		if field = scrubWord(field, own); field != removed || len(out) == 0 || out[len(out)-1] != removed {
			out = append(out, field)
		}
	}
	runes := []rune(strings.Join(out, " "))
	if len(runes) > maxWords {
		runes = append(runes[:maxWords-1], []rune(removed)...)
	}
	if said := string(runes); strings.ContainsFunc(said, unicode.IsLetter) {
		return said
	}
	return ""
}

func scrubWord(field string, own map[string]bool) string {
	for _, w := range split(field) {
		if own[w] {
			return removed
		}
	}
	return field
}

// split gives the words of a text that are worth hiding, in lower case.
func split(text string) []string {
	words := strings.FieldsFunc(strings.ToLower(text), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	kept := words[:0]
	for _, w := range words {
		if len([]rune(w)) >= 3 || strings.ContainsFunc(w, unicode.IsDigit) {
			kept = append(kept, w)
		}
	}
	return kept
}

// technical members of a request are no content: their words may be repeated.
var technical = map[string]bool{"type": true, "elementName": true, "language": true}

// memberName is what members are called in APIs. Other names, which raw content may have, are content themselves.
var memberName = regexp.MustCompile(`^[A-Za-z_]{1,40}$`)

// ownWords are the words of the caller's content. They are gathered only when Jelou refuses.
func ownWords(r *request) map[string]bool {
	own := map[string]bool{}
	gather(r.user, own)
	body, _ := parse(answer{body: r.body})
	gather(body, own)
	return own
}

func gather(v any, own map[string]bool) {
	switch v := v.(type) {
	case string:
		// Of a word with a number, what scrub leaves of it is a word, too.
		for _, w := range append(split(v), split(personal.ReplaceAllString(v, " "))...) {
			own[w] = true
		}
	case json.Number:
		own[v.String()] = true
	case []any:
		for _, element := range v {
			gather(element, own)
		}
	case map[string]any:
		for name, member := range v {
			if !memberName.MatchString(name) {
				gather(name, own)
			}
			if !technical[name] {
				gather(member, own)
			}
		}
	}
}

// publicShape is what a code of Jelou's looks like; a longer run of digits could be a phone number.
var (
	publicShape = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	longNumber  = regexp.MustCompile(`\d{5}`)
)

// publicCode is Jelou's code if it is one, else empty.
func publicCode(code string) string {
	if !publicShape.MatchString(code) || longNumber.MatchString(code) {
		return ""
	}
	return code
}
