-- Of PostgreSQL alone: SQLite has no old versions of rows.

-- +goose Up

-- The caller is an expression too: as a plain column it let the planner take share_id, and go through all of it, once shares had
-- many versions.
DROP INDEX share_newest;
CREATE INDEX share_newest ON share ((company + 0), (lane + 0), (caller || ''), start_tag);

-- +goose Down

DROP INDEX share_newest;
CREATE INDEX share_newest ON share ((company + 0), (lane + 0), caller, start_tag);
