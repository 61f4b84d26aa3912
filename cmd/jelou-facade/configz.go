package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/reload"
)

// liveFields are the fields, with all below them, that take effect while the server runs. Changing another one is refused until
// the server is started again. docs/configuration.md says so too, and a test holds it to this list.
var liveFields = map[string]bool{
	"listen.tls.cert_file": true, "listen.tls.key_file": true, "listen.tls.client_ca_file": true, "listen.tls.min_version": true,
	"companies": true, "callers": true, "authentication": true, "log.level": true, "shutdown": true, "bounds": true,
}

// checkRestart refuses a configuration that changes what can only be set at the start.
func checkRestart(inForce, next *configv1.Config) error {
	fields := restartFields("", inForce.ProtoReflect(), next.ProtoReflect())
	if len(fields) == 0 {
		return nil
	}
	return fmt.Errorf("%s: cannot change while the server runs: restart it, or set back what was", strings.Join(fields, ", "))
}

// restartFields are the fields in which two messages differ and that are not live.
func restartFields(path string, a, b protoreflect.Message) []string {
	var found []string
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := strings.TrimPrefix(path+"."+string(f.Name()), ".")
		switch {
		case liveFields[name] || a.Get(f).Equal(b.Get(f)) && a.Has(f) == b.Has(f):
		case f.Message() != nil && !f.IsList() && !f.IsMap() && hasLiveFields(name) && (a.Has(f) == b.Has(f) || name != "listen.tls"):
			found = append(found, restartFields(name, a.Get(f).Message(), b.Get(f).Message())...)
		default:
			found = append(found, name)
		}
	}
	return found
}

// hasLiveFields reports whether some fields of a message are live.
func hasLiveFields(path string) bool {
	for name := range liveFields {
		if strings.HasPrefix(name, path+".") {
			return true
		}
	}
	return false
}

// configuration is what /configz shows: how each part is, and the configuration in force, masked.
func (v *live) configuration() ([]byte, error) {
	v.mu.Lock()
	config := masked(v.config)
	v.mu.Unlock()
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(config)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(struct {
		Started time.Time       `json:"started"`
		Parts   []reload.Status `json:"parts"`
		Config  json.RawMessage `json:"config"`
	}{v.started, v.reloader.Status(), text}, "", "  ")
}

// masked is a configuration without what is secret or personal: passwords in URLs, bots that are phone numbers, and the most of
// what keys are recognised by.
func masked(c *configv1.Config) *configv1.Config {
	c = proto.CloneOf(c)
	maskMessage(c.ProtoReflect())
	return c
}

func maskMessage(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
		case f.Message() != nil && f.IsList():
			for i := range v.List().Len() {
				maskMessage(v.List().Get(i).Message())
			}
		case f.Message() != nil:
			maskMessage(v.Message())
		case f.Kind() == protoreflect.StringKind && f.IsList():
			for i := range v.List().Len() {
				v.List().Set(i, protoreflect.ValueOfString(mask(f, v.List().Get(i).String())))
			}
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, protoreflect.ValueOfString(mask(f, v.String())))
		}
		return true
	})
}

var phoneNumber = regexp.MustCompile(`^\+?[0-9]{7,}$`)

// shownDigits are left of what is masked, to tell one from another.
const shownDigits = 4

func mask(f protoreflect.FieldDescriptor, text string) string {
	name := string(f.Name())
	switch {
	case name == "sha256":
		return text[:min(shownDigits, len(text))] + "…"
	case phoneNumber.MatchString(text):
		return "…" + text[len(text)-shownDigits:]
	case strings.HasSuffix(name, "url"):
		return maskURL(text)
	}
	return text
}

// maskURL hides a URL's password, and all of what is no URL.
func maskURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "…"
	}
	query := u.Query()
	for name := range query {
		if strings.Contains(name, "password") {
			query.Set(name, "…")
			u.RawQuery = query.Encode()
		}
	}
	return u.Redacted()
}
