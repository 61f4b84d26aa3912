package jelousim

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The limits below are Jelou's own where its pages on message types give one, else those of its flow builder.
const (
	bodyText   = 1024
	headerText = 60
	footerText = 60
	buttonText = 20
	caption    = 1024
	fileName   = 47
	nameText   = 256
	slug       = 128
)

var (
	phonePattern = regexp.MustCompile(`^\+?[1-9][0-9]{4,14}$`)
	countryCode  = regexp.MustCompile(`^[A-Za-z]{2}$`)
	emailPattern = regexp.MustCompile(`^[^\s@]+@[^\s@]+$`)

	phone   = matching(phonePattern, "a phone number in E.164 form")
	country = matching(countryCode, "a two-letter country code")
	email   = matching(emailPattern, "an e-mail address")
	user    = matching(userPattern, "phone digits with country code and without +, or a business-scoped id")

	listButton = object(must("type", oneOf("text")), must("text", words(buttonText)))

	plainText = []field{must("text", words(4096))}
	flatList  = []field{
		must("text", words(bodyText)), may("title", words(headerText)), may("buttonText", listButton),
		must("options", unique("id", list(1, 10, object(
			must("id", words(200)), must("title", words(24)), may("description", words(72)))))),
	}
	nestedList = []field{
		must("text", words(bodyText)),
		must("buttons", object(may("title", words(headerText)), may("buttonText", listButton),
			must("options", unique("payload", list(1, 10, object(
				must("title", words(24)), may("description", words(72)), may("payload", words(200)))))))),
	}
)

// contents has, for each `type`, the members besides type, userId and botId. The case is Jelou's.
var contents = map[string][]field{
	"quick_reply": {
		must("text", words(bodyText)), may("title", words(headerText)),
		must("quick_replies", unique("title", list(1, 3, object(must("title", both(words(buttonText), plainLabel)))))),
	},
	"image":            {must("mediaUrl", media("image")), may("text", words(caption))},
	"video":            {must("mediaUrl", media("video")), may("text", words(caption))},
	"audio":            {must("mediaUrl", media("audio"))},
	"file":             {must("mediaUrl", media("file")), may("text", words(caption)), may("filename", words(fileName))},
	"sticker":          {must("mediaUrl", media("sticker"))},
	"location":         {must("coordinates", object(must("lat", number(-90, 90)), must("long", number(-180, 180))))},
	"location_request": {must("text", words(bodyText))},
	"contacts":         {must("contacts", list(1, 50, contact))},
	"cta_url": {
		must("text", words(bodyText)), may("title", words(headerText)), may("caption", words(footerText)),
		must("parameters", linkButton),
	},
	"voice_call": {
		must("text", words(bodyText)), may("header", words(headerText)),
		must("parameters", object(must("display_text", words(buttonText)))),
	},
	"CAROUSEL": {
		must("text", words(bodyText)),
		must("parameters", object(must("cards", both(list(2, 10, card), inCardOrder)))),
	},
	// The older way of sending a flow; the newer one has an endpoint of its own.
	"flow": {
		must("text", words(bodyText)), may("title", words(headerText)), may("caption", words(footerText)),
		must("parameters", object(
			must("flow_id", words(slug)), must("flow_cta", words(buttonText)), may("flow_name", words(slug)),
			must("flow_action_payload", object(must("screen", words(slug)))),
			may("mode", oneOf("draft", "published")), may("flow_action", oneOf("navigate", "data_exchange")),
			may("flow_message_version", oneOf("3")))),
	},
}

var (
	linkButton = object(must("display_text", words(buttonText)), must("url", link))
	card       = object(
		must("card_index", integer), must("type", oneOf("cta_url")),
		must("header", object(must("type", oneOf("image")), must("image", object(must("link", media("image")))))),
		must("body", object(must("text", words(bodyText)))),
		must("action", object(must("name", oneOf("cta_url")), must("parameters", linkButton))))
	contact = object(
		must("name", object(must("formatted_name", words(nameText)), may("first_name", words(nameText)), may("last_name", words(nameText)))),
		may("phones", list(1, 20, object(must("phone", phone), may("type", words(32)), may("wa_id", words(slug))))),
		may("emails", list(1, 20, object(must("email", email), may("type", words(32))))),
		may("addresses", list(1, 20, object(
			may("street", words(nameText)), may("city", words(nameText)), may("state", words(nameText)), may("zip", words(32)),
			may("country", words(nameText)), may("country_code", country), may("type", words(32))))))

	flowMessage = object(
		must("text", words(bodyText)), may("title", words(headerText)), may("caption", words(footerText)),
		must("parameters", object(
			must("flow_name", words(slug)), must("flow_cta", words(buttonText)),
			must("flow_action_payload", object(must("screen", words(slug)))))))
)

// inCardOrder checks that the cards are numbered 0, 1, 2, …
func inCardOrder(v any, at string, out *violations) {
	cards, _ := v.([]any)
	for i, c := range cards {
		if m, ok := c.(map[string]any); ok && m["card_index"] != json.Number(fmt.Sprint(i)) {
			out.add(fmt.Sprintf("%s[%d].card_index", at, i), "must count from 0")
		}
	}
}

// message serves POST /v1/bots/{botId}/messages.
// https://docs.jelou.ai/api/envia-mensajes/introduccion
func (s *Server) message(c *call) answer {
	return s.session(c, may("botId", botID(c.botID)))
}

// whatsappMessage serves POST /v1/whatsapp/messages, the older form with the bot in the body.
// https://docs.jelou.ai/whatsapp/sending_messages/message-types
func (s *Server) whatsappMessage(c *call) answer {
	return s.session(c, must("botId", botID(c.botID)))
}

// botID is the bot that the request was taken to be for; empty: none could be read.
func botID(id string) rule {
	return func(v any, at string, out *violations) {
		if v != id || id == "" {
			out.add(at, "must be the id of the bot, in the path and in the body the same")
		}
	}
}

func (s *Server) session(c *call, bot field) answer {
	body, refused := c.object()
	if refused != nil {
		return s.refuse(c, *refused)
	}
	kind, _ := body["type"].(string)
	if wrong := s.checkMessage(kind, body, bot); len(wrong) > 0 {
		return s.refuse(c, wrongFields(wrong))
	}
	recipient := body["userId"].(string)
	send, refused := s.openSession(c, recipient, kind, body)
	if refused != nil {
		return s.refuse(c, *refused)
	}
	send.ID = fmt.Sprintf("msg_%012x", s.rng.Uint64()>>16)
	s.accept(c, send)
	return answer{value: map[string]any{"success": true, "messageId": send.ID}}
}

func (s *Server) checkMessage(kind string, body map[string]any, bot field) (wrong violations) {
	common := []field{must("type", words(slug)), must("userId", user), bot}
	fields, known := contents[kind]
	switch {
	case kind == "text" && body["options"] != nil:
		fields = flatList
	case kind == "text" && body["buttons"] != nil:
		fields = nestedList
	case kind == "text":
		fields = plainText
	case slices.Contains(s.cfg.ExtraTypes, kind):
		for _, f := range common {
			if v, ok := body[f.name]; ok || !f.optional {
				f.rule(v, f.name, &wrong)
			}
		}
		return wrong
	case !known:
		wrong.add("type", "is not a message type; the names are case-sensitive")
		return wrong
	}
	object(slices.Concat(common, fields)...)(body, "", &wrong)
	return wrong
}

// flow serves POST /v1/bots/{botId}/users/{userId}/flow_message, which answers an empty object.
// https://docs.jelou.ai/api/envia-mensajes/boton-flujo
func (s *Server) flow(c *call) answer {
	body, refused := c.object()
	if refused != nil {
		return s.refuse(c, *refused)
	}
	var wrong violations
	recipient := c.request.PathValue("userId")
	user(recipient, "userId", &wrong)
	flowMessage(body, "", &wrong)
	if len(wrong) > 0 {
		return s.refuse(c, wrongFields(wrong))
	}
	send, refused := s.openSession(c, recipient, "flow", body)
	if refused != nil {
		return s.refuse(c, *refused)
	}
	send.ID = fmt.Sprintf("flow_%012x", s.rng.Uint64()>>16) // never told to the client
	s.accept(c, send)
	return answer{value: map[string]any{}}
}

// openSession prepares a session message, or refuses it because the user's window is closed.
func (s *Server) openSession(c *call, recipient, kind string, body map[string]any) (Send, *problem) {
	send := Send{Recipient: recipient, Kind: kind}
	if !s.windowOpen(conversation{c.botID, recipient}, time.Now()) {
		if s.cfg.OutsideWindow == OutsideRefuse {
			return Send{}, &windowClosed
		}
		send.failure = "131047: outside of the 24-hour window"
	}
	said, _ := body["text"].(string)
	send.Text = hash(said)
	send.Fingerprint = fingerprint(c.botID, recipient, body, "userId", "botId")
	return send, nil
}

// conversation is one user's talk with one bot.
type conversation struct{ bot, user string }

func (s *Server) windowOpen(talk conversation, now time.Time) bool {
	last, wrote := s.inbound[talk]
	return s.cfg.EveryoneOpen || wrote && now.Sub(last) < time.Duration(s.cfg.SessionWindow)
}

// maxConversations bounds the windows that the control path can open.
const maxConversations = 1_000_000

// Inbound is a message from the user to the bot: it opens the user's 24-hour window.
func (s *Server) Inbound(botID, userID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bots[botID] == nil {
		return fmt.Errorf("bot: no company has a bot %q", botID)
	}
	if !userPattern.MatchString(userID) {
		return fmt.Errorf("user: must be phone digits without +, or an opaque id")
	}
	talk := conversation{strings.Clone(botID), strings.Clone(userID)}
	if _, known := s.inbound[talk]; !known && len(s.inbound) >= maxConversations {
		return fmt.Errorf("user: %d conversations are open; reset first", maxConversations)
	}
	s.inbound[talk] = time.Now()
	return nil
}
