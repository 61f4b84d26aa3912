package jelousim

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// violation is one thing that is wrong with a body. It names the place and never repeats the value.
type violation struct {
	field, text string
	media       string // Jelou's token for media errors; empty: a wrong field
}

// violations of one body, at most maxViolations.
type violations []violation

const maxViolations = 20

func (v *violations) add(field, format string, args ...any) {
	v.put(violation{field: field, text: fmt.Sprintf(format, args...)})
}

func (v *violations) put(one violation) {
	if len(*v) < maxViolations {
		*v = append(*v, one)
	}
}

// rule checks the value at a place.
type rule func(v any, at string, out *violations)

// field is one member of an object.
type field struct {
	name     string
	rule     rule
	optional bool
}

func must(name string, r rule) field { return field{name, r, false} }
func may(name string, r rule) field  { return field{name, r, true} }

// object allows exactly these members.
func object(fields ...field) rule {
	return func(v any, at string, out *violations) {
		m, ok := v.(map[string]any)
		if !ok {
			out.add(at, "must be an object")
			return
		}
		for _, f := range fields {
			if value, ok := m[f.name]; ok {
				f.rule(value, join(at, f.name), out)
			} else if !f.optional {
				out.add(join(at, f.name), "is required")
			}
		}
		for name := range m {
			if !slices.ContainsFunc(fields, func(f field) bool { return f.name == name }) {
				out.add(join(at, name), "is not a known field here")
			}
		}
	}
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

func anyObject(v any, at string, out *violations) {
	if _, ok := v.(map[string]any); !ok {
		out.add(at, "must be an object")
	}
}

func list(least, most int, item rule) rule {
	return func(v any, at string, out *violations) {
		items, ok := v.([]any)
		if !ok || len(items) < least || len(items) > most {
			out.add(at, "must be an array of %d to %d items", least, most)
			return
		}
		for i, it := range items {
			item(it, fmt.Sprintf("%s[%d]", at, i), out)
		}
	}
}

// unique adds to a list that the items, or their members of the given name, differ.
func unique(member string, items rule) rule {
	return func(v any, at string, out *violations) {
		items(v, at, out)
		seen := map[any]bool{}
		array, _ := v.([]any)
		for _, it := range array {
			if m, ok := it.(map[string]any); ok {
				it = m[member]
			}
			if text, ok := it.(string); ok && seen[text] {
				out.add(at, "must differ from each other")
				return
			}
			if text, ok := it.(string); ok {
				seen[text] = true
			}
		}
	}
}

// text is a string of at most most characters that may be empty.
func text(most int) rule {
	return func(v any, at string, out *violations) {
		s, ok := v.(string)
		switch {
		case !ok:
			out.add(at, "must be a string")
		case strings.ContainsRune(s, 0):
			out.add(at, "must not contain U+0000")
		case utf8.RuneCountInString(s) > most:
			out.add(at, "must have at most %d characters", most)
		}
	}
}

// words is a text that is not blank.
func words(most int) rule {
	return func(v any, at string, out *violations) {
		text(most)(v, at, out)
		if s, ok := v.(string); ok && strings.TrimSpace(s) == "" {
			out.add(at, "must not be empty or blank")
		}
	}
}

// matching is a string of a form.
func matching(form *regexp.Regexp, what string) rule {
	return func(v any, at string, out *violations) {
		if s, ok := v.(string); !ok || !form.MatchString(s) {
			out.add(at, "must be %s", what)
		}
	}
}

func oneOf(allowed ...string) rule {
	return func(v any, at string, out *violations) {
		if s, ok := v.(string); !ok || !slices.Contains(allowed, s) {
			out.add(at, "must be one of %s", strings.Join(allowed, ", "))
		}
	}
}

func number(least, most float64) rule {
	return func(v any, at string, out *violations) {
		n, ok := v.(json.Number)
		f, err := n.Float64()
		if !ok || err != nil || f < least || f > most {
			out.add(at, "must be a number from %v to %v", least, most)
		}
	}
}

func integer(v any, at string, out *violations) {
	n, ok := v.(json.Number)
	if i, err := n.Int64(); !ok || err != nil || i < 0 {
		out.add(at, "must be an integer, not negative")
	}
}

// both applies two rules to the same value.
func both(a, b rule) rule {
	return func(v any, at string, out *violations) {
		a(v, at, out)
		b(v, at, out)
	}
}

var (
	pictograph = regexp.MustCompile(`[\x{200D}\x{20E3}\x{2600}-\x{27BF}\x{FE0F}\x{1F000}-\x{1FAFF}]`)
	markdown   = regexp.MustCompile("\\*[^*]+\\*|_[^_]+_|~[^~]+~|`")
)

// plainLabel is what Jelou's page on quick replies asks of their titles: no emoji, no markdown.
func plainLabel(v any, at string, out *violations) {
	if s, _ := v.(string); pictograph.MatchString(s) || markdown.MatchString(s) {
		out.add(at, "must not contain emoji or markdown")
	}
}

const maxURL = 2048

// link is an https URL that a user may open.
func link(v any, at string, out *violations) {
	if s, ok := v.(string); !ok || !isLink(s) {
		out.add(at, "must be an https URL of at most %d characters", maxURL)
	}
}

func isLink(s string) bool {
	u, err := url.Parse(s)
	return err == nil && len(s) <= maxURL && u.Scheme == "https" && u.Hostname() != ""
}

// formats are the file name endings of each kind of media, by Jelou's pages on message types. An ending that
// is in no row is let through: Jelou goes by the content type, which only a download would tell.
var formats = map[string][]string{
	"image":    {".jpg", ".jpeg", ".png"},
	"video":    {".mp4", ".3gp"},
	"audio":    {".aac", ".mp4", ".m4a", ".mp3", ".mpeg", ".amr", ".ogg"},
	"file":     {".txt", ".pdf", ".doc", ".docx", ".ppt", ".pptx", ".xls", ".xlsx"},
	"sticker":  {".webp"},
	"document": {".txt", ".pdf", ".doc", ".docx", ".ppt", ".pptx", ".xls", ".xlsx"},
}

// media is the URL of a file of the kind. Jelou fetches it: it must be public, https, and need no credentials.
func media(kind string) rule {
	return func(v any, at string, out *violations) {
		s, ok := v.(string)
		if !ok {
			out.add(at, "must be a string")
			return
		}
		if !isLink(s) || !isPublic(s) {
			out.put(violation{at, "must be a public https URL without credentials", "INVALID_MEDIA_URL"})
			return
		}
		u, _ := url.Parse(s)
		ending := strings.ToLower(path.Ext(u.Path))
		if !slices.Contains(formats[kind], ending) && isKnownFormat(ending) {
			out.put(violation{at, "is not a file that WhatsApp takes as " + kind, "UNSUPPORTED_MEDIA_TYPE"})
		}
	}
}

func isPublic(s string) bool {
	u, _ := url.Parse(s)
	host := u.Hostname()
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsGlobalUnicast() && !ip.IsPrivate() && u.User == nil
	}
	return host != "localhost" && u.User == nil
}

func isKnownFormat(ending string) bool {
	for _, endings := range formats {
		if slices.Contains(endings, ending) {
			return true
		}
	}
	return false
}
