package service

import (
	"context"
	"errors"
	"strconv"

	facadev1 "github.com/jelou-facade/jelou-facade/gen/jelou/facade/v1"
	"github.com/jelou-facade/jelou-facade/service/dispatch"
	"github.com/jelou-facade/jelou-facade/service/jelou"
)

type notificationServer struct {
	facadev1.UnimplementedNotificationServiceServer
	*core
}

// SendNotification sends one template.
func (s *notificationServer) SendNotification(ctx context.Context, r *facadev1.SendNotificationRequest) (*facadev1.SendNotificationResponse, error) {
	item := &facadev1.BatchItem{Content: &facadev1.BatchItem_Notification{Notification: r.Notification}}
	send, err := s.sendOne(ctx, r, item)
	if err != nil {
		return nil, err
	}
	return &facadev1.SendNotificationResponse{Send: send, Warnings: jelou.Warnings(item)}, nil
}

// GetNotification reads Jelou's record of one notification.
func (s *notificationServer) GetNotification(ctx context.Context, r *facadev1.GetNotificationRequest) (*facadev1.GetNotificationResponse, error) {
	own, err := s.ownNotifications(ctx, r.BotId, []string{r.NotificationId})
	if err != nil {
		return nil, err
	}
	if !own[r.NotificationId] {
		return nil, newFault(facadev1.ErrorReason_RESOURCE_NOT_FOUND, "no such notification, or not of a send of this caller's that is still kept")
	}
	var found *facadev1.Notification
	err = s.read(ctx, r.BotId, func(ctx context.Context, client *jelou.Client) (timing jelou.Timing, err error) {
		found, timing, err = client.GetNotification(ctx, r.BotId, r.NotificationId)
		return timing, err
	})
	if err != nil {
		return nil, err
	}
	return &facadev1.GetNotificationResponse{Notification: found}, nil
}

// ListNotifications lists Jelou's records.
func (s *notificationServer) ListNotifications(ctx context.Context, r *facadev1.ListNotificationsRequest) (*facadev1.ListNotificationsResponse, error) {
	page, err := notificationPage(r)
	if err != nil {
		return nil, err
	}
	query := jelou.ListQuery{Page: page, Limit: int(r.PageSize), ElementName: r.ElementName, CampaignID: r.CampaignId}
	if r.CreateTimeFrom != nil {
		query.From = r.CreateTimeFrom.AsTime()
	}
	if r.CreateTimeTo != nil {
		query.To = r.CreateTimeTo.AsTime()
	}
	var list *jelou.Page
	err = s.read(ctx, r.BotId, func(ctx context.Context, client *jelou.Client) (timing jelou.Timing, err error) {
		list, timing, err = client.ListNotifications(ctx, r.BotId, query)
		return timing, err
	})
	if err != nil {
		return nil, err
	}
	response := &facadev1.ListNotificationsResponse{TotalSize: int32(list.Total)}
	if response.Notifications, err = s.visibleNotifications(ctx, r.BotId, list.Notifications); err != nil {
		return nil, err
	}
	if !callerOf(ctx).Admin() {
		response.TotalSize = 0 // how many others have is not this caller's business
	}
	if list.Next != 0 {
		response.NextPageToken = pageToken(r, strconv.Itoa(list.Next))
	}
	return response, nil
}

// read runs one read of Jelou in its turn.
func (s *core) read(ctx context.Context, botID string, f func(context.Context, *jelou.Client) (jelou.Timing, error)) error {
	company, err := s.companyOf(ctx, botID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, waitOf(ctx, false))
	defer cancel()
	err = s.dispatch.Read(ctx, company.ID, f)
	switch {
	case errors.Is(err, dispatch.ErrRemoved):
		return botNotFound()
	case errors.Is(err, dispatch.ErrTooManyReads):
		return newFault(facadev1.ErrorReason_QUEUE_FULL, "too many reads of notifications wait for this company").because(err)
	case errors.Is(err, dispatch.ErrStopping):
		return newFault(facadev1.ErrorReason_DRAINING, "the server stops; nothing was read").because(err)
	case errors.Is(err, context.DeadlineExceeded):
		return newFault(facadev1.ErrorReason_WOULD_MISS_DEADLINE, "the read's turn did not come before the call's deadline").because(err)
	}
	return err
}

// notificationPage is the number of Jelou's page that a token leads to.
func notificationPage(r *facadev1.ListNotificationsRequest) (int, error) {
	after, err := pageAfter(r, r.PageToken)
	if err != nil || after == "" {
		return 1, err
	}
	page, err := strconv.Atoi(after)
	if err != nil || page < 1 {
		return 0, invalidField("page_token", "is not of an answer with these filters; begin with an empty one")
	}
	return page, nil
}
