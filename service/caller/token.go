package caller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"

	configv1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/config/v1"
)

const (
	// Clocks of issuers may differ from this one's by so much.
	tokenLeeway = 30 * time.Second
	// Public keys are fetched so often, and where a token names one that is not known, at most so often.
	fetchEvery   = time.Hour
	refetchEvery = 30 * time.Second
	fetchTimeout = 5 * time.Second
	maxTokenSize = 8 << 10
)

// signatures are the algorithms that are taken: those with a public key. With HMAC whoever can check a token could also make one.
var signatures = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// issuer checks the tokens of one issuer.
type issuer struct {
	claim  string
	keys   keyfunc.Keyfunc
	config *configv1.TokenIssuer
}

// site is a URL with public keys, fetched again and again until it is stopped.
type site struct {
	keys keyfunc.Keyfunc
	stop context.CancelFunc
}

// newIssuer reads the issuer's public keys. A URL is fetched only if it was not before; it is put into sites.
func (s *Source) newIssuer(config *configv1.TokenIssuer, sites map[string]*site) (*issuer, error) {
	i := &issuer{claim: config.CallerClaim, config: config}
	if i.claim == "" {
		i.claim = "sub"
	}
	if config.JwksUrl != "" {
		at := sites[config.JwksUrl]
		if at == nil {
			at = s.sites[config.JwksUrl]
		}
		if at == nil {
			var err error
			if at, err = s.newSite(config.JwksUrl); err != nil {
				return nil, err
			}
		}
		i.keys, sites[config.JwksUrl] = at.keys, at
		return i, nil
	}
	data, err := os.ReadFile(config.JwksFile)
	if err != nil {
		return nil, fmt.Errorf("jwks_file: %w", err)
	}
	if i.keys, err = keyfunc.NewJWKSetJSON(data); err != nil {
		return nil, fmt.Errorf("jwks_file: %s is no JWK set: %w", config.JwksFile, err)
	}
	return i, nil
}

func (s *Source) newSite(url string) (*site, error) {
	ctx, stop := context.WithCancel(s.ctx)
	storage, err := jwkset.NewStorageFromHTTP(url, jwkset.HTTPClientStorageOptions{
		Ctx: ctx, Client: &http.Client{Timeout: fetchTimeout, Transport: s.transport}, HTTPTimeout: fetchTimeout,
		NoErrorReturnFirstHTTPReq: true, RefreshInterval: fetchEvery,
		RefreshErrorHandler: func(_ context.Context, err error) {
			s.log.Warn("public keys for JWTs cannot be fetched; those known before stay good", slog.String("url", url), slog.Any("error", err))
		},
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("jwks_url: %w", err)
	}
	client, err := jwkset.NewHTTPClient(jwkset.HTTPClientOptions{
		HTTPURLs:          map[string]jwkset.Storage{url: storage},
		RefreshUnknownKID: rate.NewLimiter(rate.Every(refetchEvery), 1), RateLimitWaitMax: fetchTimeout,
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("jwks_url: %w", err)
	}
	keys, err := keyfunc.New(keyfunc.Options{Ctx: ctx, Storage: client})
	if err != nil {
		stop()
		return nil, fmt.Errorf("jwks_url: %w", err)
	}
	return &site{keys: keys, stop: stop}, nil
}

// byToken checks a JWT. It is good for a little longer than it says, as long as clocks may differ.
func (s *Set) byToken(ctx context.Context, now time.Time, text string) (*Caller, time.Time, error) {
	if len(text) > maxTokenSize {
		return nil, time.Time{}, &Error{Reason: Malformed}
	}
	// Who says that it issued the token decides only which keys must have signed it.
	unverified := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(text, unverified); err != nil {
		return nil, time.Time{}, &Error{Reason: Malformed}
	}
	name, _ := unverified.GetIssuer()
	i := s.issuers[name]
	if i == nil {
		return nil, time.Time{}, &Error{Reason: Invalid, Err: errors.New("the issuer is none of authentication.issuers")}
	}
	claims, err := i.verify(ctx, now, text)
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return nil, time.Time{}, &Error{Reason: Expired}
	case err != nil:
		return nil, time.Time{}, &Error{Reason: Invalid, Err: flawOf(err)}
	}
	subject, _ := claims[i.claim].(string)
	c := s.tokens[tokenName{name, subject}]
	if c == nil {
		return nil, time.Time{}, &Error{Reason: Unknown}
	}
	expires, err := claims.GetExpirationTime()
	if err != nil || expires == nil { // cannot happen: it was required
		return nil, time.Time{}, &Error{Reason: Invalid}
	}
	return c, expires.Add(tokenLeeway), nil
}

// flaws are what can be wrong with a token, in words that quote nothing of it.
var flaws = []error{
	jwt.ErrTokenUnverifiable, jwt.ErrTokenSignatureInvalid, jwt.ErrTokenInvalidIssuer, jwt.ErrTokenInvalidAudience,
	jwt.ErrTokenNotValidYet, jwt.ErrTokenRequiredClaimMissing,
}

func flawOf(err error) error {
	for _, flaw := range flaws {
		if errors.Is(err, flaw) {
			return flaw
		}
	}
	return nil
}

// verify checks signature, issuer, audience and times.
func (i *issuer) verify(ctx context.Context, now time.Time, text string) (jwt.MapClaims, error) {
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(text, claims, i.keys.KeyfuncCtx(ctx),
		jwt.WithValidMethods(signatures), jwt.WithIssuer(i.config.Issuer), jwt.WithAudience(i.config.Audiences...),
		jwt.WithExpirationRequired(), jwt.WithLeeway(tokenLeeway), jwt.WithTimeFunc(func() time.Time { return now }))
	return claims, err
}
