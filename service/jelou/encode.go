package jelou

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// Normalize is the one form of a recipient: without one leading `+` and without the suffix `@c.us` of old data. All
// other ids, such as business-scoped ones (EC.8h3Kq0Zt), are left as they are.
// https://docs.jelou.ai/en/connect/getting-started/bsuid.md
func Normalize(userID string) string {
	return strings.TrimSuffix(strings.TrimPrefix(userID, "+"), "@c.us")
}

// operation is what a request asks of Jelou; it decides which answers are a success.
type operation int8

const (
	sendMessage      operation = iota // answers an object with messageId
	sendFlow                          // answers an empty object: no id comes back
	sendNotification                  // answers an array with an id per destination
	readOne
	readList
)

func (o operation) reads() bool { return o >= readOne }

// unknownReason is what a caller is told when there is no answer: a read may simply be repeated.
func (o operation) unknownReason() facadev1.ErrorReason {
	if o.reads() {
		return facadev1.ErrorReason_UPSTREAM_UNREACHABLE
	}
	return facadev1.ErrorReason_OUTCOME_UNKNOWN
}

// request is one request to Jelou, ready to leave.
type request struct {
	op     operation
	method string
	path   string // escaped, below the base URL
	query  url.Values
	body   []byte
	kind   string // the content's field in the API, `notification`, or empty for a read

	user         string   // of a message, normalised
	destinations []string // of a notification, normalised
	id           string   // of the notification that readOne asks for
}

// encode is the only place that knows how a send looks at Jelou.
func encode(botID string, item *facadev1.BatchItem) (*request, *Error) {
	bot, err := segment("bot_id", botID)
	if err != nil {
		return nil, err
	}
	switch content := item.GetContent().(type) {
	case *facadev1.BatchItem_Notification:
		body := newTemplate(content.Notification)
		return finish(&request{
			op: sendNotification, path: "/v2/whatsapp/" + bot + "/hsm", kind: "notification",
			destinations: body.Destinations,
		}, body)
	case *facadev1.BatchItem_Message:
		return encodeMessage(bot, Normalize(item.GetUserId()), content.Message)
	}
	return nil, invalid("content", "must be a message or a notification")
}

func encodeMessage(bot, user string, message *facadev1.Message) (*request, *Error) {
	if strings.TrimSpace(user) == "" {
		return nil, invalid("user_id", "must not be empty")
	}
	r := &request{op: sendMessage, user: user, path: "/v1/bots/" + bot + "/messages"}
	var body any
	switch content := message.GetContent().(type) {
	case *facadev1.Message_Text:
		r.kind, body = "text", textBody{"text", user, content.Text.GetText()}
	case *facadev1.Message_List:
		r.kind, body = "list", newList(user, content.List)
	case *facadev1.Message_QuickReplies:
		r.kind, body = "quick_replies", newQuickReplies(user, content.QuickReplies)
	case *facadev1.Message_Image:
		r.kind, body = "image", mediaBody{Type: "image", UserID: user, MediaURL: content.Image.GetMediaUrl(), Text: content.Image.GetCaption()}
	case *facadev1.Message_Video:
		r.kind, body = "video", mediaBody{Type: "video", UserID: user, MediaURL: content.Video.GetMediaUrl(), Text: content.Video.GetCaption()}
	case *facadev1.Message_Audio:
		r.kind, body = "audio", mediaBody{Type: "audio", UserID: user, MediaURL: content.Audio.GetMediaUrl()}
	case *facadev1.Message_Document:
		d := content.Document
		r.kind, body = "document", mediaBody{Type: "file", UserID: user, MediaURL: d.GetMediaUrl(), Text: d.GetCaption(), Filename: d.GetFilename()}
	case *facadev1.Message_Sticker:
		r.kind, body = "sticker", mediaBody{Type: "sticker", UserID: user, MediaURL: content.Sticker.GetMediaUrl()}
	case *facadev1.Message_Location:
		l := content.Location
		r.kind, body = "location", locationBody{"location", user, coordinates{l.GetLatitude(), l.GetLongitude()}}
	case *facadev1.Message_LocationRequest:
		r.kind, body = "location_request", textBody{"location_request", user, content.LocationRequest.GetText()}
	case *facadev1.Message_Contacts:
		r.kind, body = "contacts", newContacts(user, content.Contacts)
	case *facadev1.Message_CtaUrl:
		c := content.CtaUrl
		r.kind, body = "cta_url", ctaURLBody{"cta_url", user, c.GetTitle(), c.GetText(), c.GetFooter(), linkButton{c.GetDisplayText(), c.GetUrl()}}
	case *facadev1.Message_VoiceCall:
		v := content.VoiceCall
		r.kind, body = "voice_call", voiceCallBody{"voice_call", user, v.GetTitle(), v.GetText(), callButton{v.GetDisplayText()}}
	case *facadev1.Message_Carousel:
		r.kind, body = "carousel", newCarousel(user, content.Carousel)
	case *facadev1.Message_Flow:
		id, err := segment("user_id", user)
		if err != nil {
			return nil, err
		}
		r.op, r.kind, body = sendFlow, "flow", newFlow(content.Flow)
		r.path = "/v1/bots/" + bot + "/users/" + id + "/flow_message"
	case *facadev1.Message_Raw:
		raw := content.Raw.AsMap()
		raw["userId"] = user
		r.kind, body = "raw", raw
	default:
		return nil, invalid("message", "must have content of a kind that this server knows")
	}
	return finish(r, body)
}

func finish(r *request, body any) (*request, *Error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(body); err != nil {
		// NaN and infinities, which protobuf can carry and JSON cannot.
		return nil, invalid(fieldPath(r.kind, ""), "must not contain numbers that JSON does not have")
	}
	r.method, r.body = http.MethodPost, b.Bytes()
	return r, nil
}

// segment is an id as one segment of a path. A `+` goes as %2B: some servers read a bare one as a space.
func segment(field, id string) (string, *Error) {
	if id == "" || id == "." || id == ".." {
		return "", invalid(field, "must be an id: not empty, not \".\" and not \"..\"")
	}
	return strings.ReplaceAll(url.PathEscape(id), "+", "%2B"), nil
}

// The bodies below are Jelou's, with its names. https://docs.jelou.ai/api/envia-mensajes/introduccion

// textBody is `text` and also `location_request`.
type textBody struct {
	Type   string `json:"type"`
	UserID string `json:"userId"`
	Text   string `json:"text"`
}

// listBody is a `text` too: the options make it a list. The older pages nest all but the text under `buttons`.
// https://docs.jelou.ai/api/envia-mensajes/texto-con-opciones
type listBody struct {
	Type       string       `json:"type"`
	UserID     string       `json:"userId"`
	Text       string       `json:"text"`
	Title      string       `json:"title,omitempty"`
	ButtonText *buttonText  `json:"buttonText,omitempty"`
	Options    []listOption `json:"options"`
}

type buttonText struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

type listOption struct {
	ID          string `json:"id"`
	Title       string `json:"title"`
	Description string `json:"description,omitempty"`
}

func newList(user string, c *facadev1.ListContent) listBody {
	b := listBody{Type: "text", UserID: user, Text: c.GetText(), Title: c.GetTitle(), Options: []listOption{}}
	if c.GetButtonText() != "" {
		b.ButtonText = &buttonText{"text", c.GetButtonText()}
	}
	for _, o := range c.GetOptions() {
		b.Options = append(b.Options, listOption{o.GetId(), o.GetTitle(), o.GetDescription()})
	}
	return b
}

// https://docs.jelou.ai/api/envia-mensajes/respuestas-rapidas
type quickRepliesBody struct {
	Type         string       `json:"type"`
	UserID       string       `json:"userId"`
	Text         string       `json:"text"`
	Title        string       `json:"title,omitempty"`
	QuickReplies []quickReply `json:"quick_replies"`
}

type quickReply struct {
	Title string `json:"title"`
}

func newQuickReplies(user string, c *facadev1.QuickRepliesContent) quickRepliesBody {
	b := quickRepliesBody{Type: "quick_reply", UserID: user, Text: c.GetText(), Title: c.GetTitle(), QuickReplies: []quickReply{}}
	for _, reply := range c.GetReplies() {
		b.QuickReplies = append(b.QuickReplies, quickReply{reply.GetTitle()})
	}
	return b
}

// mediaBody is `image`, `video`, `audio`, `sticker` and `file`; the caption is called text.
type mediaBody struct {
	Type     string `json:"type"`
	UserID   string `json:"userId"`
	MediaURL string `json:"mediaUrl"`
	Text     string `json:"text,omitempty"`
	Filename string `json:"filename,omitempty"`
}

type locationBody struct {
	Type        string      `json:"type"`
	UserID      string      `json:"userId"`
	Coordinates coordinates `json:"coordinates"`
}

// coordinates say `long`; Jelou's functions SDK, not this API, says lng.
type coordinates struct {
	Lat  float64 `json:"lat"`
	Long float64 `json:"long"`
}

type contactsBody struct {
	Type     string    `json:"type"`
	UserID   string    `json:"userId"`
	Contacts []contact `json:"contacts"`
}

type contact struct {
	Name      contactName      `json:"name"`
	Phones    []contactPhone   `json:"phones,omitempty"`
	Emails    []contactEmail   `json:"emails,omitempty"`
	Addresses []contactAddress `json:"addresses,omitempty"`
}

type contactName struct {
	FormattedName string `json:"formatted_name"`
	FirstName     string `json:"first_name,omitempty"`
	LastName      string `json:"last_name,omitempty"`
}

type contactPhone struct {
	Phone string `json:"phone"`
	Type  string `json:"type,omitempty"`
	WaID  string `json:"wa_id,omitempty"`
}

type contactEmail struct {
	Email string `json:"email"`
	Type  string `json:"type,omitempty"`
}

type contactAddress struct {
	Street      string `json:"street,omitempty"`
	City        string `json:"city,omitempty"`
	State       string `json:"state,omitempty"`
	Zip         string `json:"zip,omitempty"`
	Country     string `json:"country,omitempty"`
	CountryCode string `json:"country_code,omitempty"`
	Type        string `json:"type,omitempty"`
}

func newContacts(user string, c *facadev1.ContactsContent) contactsBody {
	b := contactsBody{Type: "contacts", UserID: user, Contacts: []contact{}}
	for _, from := range c.GetContacts() {
		name := from.GetName()
		to := contact{Name: contactName{name.GetFormattedName(), name.GetFirstName(), name.GetLastName()}}
		for _, p := range from.GetPhones() {
			to.Phones = append(to.Phones, contactPhone{p.GetPhone(), p.GetType(), p.GetWaId()})
		}
		for _, e := range from.GetEmails() {
			to.Emails = append(to.Emails, contactEmail{e.GetEmail(), e.GetType()})
		}
		for _, a := range from.GetAddresses() {
			to.Addresses = append(to.Addresses, contactAddress{
				a.GetStreet(), a.GetCity(), a.GetState(), a.GetZip(), a.GetCountry(), a.GetCountryCode(), a.GetType(),
			})
		}
		b.Contacts = append(b.Contacts, to)
	}
	return b
}

type ctaURLBody struct {
	Type       string     `json:"type"`
	UserID     string     `json:"userId"`
	Title      string     `json:"title,omitempty"`
	Text       string     `json:"text"`
	Caption    string     `json:"caption,omitempty"` // the footer
	Parameters linkButton `json:"parameters"`
}

type linkButton struct {
	DisplayText string `json:"display_text"`
	URL         string `json:"url"`
}

type voiceCallBody struct {
	Type       string     `json:"type"`
	UserID     string     `json:"userId"`
	Header     string     `json:"header,omitempty"` // title everywhere else
	Text       string     `json:"text"`
	Parameters callButton `json:"parameters"`
}

type callButton struct {
	DisplayText string `json:"display_text"`
}

// carouselBody has the one type that is written in upper case.
type carouselBody struct {
	Type       string        `json:"type"`
	UserID     string        `json:"userId"`
	Text       string        `json:"text"`
	Parameters carouselCards `json:"parameters"`
}

type carouselCards struct {
	Cards []carouselCard `json:"cards"`
}

type carouselCard struct {
	CardIndex int        `json:"card_index"`
	Type      string     `json:"type"`
	Header    cardHeader `json:"header"`
	Body      cardText   `json:"body"`
	Action    cardAction `json:"action"`
}

type cardHeader struct {
	Type  string    `json:"type"`
	Image cardImage `json:"image"`
}

type cardImage struct {
	Link string `json:"link"`
}

type cardText struct {
	Text string `json:"text"`
}

type cardAction struct {
	Name       string     `json:"name"`
	Parameters linkButton `json:"parameters"`
}

func newCarousel(user string, c *facadev1.CarouselContent) carouselBody {
	b := carouselBody{Type: "CAROUSEL", UserID: user, Text: c.GetText(), Parameters: carouselCards{[]carouselCard{}}}
	for i, card := range c.GetCards() {
		b.Parameters.Cards = append(b.Parameters.Cards, carouselCard{
			CardIndex: i,
			Type:      "cta_url",
			Header:    cardHeader{"image", cardImage{card.GetImageUrl()}},
			Body:      cardText{card.GetText()},
			Action:    cardAction{"cta_url", linkButton{card.GetDisplayText(), card.GetUrl()}},
		})
	}
	return b
}

// flowBody has no type and no userId: the endpoint says both.
// https://docs.jelou.ai/api/envia-mensajes/boton-flujo
type flowBody struct {
	Title      string         `json:"title,omitempty"`
	Text       string         `json:"text"`
	Caption    string         `json:"caption,omitempty"` // the footer
	Parameters flowParameters `json:"parameters"`
}

type flowParameters struct {
	FlowName          string     `json:"flow_name"`
	FlowCta           string     `json:"flow_cta"`
	FlowActionPayload flowScreen `json:"flow_action_payload"`
}

type flowScreen struct {
	Screen string `json:"screen"`
}

func newFlow(c *facadev1.FlowContent) flowBody {
	return flowBody{c.GetTitle(), c.GetText(), c.GetFooter(), flowParameters{c.GetFlowName(), c.GetFlowCta(), flowScreen{c.GetScreen()}}}
}

// templateBody is a template ("HSM") to its destinations. Dynamic URLs go as buttonParameters: dynamicUrlParameter is
// the older form. Older pages write fileName. https://docs.jelou.ai/en/api/campanas/envio-individual
type templateBody struct {
	ElementName      string            `json:"elementName"`
	Destinations     []string          `json:"destinations"`
	Parameters       []string          `json:"parameters,omitempty"`
	Type             string            `json:"type,omitempty"`
	Language         string            `json:"language,omitempty"`
	MediaURL         string            `json:"mediaUrl,omitempty"`
	Filename         string            `json:"filename,omitempty"`
	HeaderParameters []string          `json:"headerParameters,omitempty"`
	ButtonPayloads   []buttonPayload   `json:"buttonPayloads,omitempty"`
	ButtonParameters []buttonParameter `json:"buttonParameters,omitempty"`
	Actions          map[string]any    `json:"actions,omitempty"`
	LtoParams        *ltoParams        `json:"ltoParams,omitempty"`
	Cards            []templateCard    `json:"cards,omitempty"`
	ExpirationTime   string            `json:"expirationTime,omitempty"`
	CampaignID       string            `json:"campaignId,omitempty"`
}

type buttonPayload struct {
	FlowID int32  `json:"flowId"`
	Action string `json:"action"`
}

type buttonParameter struct {
	Type    string         `json:"type"`
	Payload map[string]any `json:"payload"`
	Param   int32          `json:"param"`
}

type ltoParams struct {
	ExpirationTime int64 `json:"expirationTime"` // undocumented unit: epoch milliseconds as in Jelou's other payloads
}

type templateCard struct {
	MediaURL         string            `json:"mediaUrl"`
	Params           []string          `json:"params,omitempty"`
	ButtonParameters []buttonParameter `json:"buttonParameters,omitempty"`
}

// templateTypes are Jelou's words; nothing is sent for an unspecified one, which Jelou reads as text. A file is
// `document` here and `file` in messages.
var templateTypes = map[facadev1.TemplateMessage_Type]string{
	facadev1.TemplateMessage_TEXT:     "text",
	facadev1.TemplateMessage_IMAGE:    "image",
	facadev1.TemplateMessage_DOCUMENT: "document",
	facadev1.TemplateMessage_VIDEO:    "video",
}

func newTemplate(t *facadev1.TemplateMessage) templateBody {
	b := templateBody{
		ElementName:      t.GetElementName(),
		Destinations:     []string{},
		Parameters:       t.GetParameters(),
		Type:             templateTypes[t.GetType()],
		Language:         t.GetLanguage(),
		MediaURL:         t.GetMediaUrl(),
		Filename:         t.GetFilename(),
		HeaderParameters: t.GetHeaderParameters(),
		ButtonParameters: newButtonParameters(t.GetButtonParameters()),
		Actions:          t.GetActions().AsMap(),
		ExpirationTime:   t.GetExpirationTime(),
		CampaignID:       t.GetCampaignId(),
	}
	for _, d := range t.GetDestinations() {
		b.Destinations = append(b.Destinations, Normalize(d))
	}
	for _, p := range t.GetButtonPayloads() {
		b.ButtonPayloads = append(b.ButtonPayloads, buttonPayload{p.GetFlowId(), p.GetAction()})
	}
	if lto := t.GetLimitedTimeOffer(); lto != nil {
		b.LtoParams = &ltoParams{lto.GetExpirationTime().AsTime().UnixMilli()}
	}
	for _, c := range t.GetCards() {
		b.Cards = append(b.Cards, templateCard{c.GetMediaUrl(), c.GetParameters(), newButtonParameters(c.GetButtonParameters())})
	}
	return b
}

func newButtonParameters(from []*facadev1.TemplateMessage_ButtonParameter) []buttonParameter {
	var to []buttonParameter
	for _, p := range from {
		to = append(to, buttonParameter{p.GetType(), p.GetPayload().AsMap(), p.GetParam()})
	}
	return to
}

// Warnings tells what is sent although Jelou's documents disagree about it, or although WhatsApp may not show it as
// meant. They name fields and never repeat their values.
func Warnings(item *facadev1.BatchItem) []string {
	var warnings []string
	if q := item.GetMessage().GetQuickReplies(); q != nil {
		if len([]rune(q.GetTitle())) > 20 {
			warnings = append(warnings, "message.quick_replies.title: Jelou's documentation allows 20 characters, its flow builder 60; WhatsApp may cut it")
		}
		for i, reply := range q.GetReplies() {
			if strings.ContainsAny(reply.GetTitle(), "*_~`") || strings.ContainsFunc(reply.GetTitle(), isEmoji) {
				warnings = append(warnings, fmt.Sprintf("message.quick_replies.replies[%d].title: Jelou's documentation allows neither emoji nor markdown", i))
			}
		}
	}
	for i, c := range item.GetMessage().GetContacts().GetContacts() {
		if c.GetName().GetFirstName() == "" && c.GetName().GetLastName() == "" {
			warnings = append(warnings, fmt.Sprintf("message.contacts.contacts[%d].name: WhatsApp wants a first or last name beside formatted_name", i))
		}
	}
	return warnings
}

// isEmoji covers the blocks that emoji come from; it need not be exact for a warning.
func isEmoji(r rune) bool {
	return r >= 0x1F000 && r <= 0x1FAFF || r >= 0x2600 && r <= 0x27BF || r == 0xFE0F
}
