-- +goose Up

-- Whose send made a notification of Jelou's, so that its caller can read it there, and no other.
CREATE TABLE notification (
  company BIGINT NOT NULL,
  bot     TEXT   NOT NULL,
  id      TEXT   NOT NULL, -- Jelou's
  caller  TEXT   NOT NULL,
  sent_at BIGINT NOT NULL,
  PRIMARY KEY (company, bot, id)
);
CREATE INDEX notification_sent ON notification (sent_at);

-- +goose Down

DROP TABLE notification;
