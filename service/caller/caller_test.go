package caller_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// keyOf is a key as a configuration has it.
func keyOf(key string, expires time.Time) *configv1.Caller_Key {
	hash := caller.HashKey(key)
	k := &configv1.Caller_Key{Sha256: hex.EncodeToString(hash[:])}
	if !expires.IsZero() {
		k.ExpireTime = timestamppb.New(expires)
	}
	return k
}

func mustLoad(t *testing.T, source *caller.Source, authentication *configv1.Authentication, callers ...*configv1.Caller) *caller.Set {
	t.Helper()
	set, err := source.Load(callers, authentication)
	must(t, err)
	return set
}

// checkAuthenticate holds what a set says of credentials: a name, or the reason of the refusal.
func checkAuthenticate(t *testing.T, set *caller.Set, now time.Time, c caller.Credentials, name string, reason caller.Reason) time.Time {
	t.Helper()
	got, expires, err := set.Authenticate(t.Context(), now, c)
	if reason == "" {
		if err != nil || got.Name() != name {
			t.Errorf("%v, %v; want %s", got, err, name)
		}
		return expires
	}
	var refused *caller.Error
	if !errors.As(err, &refused) || refused.Reason != reason || got != nil {
		t.Errorf("%v, %v; want %s", got, err, reason)
	}
	return expires
}

func bearer(secret string) caller.Credentials {
	return caller.Credentials{Authorization: []string{"Bearer " + secret}}
}

func TestKeys(t *testing.T) {
	now := time.Now()
	first, second, old, revoked := caller.NewKey(), caller.NewKey(), caller.NewKey(), caller.NewKey()
	source := caller.NewSource(t.Context(), nil)
	set := mustLoad(t, source, nil,
		&configv1.Caller{Name: "orders", Keys: []*configv1.Caller_Key{keyOf(first, time.Time{}), keyOf(second, now.Add(time.Hour)), keyOf(old, now)}},
		&configv1.Caller{Name: "other", Keys: []*configv1.Caller_Key{keyOf(caller.NewKey(), time.Time{})}})
	for _, test := range []struct {
		name        string
		credentials caller.Credentials
		want        string
		reason      caller.Reason
	}{
		{"bearer", bearer(first), "orders", ""},
		{"bearer in small letters", caller.Credentials{Authorization: []string{"bearer " + first}}, "orders", ""},
		{"x-api-key", caller.Credentials{APIKey: []string{second}}, "orders", ""},
		{"the same in both", caller.Credentials{Authorization: []string{"Bearer " + first, "Bearer " + first}, APIKey: []string{first}}, "orders", ""},
		{"two keys", caller.Credentials{Authorization: []string{"Bearer " + first}, APIKey: []string{second}}, "", caller.Malformed},
		{"expired", bearer(old), "", caller.Expired},
		{"revoked", bearer(revoked), "", caller.Unknown},
		{"wrong", bearer(first + "x"), "", caller.Unknown},
		{"empty bearer", bearer(""), "", caller.Malformed},
		{"empty x-api-key", caller.Credentials{APIKey: []string{""}}, "", caller.Malformed},
		{"basic", caller.Credentials{Authorization: []string{"Basic " + first}}, "", caller.Malformed},
		{"nothing", caller.Credentials{}, "", caller.Missing},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkAuthenticate(t, set, now, test.credentials, test.want, test.reason)
		})
	}
	if expires := checkAuthenticate(t, set, now, bearer(second), "orders", ""); !expires.Equal(now.Add(time.Hour)) {
		t.Errorf("good until %s", expires)
	}
	if !caller.IsKey(first) || caller.IsKey("secret") || caller.IsKey(first+"x") {
		t.Error("what is a key and what is none")
	}
}

func TestWithoutCallersEverybodyMayDoEverything(t *testing.T) {
	var none *caller.Set
	for _, set := range []*caller.Set{none, mustLoad(t, caller.NewSource(t.Context(), nil), nil)} {
		c, expires, err := set.Authenticate(t.Context(), time.Now(), bearer("whatever"))
		must(t, err)
		if set.Required() || c.Name() != caller.Anonymous || !expires.IsZero() || !c.Admin() || !c.MayResolve() || !c.MayUseAll() || !c.MayUseLane(facadev1.SendOptions_BULK) || c.Call(time.Now()) != 0 {
			t.Errorf("%+v", c)
		}
	}
}

func TestRights(t *testing.T) {
	key := caller.NewKey()
	set := mustLoad(t, caller.NewSource(t.Context(), nil), nil, &configv1.Caller{
		Name: "orders", Keys: []*configv1.Caller_Key{keyOf(key, time.Time{})}, Companies: []string{"acme"}, Bots: []string{"demo"},
		Lanes: []facadev1.SendOptions_Lane{facadev1.SendOptions_URGENT}, CallsPerSecond: 2,
	})
	c, _, err := set.Authenticate(t.Context(), time.Now(), bearer(key))
	must(t, err)
	for what, wrong := range map[string]bool{
		"its bot": !c.MayUseBot("acme", "demo"), "another bot": c.MayUseBot("acme", "other"), "another company's bot": c.MayUseBot("other", "demo"),
		"its company": !c.MayUseCompany("acme"), "another company": c.MayUseCompany("other"), "all": c.MayUseAll(),
		"its lane": !c.MayUseLane(facadev1.SendOptions_URGENT), "another lane": c.MayUseLane(facadev1.SendOptions_BULK),
		"admin": c.Admin(), "resolve": c.MayResolve(), "weight": c.Weight() != 1,
	} {
		if wrong {
			t.Error(what)
		}
	}
	now := time.Now()
	waits := []time.Duration{c.Call(now), c.Call(now), c.Call(now), c.Call(now), c.Call(now.Add(500 * time.Millisecond))}
	if fmt.Sprint(waits) != "[0s 0s 500ms 500ms 0s]" {
		t.Errorf("waits %v", waits)
	}
}

// What was used of a rate is not forgotten with a new configuration.
func TestRateOutlivesASet(t *testing.T) {
	key := caller.NewKey()
	source := caller.NewSource(t.Context(), nil)
	now := time.Now()
	load := func(calls int32) *caller.Caller {
		set := mustLoad(t, source, nil, &configv1.Caller{Name: "orders", Keys: []*configv1.Caller_Key{keyOf(key, time.Time{})}, CallsPerSecond: calls})
		c, _, err := set.Authenticate(t.Context(), now, bearer(key))
		must(t, err)
		return c
	}
	if load(1).Call(now) != 0 || load(1).Call(now) != time.Second || load(0).Call(now) != 0 {
		t.Error("the rate began again")
	}
}

func TestSetsThatCannotBe(t *testing.T) {
	key := keyOf(caller.NewKey(), time.Time{})
	token := &configv1.Caller_Token{Subject: "s"}
	for name, test := range map[string]struct {
		authentication *configv1.Authentication
		callers        []*configv1.Caller
		want           string
	}{
		"one key of two callers": {nil, []*configv1.Caller{{Name: "a", Keys: []*configv1.Caller_Key{key}}, {Name: "b", Keys: []*configv1.Caller_Key{key}}}, "caller b: keys[0]: is a key of caller a already"},
		"token without issuer":   {nil, []*configv1.Caller{{Name: "a", Tokens: []*configv1.Caller_Token{token}}}, "caller a: tokens[0]: issuer: must be one of"},
		"one certificate of two": {nil, []*configv1.Caller{{Name: "a", Certificates: []string{"cn:x"}}, {Name: "b", Certificates: []string{"cn:x"}}}, "caller b: certificates[0]: is caller a already"},
		"no file of keys":        {&configv1.Authentication{Issuers: []*configv1.TokenIssuer{{Issuer: "i", JwksFile: "/nowhere"}}}, nil, "issuer i: jwks_file: open /nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := caller.NewSource(t.Context(), nil).Load(test.callers, test.authentication)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; want %q", err, test.want)
			}
		})
	}
}

// signer is a key of an issuer.
type signer struct {
	id     string
	method jwt.SigningMethod
	key    crypto.Signer
}

func newSigner(t *testing.T, id string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return signer{id, jwt.SigningMethodES256, key}
}

// jwks is the public keys as an issuer publishes them.
func jwks(t *testing.T, signers ...signer) []byte {
	t.Helper()
	set := jwkset.NewMemoryStorage()
	for _, s := range signers {
		key, err := jwkset.NewJWKFromKey(s.key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: s.id}})
		must(t, err)
		must(t, set.KeyWrite(t.Context(), key))
	}
	data, err := set.JSONPublic(t.Context())
	must(t, err)
	return data
}

// token is a good token, changed.
func (s signer) token(t *testing.T, now time.Time, change func(jwt.MapClaims)) string {
	t.Helper()
	claims := jwt.MapClaims{"iss": "https://issuer", "aud": "jelou-facade", "sub": "svc-orders", "exp": now.Add(time.Hour).Unix()}
	if change != nil {
		change(claims)
	}
	token := jwt.NewWithClaims(s.method, claims)
	token.Header["kid"] = s.id
	text, err := token.SignedString(s.key)
	must(t, err)
	return text
}

func issuerWith(change func(*configv1.TokenIssuer)) *configv1.Authentication {
	i := &configv1.TokenIssuer{Issuer: "https://issuer", Audiences: []string{"other", "jelou-facade"}}
	change(i)
	return &configv1.Authentication{Issuers: []*configv1.TokenIssuer{i}}
}

var tokenCaller = &configv1.Caller{Name: "orders", Tokens: []*configv1.Caller_Token{{Subject: "svc-orders"}}}

func TestTokens(t *testing.T) {
	now := time.Now()
	good, rotated := newSigner(t, "k1"), newSigner(t, "k1")
	path := filepath.Join(t.TempDir(), "keys.json")
	must(t, os.WriteFile(path, jwks(t, good), 0o600))
	set := mustLoad(t, caller.NewSource(t.Context(), nil), issuerWith(func(i *configv1.TokenIssuer) { i.JwksFile = path }), tokenCaller)
	claim := func(name string, value any) func(jwt.MapClaims) {
		return func(c jwt.MapClaims) { c[name] = value }
	}
	without := func(name string) func(jwt.MapClaims) { return func(c jwt.MapClaims) { delete(c, name) } }
	for _, test := range []struct {
		name   string
		token  string
		reason caller.Reason
	}{
		{"good", good.token(t, now, nil), ""},
		{"one of several audiences", good.token(t, now, claim("aud", []string{"x", "jelou-facade"})), ""},
		{"expired a moment ago, as clocks differ", good.token(t, now, claim("exp", now.Add(-10*time.Second).Unix())), ""},
		{"expired", good.token(t, now, claim("exp", now.Add(-time.Minute).Unix())), caller.Expired},
		{"without exp", good.token(t, now, without("exp")), caller.Invalid},
		{"not yet", good.token(t, now, claim("nbf", now.Add(time.Hour).Unix())), caller.Invalid},
		{"another audience", good.token(t, now, claim("aud", "another")), caller.Invalid},
		{"no audience", good.token(t, now, without("aud")), caller.Invalid},
		{"another issuer", good.token(t, now, claim("iss", "https://evil")), caller.Invalid},
		{"no issuer", good.token(t, now, without("iss")), caller.Invalid},
		{"another's subject", good.token(t, now, claim("sub", "svc-other")), caller.Unknown},
		{"no subject", good.token(t, now, without("sub")), caller.Unknown},
		{"subject that is no text", good.token(t, now, claim("sub", 7)), caller.Unknown},
		{"another key of the same id", rotated.token(t, now, nil), caller.Invalid},
		{"no signature", good.token(t, now, nil)[:strings.LastIndex(good.token(t, now, nil), ".")+1], caller.Invalid},
		{"no token at all", "a.b.c", caller.Malformed},
		{"too long", strings.Repeat("a", 9000) + ".b.c", caller.Malformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			expires := checkAuthenticate(t, set, now, bearer(test.token), "orders", test.reason)
			if test.name == "good" && expires.Before(now.Add(time.Hour-time.Second)) {
				t.Errorf("good until %s", expires)
			}
		})
	}
}

// Whoever only knows the public key must not be able to make tokens: neither with it as the secret of an HMAC, nor without a
// signature.
func TestTokenAlgorithms(t *testing.T) {
	now := time.Now()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	ec := newSigner(t, "ec")
	signers := []signer{ec, {"rsa", jwt.SigningMethodRS256, rsaKey}, {"pss", jwt.SigningMethodPS256, rsaKey}, {"ed", jwt.SigningMethodEdDSA, edKey}}
	path := filepath.Join(t.TempDir(), "keys.json")
	must(t, os.WriteFile(path, jwks(t, signers...), 0o600))
	set := mustLoad(t, caller.NewSource(t.Context(), nil), issuerWith(func(i *configv1.TokenIssuer) { i.JwksFile = path }), tokenCaller)
	for _, s := range signers {
		if s.id != "pss" { // a JWK without `alg` is RSA's of either kind
			checkAuthenticate(t, set, now, bearer(s.token(t, now, nil)), "orders", "")
		}
	}
	public, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	must(t, err)
	claims := jwt.MapClaims{"iss": "https://issuer", "aud": "jelou-facade", "sub": "svc-orders", "exp": now.Add(time.Hour).Unix()}
	for _, forged := range []struct {
		method jwt.SigningMethod
		key    any
	}{{jwt.SigningMethodHS256, public}, {jwt.SigningMethodHS256, []byte("secret")}, {jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType}} {
		token := jwt.NewWithClaims(forged.method, claims)
		token.Header["kid"] = "rsa"
		text, err := token.SignedString(forged.key)
		must(t, err)
		checkAuthenticate(t, set, now, bearer(text), "", caller.Invalid)
	}
}

// A token of one issuer is not the same name's of another, and names its caller by the issuer's claim.
func TestIssuers(t *testing.T) {
	now := time.Now()
	ours, theirs := newSigner(t, "k"), newSigner(t, "k")
	folder := t.TempDir()
	must(t, os.WriteFile(filepath.Join(folder, "ours"), jwks(t, ours), 0o600))
	must(t, os.WriteFile(filepath.Join(folder, "theirs"), jwks(t, theirs), 0o600))
	set := mustLoad(t, caller.NewSource(t.Context(), nil), &configv1.Authentication{Issuers: []*configv1.TokenIssuer{
		{Issuer: "https://issuer", Audiences: []string{"jelou-facade"}, JwksFile: filepath.Join(folder, "ours")},
		{Issuer: "https://theirs", Audiences: []string{"jelou-facade"}, JwksFile: filepath.Join(folder, "theirs"), CallerClaim: "azp"},
	}}, &configv1.Caller{Name: "orders", Tokens: []*configv1.Caller_Token{{Issuer: "https://issuer", Subject: "svc-orders"}}},
		&configv1.Caller{Name: "guest", Tokens: []*configv1.Caller_Token{{Issuer: "https://theirs", Subject: "svc-guest"}}})
	checkAuthenticate(t, set, now, bearer(ours.token(t, now, nil)), "orders", "")
	their := func(c jwt.MapClaims) { c["iss"] = "https://theirs" }
	checkAuthenticate(t, set, now, bearer(theirs.token(t, now, their)), "", caller.Unknown)
	checkAuthenticate(t, set, now, bearer(theirs.token(t, now, nil)), "", caller.Invalid)
	checkAuthenticate(t, set, now, bearer(theirs.token(t, now, func(c jwt.MapClaims) { their(c); c["azp"] = "svc-guest" })), "guest", "")
}

// keySite is an issuer's site, over connections in memory, so that it can be in a bubble of synctest. What it publishes may change;
// nil is a site that is away.
type keySite struct {
	published atomic.Pointer[[]byte]
	fetches   atomic.Int64
	transport http.RoundTripper
	accepted  chan net.Conn
	closed    chan struct{}
}

func newKeySite(t *testing.T) *keySite {
	t.Helper()
	s := &keySite{accepted: make(chan net.Conn), closed: make(chan struct{})}
	s.transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		client, server := net.Pipe()
		select {
		case s.accepted <- server:
			return client, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(s) }()
	t.Cleanup(func() {
		must(t, server.Close())
		<-served
	})
	return s
}

func (s *keySite) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *keySite) Close() error {
	close(s.closed)
	return nil
}

func (s *keySite) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

func (s *keySite) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.fetches.Add(1)
	data := s.published.Load()
	if data == nil {
		http.Error(w, "away", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write(*data) // a client that left
}

func (s *keySite) publish(t *testing.T, signers ...signer) {
	data := jwks(t, signers...)
	s.published.Store(&data)
}

// An issuer that publishes a new key, and then withdraws the old one, is followed; while its site is away the known keys stay good,
// and key ids that somebody invents are no load on it.
func TestPublicKeysAreFetchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second, third := newSigner(t, "k1"), newSigner(t, "k2"), newSigner(t, "k3")
		site := newKeySite(t)
		ctx, cancel := context.WithCancel(t.Context())
		source := caller.NewSource(ctx, nil)
		source.FetchOver(site.transport)
		authentication := issuerWith(func(i *configv1.TokenIssuer) { i.JwksUrl = "http://issuer/keys" })
		load := func() *caller.Set { return mustLoad(t, source, authentication, tokenCaller) }
		set := load() // the site is away at the start
		check := func(s signer, reason caller.Reason) {
			t.Helper()
			now := time.Now()
			checkAuthenticate(t, set, now, bearer(s.token(t, now, nil)), "orders", reason)
		}
		fetched := func(want int64) {
			t.Helper()
			if got := site.fetches.Swap(0); got != want {
				t.Errorf("fetched %d times, want %d", got, want)
			}
		}
		fetched(1)
		site.publish(t, first)
		check(first, "")
		fetched(1)

		site.publish(t, first, second)
		check(second, caller.Invalid) // so soon after another unknown id it is not fetched
		fetched(0)
		time.Sleep(caller.RefetchEvery)
		check(second, "")
		check(first, "")
		fetched(1)
		for range 100 {
			check(third, caller.Invalid)
		}
		fetched(0)

		site.publish(t, second)
		check(first, "") // nobody knows yet
		time.Sleep(caller.FetchEvery)
		synctest.Wait()
		check(first, caller.Invalid) // which is asked for once more
		check(second, "")
		fetched(2)

		site.published.Store(nil)
		time.Sleep(2 * caller.FetchEvery)
		synctest.Wait()
		check(second, "")
		fetched(2)
		set = load() // the same URL: nothing is fetched for a new configuration
		check(second, "")
		fetched(0)
		cancel()
		synctest.Wait()
	})
}

// A configuration that is refused changes no rate, and nothing that was begun for it goes on.
func TestRefusedSetsChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := newKeySite(t)
		site.publish(t, newSigner(t, "k1"))
		ctx, cancel := context.WithCancel(t.Context())
		source := caller.NewSource(ctx, nil)
		source.FetchOver(site.transport)
		key, now := caller.NewKey(), time.Now()
		orders := func(calls int32) *configv1.Caller {
			return &configv1.Caller{Name: "orders", Keys: []*configv1.Caller_Key{keyOf(key, time.Time{})}, CallsPerSecond: calls}
		}
		issuers := func(urls ...string) *configv1.Authentication {
			a := &configv1.Authentication{}
			for _, url := range urls {
				a.Issuers = append(a.Issuers, &configv1.TokenIssuer{Issuer: url, Audiences: []string{"x"}, JwksUrl: url})
			}
			return a
		}
		set := mustLoad(t, source, issuers("http://issuer/old"), orders(2))
		bad := issuers("http://issuer/old", "http://issuer/new")
		bad.Issuers = append(bad.Issuers, &configv1.TokenIssuer{Issuer: "i", JwksFile: "/nowhere"})
		for range 5 {
			if _, err := source.Load([]*configv1.Caller{orders(1000)}, bad); err == nil {
				t.Fatal("a file that is not there is taken")
			}
		}
		c, _, err := set.Authenticate(ctx, now, bearer(key))
		must(t, err)
		waits := []time.Duration{c.Call(now), c.Call(now), c.Call(now)}
		if fmt.Sprint(waits) != "[0s 0s 500ms]" {
			t.Errorf("waits %v: the refused rate holds", waits)
		}
		before := site.fetches.Load()
		time.Sleep(caller.FetchEvery)
		synctest.Wait()
		if n := site.fetches.Load() - before; n != 1 {
			t.Errorf("%d sites are fetched, want the one in force", n)
		}
		cancel()
		synctest.Wait()
	})
}

func TestCertificates(t *testing.T) {
	now := time.Now()
	set := mustLoad(t, caller.NewSource(t.Context(), nil), nil,
		&configv1.Caller{Name: "orders", Certificates: []string{"uri:spiffe://example.ec/orders", "dns:orders.example.ec", "cn:orders"}},
		&configv1.Caller{Name: "other", Certificates: []string{"dns:other.example.ec"}, Keys: []*configv1.Caller_Key{keyOf("k", time.Time{})}})
	uri, err := url.Parse("spiffe://example.ec/orders")
	must(t, err)
	certificate := func(change func(*x509.Certificate)) caller.Credentials {
		c := &x509.Certificate{NotAfter: now.Add(time.Hour)}
		change(c)
		return caller.Credentials{Certificate: c}
	}
	for _, test := range []struct {
		name        string
		credentials caller.Credentials
		want        string
		reason      caller.Reason
	}{
		{"URI", certificate(func(c *x509.Certificate) { c.URIs = []*url.URL{uri} }), "orders", ""},
		{"DNS", certificate(func(c *x509.Certificate) { c.DNSNames = []string{"x", "orders.example.ec"} }), "orders", ""},
		{"common name", certificate(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "orders"} }), "orders", ""},
		{"all names of one", certificate(func(c *x509.Certificate) { c.URIs, c.DNSNames = []*url.URL{uri}, []string{"orders.example.ec"} }), "orders", ""},
		{"names of two", certificate(func(c *x509.Certificate) { c.DNSNames = []string{"orders.example.ec", "other.example.ec"} }), "", caller.Malformed},
		{"a name in another field", certificate(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "orders.example.ec"} }), "", caller.Unknown},
		{"no name", certificate(func(*x509.Certificate) {}), "", caller.Unknown},
		{"over", certificate(func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"orders.example.ec"}, now.Add(-time.Second)
		}), "", caller.Expired},
		{"with another's key", func() caller.Credentials {
			c := certificate(func(c *x509.Certificate) { c.DNSNames = []string{"orders.example.ec"} })
			c.APIKey = []string{"k"}
			return c
		}(), "other", ""},
		{"with a wrong key", func() caller.Credentials {
			c := certificate(func(c *x509.Certificate) { c.DNSNames = []string{"orders.example.ec"} })
			c.APIKey = []string{"wrong"}
			return c
		}(), "", caller.Unknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkAuthenticate(t, set, now, test.credentials, test.want, test.reason)
		})
	}
}

func TestFailedAttemptsAreLimited(t *testing.T) {
	var a caller.Attempts
	now := time.Now()
	guesser, neighbour := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff")
	elsewhere := netip.MustParseAddr("192.0.2.1")
	good, wrong := bearer(caller.NewKey()), bearer("wrong")
	a.Passed(good)
	for i := range 20 {
		if a.Blocked(now, guesser, wrong) {
			t.Fatalf("blocked after %d failures", i)
		}
		a.Failed(now, guesser, caller.Unknown)
	}
	for name, wrongly := range map[string]bool{
		"another guess":                 !a.Blocked(now, guesser, wrong),
		"a guess from the same network": !a.Blocked(now, neighbour, wrong),
		"one that was good before":      a.Blocked(now, guesser, good),
		"a guess from elsewhere":        a.Blocked(now, elsewhere, wrong),
		"the next second's":             a.Blocked(now.Add(1100*time.Millisecond), guesser, wrong),
	} {
		if wrongly {
			t.Error(name)
		}
	}
	for range 100 {
		a.Failed(now, elsewhere, caller.Missing)
	}
	if a.Blocked(now, elsewhere, wrong) {
		t.Error("calls without a credential are held against an address")
	}
}

// However many addresses fail, what is remembered of them is bounded, and the newest are.
func TestAttemptsAreBounded(t *testing.T) {
	var a caller.Attempts
	now := time.Now()
	last := netip.MustParseAddr("203.0.113.7")
	for i := range 20_000 {
		a.Failed(now, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), caller.Unknown)
	}
	for range 20 {
		a.Failed(now, last, caller.Unknown)
	}
	if n := a.Remembered(); n > 2*4096+1 {
		t.Errorf("%d addresses are remembered", n)
	}
	if !a.Blocked(now, last, bearer("wrong")) {
		t.Error("the newest address is forgotten")
	}
}

// A header of any kind is a caller's or a refusal, never a panic.
func FuzzAuthenticate(f *testing.F) {
	key := caller.NewKey()
	source := caller.NewSource(context.Background(), nil)
	set, err := source.Load([]*configv1.Caller{{Name: "orders", Keys: []*configv1.Caller_Key{keyOf(key, time.Time{})}}}, &configv1.Authentication{})
	if err != nil {
		f.Fatal(err)
	}
	header, err := json.Marshal(map[string]string{"alg": "none"})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", "Bearer", "Bearer " + key, "Bearer a.b.c", "Bearer " + string(header) + "..", "Bearer eyJhbGciOiJub25lIn0.e30."} {
		f.Add(seed, "")
	}
	f.Fuzz(func(t *testing.T, authorization, apiKey string) {
		c, _, err := set.Authenticate(t.Context(), time.Now(), caller.Credentials{Authorization: []string{authorization}, APIKey: []string{apiKey}})
		if (c == nil) == (err == nil) || err == nil && !strings.Contains(authorization+apiKey, key) {
			t.Errorf("%v, %v", c, err)
		}
	})
}
