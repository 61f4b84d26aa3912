package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/metadata"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
	"github.com/jelou-facade/jelou-facade/service/caller"
)

// identities are the two callers of the hostile benchmark, and what the attacker shows.
type identities struct {
	key, other string // the attacker's API key, and the other caller's
	keySet     string // file with the issuer's public keys
	bad        []credential
	good       []credential
}

// credential is a header with which a call says whose it is; empty is none.
type credential struct{ header, value string }

const hostileIssuer = "https://issuer"

// newIdentities makes keys and tokens, good and bad ones.
func (b *bench) newIdentities() (*identities, error) {
	who := &identities{key: caller.NewKey(), other: caller.NewKey()}
	issuer, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		return nil, err
	}
	forger, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := jwkset.NewJWKFromKey(issuer.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: "one"}})
	if err != nil {
		return nil, err
	}
	set, err := json.Marshal(map[string]any{"keys": []any{public.Marshal()}})
	if err != nil {
		return nil, err
	}
	if who.keySet, err = b.write("keys.json", set); err != nil {
		return nil, err
	}
	later, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	tokens := make([]credential, 4)
	for i, t := range []struct {
		key     *ecdsa.PrivateKey
		id      string
		expires time.Time
	}{{issuer, "one", later}, {issuer, "one", past}, {forger, "one", later}, {forger, "nobody's", later}} {
		token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": hostileIssuer, "aud": "facade", "sub": "attacker", "exp": t.expires.Unix()})
		token.Header["kid"] = t.id
		text, err := token.SignedString(t.key)
		if err != nil {
			return nil, err
		}
		tokens[i] = credential{"authorization", "Bearer " + text}
	}
	who.good = []credential{{"x-api-key", who.key}, {"authorization", "Bearer " + who.key}, tokens[0]}
	who.bad = append(tokens[1:], credential{}, credential{"x-api-key", caller.NewKey()}, credential{"authorization", "Basic x"}, credential{"authorization", "Bearer a.b.c"})
	return who, nil
}

// configure makes them callers.
func (who *identities) configure(c *configv1.Config) {
	keyed := func(name, key string) *configv1.Caller {
		return &configv1.Caller{Name: name, Companies: []string{"*"}, Keys: []*configv1.Caller_Key{{Sha256: fmt.Sprintf("%x", caller.HashKey(key))}}}
	}
	attacker := keyed("attacker", who.key)
	attacker.Tokens = []*configv1.Caller_Token{{Subject: "attacker"}}
	c.Callers = []*configv1.Caller{attacker, keyed("other", who.other)}
	c.Authentication = &configv1.Authentication{Issuers: []*configv1.TokenIssuer{{Issuer: hostileIssuer, Audiences: []string{"facade"}, JwksFile: who.keySet}}}
}

// attacker gives a call one of the attacker's credentials: a good one three times out of four, so that calls get far.
func (who *identities) attacker(ctx context.Context, rng *rand.Rand) context.Context {
	from := who.good
	if rng.IntN(4) == 0 {
		from = who.bad
	}
	c := from[rng.IntN(len(from))]
	if c.header == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, c.header, c.value)
}
