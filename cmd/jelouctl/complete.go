package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
)

// fixed completes from a closed list.
func fixed(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}

// completionTimeout is how long a shell waits for the server's ids.
const completionTimeout = 2 * time.Second

// completeBatches offers the newest batches with their names and states.
func (a *app) completeBatches(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(c.Context(), completionTimeout)
	defer cancel()
	client, err := a.connect(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer client.close()
	answer, err := client.ListBatches(ctx, &facadev1.ListBatchesRequest{PageSize: 50})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var ids []cobra.Completion
	for _, b := range answer.Batches {
		if strings.HasPrefix(b.BatchId, typed) {
			ids = append(ids, cobra.CompletionWithDesc(b.BatchId, strings.TrimSpace(batchState(b)+" "+b.GetSpec().GetDisplayName())))
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
