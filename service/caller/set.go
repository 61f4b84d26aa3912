package caller

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
)

// A Source makes Sets, and keeps from one to the next what should outlive a configuration: public keys that were
// fetched, and how much of its rate a caller has used. It is for one goroutine.
type Source struct {
	ctx       context.Context
	log       *slog.Logger
	transport http.RoundTripper // nil is http.DefaultTransport
	sites     map[string]*site  // by URL
	rates     map[string]*rate.Limiter
}

// NewSource makes a Source. Public keys are fetched until ctx ends; log may be nil.
func NewSource(ctx context.Context, log *slog.Logger) *Source {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Source{ctx: ctx, log: log, sites: map[string]*site{}, rates: map[string]*rate.Limiter{}}
}

// A Set is all callers of one configuration. A nil Set, and one without callers, takes everybody as Anonymous.
type Set struct {
	callers      map[string]*Caller // by name
	keys         map[keyIndex]key
	issuers      map[string]*issuer // by iss
	tokens       map[tokenName]*Caller
	certificates map[string]*Caller // by kind and name
}

// keyIndex is the beginning of a key's hash, by which it is found; all of it is then compared in constant time. Who measures
// how long the finding takes learns at most something about hashes, and nobody can make keys for a given hash.
type keyIndex [8]byte

type key struct {
	hash    [sha256.Size]byte
	expires time.Time // zero is never
	caller  *Caller
}

type tokenName struct{ issuer, subject string }

// Load makes a Set of a configuration that keeps the rules of its proto. Files of public keys are read now; URLs that cannot be
// fetched now are tried again later, and the tokens that need them are refused till then. A configuration that is refused changes
// nothing.
func (s *Source) Load(callers []*configv1.Caller, authentication *configv1.Authentication) (*Set, error) {
	set := &Set{
		callers: map[string]*Caller{}, keys: map[keyIndex]key{}, issuers: map[string]*issuer{},
		tokens: map[tokenName]*Caller{}, certificates: map[string]*Caller{},
	}
	for _, config := range callers {
		if err := set.add(config, authentication); err != nil {
			return nil, fmt.Errorf("caller %s: %w", config.Name, err)
		}
	}
	sites := map[string]*site{}
	for _, config := range authentication.GetIssuers() {
		issuer, err := s.newIssuer(config, sites)
		if err != nil {
			for url, opened := range sites {
				if s.sites[url] == nil {
					opened.stop()
				}
			}
			return nil, fmt.Errorf("issuer %s: %w", config.Issuer, err)
		}
		set.issuers[config.Issuer] = issuer
	}
	// Nothing fails from here on.
	for _, c := range set.callers {
		c.rate = s.limiter(c.config)
	}
	for url, old := range s.sites {
		if sites[url] == nil {
			old.stop() // a Set that still has it goes on with the keys it has
		}
	}
	s.sites = sites
	return set, nil
}

// add puts one caller into the set, without its rate.
func (s *Set) add(config *configv1.Caller, authentication *configv1.Authentication) error {
	c := &Caller{config: config}
	s.callers[config.Name] = c
	for i, k := range config.Keys {
		hash, err := hex.DecodeString(k.Sha256)
		if err != nil || len(hash) != sha256.Size {
			return fmt.Errorf("keys[%d].sha256: must be 64 hexadecimal digits", i)
		}
		entry := key{hash: [sha256.Size]byte(hash), caller: c}
		if k.ExpireTime != nil {
			entry.expires = k.ExpireTime.AsTime()
		}
		at := entry.index()
		if other, taken := s.keys[at]; taken {
			return fmt.Errorf("keys[%d]: is a key of caller %s already", i, other.caller.Name())
		}
		s.keys[at] = entry
	}
	for i, t := range config.Tokens {
		name, err := nameOf(t, authentication.GetIssuers())
		if err != nil {
			return fmt.Errorf("tokens[%d]: %w", i, err)
		}
		if other := s.tokens[name]; other != nil {
			return fmt.Errorf("tokens[%d]: is caller %s already", i, other.Name())
		}
		s.tokens[name] = c
	}
	for i, name := range config.Certificates {
		if other := s.certificates[name]; other != nil {
			return fmt.Errorf("certificates[%d]: is caller %s already", i, other.Name())
		}
		s.certificates[name] = c
	}
	return nil
}

func (k key) index() keyIndex { return keyIndex(k.hash[:]) }

// limiter is the caller's rate, with what was used of it under the configuration before.
func (s *Source) limiter(config *configv1.Caller) *rate.Limiter {
	n := int(config.CallsPerSecond)
	if n == 0 {
		delete(s.rates, config.Name)
		return nil
	}
	l := s.rates[config.Name]
	switch {
	case l == nil:
		l = rate.NewLimiter(rate.Limit(n), n)
		s.rates[config.Name] = l
	case l.Burst() != n:
		l.SetLimit(rate.Limit(n))
		l.SetBurst(n)
	}
	return l
}

// nameOf is how a token names the caller.
func nameOf(t *configv1.Caller_Token, issuers []*configv1.TokenIssuer) (tokenName, error) {
	if t.Issuer == "" && len(issuers) == 1 {
		return tokenName{issuers[0].Issuer, t.Subject}, nil
	}
	for _, i := range issuers {
		if i.Issuer == t.Issuer {
			return tokenName{i.Issuer, t.Subject}, nil
		}
	}
	return tokenName{}, errors.New("issuer: must be one of authentication.issuers")
}

// Required reports whether a call needs a credential.
func (s *Set) Required() bool { return s != nil && len(s.callers) > 0 }

// Has reports whether a caller has the name.
func (s *Set) Has(name string) bool {
	if !s.Required() {
		return name == Anonymous
	}
	return s.callers[name] != nil
}

// Names are those of all callers.
func (s *Set) Names() []string {
	if !s.Required() {
		return []string{Anonymous}
	}
	return slices.Collect(maps.Keys(s.callers))
}

// Weights are the weights of all callers, by name.
func (s *Set) Weights() map[string]int {
	weights := map[string]int{}
	if s != nil {
		for name, c := range s.callers {
			weights[name] = c.Weight()
		}
	}
	return weights
}

// Credentials are what came with a call.
type Credentials struct {
	// The API keys and JWTs of its headers, as they were: `authorization` and `x-api-key`.
	Authorization, APIKey []string
	// The client certificate, verified against the authorities that the server trusts now; nil for none.
	Certificate *x509.Certificate
}

// A Reason is why a credential was refused: a closed set, fit for a metric's label.
type Reason string

// The reasons.
const (
	Missing   Reason = "missing"   // no credential
	Malformed Reason = "malformed" // not of the form of one, or two different ones
	Unknown   Reason = "unknown"   // nobody's: wrong, or revoked
	Expired   Reason = "expired"
	Invalid   Reason = "invalid" // a JWT whose signature, issuer, audience or times are not good, or a certificate of no authority that is trusted
	Limited   Reason = "limited" // too many failed attempts from this address
)

// Reasons are all of them.
var Reasons = []Reason{Missing, Malformed, Unknown, Expired, Invalid, Limited}

// Error is a refused credential. It never quotes it.
type Error struct {
	Reason Reason
	Err    error // why, for a log; may be nil
}

func (e *Error) Error() string { return "credential refused: " + string(e.Reason) }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Authenticate says who calls, and until when the credential is good (zero: for ever). Its error is an *Error.
func (s *Set) Authenticate(ctx context.Context, now time.Time, c Credentials) (*Caller, time.Time, error) {
	if !s.Required() {
		return anonymous, time.Time{}, nil
	}
	secret, err := c.secret()
	switch {
	case err != nil:
		return nil, time.Time{}, err
	case secret == "":
		return s.byCertificate(now, c.Certificate)
	case strings.Count(secret, ".") == 2: // keys have no dots
		return s.byToken(ctx, now, secret)
	default:
		return s.byKey(now, secret)
	}
}

// secret is the one key or token of a call's headers; empty for none. The same one twice is one.
func (c Credentials) secret() (string, error) {
	secret := ""
	put := func(s string) error {
		if s == "" || secret != "" && secret != s {
			return &Error{Reason: Malformed}
		}
		secret = s
		return nil
	}
	for _, header := range c.Authorization {
		scheme, value, _ := strings.Cut(header, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return "", &Error{Reason: Malformed}
		}
		if err := put(strings.TrimSpace(value)); err != nil {
			return "", err
		}
	}
	for _, value := range c.APIKey {
		if err := put(value); err != nil {
			return "", err
		}
	}
	return secret, nil
}

// Kind is what proves who calls: key, token or certificate, as Authenticate looks for them.
func (c Credentials) Kind() string {
	secret, _ := c.secret() // good: it was taken
	switch {
	case secret == "":
		return "certificate"
	case strings.Count(secret, ".") == 2:
		return "token"
	}
	return "key"
}

// digest stands for a credential where it is remembered.
func (c Credentials) digest() [sha256.Size]byte {
	if secret, err := c.secret(); err == nil && secret != "" {
		return HashKey(secret)
	}
	if c.Certificate != nil {
		return sha256.Sum256(c.Certificate.Raw)
	}
	return [sha256.Size]byte{}
}

func (s *Set) byKey(now time.Time, secret string) (*Caller, time.Time, error) {
	hash := HashKey(secret)
	k, found := s.keys[keyIndex(hash[:])]
	switch {
	case !found || subtle.ConstantTimeCompare(k.hash[:], hash[:]) != 1:
		return nil, time.Time{}, &Error{Reason: Unknown}
	case !k.expires.IsZero() && !now.Before(k.expires):
		return nil, time.Time{}, &Error{Reason: Expired}
	}
	return k.caller, k.expires, nil
}

// byCertificate finds the one caller that the certificate names.
func (s *Set) byCertificate(now time.Time, c *x509.Certificate) (*Caller, time.Time, error) {
	if c == nil {
		return nil, time.Time{}, &Error{Reason: Missing}
	}
	if now.After(c.NotAfter) { // the handshake was before
		return nil, time.Time{}, &Error{Reason: Expired}
	}
	var found *Caller
	for _, name := range namesOf(c) {
		switch named := s.certificates[name]; {
		case named == nil:
		case found != nil && found != named:
			return nil, time.Time{}, &Error{Reason: Malformed, Err: errors.New("the certificate names two callers")}
		default:
			found = named
		}
	}
	if found == nil {
		return nil, time.Time{}, &Error{Reason: Unknown}
	}
	return found, c.NotAfter, nil
}

// namesOf are the names in a certificate, as a configuration writes them.
func namesOf(c *x509.Certificate) []string {
	var names []string
	for _, uri := range c.URIs {
		names = append(names, "uri:"+uri.String())
	}
	for _, dns := range c.DNSNames {
		names = append(names, "dns:"+dns)
	}
	if c.Subject.CommonName != "" {
		names = append(names, "cn:"+c.Subject.CommonName)
	}
	return names
}
