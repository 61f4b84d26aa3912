package jelousim

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxDestinations bounds one call. Jelou documents no bound.
const maxDestinations = 1000

var (
	values          = list(0, 100, text(1024))
	buttonParameter = object(must("type", words(32)), may("payload", anyObject), must("param", integer))

	// hsmFields is the body of POST /v2/whatsapp/{botId}/hsm. https://docs.jelou.ai/en/api/campanas/envio-individual
	hsmFields = object(
		must("elementName", matching(elementName, "a template's technical name")),
		must("destinations", unique("", list(1, maxDestinations, user))),
		may("parameters", values),
		may("type", oneOf(templateTypes...)),
		may("language", matching(languageCode, "a language code such as es or pt_BR")),
		may("mediaUrl", text(maxURL)), // checked against the template's type
		may("filename", words(fileName)),
		may("fileName", words(fileName)), // the older spelling
		may("headerParameters", values),
		may("buttonPayloads", list(1, 3, object(must("flowId", integer), must("action", words(buttonText))))),
		may("actions", anyObject),
		may("buttonParameters", list(1, 10, buttonParameter)),
		may("dynamicUrlParameter", values),
		may("ltoParams", object(must("expirationTime", integer))),
		may("cards", list(1, 10, object(must("mediaUrl", text(maxURL)), may("params", values), may("buttonParameters", list(1, 2, buttonParameter))))),
		may("expirationTime", words(64)),
		may("campaignId", words(slug)),
	)
)

type templateKey struct{ elementName, language string }

func (t Template) key() templateKey { return templateKey{t.ElementName, t.Language} }

// hsm serves POST /v2/whatsapp/{botId}/hsm: one template to n destinations, answered by a bare array.
func (s *Server) hsm(c *call) answer {
	body, refused := c.object()
	if refused != nil {
		return s.refuse(c, *refused)
	}
	var wrong violations
	hsmFields(body, "", &wrong)
	if body["filename"] != nil && body["fileName"] != nil {
		wrong.add("fileName", "must not come with filename")
	}
	if len(wrong) > 0 {
		return s.refuse(c, wrongFields(wrong))
	}
	parameters := stringsIn(body["parameters"])
	reason := s.checkTemplate(body, parameters, &wrong)
	switch {
	case len(wrong) > 0:
		return s.refuse(c, wrongFields(wrong))
	case reason != "":
		return s.refuse(c, templateRefused(reason, c.botID, body))
	}

	// A single destination that is refused refuses the whole call, before anything was sent to anyone.
	// What Jelou does with a partly bad list is undocumented.
	results := []any{}
	for _, destination := range stringsIn(body["destinations"]) {
		send := Send{
			ID: s.uuid(), Recipient: destination, Kind: body["elementName"].(string),
			Text:        hash(strings.Join(parameters, " ")),
			Fingerprint: fingerprint(c.botID, destination, body, "destinations"),
		}
		send.campaign, _ = body["campaignId"].(string)
		s.accept(c, send)
		results = append(results, map[string]any{"id": send.ID, "destination": destination})
	}
	return answer{value: results}
}

// missing is what Jelou's page says for a template that is not there and for one that is not approved alike.
const missing = "Template does not exist"

var urlInText = regexp.MustCompile(`(?i)\bhttps?://|\bwww\.`)

// checkTemplate holds a body against the registry and tells why it is refused; empty: it is not. What is wrong with
// a media URL goes into wrong.
func (s *Server) checkTemplate(body map[string]any, parameters []string, wrong *violations) string {
	named := slices.DeleteFunc(slices.Clone(s.cfg.Templates), func(t Template) bool {
		return t.ElementName != body["elementName"] || body["language"] != nil && t.Language != body["language"]
	})
	if len(named) == 0 {
		return missing
	}
	if len(named) > 1 {
		return "Template exists in several languages, language is required"
	}
	t := named[0].withDefaults()
	kind, _ := body["type"].(string)
	_, hasMedia := body["mediaUrl"]
	switch {
	case t.Status != "APPROVED":
		return missing
	case len(parameters) != t.Params:
		return fmt.Sprintf("Template needs %d parameters", t.Params)
	case or(kind, "text") != t.Type:
		return "Template is of type " + t.Type
	case hasMedia != (t.Type != "text"):
		return "mediaUrl is required for media templates and only for them"
	case t.Category == "AUTHENTICATION" && slices.ContainsFunc(parameters, notForAuthentication):
		return "Parameters of authentication templates have at most 15 characters, no URL and no emoji"
	}
	if hasMedia {
		media(t.Type)(body["mediaUrl"], "mediaUrl", wrong)
	}
	cards, _ := body["cards"].([]any)
	for i, c := range cards {
		at := fmt.Sprintf("cards[%d].mediaUrl", i)
		if u := c.(map[string]any)["mediaUrl"].(string); !isLink(u) || !isPublic(u) {
			wrong.put(violation{at, "must be a public https URL without credentials", "INVALID_MEDIA_URL"})
		}
	}
	return ""
}

func notForAuthentication(p string) bool {
	return len([]rune(p)) > 15 || urlInText.MatchString(p) || pictograph.MatchString(p)
}

// templateRefused is dialect D as the older page on sending templates shows it; its HTTP status is not shown.
// https://docs.jelou.ai/whatsapp/hsm/send
func templateRefused(reason, botID string, body map[string]any) problem {
	destinations := []any{}
	for _, d := range stringsIn(body["destinations"]) {
		destinations = append(destinations, map[string]any{"destination": d})
	}
	kind, _ := body["type"].(string)
	p := notificationRefused
	p.text, p.dialect = reason, DialectD
	p.sent = map[string]any{
		"destinations": destinations, "parameters": body["parameters"], "elementName": body["elementName"],
		"code": body["language"], "type": or(kind, "text"), "botId": botID, "botName": botID,
	}
	return p
}

func stringsIn(v any) (all []string) {
	items, _ := v.([]any)
	for _, it := range items {
		if text, ok := it.(string); ok {
			all = append(all, text)
		}
	}
	return all
}

// templateQuery is what the older page on templates lists. https://docs.jelou.ai/whatsapp/hsm/templates
var templateQuery = map[string]rule{"status": oneOf(templateState...), "category": oneOf(categories...)}

// templates serves GET /v1/bots/{botId}/templates.
func (s *Server) templates(c *call) answer {
	query, wrong := c.query(templateQuery)
	if len(wrong) > 0 {
		return s.refuse(c, wrongFields(wrong))
	}
	return answer{value: map[string]any{"data": s.templateItems(query)}}
}

// approvedTemplates serves GET /v1/whatsapp/{botId}/hsm, the older list: a bare array.
func (s *Server) approvedTemplates(c *call) answer {
	query, wrong := c.query(map[string]rule{"status": oneOf(templateState...), "isVisible": oneOf("0", "1")})
	if len(wrong) > 0 {
		return s.refuse(c, wrongFields(wrong))
	}
	return answer{value: s.templateItems(query)}
}

func (s *Server) templateItems(query map[string]string) []any {
	items := []any{}
	if query["isVisible"] == "0" {
		return items
	}
	for _, t := range s.cfg.Templates {
		t = t.withDefaults()
		if or(query["status"], t.Status) != t.Status || or(query["category"], t.Category) != t.Category {
			continue
		}
		body, params := []string{"Plantilla"}, []any{}
		for i := range t.Params {
			n := strconv.Itoa(i + 1)
			body = append(body, "{{"+n+"}}")
			params = append(params, map[string]any{"label": "param " + n, "param": n})
		}
		items = append(items, map[string]any{
			"template": strings.Join(body, " "), "displayName": t.ElementName, "elementName": t.ElementName,
			"params": params, "paramsNumber": json.Number(strconv.Itoa(t.Params)), "isVisible": true, "language": t.Language,
			"status": t.Status, "category": t.Category, "type": strings.Replace(strings.ToUpper(t.Type), "TEXT", "HSM", 1),
			"createdAt": wireTime(s.began), "updatedAt": wireTime(s.began),
		})
	}
	return items
}
