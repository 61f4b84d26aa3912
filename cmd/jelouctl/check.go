package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"runtime"
	"slices"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// checked is what reading a whole file found: nothing is sent before it.
type checked struct {
	hash   string     // of the items: however the file writes them
	lines  []int32    // of the items, in their order
	to     []string   // the items' recipients, where they are wanted
	wrong  int        // lines with an error
	errors []rowError // of the first of them
}

// shownLines with errors are listed without --all.
const shownLines = 50

// check reads the whole file and holds every item to the API's rules.
func (s *source) check(ctx context.Context, limit int, recipients bool, show func(lines int)) (*checked, error) {
	validator, err := protovalidate.New(protovalidate.WithMessages(&facadev1.BatchItem{}))
	if err != nil {
		return nil, err
	}
	c := &checker{source: s, validator: validator, limit: limit, recipients: recipients, now: time.Now(), ids: map[string]int32{}, sum: sha256.New()}
	err = s.rows(func(r row) error {
		if ctx.Err() != nil {
			return &failure{exit: exitInterrupted, text: "interrupted; nothing was sent"}
		}
		if len(c.group) == 0 {
			show(len(c.found.lines))
		}
		return c.add(r)
	})
	switch {
	case errors.Is(err, errChanged):
		return nil, invalid("%s: has changed while it was read", s.path)
	case err != nil:
		return nil, err
	}
	if err := c.flush(); err != nil {
		return nil, err
	}
	if len(c.found.lines) == 0 {
		return nil, invalid("%s: has no items", s.path)
	}
	c.found.hash = hex.EncodeToString(c.sum.Sum(nil))
	return &c.found, nil
}

// checker checks rows in groups, each group on all processors.
type checker struct {
	*source
	validator  protovalidate.Validator
	limit      int // of lines whose errors are kept; negative: all
	recipients bool
	now        time.Time
	group      []row
	ids        map[string]int32 // line by request_id
	sum        hash.Hash        // of the items' JSON, a line for each
	found      checked
}

const checkedTogether = 2000

func (c *checker) add(r row) error {
	r.text = slices.Clone(r.text) // the scanner's
	if c.group = append(c.group, r); len(c.group) < checkedTogether {
		return nil
	}
	return c.flush()
}

// flush checks the rows that have been gathered.
func (c *checker) flush() error {
	items := make([]*facadev1.BatchItem, len(c.group))
	wrong := make([][]rowError, len(c.group))
	workers := runtime.GOMAXPROCS(0)
	var work errgroup.Group
	for w := range workers {
		work.Go(func() error {
			for i := w; i < len(c.group); i += workers {
				items[i], wrong[i] = c.checkRow(&c.group[i])
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	for i, r := range c.group {
		line := int32(r.line)
		if id := items[i].GetRequestId(); id != "" && wrong[i] == nil {
			if before, twice := c.ids[id]; twice {
				wrong[i] = []rowError{c.at(r, "request_id", fmt.Sprintf("is that of line %d, too", before))}
			}
			c.ids[id] = line
		}
		c.found.lines = append(c.found.lines, line)
		c.sum.Write(append(r.text, '\n'))
		if c.recipients {
			c.found.to = append(c.found.to, recipientOf(items[i]))
		}
		if wrong[i] == nil {
			continue
		}
		c.found.wrong++
		if c.limit < 0 || c.found.wrong <= c.limit {
			c.found.errors = append(c.found.errors, wrong[i]...)
		}
	}
	c.group = c.group[:0]
	return nil
}

// at is an error of a field, with the column that fills it.
func (c *checker) at(r row, field, message string) rowError {
	e := rowError{Line: r.line, Field: field, Message: message}
	if c.mapping != nil {
		e.Column = c.mapping.columns[field]
	}
	return e
}

// checkRow makes a row's item and holds it to the rules: those of the protos, and the few that the server adds to them.
func (c *checker) checkRow(r *row) (*facadev1.BatchItem, []rowError) {
	item, text, bad := c.item(*r)
	if bad != nil {
		return nil, []rowError{*bad}
	}
	r.text = text
	var wrong []rowError
	if err := c.validator.Validate(item); err != nil {
		violations, ok := err.(*protovalidate.ValidationError) //nolint:errorlint // Validate returns it as it is
		if !ok {
			return nil, []rowError{c.at(*r, "", err.Error())}
		}
		for _, v := range violations.Violations {
			field := protovalidate.FieldPathString(v.Proto.GetField())
			message := v.Proto.GetMessage()
			if field == "" { // a rule of the whole item names its field itself
				field, message, _ = strings.Cut(message, ": ")
			}
			wrong = append(wrong, c.at(*r, field, message))
		}
	}
	for _, broken := range c.serverRules(item) {
		wrong = append(wrong, c.at(*r, broken.field, broken.message))
	}
	return item, wrong
}

type brokenRule struct{ field, message string }

// serverRules are those that no annotation of a proto can say.
func (c *checker) serverRules(item *facadev1.BatchItem) []brokenRule {
	var broken []brokenRule
	add := func(bad bool, field, message string) {
		if bad {
			broken = append(broken, brokenRule{field, message})
		}
	}
	add(item.Sequence != 0, "sequence", "must not be given: the file's order is the items' order")
	options := item.GetOptions()
	add(options.GetLane() != 0, "options.lane", "is the batch's: give it by --lane")
	for field, t := range map[string]*timestamppb.Timestamp{"options.expire_time": options.GetExpireTime(), "options.schedule_time": options.GetScheduleTime()} {
		add(t != nil && (!t.IsValid() || !t.AsTime().After(c.now) || t.AsTime().Sub(c.now) > 30*24*time.Hour), field, "must be in the next 30 days")
	}
	expire, schedule := options.GetExpireTime(), options.GetScheduleTime()
	add(expire != nil && schedule != nil && !expire.AsTime().After(schedule.AsTime()), "options.expire_time", "must be after schedule_time")
	seen := map[string]bool{}
	for _, to := range item.GetNotification().GetDestinations() {
		to = strings.TrimSuffix(strings.TrimPrefix(to, "+"), "@c.us")
		add(seen[to], "notification.destinations", "must be different")
		seen[to] = true
	}
	// The database cannot store this character, whatever text it stands in.
	must(protorange.Range(item.ProtoReflect(), func(at protopath.Values) error {
		text, _ := at.Index(-1).Value.Interface().(string)
		add(strings.Contains(text, "\x00"), "", "has the character U+0000 in a text")
		return nil
	}))
	return broken
}

// recipientOf is to whom an item goes.
func recipientOf(item *facadev1.BatchItem) string {
	if to := item.GetUserId(); to != "" {
		return to
	}
	return strings.Join(item.GetNotification().GetDestinations(), " ")
}
