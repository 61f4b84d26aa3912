package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

func (a *app) capacityCommand() *cobra.Command {
	var bot string
	var once bool
	c := &cobra.Command{
		Use:   "capacity",
		Short: "Show the allowance at Jelou, how much of it is used, and what waits in each lane",
		Long: `Shows the allowance of the bot's company, live on a terminal until Ctrl-C. Elsewhere, and with --once, it is shown once; with --output
ndjson every change is a line.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			bot, err := a.bot(bot)
			if err != nil {
				return err
			}
			client, err := a.connect(c.Context())
			if err != nil {
				return err
			}
			defer client.close()
			_, terminal := terminalOf(a.out)
			if once || a.output == formatJSON || a.output == formatCSV || a.output == formatTable && !terminal {
				return a.capacityOnce(c.Context(), client, bot)
			}
			return a.watchCapacity(c.Context(), client, bot)
		},
	}
	c.Flags().StringVar(&bot, "bot", "", "`id` of a bot of the company; the context's when not given")
	c.Flags().BoolVar(&once, "once", false, "show it once")
	return c
}

func (a *app) capacityOnce(ctx context.Context, client *client, bot string) error {
	answer, err := call(ctx, client, client.GetCapacity, &facadev1.GetCapacityRequest{BotId: bot})
	if err != nil {
		return err
	}
	if a.output == formatTable {
		_, err := io.WriteString(a.out, capacityView(answer.Capacity, colorOf(a.out), time.Now()))
		return err
	}
	return printOne(a, capacityColumns, answer.Capacity)
}

var capacityColumns = func() []column[*facadev1.Capacity] {
	columns := []column[*facadev1.Capacity]{
		{"company_id", short, (*facadev1.Capacity).GetCompanyId},
		{"requests", short, func(c *facadev1.Capacity) string { return fmt.Sprint(c.Requests) }},
		{"window_seconds", short, func(c *facadev1.Capacity) string { return fmt.Sprint(c.Window.AsDuration().Seconds()) }},
		{"used_share", short, func(c *facadev1.Capacity) string { return fmt.Sprintf("%.3f", c.UsedShare) }},
		{"used_share_mine", short, func(c *facadev1.Capacity) string { return fmt.Sprintf("%.3f", c.UsedShareMine) }},
		{"pause_reason", short, func(c *facadev1.Capacity) string { return c.GetPause().GetReason() }},
		{"durable_failover", short, func(c *facadev1.Capacity) string { return yes(c.DurableFailover) }},
	}
	for _, lane := range []facadev1.SendOptions_Lane{facadev1.SendOptions_URGENT, facadev1.SendOptions_NORMAL, facadev1.SendOptions_BULK} {
		find := func(c *facadev1.Capacity) *facadev1.Capacity_LaneQueue {
			for _, q := range c.Lanes {
				if q.Lane == lane {
					return q
				}
			}
			return nil
		}
		name := strings.ToLower(lane.String())
		columns = append(columns,
			column[*facadev1.Capacity]{name + "_waiting", short, func(c *facadev1.Capacity) string { return fmt.Sprint(find(c).GetWaiting()) }},
			column[*facadev1.Capacity]{name + "_wait_seconds", short, func(c *facadev1.Capacity) string {
				return fmt.Sprintf("%.3f", find(c).GetExpectedWait().AsDuration().Seconds())
			}})
	}
	return columns
}()

// The terminal's own second screen: what was there comes back when the view ends.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// watchCapacity shows every change until ctx ends, and goes on by itself after a cut.
func (a *app) watchCapacity(ctx context.Context, client *client, bot string) error {
	draw := func(c *facadev1.Capacity) error {
		_, err := fmt.Fprintf(a.out, "%s\n", toJSON(c))
		return err
	}
	if a.output == formatTable {
		fmt.Fprint(a.out, enterScreen)
		defer fmt.Fprint(a.out, leaveScreen)
		draw = func(c *facadev1.Capacity) error { return a.repaint(c, client.address) }
	}
	for attempt := 1; ; attempt++ {
		seen, err := streamCapacity(ctx, client, bot, draw)
		if seen {
			attempt = 1
		}
		wait, again := retryAfter(err, attempt)
		if ctx.Err() != nil {
			return &failure{exit: 0} // Ctrl-C is how one leaves
		}
		if !again || attempt == maxAttempts || sleep(ctx, wait) != nil {
			return err
		}
	}
}

// streamCapacity draws what one stream says, and tells whether that was anything.
func streamCapacity(ctx context.Context, client *client, bot string, draw func(*facadev1.Capacity) error) (seen bool, err error) {
	stream, err := client.WatchCapacity(ctx, &facadev1.WatchCapacityRequest{BotId: bot})
	if err != nil {
		return false, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return seen, status.Error(codes.Unavailable, "the stream ended")
		}
		if err != nil {
			return seen, err
		}
		seen = true
		if err := draw(m.Capacity); err != nil {
			return seen, err
		}
	}
}

// repaint draws over what was there, line by line, so that nothing flickers.
func (a *app) repaint(c *facadev1.Capacity, address string) error {
	now := time.Now()
	view := fmt.Sprintf("jelou-facade at %s, %s\n\n%s\nCtrl-C leaves\n", address, now.Format("15:04:05"), capacityView(c, colorOf(a.out), now))
	_, err := io.WriteString(a.out, home+strings.ReplaceAll(view, "\n", clearLine+"\n")+clearBelow)
	return err
}

const gaugeWidth = 24

// capacityView is the capacity for people.
func capacityView(c *facadev1.Capacity, color color, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "company     %s\n", printable(c.CompanyId))
	fmt.Fprintf(&b, "allowance   %d requests in %s\n", c.Requests, c.Window.AsDuration())
	full := int(math.Round(min(max(c.UsedShare, 0), 1) * gaugeWidth))
	fmt.Fprintf(&b, "used        [%s%s] %.0f%% over a minute, %.0f%% by this caller\n",
		strings.Repeat("=", full), strings.Repeat(" ", gaugeWidth-full), c.UsedShare*100, c.UsedShareMine*100)
	fmt.Fprintf(&b, "state       %s\n", pauseView(c.Pause, color, now))
	if !c.DurableFailover {
		b.WriteString("failover    the ledger's database may lose what it has confirmed\n")
	}
	b.WriteString("\n")
	lanes := table{out: &b, color: color}
	lanes.add([]string{"LANE", "WAITING", "OF THIS CALLER", "A NEW ONE WAITS"})
	for _, q := range c.Lanes {
		lanes.add([]string{q.Lane.String(), fmt.Sprint(q.Waiting), fmt.Sprint(q.WaitingMine), waitView(q)})
	}
	must(lanes.flush())
	return b.String()
}

func waitView(q *facadev1.Capacity_LaneQueue) string {
	if q.ExpectedWait == nil {
		return "nobody can say"
	}
	return roughly(q.ExpectedWait.AsDuration())
}

func pauseView(p *facadev1.Capacity_Pause, color color, now time.Time) string {
	switch {
	case p == nil:
		return color.paint("32", "sending")
	case p.UntilTime == nil:
		return color.red("paused: "+printable(p.Reason)) + ", until a person acts: jelouctl errors " + printable(p.Reason)
	}
	return color.paint("33", "paused: "+printable(p.Reason)) + ", for " + roughly(p.UntilTime.AsTime().Sub(now))
}

// roughly is a duration as a person would say it.
func roughly(d time.Duration) string {
	switch {
	case d <= 0:
		return "0s"
	case d < time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
