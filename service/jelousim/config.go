package jelousim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"
)

// Config says whom the simulator knows and how it behaves. Its zero value knows nobody.
type Config struct {
	// Seed makes the random choices repeatable for one caller at a time. Zero: one is drawn; [Server.Seed] tells it.
	Seed uint64 `json:"seed,omitzero"`
	// Companies own the credentials and the bots. None: every request is answered 401.
	Companies []Company `json:"companies"`
	// Templates that every bot may send.
	Templates []Template `json:"templates,omitzero"`
	// OpenUsers wrote to every bot when the simulator started, so their windows are open for SessionWindow from then on.
	OpenUsers []string `json:"open_users,omitzero"`
	// EveryoneOpen opens the window of every user for good.
	EveryoneOpen bool `json:"everyone_open,omitzero"`
	// SessionWindow is how long after a user's last message a bot may answer. Zero: 24 hours.
	SessionWindow Duration `json:"session_window,omitzero"`
	// OutsideWindow is what a message outside of the window gets. Empty: [OutsideRefuse].
	OutsideWindow Outside `json:"outside_window,omitzero"`
	// Unreachable recipients' sends are accepted and end FAILED.
	Unreachable []string `json:"unreachable,omitzero"`
	// ExtraTypes are values of `type` that are accepted with any members, as a type that Jelou added lately would be.
	ExtraTypes []string `json:"extra_types,omitzero"`
	// ExternalByID serves GET /v1/external/bots/{botId}/notifications/{id}, which Jelou's documentation dropped. False: 404.
	ExternalByID bool `json:"external_by_id,omitzero"`
	// Rate is the allowance of each credential.
	Rate Rate `json:"rate,omitzero"`
	// Processing is how long the server works on a request that it lets through.
	Processing Processing `json:"processing,omitzero"`
	// Network is the way between the client and the server.
	Network Network `json:"network,omitzero"`
	// Delivery is how fast a send reaches the user.
	Delivery Delivery `json:"delivery,omitzero"`
	// Dialects overrides the shape of error bodies, by the error's code (such as unauthorized) or else by
	// endpoint (such as hsm). An absent key: as documented for that error or endpoint.
	Dialects map[string]Dialect `json:"dialects,omitzero"`
	// Faults are played from the start; see [Fault].
	Faults []Fault `json:"faults,omitzero"`
	// Records bounds the requests, and the sends, that are remembered; the oldest go first. Zero: 1,000,000.
	Records int `json:"records,omitzero"`
}

// Company is a customer of Jelou: one credential and its bots.
type Company struct {
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	// NoCompany makes the credential valid but of no company: every answer is 500 internal_server_error.
	NoCompany bool  `json:"no_company,omitzero"`
	Bots      []Bot `json:"bots,omitzero"`
}

// Bot belongs to one company; for all others it does not exist.
type Bot struct {
	ID string `json:"id"`
	// Disabled makes Jelou answer 403 forbidden_bot.
	Disabled bool `json:"disabled,omitzero"`
}

// Template is a WhatsApp template in one language.
type Template struct {
	ElementName string `json:"element_name"`
	Language    string `json:"language"`
	// Status is APPROVED, PENDING, REJECTED, DELETED or DISABLED. Empty: APPROVED.
	Status string `json:"status,omitzero"`
	// Params is the number of placeholders in the body.
	Params int `json:"params,omitzero"`
	// Type is text, image, document or video. Empty: text.
	Type string `json:"type,omitzero"`
	// Category is UTILITY, MARKETING or AUTHENTICATION. Empty: UTILITY.
	Category string `json:"category,omitzero"`
}

// RateKind is a way of counting.
type RateKind string

// The ways of counting.
const (
	RateSliding     RateKind = "sliding"      // at most Requests in any Window
	RateFixed       RateKind = "fixed"        // at most Requests in each Window on the clock
	RateTokenBucket RateKind = "token_bucket" // Requests per Window on average, Burst at once
	RateEven        RateKind = "even"         // no two closer than Window/Requests
)

// RetryAfter is the form of the header on a 429.
type RetryAfter string

// The forms of Retry-After.
const (
	RetryAfterNone    RetryAfter = "none"
	RetryAfterSeconds RetryAfter = "seconds"
	RetryAfterDate    RetryAfter = "date"
)

// Rate is the allowance of one credential. Jelou documents five requests per second and nothing else:
// neither how it counts, nor where, nor what a 429 looks like.
type Rate struct {
	// Requests per Window. Zero: no limit.
	Requests int `json:"requests,omitzero"`
	// Window; zero: one second.
	Window Duration `json:"window,omitzero"`
	// Kind; empty: [RateSliding].
	Kind RateKind `json:"kind,omitzero"`
	// Burst of a token bucket. Zero: Requests.
	Burst int `json:"burst,omitzero"`
	// Behind counts a request, and takes its arrival time, after it was processed. False: at the edge, before.
	Behind bool `json:"behind,omitzero"`
	// RetryAfter on a 429; empty: [RetryAfterNone].
	RetryAfter RetryAfter `json:"retry_after,omitzero"`
	// Body of a 429; empty: [DialectEmpty].
	Body Dialect `json:"body,omitzero"`
}

// Processing is a time drawn evenly from Min to Max. A Max below Min counts as Min.
type Processing struct {
	Min Duration `json:"min,omitzero"`
	Max Duration `json:"max,omitzero"`
}

// Outside is what a session message outside of its window gets. Jelou does not say which.
type Outside string

// The two possibilities.
const (
	OutsideRefuse Outside = "refuse"     // 400 message_could_not_be_send at once
	OutsideFail   Outside = "fail_later" // accepted, and FAILED afterwards
)

// Delivery tells when, after a send was accepted, it reaches each state.
type Delivery struct {
	// Channel is when WhatsApp takes it, or when it fails. Zero: 200 ms.
	Channel Duration `json:"channel,omitzero"`
	// User is when it is on the device. Zero: 1 s.
	User Duration `json:"user,omitzero"`
	// Read is when the user reads it. Zero: 5 s.
	Read Duration `json:"read,omitzero"`
	// NeverRead is a user without read receipts.
	NeverRead bool `json:"never_read,omitzero"`
}

// Duration is a time.Duration that is text in JSON, such as "250ms".
type Duration time.Duration

// MarshalText writes the form that UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads time.ParseDuration's form.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"250ms\"", text)
	}
	*d = Duration(v)
	return nil
}

// Sandbox is a small world to try things in: company and secret "sandbox", bot "demo".
func Sandbox() Config {
	return Config{
		Companies: []Company{{
			ClientID: "sandbox", ClientSecret: "sandbox",
			Bots: []Bot{{ID: "demo"}, {ID: "disabled", Disabled: true}},
		}},
		Templates: []Template{
			{ElementName: "order_ready", Language: "es", Params: 2},
			{ElementName: "invoice_ready", Language: "es", Params: 2, Type: "document"},
			{ElementName: "order_photo", Language: "es", Params: 1, Type: "image"},
			{ElementName: "draft_promo", Language: "es", Status: "PENDING", Category: "MARKETING"},
		},
		OpenUsers:  []string{"593991234567", "593987654321", "EC.8h3Kq0Zt"},
		Rate:       Rate{Requests: 5},
		Processing: Processing{Min: Duration(80 * time.Millisecond)},
	}
}

// ReadConfig reads one JSON object, refuses what it does not know, and validates it.
func ReadConfig(r io.Reader) (Config, error) {
	var c Config
	if err := readStrict(r, &c); err != nil {
		return Config{}, fmt.Errorf("jelousim config: %w", err)
	}
	return c, c.Validate()
}

// readStrict reads one JSON value and refuses unknown members, repeated members and anything after it.
func readStrict(r io.Reader, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxBody+1))
	if err != nil {
		return err
	}
	if len(data) > maxBody {
		return errTooLarge
	}
	if _, err := parse(data); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

const (
	maxBody  = 1 << 20
	maxDelay = 2 * time.Minute // below the write timeout of HTTPServer, and what a test can wait for
	day      = 24 * time.Hour
)

var (
	botPattern    = regexp.MustCompile(`^\+?[A-Za-z0-9._-]{1,128}$`)
	elementName   = regexp.MustCompile(`^[a-z0-9_]{1,512}$`)
	languageCode  = regexp.MustCompile(`^[a-z]{2,3}(_[A-Za-z]{2,4})?$`)
	userPattern   = regexp.MustCompile(`^([0-9]{5,15}|[A-Za-z0-9._:-]*[A-Za-z._:-][A-Za-z0-9._:-]*)$`)
	templateTypes = []string{"text", "image", "document", "video"}
	templateState = []string{"APPROVED", "PENDING", "REJECTED", "DELETED", "DISABLED"}
	categories    = []string{"UTILITY", "MARKETING", "AUTHENTICATION"}
)

// Validate tells the first thing that is wrong, by its JSON name.
func (c Config) Validate() error {
	for _, err := range []error{
		c.validateCompanies(), c.validateTemplates(), c.Rate.validate(), c.Network.validate(),
		inOrder("processing.min, max", maxDelay, c.Processing.Min, max(c.Processing.Min, c.Processing.Max)),
		inOrder("session_window", 365*day, c.SessionWindow),
		inOrder("delivery.channel, user, read", 365*day, c.Delivery.withDefaults().times()...),
		choice("outside_window", c.OutsideWindow, "", OutsideRefuse, OutsideFail),
		validateFaults(c.Faults),
	} {
		if err != nil {
			return fmt.Errorf("jelousim config: %w", err)
		}
	}
	for _, id := range slices.Concat(c.OpenUsers, c.Unreachable) {
		if !userPattern.MatchString(id) {
			return fmt.Errorf("jelousim config: open_users, unreachable: must be phone digits without +, or an opaque id")
		}
	}
	for key, d := range c.Dialects {
		if !slices.Contains(dialectKeys, key) {
			return fmt.Errorf("jelousim config: dialects: no error and no endpoint is called %q; known: %v", key, dialectKeys)
		}
		if err := choice("dialects."+key, d, dialects...); err != nil {
			return fmt.Errorf("jelousim config: %w", err)
		}
	}
	if c.Records < 0 || c.Records > 10_000_000 {
		return fmt.Errorf("jelousim config: records: must be 0 to 10000000")
	}
	return nil
}

func (c Config) validateCompanies() error {
	clients, bots := map[string]bool{}, map[string]bool{}
	for i, company := range c.Companies {
		if company.ClientID == "" || company.ClientSecret == "" || clients[company.ClientID] {
			return fmt.Errorf("companies[%d]: needs a client_secret and a client_id of its own", i)
		}
		clients[company.ClientID] = true
		for j, bot := range company.Bots {
			if !botPattern.MatchString(bot.ID) || bots[bot.ID] {
				return fmt.Errorf("companies[%d].bots[%d].id: must match %s and belong to one company", i, j, botPattern)
			}
			bots[bot.ID] = true
		}
	}
	return nil
}

func (c Config) validateTemplates() error {
	known := map[templateKey]bool{}
	for i, t := range c.Templates {
		t = t.withDefaults()
		if !elementName.MatchString(t.ElementName) || !languageCode.MatchString(t.Language) || known[t.key()] {
			return fmt.Errorf("templates[%d]: needs an element_name, and a language of its own in that name", i)
		}
		if t.Params < 0 || !slices.Contains(templateTypes, t.Type) || !slices.Contains(templateState, t.Status) || !slices.Contains(categories, t.Category) {
			return fmt.Errorf("templates[%d]: type is one of %v, status of %v, category of %v, params not negative", i, templateTypes, templateState, categories)
		}
		known[t.key()] = true
	}
	return nil
}

func (r Rate) validate() error {
	if r.Requests < 0 || r.Requests > 1_000_000 || r.Burst < 0 || r.Burst > 1_000_000 {
		return fmt.Errorf("rate.requests, rate.burst: must be 0 to 1000000")
	}
	for _, err := range []error{
		inOrder("rate.window", day, r.Window),
		choice("rate.kind", r.Kind, "", RateSliding, RateFixed, RateTokenBucket, RateEven),
		choice("rate.retry_after", r.RetryAfter, "", RetryAfterNone, RetryAfterSeconds, RetryAfterDate),
		choice("rate.body", r.Body, "", DialectEmpty, DialectPlain, DialectA, DialectB),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// inOrder checks that durations are neither negative nor above limit, and do not fall.
func inOrder(field string, limit time.Duration, values ...Duration) error {
	for i, v := range values {
		if v < 0 || time.Duration(v) > limit || i > 0 && v < values[i-1] {
			return fmt.Errorf("%s: must be 0 to %v, and not fall from one to the next", field, limit)
		}
	}
	return nil
}

func choice[T comparable](field string, v T, allowed ...T) error {
	if !slices.Contains(allowed, v) {
		return fmt.Errorf("%s: must be one of %v", field, allowed)
	}
	return nil
}

// or is the value, or its default when it is zero.
func or[T comparable](v, zero T) T {
	var none T
	if v == none {
		return zero
	}
	return v
}

func (t Template) withDefaults() Template {
	t.Status, t.Type, t.Category = or(t.Status, "APPROVED"), or(t.Type, "text"), or(t.Category, "UTILITY")
	return t
}

func (r Rate) withDefaults() Rate {
	r.Window, r.Kind = or(r.Window, Duration(time.Second)), or(r.Kind, RateSliding)
	r.Burst = or(r.Burst, r.Requests)
	r.RetryAfter, r.Body = or(r.RetryAfter, RetryAfterNone), or(r.Body, DialectEmpty)
	return r
}

func (d Delivery) withDefaults() Delivery {
	d.Channel = or(d.Channel, Duration(200*time.Millisecond))
	d.User = or(d.User, Duration(time.Second))
	d.Read = or(d.Read, Duration(5*time.Second))
	return d
}

func (d Delivery) times() []Duration { return []Duration{d.Channel, d.User, d.Read} }

func (c Config) withDefaults() Config {
	c.SessionWindow = or(c.SessionWindow, Duration(day))
	c.OutsideWindow = or(c.OutsideWindow, OutsideRefuse)
	c.Rate = c.Rate.withDefaults()
	c.Network = c.Network.withDefaults()
	c.Delivery = c.Delivery.withDefaults()
	c.Processing.Max = max(c.Processing.Min, c.Processing.Max)
	c.Records = or(c.Records, 1_000_000)
	return c
}
