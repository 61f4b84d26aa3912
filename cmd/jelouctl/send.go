package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// optionFlags are the flags of SendOptions, the same for single sends and batches.
type optionFlags struct {
	lane, onUnknown, at string
	expireIn            time.Duration
	labels              map[string]string
}

func (o *optionFlags) add(c *cobra.Command, lane string) {
	flags := c.Flags()
	flags.StringVar(&o.lane, "lane", "", "whose turn it is: urgent, normal or bulk; "+lane+" when not given")
	flags.StringVar(&o.onUnknown, "on-unknown", "", "what happens when nobody can know whether it was sent: hold (default), retry (the user may get it twice) or fail")
	flags.StringVar(&o.at, "at", "", "`time` before which nothing is sent, such as 2026-11-24T08:00:00-05:00")
	flags.DurationVar(&o.expireIn, "expire-in", 0, "`duration` after which what has not left is not sent any more, such as 2h")
	flags.StringToStringVar(&o.labels, "label", nil, "`key=value` to filter lists by; not for personal data")
	must(c.RegisterFlagCompletionFunc("lane", fixed("urgent", "normal", "bulk")))
	must(c.RegisterFlagCompletionFunc("on-unknown", fixed("hold", "retry", "fail")))
}

// options are what the flags say; nothing when they say nothing.
func (o *optionFlags) options(now time.Time) (*facadev1.SendOptions, error) {
	lane, err := enumValue("--lane", o.lane, facadev1.SendOptions_Lane_value)
	if err != nil {
		return nil, err
	}
	onUnknown, err := enumValue("--on-unknown", o.onUnknown, facadev1.SendOptions_OnUnknown_value)
	if err != nil {
		return nil, err
	}
	options := &facadev1.SendOptions{Lane: facadev1.SendOptions_Lane(lane), OnUnknown: facadev1.SendOptions_OnUnknown(onUnknown), Labels: o.labels}
	if o.expireIn < 0 {
		return nil, usage("--expire-in %s: must be ahead", o.expireIn)
	}
	if o.expireIn > 0 {
		options.ExpireTime = timestamppb.New(now.Add(o.expireIn))
	}
	if options.ScheduleTime, err = parseTime("--at", o.at); err != nil {
		return nil, err
	}
	if proto.Size(options) == 0 {
		return nil, nil
	}
	return options, nil
}

// enumValue finds an enum's value by its name in any case; zero for no name.
func enumValue(flag, name string, values map[string]int32) (int32, error) {
	if name == "" {
		return 0, nil
	}
	value := values[strings.ToUpper(name)]
	if value == 0 {
		return 0, usage("%s %s: must be one of %s", flag, name, enumNames(values))
	}
	return value, nil
}

// enumNames lists an enum's names in the order of their numbers, without that of zero.
func enumNames(values map[string]int32) string {
	var known []string
	for _, name := range slices.SortedFunc(maps.Keys(values), func(a, b string) int { return cmp.Compare(values[a], values[b]) }) {
		if values[name] != 0 {
			known = append(known, strings.ToLower(name))
		}
	}
	return strings.Join(known, ", ")
}

func parseTime(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usage("%s %s: must be a time with its zone, such as 2026-11-24T08:00:00-05:00", flag, text)
	}
	return timestamppb.New(at), nil
}

// singleFlags are those of both single sends.
type singleFlags struct {
	options             optionFlags
	bot, requestID      string
	queue, validateOnly bool
}

func (s *singleFlags) add(c *cobra.Command) {
	s.options.add(c, "normal")
	c.Flags().StringVar(&s.bot, "bot", "", "`id` of the bot that sends; the context's when not given")
	c.Flags().StringVar(&s.requestID, "request-id", "", "your own `id` of this send; a new one is made when not given. Repeating one never sends twice")
	c.Flags().BoolVar(&s.queue, "queue", false, "do not wait for Jelou's answer, only until the send is stored")
	c.Flags().BoolVar(&s.validateOnly, "validate-only", false, "check everything and send nothing")
	c.MarkFlagsMutuallyExclusive("request-id", "validate-only")
}

// request is what both single sends' requests have in common.
type request struct {
	bot, id string
	mode    facadev1.SendOptions_Mode
	options *facadev1.SendOptions
}

func (s *singleFlags) request(a *app) (r request, err error) {
	if r.bot, err = a.bot(s.bot); err != nil {
		return r, err
	}
	if r.options, err = s.options.options(time.Now()); err != nil {
		return r, err
	}
	if s.queue || s.options.at != "" {
		r.mode = facadev1.SendOptions_QUEUE
	}
	if r.id = s.requestID; r.id == "" && !s.validateOnly {
		r.id = uuid.NewString()
	}
	return r, nil
}

func (a *app) sendCommand() *cobra.Command {
	var single singleFlags
	var to, text, file string
	c := &cobra.Command{
		Use:   "send",
		Short: "Send one message to one user whose 24-hour window is open",
		Long: `Sends one message and waits for Jelou's answer: SENT means that Jelou accepted it, not that it was delivered.

Every send has a request_id, which is printed: where the answer is lost, running the same command with that --request-id is safe.`,
		Example: `  jelouctl send --bot demo --to 593991234567 --text 'Su pedido 8841 salió de bodega.'
  echo 'image: {media_url: "https://example.com/a.png", caption: "Su recibo"}' | jelouctl send --to 593991234567 --message -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			message := &facadev1.Message{Content: &facadev1.Message_Text{Text: &facadev1.TextContent{Text: text}}}
			if file != "" {
				message = &facadev1.Message{}
				if err := a.readMessage(file, message); err != nil {
					return err
				}
			}
			r, err := single.request(a)
			if err != nil {
				return err
			}
			return a.single(c.Context(), r, func(ctx context.Context, client *client) (*facadev1.Send, []string, error) {
				answer, err := call(ctx, client, client.SendMessage, &facadev1.SendMessageRequest{
					BotId: r.bot, UserId: to, Message: message, RequestId: r.id, Mode: r.mode, Options: r.options, ValidateOnly: single.validateOnly,
				})
				return answer.GetSend(), answer.GetWarnings(), err
			})
		},
	}
	c.Flags().StringVar(&to, "to", "", "the user's phone `number` with country code, or id")
	c.Flags().StringVar(&text, "text", "", "the `text`")
	c.Flags().StringVar(&file, "message", "", "`file` with any other content as YAML or JSON, such as {image: {media_url: …}}; - reads standard input")
	must(c.MarkFlagRequired("to"))
	c.MarkFlagsOneRequired("text", "message")
	c.MarkFlagsMutuallyExclusive("text", "message")
	single.add(c)
	return c
}

func (a *app) notifyCommand() *cobra.Command {
	var single singleFlags
	var to, params []string
	var template, language, file string
	c := &cobra.Command{
		Use:   "notify",
		Short: "Send one approved template to one or more users, also outside of their 24-hour window",
		Long: `Sends one template and waits for Jelou's answer. All destinations go in one request to Jelou: one lost answer makes the whole send
UNKNOWN. For many users with values of their own use "jelouctl batch send --template".`,
		Example: `  jelouctl notify --bot demo --to 593991234567 --template order_ready --language es --param Lucía --param 991`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			n := &facadev1.TemplateMessage{ElementName: template, Language: language, Parameters: params}
			if file != "" {
				n = &facadev1.TemplateMessage{}
				if err := a.readMessage(file, n); err != nil {
					return err
				}
			}
			n.Destinations = append(n.Destinations, to...)
			r, err := single.request(a)
			if err != nil {
				return err
			}
			return a.single(c.Context(), r, func(ctx context.Context, client *client) (*facadev1.Send, []string, error) {
				answer, err := call(ctx, client, client.SendNotification, &facadev1.SendNotificationRequest{
					BotId: r.bot, Notification: n, RequestId: r.id, Mode: r.mode, Options: r.options, ValidateOnly: single.validateOnly,
				})
				return answer.GetSend(), answer.GetWarnings(), err
			})
		},
	}
	c.Flags().StringSliceVar(&to, "to", nil, "the users' phone `numbers` with country code, or ids; may be repeated")
	c.Flags().StringVar(&template, "template", "", "the template's technical `name`")
	c.Flags().StringVar(&language, "language", "", "the template's language `code`, such as es; Jelou's default when not given")
	c.Flags().StringArrayVar(&params, "param", nil, "`value` of the template's next placeholder; may be repeated")
	c.Flags().StringVar(&file, "notification", "", "`file` with a TemplateMessage as YAML or JSON, for headers, buttons and cards; - reads standard input")
	c.MarkFlagsOneRequired("template", "notification")
	for _, flag := range []string{"template", "language", "param"} {
		c.MarkFlagsMutuallyExclusive(flag, "notification")
	}
	single.add(c)
	return c
}

// single makes a single send and prints it.
func (a *app) single(ctx context.Context, r request, send func(context.Context, *client) (*facadev1.Send, []string, error)) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer client.close()
	sent, warnings, err := send(ctx, client)
	if err != nil {
		return lost(ctx, client, r.id, err)
	}
	for _, w := range warnings {
		a.note("warning: %s", w)
	}
	if sent == nil {
		a.note("valid; nothing was sent")
		return nil
	}
	return printOne(a, sendColumns, sent)
}

// lost adds to a send's error what its caller needs to repeat it safely. Where no server answered but the request had left,
// the outcome is unknown to the one who waits here, whatever became of it there.
func lost(ctx context.Context, client *client, requestID string, err error) error {
	f := *toFailure(ctx, err)
	f.facts = append([]fact{{"request_id", requestID}}, f.facts...)
	st, _ := status.FromError(err)
	unanswered := ctx.Err() != nil || detail[*errdetails.ErrorInfo](st) == nil && (st.Code() == codes.Unavailable || st.Code() == codes.DeadlineExceeded)
	if requestID == "" || !unanswered || !client.left.left.Load() {
		return &f
	}
	if f.exit != exitInterrupted {
		f.exit = exitUnknown
	}
	f.next = fmt.Sprintf("it may have been sent: run the same command with --request-id %s, which never sends twice", requestID)
	return &f
}

// readMessage reads a message as YAML or JSON.
func (a *app) readMessage(name string, m proto.Message) error {
	var data []byte
	var err error
	if name == "-" {
		data, err = io.ReadAll(io.LimitReader(a.in, maxLine))
	} else {
		data, err = os.ReadFile(name)
	}
	if err != nil {
		return invalid("%v", err)
	}
	var value map[string]any
	if err := yaml.Unmarshal(data, &value); err != nil {
		return invalid("%s: %v", name, err)
	}
	if data, err = json.Marshal(value); err != nil {
		return invalid("%s: %v", name, err)
	}
	if err := protojson.Unmarshal(data, m); err != nil {
		return invalid("%s: %v", name, parseError(err))
	}
	return nil
}

func (a *app) sendsCommand() *cobra.Command {
	return group("sends", "Look at sends, cancel one, or settle one whose outcome is unknown",
		a.sendsListCommand(), a.sendsGetCommand(), a.sendsCancelCommand(), a.sendsResolveCommand())
}

// listFlags are those of both lists.
type listFlags struct {
	bot, requestID, since, until string
	states                       []string
	labels                       map[string]string
	limit                        int
}

func (l *listFlags) add(flags *pflag.FlagSet, states map[string]int32) {
	flags.StringVar(&l.bot, "bot", "", "only of the bot with this `id`")
	flags.StringVar(&l.requestID, "request-id", "", "only with this `id` of yours")
	flags.StringVar(&l.since, "since", "", "only created at this `time` or later, such as 2026-11-24T08:00:00-05:00")
	flags.StringVar(&l.until, "until", "", "only created before this `time`")
	flags.StringSliceVar(&l.states, "state", nil, "only in these `states`: "+enumNames(states))
	flags.StringToStringVar(&l.labels, "label", nil, "only with this `key=value`")
	flags.IntVar(&l.limit, "limit", 100, "at most so many; 0 for all")
}

func (l *listFlags) times() (from, to *timestamppb.Timestamp, err error) {
	if from, err = parseTime("--since", l.since); err != nil {
		return nil, nil, err
	}
	to, err = parseTime("--until", l.until)
	return from, to, err
}

// stateValues are the values of --state.
func stateValues[E ~int32](names []string, values map[string]int32) ([]E, error) {
	var states []E
	for _, name := range names {
		value, err := enumValue("--state", name, values)
		if err != nil {
			return nil, err
		}
		states = append(states, E(value))
	}
	return states, nil
}

func (a *app) sendsListCommand() *cobra.Command {
	var flags listFlags
	var batch string
	var reasons []string
	c := &cobra.Command{
		Use: "list", Short: "List sends, newest first", Args: cobra.NoArgs,
		Example: "  jelouctl sends list --request-id order-8841\n  jelouctl sends list --state unknown --output csv",
		RunE: func(c *cobra.Command, _ []string) error {
			states, err := stateValues[facadev1.Send_State](flags.states, facadev1.Send_State_value)
			if err != nil {
				return err
			}
			from, to, err := flags.times()
			if err != nil {
				return err
			}
			return a.listSends(c.Context(), "sends", flags.limit, &facadev1.ListSendsRequest{
				BatchId: batch, BotId: flags.bot, States: states, ErrorReasons: upper(reasons), RequestId: flags.requestID,
				CreateTimeFrom: from, CreateTimeTo: to, Labels: flags.labels,
			})
		},
	}
	flags.add(c.Flags(), facadev1.Send_State_value)
	c.Flags().StringVar(&batch, "batch", "", "only of the batch with this `id`")
	c.Flags().StringSliceVar(&reasons, "reason", nil, "only with one of these error `reasons`")
	must(c.RegisterFlagCompletionFunc("batch", a.completeBatches))
	return c
}

func upper(names []string) []string {
	var all []string
	for _, name := range names {
		all = append(all, strings.ToUpper(name))
	}
	return all
}

// maxPage is the most that one answer lists.
const maxPage = 1000

// listSends prints what a list has, page by page.
func (a *app) listSends(ctx context.Context, name string, limit int, request *facadev1.ListSendsRequest) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer client.close()
	p := newPrinter(a.output, name, sendColumns, a.out)
	err = eachSend(ctx, client, request, func(s *facadev1.Send) error {
		if limit > 0 && p.rows == limit {
			return errEnough
		}
		return p.add(s)
	})
	if errors.Is(err, errEnough) {
		a.note("there are more than %d: --limit lists more", limit)
		err = nil
	}
	if err != nil {
		return err
	}
	return p.end()
}

// errEnough ends a list.
var errEnough = errors.New("enough")

// eachSend calls f with every send of a list.
func eachSend(ctx context.Context, client *client, request *facadev1.ListSendsRequest, f func(*facadev1.Send) error) error {
	request.PageSize = maxPage
	for {
		page, err := call(ctx, client, client.ListSends, request)
		if err != nil {
			return err
		}
		for _, s := range page.Sends {
			if err := f(s); err != nil {
				return err
			}
		}
		if request.PageToken = page.NextPageToken; request.PageToken == "" {
			return nil
		}
	}
}

func (a *app) sendsGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get SEND_ID", Short: "Show one send", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			return one(a, c, sendColumns, func(ctx context.Context, client *client) (*facadev1.Send, error) {
				answer, err := call(ctx, client, client.GetSend, &facadev1.GetSendRequest{SendId: args[0]})
				return answer.GetSend(), err
			})
		},
	}
}

func (a *app) sendsCancelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cancel SEND_ID", Short: "Cancel a send that has not left", Args: cobra.ExactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			return one(a, c, sendColumns, func(ctx context.Context, client *client) (*facadev1.Send, error) {
				answer, err := call(ctx, client, client.CancelSend, &facadev1.CancelSendRequest{SendId: args[0]})
				return answer.GetSend(), err
			})
		},
	}
}

func (a *app) sendsResolveCommand() *cobra.Command {
	var as string
	c := &cobra.Command{
		Use: "resolve SEND_ID --as sent|failed", Short: "Settle an UNKNOWN send by what you found out", Args: cobra.ExactArgs(1),
		Long: `Settles a send whose outcome nobody could know. Look first: ask the user, or find the message in Jelou's dashboard. What you say here
is final.`,
		ValidArgsFunction: cobra.NoFileCompletions, DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, args []string) error {
			state, err := enumValue("--as", as, map[string]int32{"SENT": int32(facadev1.Send_SENT), "FAILED": int32(facadev1.Send_FAILED)})
			if err != nil {
				return err
			}
			return one(a, c, sendColumns, func(ctx context.Context, client *client) (*facadev1.Send, error) {
				answer, err := call(ctx, client, client.ResolveSend, &facadev1.ResolveSendRequest{SendId: args[0], State: facadev1.Send_State(state)})
				return answer.GetSend(), err
			})
		},
	}
	c.Flags().StringVar(&as, "as", "", "what became of it: sent or failed")
	must(c.MarkFlagRequired("as"))
	must(c.RegisterFlagCompletionFunc("as", fixed("sent", "failed")))
	return c
}

// one makes a call that answers one object, and prints it.
func one[T proto.Message](a *app, c *cobra.Command, columns []column[T], ask func(context.Context, *client) (T, error)) error {
	client, err := a.connect(c.Context())
	if err != nil {
		return err
	}
	defer client.close()
	answer, err := ask(c.Context(), client)
	if err != nil {
		return err
	}
	return printOne(a, columns, answer)
}
