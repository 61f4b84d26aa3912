package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// The exit codes. They are part of what scripts rely on: none changes its meaning.
const (
	exitOther       = 1
	exitUsage       = 2
	exitInvalid     = 3
	exitRefused     = 4
	exitUnknown     = 5
	exitUnavailable = 6
	exitAuth        = 7
	exitIncomplete  = 8
	exitInterrupted = 130
)

// exitCodes is the table of `jelouctl exit-codes` and of the documentation.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{0, "all that was asked for is done: a send is SENT (or stored, with --queue), every item of a batch is SENT"},
	{exitOther, "something else went wrong: a fault of the server, a file that cannot be written"},
	{exitUsage, "the command line is wrong; nothing was asked of the server"},
	{exitInvalid, "the input is wrong: a field, a line of a file, a file that has changed; nothing was sent"},
	{exitRefused, "refused by Jelou or by the server, for good: repeating it changes nothing"},
	{exitUnknown, "the outcome is unknown: it may have been sent; `jelouctl sends list --request-id` tells more"},
	{exitUnavailable, "the server, its ledger or the allowance is not available: nothing was sent, try again"},
	{exitAuth, "no valid credential, or not allowed to do this"},
	{exitIncomplete, "the batch ended and not every item is SENT; `jelouctl batch results` says which"},
	{exitInterrupted, "interrupted by Ctrl-C; `batch send` goes on where it was when it is run again"},
}

// exitCodesTopic is a page of help, not a command.
func exitCodesTopic() *cobra.Command {
	var long strings.Builder
	long.WriteString("What a script can tell from the exit code:\n\n")
	for _, row := range exitCodes {
		fmt.Fprintf(&long, "  %3d  %s\n", row.code, row.meaning)
	}
	long.WriteString("\nWith --output json or ndjson the error is a JSON object, the last line of standard error, in the shape of the REST API's errors.")
	return &cobra.Command{Use: "exit-codes", Short: "What a script can tell from the exit code", Long: long.String(), Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
}

// A failure is what ends a command: its exit code, what is wrong, and what to do next.
type failure struct {
	exit  int
	text  string
	next  string // empty: nothing to say
	facts []fact // such as the request_id
	cause error  // a gRPC status, or nothing
}

// fact is a named value that belongs to a failure.
type fact struct{ name, value string }

// Error is the text.
func (f *failure) Error() string { return f.text }

// Unwrap gives the status.
func (f *failure) Unwrap() error { return f.cause }

func usage(format string, args ...any) error {
	return &failure{exit: exitUsage, text: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) *failure {
	return &failure{exit: exitInvalid, text: fmt.Sprintf(format, args...)}
}

// toFailure finds out what an error means for the caller of a command.
func toFailure(ctx context.Context, err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if ctx.Err() != nil {
		return &failure{exit: exitInterrupted, text: "interrupted"}
	}
	st, ok := status.FromError(err)
	if !ok {
		return &failure{exit: exitOther, text: err.Error()}
	}
	f := &failure{exit: codeExits[st.Code()], text: st.Message(), cause: err}
	if f.exit == 0 {
		f.exit = exitOther
	}
	info := detail[*errdetails.ErrorInfo](st)
	if info == nil {
		return connectionFailure(f, st)
	}
	f.text = info.Reason + ": " + st.Message()
	if known, ok := advices[facadev1.ErrorReason(facadev1.ErrorReason_value[info.Reason])]; ok {
		f.exit, f.next = known.exit, known.next
	}
	for _, name := range []string{"send_id", "batch_id", "jelou_code", "jelou_status", "expected_sequence"} {
		if value := info.Metadata[name]; value != "" {
			f.facts = append(f.facts, fact{name, value})
		}
	}
	if retry := detail[*errdetails.RetryInfo](st); retry != nil {
		f.facts = append(f.facts, fact{"try again in", retry.RetryDelay.AsDuration().String()})
	}
	f.facts = append(f.facts, fact{"more", "jelouctl errors " + info.Reason})
	return f
}

// codeExits are the exit codes of errors without a reason that this program knows.
var codeExits = map[codes.Code]int{
	codes.InvalidArgument: exitInvalid, codes.OutOfRange: exitInvalid,
	codes.NotFound: exitRefused, codes.FailedPrecondition: exitRefused, codes.AlreadyExists: exitRefused, codes.Aborted: exitRefused, codes.Unimplemented: exitRefused,
	codes.Unknown:     exitUnknown,
	codes.Unavailable: exitUnavailable, codes.ResourceExhausted: exitUnavailable, codes.DeadlineExceeded: exitUnavailable, codes.Canceled: exitUnavailable,
	codes.Unauthenticated: exitAuth, codes.PermissionDenied: exitAuth,
}

// connectionFailure speaks for errors that no server of ours wrote: it was not reached, or something stands in between.
func connectionFailure(f *failure, st *status.Status) *failure {
	switch st.Code() {
	case codes.Unavailable:
		f.text = "cannot reach the server: " + st.Message()
		f.next = "look whether jelou-facade listens there (--address, or `jelouctl context list`), and whether it speaks TLS"
	case codes.DeadlineExceeded:
		f.text = "the server did not answer in time"
		f.next = "give it longer by --timeout"
	}
	return f
}

// detail finds the detail of type T, or the zero T.
func detail[T any](st *status.Status) (found T) {
	for _, d := range st.Details() {
		if t, ok := d.(T); ok {
			return t
		}
	}
	return found
}

// report tells what went wrong, and returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	f := toFailure(ctx, err)
	if f.text == "" {
		return f.exit
	}
	if a.output == formatJSON || a.output == formatNDJSON {
		fmt.Fprintln(a.err, errorJSON(f))
		return f.exit
	}
	color := colorOf(a.err)
	fmt.Fprintf(a.err, "%s %s\n", color.red("jelouctl:"), printable(f.text))
	var bad *errdetails.BadRequest
	if st, ok := status.FromError(f.cause); ok && f.cause != nil {
		bad = detail[*errdetails.BadRequest](st)
	}
	violations := bad.GetFieldViolations()
	if len(violations) == 1 { // the text says it
		violations = nil
	}
	for _, v := range violations {
		fmt.Fprintf(a.err, "  %s: %s\n", printable(v.Field), printable(v.Description))
	}
	for _, fact := range f.facts {
		fmt.Fprintf(a.err, "  %-12s  %s\n", fact.name, printable(fact.value))
	}
	if f.next != "" {
		fmt.Fprintf(a.err, "%s\n", printable(upperFirst(f.next)+"."))
	}
	return f.exit
}

func upperFirst(s string) string {
	if s == "" || s[0] < 'a' || s[0] > 'z' || strings.HasPrefix(s, "jelou") {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
