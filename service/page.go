package service

import (
	"encoding/base64"
	"strings"

	"google.golang.org/protobuf/proto"
)

// A page token is where the ledger goes on, with a hash of the filters, so that it is refused with others.
func pageToken(r proto.Message, next string) string {
	if next == "" {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(filterHash(r) + "." + next))
}

func pageAfter(r proto.Message, token string) (string, error) {
	if token == "" {
		return "", nil
	}
	data, err := base64.RawURLEncoding.DecodeString(token)
	hash, after, ok := strings.Cut(string(data), ".")
	if err != nil || !ok || hash != filterHash(r) {
		return "", invalidField("page_token", "is not of an answer with these filters; begin with an empty one")
	}
	return after, nil
}

// filterHash identifies a list request but for its page_token.
func filterHash(r proto.Message) string {
	c := proto.Clone(r).ProtoReflect()
	c.Clear(c.Descriptor().Fields().ByName("page_token"))
	return base64.RawURLEncoding.EncodeToString(messageHash(c)[:9])
}
