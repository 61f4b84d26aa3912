package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jelou-facade/jelou-facade/docs"
	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// advice is what a reason means to the one who called: the exit code, and what to do.
type advice struct {
	exit int
	next string
}

// releaseHint is for a person on the server's machine: a client must not decide what a ledger's unsent sends are.
const releaseHint = "an operator looks at the ledger by `jelou-facade ledger status --config FILE` on the server and lets it send by `jelou-facade ledger release --config FILE --unsent unknown|pending`"

// advices has a row for every reason; what a reason is, stands in docs/errors.md, which the server's own table makes.
var advices = map[facadev1.ErrorReason]advice{
	facadev1.ErrorReason_BOT_NOT_FOUND:                  {exitRefused, "check the bot's id (--bot, or the context's); the server's configuration lists those it serves"},
	facadev1.ErrorReason_FORBIDDEN_BOT:                  {exitRefused, "have the bot enabled for the company's credential at Jelou"},
	facadev1.ErrorReason_MESSAGE_COULD_NOT_BE_SEND:      {exitRefused, "read Jelou's words in the error: the content or the recipient is not to its liking"},
	facadev1.ErrorReason_SESSION_WINDOW_CLOSED:          {exitRefused, "the user has not written for 24 hours: send an approved template by `jelouctl notify`"},
	facadev1.ErrorReason_NOTIFICATION_COULD_NOT_BE_SEND: {exitRefused, "check the template's parameters and destinations against Jelou's dashboard"},
	facadev1.ErrorReason_TEMPLATE_NOT_FOUND:             {exitRefused, "check the template's technical name and language, and that it is approved, in Jelou's dashboard"},
	facadev1.ErrorReason_JELOU_UNAUTHORIZED:             {exitRefused, "an operator of the server must replace the company's credential at Jelou"},
	facadev1.ErrorReason_UNPROCESSABLE_ENTITY:           {exitRefused, "correct the field that Jelou refused"},
	facadev1.ErrorReason_INVALID_MEDIA_URL:              {exitRefused, "give a public https URL of the file itself, one that opens without a login"},
	facadev1.ErrorReason_MEDIA_TOO_LARGE:                {exitRefused, "send a smaller file: 5 MB for pictures, 16 MB for sound and video, 100 MB for documents"},
	facadev1.ErrorReason_UNSUPPORTED_MEDIA_TYPE:         {exitRefused, "send a type that WhatsApp takes, such as jpeg, png, mp4 or pdf"},
	facadev1.ErrorReason_JELOU_INTERNAL:                 {exitRefused, "an operator of the server must have Jelou repair the company's credential"},
	facadev1.ErrorReason_UPSTREAM_REFUSED:               {exitRefused, "read Jelou's words in the error"},
	facadev1.ErrorReason_UPSTREAM_RATE_LIMITED:          {exitUnavailable, "run it again after the time named, or with --queue, which waits for its turn on the server"},
	facadev1.ErrorReason_UPSTREAM_UNREACHABLE:           {exitUnavailable, "nothing was sent: run it again with the same --request-id"},
	facadev1.ErrorReason_OUTCOME_UNKNOWN:                {exitUnknown, "`jelouctl sends get` says what became of it; where that stays UNKNOWN find out from the user or from Jelou's dashboard, then `jelouctl sends resolve SEND_ID --as sent|failed`"},

	facadev1.ErrorReason_WOULD_MISS_DEADLINE:      {exitUnavailable, "nothing was sent: give it longer by --timeout, or use --queue; `jelouctl capacity` shows the queue"},
	facadev1.ErrorReason_CALLER_QUOTA:             {exitUnavailable, "wait, or have an operator of the server raise the quota"},
	facadev1.ErrorReason_QUEUE_FULL:               {exitUnavailable, "wait until less is queued; `jelouctl capacity` shows the queue"},
	facadev1.ErrorReason_EXPIRED:                  {exitUnavailable, "it was not sent: run it again, with more time"},
	facadev1.ErrorReason_CANCELLED:                {exitRefused, "it was not sent: run it again with a new request_id if it should be after all"},
	facadev1.ErrorReason_REQUEST_ID_REUSED:        {exitInvalid, "use a new --request-id for other content, or none"},
	facadev1.ErrorReason_INVALID_FIELD:            {exitInvalid, "correct the fields named"},
	facadev1.ErrorReason_CALLER_UNAUTHENTICATED:   {exitAuth, "give an API key by --api-key-file, JELOUCTL_API_KEY or `jelouctl context set`"},
	facadev1.ErrorReason_CALLER_FORBIDDEN:         {exitAuth, "have an operator of the server allow this caller the bot, the lane or the method"},
	facadev1.ErrorReason_LEDGER_UNAVAILABLE:       {exitUnavailable, "nothing was sent: run it again; an operator looks at the ledger's database"},
	facadev1.ErrorReason_AUDIT_UNAVAILABLE:        {exitUnavailable, "nothing was done: run it again once an operator has mended the server's audit log"},
	facadev1.ErrorReason_DRAINING:                 {exitUnavailable, "nothing was sent: run it again, another replica or the restarted server takes it"},
	facadev1.ErrorReason_LEDGER_REWOUND:           {exitUnavailable, releaseHint},
	facadev1.ErrorReason_LEDGER_HELD:              {exitUnavailable, releaseHint},
	facadev1.ErrorReason_RESOURCE_NOT_FOUND:       {exitRefused, "check the id and the context: another server or caller does not know it; final sends are forgotten after the ledger's retention"},
	facadev1.ErrorReason_ROUTE_NOT_FOUND:          {exitRefused, "only REST says this: see /openapi.json of the server"},
	facadev1.ErrorReason_METHOD_NOT_ALLOWED:       {exitRefused, "only REST says this: see /openapi.json of the server"},
	facadev1.ErrorReason_INVALID_JSON:             {exitInvalid, "only REST says this: send one JSON value with Content-Type application/json"},
	facadev1.ErrorReason_REQUEST_TOO_LARGE:        {exitInvalid, "send less in one request; for many sends use `jelouctl batch send`"},
	facadev1.ErrorReason_SEQUENCE_MISMATCH:        {exitInvalid, "the file is not the one that the batch was begun with: put it back, or begin anew with --again or another --request-id"},
	facadev1.ErrorReason_BATCH_SEALED:             {exitRefused, "the batch takes no more items: begin a new one"},
	facadev1.ErrorReason_STREAM_REPLACED:          {exitRefused, "the other program goes on with the batch; `jelouctl batch watch` only looks"},
	facadev1.ErrorReason_CURSOR_EXPIRED:           {exitRefused, "begin without a cursor, or list by `jelouctl batch results`"},
	facadev1.ErrorReason_ALREADY_SENDING:          {exitRefused, "it is under way or final: `jelouctl sends get` says which"},
	facadev1.ErrorReason_NOT_UNKNOWN:              {exitRefused, "it is settled already: `jelouctl sends get` says how"},
	facadev1.ErrorReason_BATCH_ENDED:              {exitRefused, "look at it by `jelouctl batch get`"},
	facadev1.ErrorReason_NOTHING_TO_REPLAY:        {exitRefused, "choose other states or reasons; an item is replayed at most once"},
	facadev1.ErrorReason_RETRY_WITHOUT_REQUEST_ID: {exitRefused, "give a request_id, which jelouctl does by itself"},
	facadev1.ErrorReason_NOT_BUILT_YET:            {exitRefused, "use a newer server"},
	facadev1.ErrorReason_INTERNAL:                 {exitOther, "an operator finds the cause in the server's log, under the x-request-id"},
}

// explanation is a row of docs/errors.md.
type explanation struct {
	Reason   string `json:"reason"`
	When     string `json:"when"`
	Code     string `json:"grpc_code"`
	HTTP     string `json:"http_status"`
	Domain   string `json:"domain"`
	Retry    string `json:"retry"`
	Send     string `json:"send"`
	WhatToDo string `json:"what_to_do"`
	ExitCode int    `json:"exit_code"`
}

// explanations reads the table of docs/errors.md: the same rows that the server answers with.
func explanations() []explanation {
	var all []explanation
	for line := range strings.Lines(docs.Errors) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 7 || !strings.HasPrefix(line, "| ") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		reason, ok := facadev1.ErrorReason_value[cells[0]]
		if !ok { // the head of the table
			continue
		}
		known := advices[facadev1.ErrorReason(reason)]
		all = append(all, explanation{cells[0], cells[1], cells[2], cells[3], cells[4], cells[5], cells[6], known.next, known.exit})
	}
	return all
}

func (a *app) errorsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "errors [REASON]",
		Short: "Explain an error, without asking any server; without a reason list all",
		Long: `Explains the reason that stands in an error or in a send's error_reason: what it means, what became of the send, whether a
retry helps and what to do. The rows are those of docs/errors.md, which the server's own table makes.`,
		Example: "  jelouctl errors SESSION_WINDOW_CLOSED\n  jelouctl errors --output csv",
		Args:    cobra.MaximumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var all []cobra.Completion
			for _, e := range explanations() {
				all = append(all, cobra.CompletionWithDesc(e.Reason, e.When))
			}
			return all, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			all := explanations()
			if len(args) == 0 {
				return printAll(a, "errors", explanationColumns, slices.Values(all))
			}
			for _, e := range all {
				if strings.EqualFold(e.Reason, args[0]) {
					return printOne(a, explanationColumns, e)
				}
			}
			return invalid("%s: is no reason that this version knows; `jelouctl errors` lists them", args[0])
		},
	}
}

var explanationColumns = []column[explanation]{
	{"reason", short, func(e explanation) string { return e.Reason }},
	{"when", long, func(e explanation) string { return e.When }},
	{"grpc_code", short, func(e explanation) string { return e.Code }},
	{"http_status", short, func(e explanation) string { return e.HTTP }},
	{"domain", long, func(e explanation) string { return e.Domain }},
	{"retry", short, func(e explanation) string { return e.Retry }},
	{"send", short, func(e explanation) string { return e.Send }},
	{"exit_code", short, func(e explanation) string { return fmt.Sprint(e.ExitCode) }},
	{"what_to_do", long, func(e explanation) string { return e.WhatToDo }},
}

func (a *app) ledgerCommand() *cobra.Command {
	return group("ledger", "How a held ledger is released: on the server, by jelou-facade", &cobra.Command{
		Use:   "release",
		Short: "Say how a held ledger is released; it cannot be done from here",
		Long: `A ledger that was restored, copied or failed over without synchronous replication is held: nothing is sent until a person has
said what its unsent sends are. That person needs the server's configuration, so it is a command of the server:

  jelou-facade ledger status --config FILE
  jelou-facade ledger release --config FILE --unsent unknown   # they may have been sent: each is settled by a person
  jelou-facade ledger release --config FILE --unsent pending   # they were not sent: they are sent now`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return &failure{exit: exitUsage, text: "a ledger is released on the server, not from here", next: releaseHint}
		},
	})
}
