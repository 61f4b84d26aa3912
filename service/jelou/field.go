package jelou

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// fieldNames are, for each kind, Jelou's members and the API's fields where the name or the place differs.
var fieldNames = map[string]map[string]string{
	"list": {
		"buttonText": "button_text", "buttonText.text": "button_text", "buttons.title": "title",
		"buttons.buttonText": "button_text", "buttons.buttonText.text": "button_text",
		"buttons": "options", "buttons.options": "options", "buttons.options.payload": "options.id",
	},
	"quick_replies": {"quick_replies": "replies"},
	"image":         {"mediaUrl": "media_url", "text": "caption"},
	"video":         {"mediaUrl": "media_url", "text": "caption"},
	"audio":         {"mediaUrl": "media_url"},
	"document":      {"mediaUrl": "media_url", "text": "caption", "fileName": "filename"},
	"sticker":       {"mediaUrl": "media_url"},
	"location":      {"coordinates": "", "coordinates.lat": "latitude", "coordinates.long": "longitude"},
	"cta_url":       {"caption": "footer", "parameters": ""},
	"voice_call":    {"header": "title", "parameters": ""},
	"carousel": {
		"parameters": "", "parameters.cards.header": "cards.image_url", "parameters.cards.body": "cards.text",
		"parameters.cards.action": "cards", "parameters.cards.action.parameters": "cards",
	},
	"flow": {"caption": "footer", "parameters": "", "parameters.flow_action_payload": "", "parameters.flow_action_payload.screen": "screen"},
	"notification": {
		"elementName": "element_name", "mediaUrl": "media_url", "fileName": "filename", "headerParameters": "header_parameters",
		"buttonPayloads": "button_payloads", "buttonPayloads.flowId": "button_payloads.flow_id", "buttonParameters": "button_parameters",
		"ltoParams": "limited_time_offer", "ltoParams.expirationTime": "limited_time_offer.expiration_time",
		"cards.mediaUrl": "cards.media_url", "cards.params": "cards.parameters", "cards.buttonParameters": "cards.button_parameters",
		"expirationTime": "expiration_time", "campaignId": "campaign_id",
	},
}

// indexes are how Jelou may write a place in an array: options[0].title beside options.0.title.
var indexes = regexp.MustCompile(`\[(\d{1,4})\]`)

// fieldPath is the API's path of Jelou's member, as deep as the API has it: what Jelou calls otherwise may be a value,
// and is not repeated.
func fieldPath(kind, theirs string) string {
	var names, places []string
	for segment := range strings.SplitSeq(indexes.ReplaceAllString(theirs, ".$1"), ".") {
		if _, err := strconv.Atoi(segment); err == nil && len(names) > 0 && len(segment) <= 4 {
			places = append(places, segment)
		} else {
			names = append(names, segment)
		}
	}
	if kind == "notification" {
		fields := (*facadev1.TemplateMessage)(nil).ProtoReflect().Descriptor()
		return follow(fields, kind, translate(kind, names), places)
	}
	if names[0] == "userId" {
		return "user_id"
	}
	content := (*facadev1.Message)(nil).ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(kind))
	if content == nil {
		return kind
	}
	return follow(content.Message(), "message."+kind, translate(kind, names), places)
}

// translate replaces the longest part that the table has.
func translate(kind string, names []string) []string {
	for n := len(names); n > 0; n-- {
		if ours, ok := fieldNames[kind][strings.Join(names[:n], ".")]; ok {
			return append(strings.FieldsFunc(ours, func(r rune) bool { return r == '.' }), names[n:]...)
		}
	}
	return names
}

// follow walks down as far as there are such fields, and puts the places behind the arrays.
func follow(fields protoreflect.MessageDescriptor, path string, names, places []string) string {
	for _, name := range names {
		if fields == nil {
			break
		}
		field := fields.Fields().ByName(protoreflect.Name(name))
		if field == nil {
			break
		}
		path += "." + name
		if field.IsList() && len(places) > 0 {
			path, places = path+"["+places[0]+"]", places[1:]
		}
		fields = field.Message()
	}
	return path
}

// violations are the fields that Jelou names: validationError of dialect B, details of dialect G.
func violations(r *request, value any, own map[string]bool) []FieldViolation {
	if r.op.reads() {
		return nil
	}
	body, _ := value.(map[string]any)
	var found []FieldViolation
	add := func(theirs, description string) {
		if len(found) < maxFields {
			found = append(found, FieldViolation{fieldPath(r.kind, theirs), first(scrub(description, own), "Jelou refused it")})
		}
	}
	named, _ := body["validationError"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(named)) {
		add(name, words(named[name]))
	}
	details, _ := body["details"].([]any)
	for _, d := range details {
		if m, ok := d.(map[string]any); ok {
			add(joined(m["path"]), words(m["message"]))
		}
	}
	return found
}

// joined reads a path that is a text or an array of its segments.
func joined(v any) string {
	segments, ok := v.([]any)
	if !ok {
		return text(v)
	}
	var path []string
	for _, s := range segments {
		path = append(path, text(s))
	}
	return strings.Join(path, ".")
}
