-- Of PostgreSQL alone: SQLite has no old versions of rows.

-- +goose Up

-- What a claim looks through, on an expression of its own: by its columns the planner, once it had counted few rows with many
-- versions, took another index, which has all of them, and sorted what it found.
DROP INDEX share_ready, queue_ready;
CREATE INDEX share_ready ON share ((company - 0), lane, start_tag, caller) WHERE ready = 1;
CREATE INDEX queue_ready ON queue ((company - 0), lane, caller, start_tag, id) WHERE state = 'open' AND ready = 1;

-- +goose Down

DROP INDEX share_ready, queue_ready;
CREATE INDEX share_ready ON share (company, lane, start_tag, caller) WHERE ready = 1;
CREATE INDEX queue_ready ON queue (company, lane, caller, start_tag, id) WHERE state = 'open' AND ready = 1;
