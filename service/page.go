package service

import (
	"encoding/base64"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/jelou-facade/jelou-facade/service/ledger"
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

// cursorToken is the page token that leads to a place in the ledger; empty after the last page.
func cursorToken(r proto.Message, c ledger.Cursor) string {
	if c.IsZero() {
		return ""
	}
	return pageToken(r, fmt.Sprint(c.At, c.ID.Company, c.ID.Queue, c.ID.Pos))
}

// pageCursor is the place that a page token leads to.
func pageCursor(r proto.Message, token string) (c ledger.Cursor, err error) {
	after, err := pageAfter(r, token)
	if err != nil || after == "" {
		return c, err
	}
	if _, err := fmt.Sscan(after, &c.At, &c.ID.Company, &c.ID.Queue, &c.ID.Pos); err != nil {
		return c, invalidField("page_token", "is not of an answer with these filters; begin with an empty one")
	}
	return c, nil
}
